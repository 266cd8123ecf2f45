"""The loop over tasks: fit every scan to a task, score it on all tasks so far, go on."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from nfcl_jax import evaluation
from nfcl_jax.fields import Params, create_field, resize_table
from nfcl_jax.programs import compile_for
from nfcl_jax.scenarios import Scan, Task, merge_domains, num_channels
from nfcl_jax.strategies import Strategy
from nfcl_jax.training import (
    FitConfig,
    Losses,
    Patient,
    PenaltyShare,
    TaskArrays,
    TaskOutputs,
    TrainState,
    padded_size,
    stack_scans,
)

STEPS_PER_CHUNK = 50  # steps between two looks at the losses
POINTS_IN_FLIGHT = 2**17  # that an accelerator is given at once: some GB of activations


class InactivePenaltyError(ValueError):
    """What a strategy adds to the loss, or to its gradient, is zero."""


class Settings(NamedTuple):
    """How every task is fitted. `batch_size` 0 is every voxel; `patients_per_batch` is as
    `make_batches` takes it."""

    learning_rate: float
    num_steps: int
    batch_size: int
    patients_per_batch: int | None
    seed: int


class Metric(NamedTuple):
    """One score of one scan; tasks count from 1."""

    patient: str
    image: str
    trained_task: int
    evaluated_task: int
    metric: str
    value: float


class Fit(NamedTuple):
    """How one scan's fit to one task ended. `first_bad_step` is the first step, from 1, whose
    loss was not finite, or 0. The shares are `training.PenaltyShare` after the first chunk of
    steps, 0 without a penalty."""

    patient: str
    image: str
    task: int
    final_loss: float
    final_penalty: float
    collapsed: bool
    diverged: bool
    first_bad_step: int
    penalty_share: float = 0.0
    penalty_gradient_share: float = 0.0


class TaskResult(NamedTuple):
    """What a task left, with parameters by the scan's name."""

    number: int
    params: dict[str, Params]
    metrics: list[Metric]
    fits: list[Fit]


class ScanProgress(NamedTuple):
    """What one scan has of a task after `step` of its steps, on the host: all that is needed to go
    on. The parameters are as the training sees them, padded; once the scan is done with the task
    they are not, there is no state of the optimiser, and there are scores."""

    step: int
    params: Params
    optimiser: list[np.ndarray]  # leaves
    losses: Losses
    penalty_share: PenaltyShare | None
    metrics: list[Metric]
    fits: list[Fit]


Snapshot = Callable[[], dict[str, ScanProgress]]


class Progress(NamedTuple):
    """Where the work is: batch `batch` of `num_batches`, from 1, has done `step` of the steps of
    task `task`, from 1."""

    task: int
    batch: int
    num_batches: int
    patients: tuple[str, ...]
    step: int
    loss: float


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (all, if None) along one axis, over which patients are spread."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        (len(devices),), ("patients",), axis_types=(AxisType.Auto,), devices=devices
    )


