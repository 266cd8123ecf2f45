"""Fitting one patient to one task. `programs` maps it over the patients of a batch."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from nfcl_jax import coordinates
from nfcl_jax.coordinates import Points
from nfcl_jax.fields import (
    Params,
    field_inputs,
    grow_output,
    init_params,
    num_output_channels,
    replace_window,
    table_window,
)
from nfcl_jax.losses import weighted_mean
from nfcl_jax.scenarios import Output, Scan
from nfcl_jax.strategies import EarlierTasks, Strategy


class FitConfig(NamedTuple):
    """How a field is fitted; static under jit, so equal recipes share compiled programs."""

    field: nn.Module
    strategy: Strategy | None
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
    """The part of a task that is static: what is learned, and what was learned before, if the
    strategy asks for it: without, the first task and the next are the same to the program."""

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


class PenaltyShare(NamedTuple):
    """What a strategy adds to the fitting loss, and the norm of its gradient towards all
    parameters, as multiples of the fitting loss's."""

    loss: Float[Array, ""]
    gradient: Float[Array, ""]


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
    if not config.field.on_grid or outputs.earlier:
        return config.field, params, None
    rows = outputs.num_frames * config.num_voxels
    return *table_window(config.field, params, start, rows), start


def start_task(
    config: FitConfig,
    outputs: TaskOutputs,
    params: Params | None,
    patient: Patient,
    task_arrays: TaskArrays,
) -> TrainState:
    """The state at the start of a task.

    The parameters are fresh for the first task (`params` None), else the last task's, with the
    output layer grown where the task needs more channels. The optimiser is always fresh.
    """
    key = stream(jax.random.fold_in(patient.key, task_arrays.number), "init")
    fresh = init_params(config.field, key, axes=patient.shape.size)
    if params is None:
        params = fresh
    # A copy, because the state's buffers are donated to each step and a teacher's are not.
    params = jax.tree.map(jnp.copy, params)
    if num_output_channels(params) < config.field.channels:
        params = grow_output(params, fresh)
    start, _ = coordinates.frame_range(task_arrays.frames, patient.shape)
    _, learning, _ = learning_part(config, outputs, params, start)
    return TrainState(params, optimiser(config).init(learning))


def remember(
    config: FitConfig,
    outputs: TaskOutputs,
    params: Params,
    patient: Patient,
    task_arrays: TaskArrays,
    stop_voxel: Int[Array, ""],
) -> Any:
    """The strategy's memory of the earlier tasks, from the parameters that the last one left."""
    earlier = earlier_tasks(config, outputs, patient, task_arrays, stop_voxel)
    return config.strategy.remember(earlier, params)


def losses_of_step(
    config: FitConfig,
    outputs: TaskOutputs,
    field: nn.Module,
    offset: Int[Array, ""] | None,
    memory: Any,
    patient: Patient,
    task_arrays: TaskArrays,
) -> Callable[[Int[Array, ""]], Callable[[Params], Losses]]:
    """The losses that a step looks at, as a function of the step's number and then of the params.

    A step draws points of the task, asks the field there and, in the same pass, wherever the
    strategy rehearses. `field` and `offset` are those of `learning_part`.
    """
    key = jax.random.fold_in(patient.key, task_arrays.number)
    fit_key, rehearsal_key = stream(key, "fit"), stream(key, "rehearsal")
    start, stop = coordinates.frame_range(task_arrays.frames, patient.shape)
    earlier = (
        earlier_tasks(config, outputs, patient, task_arrays, stop) if outputs.earlier else None
    )

    def draw(i):
        points = draw_points(
            config, outputs.num_frames, start, stop, jax.random.fold_in(fit_key, i)
        )
        inputs = field_inputs(config.field, points.index, patient.shape)
        targets = targets_at(outputs.new, patient, points.index)
        rehearsal = None
        if earlier is not None:
            step_key = jax.random.fold_in(rehearsal_key, i)
            rehearsal = config.strategy.rehearse(earlier, memory, points, step_key)
        elsewhere = rehearsal is not None and rehearsal.inputs is not None
        asked = jnp.concatenate([inputs, rehearsal.inputs]) if elsewhere else inputs
        asked = asked if offset is None else asked - offset

        def losses(params):
            answers = field.apply(params, asked)
            new = answers[: len(inputs), outputs.new.channels]
            fit = weighted_mean(outputs.new.loss(new, targets), points.weights)
            if earlier is None:
                return Losses(fit, jnp.zeros(()))
            rehearsed = answers[len(inputs) :] if elsewhere else answers
            return Losses(fit, config.strategy.penalty(earlier, rehearsal, rehearsed))

        return losses

    return draw


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

    Each minimises the fitting loss plus the strategy's penalty.
    """
    start, _ = coordinates.frame_range(task_arrays.frames, patient.shape)
    field, learning, offset = learning_part(config, outputs, state.params, start)
    draw = losses_of_step(config, outputs, field, offset, memory, patient, task_arrays)
    adam = optimiser(config)

    def step(i, carry):
        (learning, opt_state), all_losses = carry
        losses_at = draw(i)

        def loss(params):
            losses = losses_at(params)
            return losses.fit + losses.penalty, losses

        gradient, losses = jax.grad(loss, has_aux=True)(learning)
        updates, opt_state = adam.update(gradient, opt_state)
        all_losses = jax.tree.map(
            lambda all, new: all.at[i - first_step].set(new), all_losses, losses
        )
        return (optax.apply_updates(learning, updates), opt_state), all_losses

    empty = Losses(jnp.zeros(chunk), jnp.zeros(chunk))
    (learning, opt_state), losses = jax.lax.fori_loop(
        first_step, stop_step, step, ((learning, state.opt_state), empty)
    )
    params = learning if offset is None else replace_window(state.params, learning, offset)
    return TrainState(params, opt_state), losses


def penalty_share(
    config: FitConfig,
    outputs: TaskOutputs,
    params: Params,
    memory: Any,
    patient: Patient,
    task_arrays: TaskArrays,
    step: Int[Array, ""],
) -> PenaltyShare:
    """How large the strategy's penalty is beside the fitting loss, at the points of one step."""
    draw = losses_of_step(config, outputs, config.field, None, memory, patient, task_arrays)
    losses_at = draw(step)
    losses = losses_at(params)
    fit = jax.grad(lambda params: losses_at(params).fit)(params)
    penalty = jax.grad(lambda params: losses_at(params).penalty)(params)
    return PenaltyShare(
        losses.penalty / losses.fit, optax.tree.norm(penalty) / optax.tree.norm(fit)
    )
