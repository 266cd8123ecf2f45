"""Fitting one patient to one task, and then all patients of a batch at once.

Everything with `Patient` in its signature is written for one patient. `over_patients` maps it
over a batch, of which each device takes its share.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from nfcl_jax import coordinates
from nfcl_jax.coordinates import Points
from nfcl_jax.fields import (
    Params,
    field_inputs,
    grow_output,
    init_params,
    num_output_channels,
    render,
    replace_window,
    table_window,
)
from nfcl_jax.losses import weighted_mean
from nfcl_jax.scenarios import Output, Scan
from nfcl_jax.strategies import EarlierTasks, Strategy

# How XLA compiles for a CPU. Measured on two cores of an AMD EPYC: Eigen's matrix products take a
# tenth less time than those of its younger rival, which is the default, and vectors of 512 bits,
# where there are any, halve the time of a sine.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512}


class FitConfig(NamedTuple):
    """How a field is fitted; static under jit, so equal recipes share compiled programs."""

    field: nn.Module
    strategy: Strategy
    learning_rate: float
    num_steps: int
    batch_size: int  # points per step; 0 is every voxel of the task
    num_voxels: int  # of one frame, padded: the longest patient's of the batch


class Patient(NamedTuple):
    """A scan as the training sees it: flat and padded, with its own shape and random key."""

    intensities: Float[Array, " points"]
    labels: Int[Array, " points"] | None
    shape: Int[Array, " axes"]
    key: Key[Array, ""]


class TaskArrays(NamedTuple):
    """A task as the training step sees it. The frames are arrays, so that the next task of the
    same kind runs in the same compiled program."""

    number: Int[Array, ""]
    frames: Int[Array, "2"]
    earlier_frames: Int[Array, "outputs 2"]


class TaskOutputs(NamedTuple):
    """The part of a task that is static: what is learned, and what was learned before."""

    new: Output
    earlier: tuple[Output, ...]
    num_frames: int
    num_earlier_frames: int


class TrainState(NamedTuple):
    params: Params
    opt_state: optax.OptState


class Losses(NamedTuple):
    """Of each step: the loss on the new task, and what the strategy added to it."""

    fit: Float[Array, "*steps"]
    penalty: Float[Array, "*steps"]


def stable_hash(name: str) -> int:
    """A 32-bit hash that is the same in every process and version of Python."""
    return zlib.crc32(name.encode())


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """A key for one purpose, by its name: adding a purpose leaves the others' numbers alone."""
    return jax.random.fold_in(key, stable_hash(name))