def patients_at_once(platform: str, points: int) -> int:
    """How many patients a device is given at once if each asks for so many points in a step: a CPU
    one, which fills it; an accelerator as many as make POINTS_IN_FLIGHT, so that the memory that a
    step takes is bounded by them and not by the cohort."""
    return 1 if platform == "cpu" else max(POINTS_IN_FLIGHT // points, 1)


def make_batches(
    scans: Sequence[Scan], patients_per_batch: int | None, batch_size: int, mesh: Mesh
) -> tuple[int, list[list[Scan]]]:
    """Scans of similar size together, as many at once as `patients_per_batch` says, rounded up to
    a multiple of the devices; 0 is all, None what `patients_at_once` says for each device."""
    devices = mesh.devices.size
    if patients_per_batch is None:
        points = batch_size or max(scan.intensities[0].size for scan in scans)
        platform = mesh.devices.flat[0].platform
        patients_per_batch = devices * patients_at_once(platform, points)
    count = min(patients_per_batch or len(scans), len(scans))
    count = -(-count // devices) * devices
    ordered = sorted(scans, key=lambda scan: (scan.intensities[0].size, scan.name))
    return count, [ordered[i : i + count] for i in range(0, len(ordered), count)]


def learn(
    scans: Sequence[Scan],
    tasks: Sequence[Task],
    field: Mapping[str, Any],
    strategy: Strategy | None,
    settings: Settings,
    mesh: Mesh,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    learned: int = 0,
    params: Mapping[str, Params] | None = None,
    begun: Mapping[str, ScanProgress] | None = None,
    on_chunk: Callable[[int, int, Snapshot], None] = lambda task, step, snapshot: None,
) -> Iterator[TaskResult]:
    """Fits a field to every scan, task by task.

    The scans go through the compiled program of a task in batches; what a scan gets does not
    depend on the batch that it is in. Parameters wait on the host between tasks.

    Args:
      scans: all with the same number of frames.
      tasks: in the order in which they are learned.
      field: the field's name and constants, as `fields.create_field` takes them.
      strategy: from `strategies`; used from the second task on. None is fine-tuning.
      settings: see there.
      mesh: from `device_mesh`.
      on_progress: called between chunks of steps.
      learned: how many tasks are learned already; the work goes on after them, to the same results
        as if it had not been interrupted.
      params: what they left, by the scan's name.
      begun: what scans have of the next task, by their names; those of one batch must have done the
        same number of steps, or they begin it again.
      on_chunk: called with the numbers of the task and of the step between chunks of steps, and
        when a batch that is not the last is done. Calling the snapshot gives what its scans have.

    Yields:
      A result after each further task, with scores on every task so far.

    Raises:
      InactivePenaltyError: if the strategy's penalty or its gradient is zero after the first steps.
    """
    per_batch, batches = make_batches(scans, settings.patients_per_batch, settings.batch_size, mesh)
    params, begun = dict(params or {}), dict(begun or {})
    for number in range(learned + 1, len(tasks) + 1):
        done = {name: scan for name, scan in begun.items() if scan.fits}
        metrics = [metric for scan in done.values() for metric in scan.metrics]
        fits = [fit for scan in done.values() for fit in scan.fits]
        params |= {name: scan.params for name, scan in done.items()}
        seen = tasks[:number]
        for place, whole_batch in enumerate(batches, start=1):
            batch = [scan for scan in whole_batch if scan.name not in done]
            if not batch:
                continue

            def report(step, losses, number=number, place=place, batch=batch):
                mean = float(np.mean(np.asarray(losses.fit)[: len(batch), -1]))
                names = tuple(scan.name for scan in batch)
                on_progress(Progress(number, place, len(batches), names, step, mean))

            keep = functools.partial(on_chunk, number)
            after, losses, shares, outputs = _learn_task(
                batch, per_batch, seen, params, begun, field, strategy, settings, mesh, report, keep
            )
            finished = {}
            for i, scan in enumerate(batch):
                scores = _score(scan, seen, outputs[i])
                fit = _judge(scan, seen[-1], number, losses[i], shares[i], outputs[i])
                finished[scan.name] = ScanProgress(
                    settings.num_steps, after[i], [], losses[i], shares[i], scores, [fit]
                )
                params[scan.name] = after[i]
                metrics += scores
                fits.append(fit)
            if place < len(batches):
                keep(settings.num_steps, lambda finished=finished: finished)
        begun = {}
        yield TaskResult(number, dict(params), sorted(metrics), sorted(fits))


class TaskArguments(NamedTuple):
    """What the compiled programs take to fit one batch to one task; see `training`."""

    config: FitConfig
    outputs: TaskOutputs
    patients: Patient
    task_arrays: TaskArrays
    stop_earlier: int  # one flat index beyond the earlier tasks, in the batch's largest scan
    stop_seen: int  # and beyond this task too


def task_arguments(
    batch: Sequence[Scan],
    per_batch: int,
    tasks: Sequence[Task],
    field: Mapping[str, Any],
    strategy: Strategy | None,
    settings: Settings,
) -> TaskArguments:
    """The arguments for fitting `batch` to the last of `tasks`; a batch of less than `per_batch`
    scans is filled up with repetitions, so that it runs in the same program."""
    number, task = len(tasks), tasks[-1]
    earlier = merge_domains(tasks[:-1]) if strategy else {}
    largest = max(scan.intensities[0].size for scan in batch)
    num_voxels = padded_size(largest)
    config = FitConfig(
        field=create_field(field, num_channels(tasks), batch[0].num_frames * num_voxels),
        strategy=strategy if earlier else None,
        learning_rate=settings.learning_rate,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        num_voxels=num_voxels,
    )
    earlier_frames = list(earlier.values())
    stop_earlier = max((stop for _, stop in earlier_frames), default=0)
    whole = settings.batch_size == 0
    outputs = TaskOutputs(
        new=task.output,
        earlier=tuple(earlier),
        num_frames=task.frames[1] - task.frames[0],
        # Only a step over every voxel needs to know; otherwise one program serves every task.
        num_earlier_frames=stop_earlier if whole else batch[0].num_frames,
    )
    task_arrays = TaskArrays(
        number=jnp.int32(number),
        frames=jnp.array(task.frames, jnp.int32),
        earlier_frames=jnp.array(earlier_frames, jnp.int32).reshape(-1, 2),
    )
    filled = [batch[i % len(batch)] for i in range(per_batch)]
    return TaskArguments(
        config,
        outputs,
        stack_scans(filled, num_voxels, settings.seed),
        task_arrays,
        stop_earlier * largest,
        max(task.frames[1] for task in tasks) * largest,
    )


def _learn_task(
    batch, per_batch, tasks, params, begun, field, strategy, settings, mesh, report, keep
):
    """Fits one batch to the last of `tasks`; parameters, losses, shares of the penalty and rendered
    outputs per scan."""
    config, outputs, patients, task_arrays, stop_earlier, stop_seen = task_arguments(
        batch, per_batch, tasks, field, strategy, settings
    )
    rows = batch[0].num_frames * config.num_voxels
    before = None
    if len(tasks) > 1:
        padded = [resize_table(params[scan.name], rows) for scan in batch]
        filled = [padded[i % len(batch)] for i in range(per_batch)]
        before = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)

    programs = compile_for(mesh)
    memory = None
    if outputs.earlier:
        memory = programs.remember(
            config, outputs, before, patients, task_arrays, jnp.int32(stop_earlier)
        )
    state = programs.start_task(config, outputs, before, patients, task_arrays)
    state, step, chunks, shares = _go_on([begun.get(scan.name) for scan in batch], state)
    for first in range(step, settings.num_steps, STEPS_PER_CHUNK):
        stop = min(first + STEPS_PER_CHUNK, settings.num_steps)
        state, losses = programs.fit_steps(
            config,
            outputs,
            STEPS_PER_CHUNK,
            state,
            memory,
            patients,
            task_arrays,
            jnp.int32(first),
            jnp.int32(stop),
        )
        if outputs.earlier and not shares:
            all_shares = programs.penalty_share(
                config, outputs, state.params, memory, patients, task_arrays, jnp.int32(stop)
            )
            shares = [PenaltyShare(*map(float, s)) for s in zip(*all_shares, strict=True)]
            _refuse_inactive(shares, batch, len(tasks), stop)
        # The next chunk is on its way before the losses of this one are looked at.
        if chunks:
            report(first, chunks[-1])
        chunks.append(jax.tree.map(lambda x, n=stop - first: x[:, :n], losses))
        if stop < settings.num_steps:
            keep(stop, functools.partial(_snapshot, batch, stop, state, chunks, shares))
    report(settings.num_steps, chunks[-1])

    rendered = np.asarray(
        programs.render(config.field, rows, state.params, patients, jnp.int32(stop_seen))
    )
    num_seen = max(task.frames[1] for task in tasks)
    host_params = jax.device_get(state.params)
    all_losses = _joined(chunks)
    each = [jax.tree.map(lambda x, i=i: np.array(x[i]), host_params) for i in range(len(batch))]
    return (
        [resize_table(p, scan.intensities.size) for p, scan in zip(each, batch, strict=True)],
        [Losses(fit, penalty) for fit, penalty in zip(*all_losses, strict=True)],
        shares or [None] * len(batch),
        [_as_volumes(rendered[i], scan, num_seen) for i, scan in enumerate(batch)],
    )


def _refuse_inactive(
    shares: list[PenaltyShare], batch: Sequence[Scan], number: int, step: int
) -> None:
    for scan, share in zip(batch, shares, strict=False):
        if share.loss == 0 or share.gradient == 0:
            raise InactivePenaltyError(
                f"{scan.name}, task {number}: after {step} steps the strategy's penalty is "
                f"{share.loss:g} times the fitting loss, its gradient {share.gradient:g} times the "
                "fit's; neither may be 0, for that is fine-tuning by another name."
            )


def _joined(chunks: list[Losses]) -> Losses:
    """The losses of a batch's chunks of steps, one after the other."""
    return Losses(*(np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)))


def _snapshot(batch, step, state, chunks, shares) -> dict[str, ScanProgress]:
    """What each scan of a batch has after `step` steps."""
    host, losses = jax.device_get(state), _joined(chunks)
    scans = {}
    for i, scan in enumerate(batch):
        own, own_losses = jax.tree.map(lambda x, i=i: np.array(x[i]), (host, losses))
        leaves = jax.tree.leaves(own.opt_state)
        share = shares[i] if shares else None
        scans[scan.name] = ScanProgress(step, own.params, leaves, own_losses, share, [], [])
    return scans


def _go_on(
    begun: list[ScanProgress | None], state: TrainState
) -> tuple[TrainState, int, list[Losses], list[PenaltyShare]]:
    """Where a batch, whose fresh state is given, goes on: state, steps done, their losses, and the
    shares of the penalty. It begins again unless all its scans have done the same number of steps
    on a grid of this size."""
    leaves, structure = jax.tree.flatten(state)
    scans = [scan and [*jax.tree.leaves(scan.params), *scan.optimiser] for scan in begun]
    shapes = [leaf.shape[1:] for leaf in leaves]
    if any(scan is None or [leaf.shape for leaf in scan] != shapes for scan in scans):
        return state, 0, [], []
    if len({scan.step for scan in begun}) > 1:
        return state, 0, [], []
    places = [i % len(scans) for i in range(len(leaves[0]))]
    stacked = [np.stack([scans[i][k] for i in places]) for k in range(len(leaves))]
    losses = Losses(
        *(np.stack(part) for part in zip(*(begun[i].losses for i in places), strict=True))
    )
    shares = [scan.penalty_share for scan in begun if scan.penalty_share]
    return jax.tree.unflatten(structure, stacked), begun[0].step, [losses], shares