def padded_size(size: int) -> int:
    """`size` rounded up by at most an eighth, to one of eight sizes per power of two, so that
    batches of similar patients share compiled programs."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def stack_scans(scans: Sequence[Scan], num_voxels: int, seed: int) -> Patient:
    """Patients with a leading batch axis, padded to `num_voxels` per frame.

    A patient's key comes from the seed and the scan's name alone, never from its place.
    """

    def flat(volume, dtype):
        values = np.zeros(num_voxels * len(volume), dtype)
        values[: volume.size] = volume.ravel()
        return values

    root = jax.random.key(seed)
    has_labels = scans[0].labels is not None
    return Patient(
        intensities=jnp.stack([flat(scan.intensities, np.float32) for scan in scans]),
        labels=jnp.stack([flat(scan.labels, np.int32) for scan in scans]) if has_labels else None,
        shape=jnp.array([scan.shape for scan in scans], jnp.int32),
        key=jnp.stack([stream(root, scan.name) for scan in scans]),
    )


def targets_at(output: Output, patient: Patient, index: Int[Array, " points"]):
    """What `output` should be at voxels: intensities, or one-hot classes."""
    if output.name == "image":
        return patient.intensities[index][:, None]
    return jax.nn.one_hot(patient.labels[index], output.num_channels)


def optimiser(config: FitConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def draw_points(config: FitConfig, num_frames: int, start, stop, key) -> Points:
    """The points of one step on a domain of flat indices: a sample, or every voxel."""
    if config.batch_size == 0:
        return coordinates.all_points(num_frames * config.num_voxels, start, stop)
    return coordinates.sample_points(key, config.batch_size, start, stop)


def earlier_tasks(
    config: FitConfig, outputs: TaskOutputs, patient: Patient, task_arrays: TaskArrays, stop_voxel
) -> EarlierTasks:
    """What the strategy is told of the earlier tasks."""
    frames = jnp.stack(
        [task_arrays.earlier_frames[:, 0].min(), task_arrays.earlier_frames[:, 1].max()]
    )
    start, stop = coordinates.frame_range(frames, patient.shape)
    num_voxels = outputs.num_earlier_frames * config.num_voxels
    return EarlierTasks(
        field=config.field,
        shape=patient.shape,
        outputs=outputs.earlier,
        frames=task_arrays.earlier_frames,
        draw=lambda key: draw_points(config, outputs.num_earlier_frames, start, stop, key),
        num_voxels=num_voxels,
        stop_voxel=stop_voxel,
        points_evaluated=config.num_steps * (config.batch_size or num_voxels),
    )


def learning_part(
    config: FitConfig, outputs: TaskOutputs, params: Params, start: Int[Array, ""]
) -> tuple[nn.Module, Params, Int[Array, ""] | None]:
    """The field as a task can change it: DINER's table only where the task is, unless the earlier
    tasks are rehearsed. Rows that no step asks have no gradient, and Adam, fresh, leaves them.

    Args:
      config: the recipe.
      outputs: of the task.
      params: of the field.
      start: the first flat index of the task.

    Returns:
      The field, its parameters, and which index they count from, if not 0.
    """
    if not config.field.on_grid or (outputs.earlier and config.strategy.rehearses):
        return config.field, params, None
    rows = outputs.num_frames * config.num_voxels
    return *table_window(config.field, params, start, rows), start


def start_task(
    config: FitConfig,
    outputs: TaskOutputs,
    params: Params | None,
    patient: Patient,
    task_arrays: TaskArrays,
    stop_voxel: Int[Array, ""],
) -> tuple[TrainState, Any]:
    """State and the strategy's memory at the start of a task.

    The parameters are fresh for the first task (`params` None), else the last task's, with the
    output layer grown where the task needs more channels. The optimiser is always fresh.
    """
    key = stream(jax.random.fold_in(patient.key, task_arrays.number), "init")
    fresh = init_params(config.field, key, axes=patient.shape.size)
    memory = None
    if params is None:
        params = fresh
    else:
        earlier = earlier_tasks(config, outputs, patient, task_arrays, stop_voxel)
        memory = config.strategy.remember(earlier, params)
        # A copy, because the state's buffers are donated to each step and the memory's are not.
        params = jax.tree.map(jnp.copy, params)
        if num_output_channels(params) < config.field.channels:
            params = grow_output(params, fresh)
    start, _ = coordinates.frame_range(task_arrays.frames, patient.shape)
    _, learning, _ = learning_part(config, outputs, params, start)
    return TrainState(params, optimiser(config).init(learning)), memory


def fit_steps(
    config: FitConfig,
    outputs: TaskOutputs,
    chunk: int,
    state: TrainState,
    memory: Any,
    patient: Patient,
    task_arrays: TaskArrays,
    first_step: Int[Array, ""],
    stop_step: Int[Array, ""],
) -> tuple[TrainState, Losses]:
    """Steps `first_step` to `stop_step - 1` of Adam on one task; at most `chunk` of them.

    Each step draws points of the task, asks the field there and, in the same pass, wherever the
    strategy rehearses, and minimises the fitting loss plus the strategy's penalty.
    """
    key = jax.random.fold_in(patient.key, task_arrays.number)
    start, stop = coordinates.frame_range(task_arrays.frames, patient.shape)
    earlier = (
        earlier_tasks(config, outputs, patient, task_arrays, stop) if outputs.earlier else None
    )
    adam = optimiser(config)
    field, learning, offset = learning_part(config, outputs, state.params, start)

    def step(i, carry):
        (learning, opt_state), losses = carry
        points = draw_points(
            config, outputs.num_frames, start, stop, jax.random.fold_in(stream(key, "fit"), i)
        )
        inputs = field_inputs(config.field, points.index, patient.shape)
        targets = targets_at(outputs.new, patient, points.index)
        rehearsal = None
        if earlier is not None:
            rehearsal_key = jax.random.fold_in(stream(key, "rehearsal"), i)
            rehearsal = config.strategy.rehearse(earlier, memory, points, rehearsal_key)
        elsewhere = rehearsal is not None and rehearsal.inputs is not None
        asked = jnp.concatenate([inputs, rehearsal.inputs]) if elsewhere else inputs
        asked = asked if offset is None else asked - offset

        def loss(params):
            answers = field.apply(params, asked)
            new = answers[: len(inputs), outputs.new.channels]
            fit = weighted_mean(outputs.new.loss(new, targets), points.weights)
            if earlier is None:
                return fit, Losses(fit, jnp.zeros(()))
            rehearsed = answers[len(inputs) :] if elsewhere else answers
            penalty = config.strategy.penalty(earlier, rehearsal, rehearsed)
            return fit + penalty, Losses(fit, penalty)

        gradient, values = jax.grad(loss, has_aux=True)(learning)
        updates, opt_state = adam.update(gradient, opt_state)
        losses = jax.tree.map(lambda all, new: all.at[i - first_step].set(new), losses, values)
        return (optax.apply_updates(learning, updates), opt_state), losses

    empty = Losses(jnp.zeros(chunk), jnp.zeros(chunk))
    (learning, opt_state), losses = jax.lax.fori_loop(
        first_step, stop_step, step, ((learning, state.opt_state), empty)
    )
    params = learning if offset is None else replace_window(state.params, learning, offset)
    return TrainState(params, opt_state), losses


def over_patients(
    function: Callable, mesh: Mesh, num_static: int, mapped: tuple[bool, ...], **jit
) -> Callable:
    """`function`, written for one patient, over a batch of them.

    Args:
      function: its first arguments are hashable, the others pytrees.
      mesh: one axis, "patients"; its size must divide that of the batch.
      num_static: how many hashable arguments there are.
      mapped: for each pytree argument, whether it has a leading batch axis.
      **jit: further arguments of `jax.jit`.

    Returns:
      The jitted function; every result has a leading batch axis.
    """
    spec = PartitionSpec("patients")

    def batched(*arguments):
        static, arrays = arguments[:num_static], arguments[num_static:]
        one_patient = functools.partial(function, *static)
        on_device = _map_patients(one_patient, mapped, mesh.devices.flat[0].platform)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=tuple(spec if m else PartitionSpec() for m in mapped),
            out_specs=spec,
            check_vma=False,  # the patients never talk to each other
        )(*arrays)

    options = CPU_OPTIONS if mesh.devices.flat[0].platform == "cpu" else None
    static = tuple(range(num_static))
    return jax.jit(batched, static_argnums=static, compiler_options=options, **jit)


def _map_patients(one_patient: Callable, mapped: tuple[bool, ...], platform: str) -> Callable:
    """`one_patient` over a batch axis: vmap on accelerators, one after the other on a CPU.

    A CPU is filled by one patient. Each then runs in the very same loop body, so that a batch of
    any size gives the same bits; batched matrix products round differently for each size, which
    500 steps of Adam amplify to tenths of a dB.
    """
    if platform != "cpu":
        return jax.vmap(one_patient, in_axes=tuple(0 if m else None for m in mapped))

    def one_after_the_other(*arrays):
        def with_shared(batched):
            own = iter(batched)
            return one_patient(
                *(next(own) if m else x for x, m in zip(arrays, mapped, strict=True))
            )

        return jax.lax.map(with_shared, [x for x, m in zip(arrays, mapped, strict=True) if m])

    return one_after_the_other


class Programs(NamedTuple):
    """The compiled programs of a run, one patient's functions mapped over a batch."""

    start_task: Callable
    fit_steps: Callable
    render: Callable


@functools.lru_cache
def compile_for(mesh: Mesh) -> Programs:
    """`start_task`, `fit_steps` and `fields.render` over the patients of a batch on `mesh`."""
    return Programs(
        start_task=over_patients(start_task, mesh, 2, (True, True, False, False)),
        fit_steps=over_patients(
            fit_steps, mesh, 3, (True, True, True, False, False, False), donate_argnums=(3,)
        ),
        render=over_patients(_render_patient, mesh, 2, (True, True, False)),
    )


def _render_patient(field, num_points, params, patient, stop):
    return render(field, params, patient.shape, num_points, stop)