def _as_volumes(flat: np.ndarray, scan: Scan, num_frames: int) -> np.ndarray:
    """Rendered points as (frames, x, y, z, channels)."""
    shape = (num_frames, *scan.intensities.shape[1:])
    return flat[: int(np.prod(shape))].reshape(*shape, flat.shape[-1])


def _score(scan: Scan, tasks: Sequence[Task], outputs: np.ndarray) -> list[Metric]:
    return [
        Metric(scan.patient, scan.image, len(tasks), evaluated, metric, value)
        for evaluated, task in enumerate(tasks, start=1)
        for metric, value in evaluation.score(task, scan, outputs).items()
    ]


def _judge(
    scan: Scan,
    task: Task,
    number: int,
    losses: Losses,
    share: PenaltyShare | None,
    outputs: np.ndarray,
) -> Fit:
    bad = np.flatnonzero(~np.isfinite(losses.fit + losses.penalty))
    diverged = bool(bad.size) or evaluation.has_diverged(task, outputs)
    return Fit(
        patient=scan.patient,
        image=scan.image,
        task=number,
        final_loss=float(losses.fit[-1]),
        final_penalty=float(losses.penalty[-1]),
        collapsed=bool(not diverged and evaluation.has_collapsed(task, scan, outputs)),
        diverged=diverged,
        first_bad_step=int(bad[0]) + 1 if bad.size else 0,
        penalty_share=share.loss if share else 0.0,
        penalty_gradient_share=share.gradient if share else 0.0,
    )
