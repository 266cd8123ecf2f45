"""Fitting one batch of scans to one task: begin, steps in chunks, render, score."""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nfcl_jax import metrics
from nfcl_jax.arguments import ScanAndMemory, Static, Steps, TaskArrays, TrainState, frames_of
from nfcl_jax.batching import Programs, compile_for, filled
from nfcl_jax.curve import points_asked
from nfcl_jax.errors import InactivePenaltyError
from nfcl_jax.fields import FIELDS, create_field
from nfcl_jax.padded import PaddedScan, padded_size, stack_scans
from nfcl_jax.params import resize_tables
from nfcl_jax.points import num_space_axes
from nfcl_jax.records import Fit, Learned, Losses, Partial, PenaltyShare, Score
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task, heads_of, merge_lessons, num_channels, num_frames
from nfcl_jax.strategies import FINETUNE
from nfcl_jax.strategies.base import Strategy

STEPS_PER_CHUNK = 50  # between two looks at the losses
MOMENTS = "adam"  # beside the strategy's state, where a task leaves them to the next


class Recipe(NamedTuple):
    """How every task is fitted.

    Attributes:
      field: its name and constants, as `fields.create_field` takes them.
      strategy: used from the second task on.
      learning_rate: of Adam.
      muon_rate: of Muon, for the layers' matrices; 0 leaves them to Adam.
      later_factor: what both are multiplied by in a later task that teaches no new head.
      mask_later_factor: the same where it teaches a new mask, but no new image. The output layer
        then is Adam's, at the whole rate.
      keep_optimiser: whether its moments go on from one task to the next.
      warmup_steps: of each task, in which the rate grows to its value.
      schedule: of the rate after that, one of `config.SCHEDULES`.
      num_steps: per task.
      batch_size: points per step; 0 is every voxel.
      scans_per_batch: as `make_batches` takes it; None is what `plan.scans_at_once` says.
      seed: of all random numbers.
    """

    field: Mapping[str, Any]
    strategy: Strategy
    learning_rate: float
    muon_rate: float
    later_factor: float
    mask_later_factor: float
    keep_optimiser: bool
    warmup_steps: int
    schedule: str
    num_steps: int
    batch_size: int
    scans_per_batch: int | None
    seed: int


def points_per_step(recipe: Recipe, scan: Scan) -> int:
    """That a scan asks for in a step on one frame, without a strategy; see `curve.points_asked`."""
    field = create_field(recipe.field, channels=1, rows=1)
    return points_asked(field, recipe.batch_size, scan.num_voxels)


class BatchTask(NamedTuple):
    """One batch of scans and the task that it learns, the last of `tasks`; the batch is made up to
    `count` scans."""

    batch: Sequence[Scan]
    count: int
    tasks: Sequence[Task]
    recipe: Recipe
    mesh: Mesh

    @property
    def rows(self) -> int:
        """Of a table, in the batch: all frames of the padded grid."""
        return self.batch[0].num_frames * self.num_voxels

    @property
    def num_voxels(self) -> int:
        """Of one frame, padded."""
        return padded_size(max(scan.num_voxels for scan in self.batch))

    @property
    def space(self) -> int:
        """The coordinates of a place."""
        return num_space_axes(self.batch[0].shape)

    def resized(self, learned: Learned, rows: int) -> Learned:
        """With tables of so many rows, if the field has one for its grid."""
        on_grid = FIELDS[self.recipe.field["name"]].on_grid
        return resize_tables(learned, rows) if on_grid else learned


def task_arguments(task: BatchTask) -> tuple[Static, PaddedScan, TaskArrays]:
    """What the compiled programs take to fit a batch to its task; see `step`."""
    *before, new = task.tasks
    recipe, largest = task.recipe, max(scan.num_voxels for scan in task.batch)
    strategy = recipe.strategy if before else FINETUNE
    fresh = heads_of([new]) - heads_of(before)
    later = bool(before) and all(head.kind == "mask" for head in fresh)
    factor = (recipe.mask_later_factor if fresh else recipe.later_factor) if later else 1.0
    own_output = later and fresh and (recipe.muon_rate or factor != 1)
    previous, earlier = (
        merge_lessons(tasks) if strategy.acts else () for tasks in (before[-1:], before)
    )
    stop_earlier, whole = num_frames(before) if earlier else 0, recipe.batch_size == 0
    static = Static(
        field=create_field(recipe.field, num_channels(task.tasks), task.rows, task.space),
        strategy=strategy,
        learning_rate=recipe.learning_rate * factor,
        muon_rate=recipe.muon_rate * factor,
        output_rate=recipe.learning_rate if own_output else None,
        keep_optimiser=recipe.keep_optimiser,
        warmup_steps=recipe.warmup_steps,
        schedule=recipe.schedule,
        num_steps=recipe.num_steps,
        steps_per_chunk=STEPS_PER_CHUNK,
        batch_size=recipe.batch_size,
        num_voxels=task.num_voxels,
        heads=tuple(lesson.head for lesson in new.lessons),
        num_frames=new.frames[-1] + 1 - new.frames[0],
        previous_heads=tuple(lesson.head for lesson in previous),
        earlier_heads=tuple(lesson.head for lesson in earlier),
        # Only a step over every voxel needs to know; otherwise one program serves every task.
        num_earlier_frames=stop_earlier if whole else task.batch[0].num_frames,
        revisits=whole and {frame for task in before for frame in task.frames} == set(new.frames),
    )
    arrays = TaskArrays(
        number=jnp.int32(len(task.tasks)),
        new=frames_of(new.lessons),
        previous=frames_of(previous),
        earlier=frames_of(earlier),
        stop_earlier=jnp.int32(stop_earlier * largest),
        stop_seen=jnp.int32(num_frames(task.tasks) * largest),
    )
    scans = stack_scans(filled(task.batch, task.count), task.num_voxels, recipe.seed)
    return static, scans, arrays


def fit_batch(
    task: BatchTask,
    learned: Mapping[str, Learned],
    partial: Mapping[str, Partial],
    report: Callable,
    keep: Callable,
) -> dict[str, Partial]:
    """Fits one batch to its task, from what the last task left or from where it was interrupted.

    Returns:
      What each scan has, with scores.

    Raises:
      InactivePenaltyError: as `learn`.
    """
    static, scans, arrays = task_arguments(task)
    programs = compile_for(task.mesh)
    state, memory = start_batch(task, learned, programs, (static, scans, arrays))
    own = ScanAndMemory(scans, memory)
    state, step, chunks, shares = _go_on([partial.get(scan.name) for scan in task.batch], state)
    num_steps, chunk = static.num_steps, static.steps_per_chunk
    for first in range(step, num_steps, chunk):
        stop = min(first + chunk, num_steps)
        steps = Steps(arrays, jnp.int32(first), jnp.int32(stop))
        state, losses = programs.fit_steps(static, state, own, steps)
        if static.strategy.acts and not shares:
            all_shares = programs.penalty_share(static, state, own, steps)
            shares = [PenaltyShare(*map(float, s)) for s in zip(*all_shares, strict=True)]
            _refuse_inactive(shares, task.batch, len(task.tasks), stop)
        # The next chunk is on its way before the losses of this one are looked at.
        if chunks:
            report(first, chunks[-1])
        chunks.append(jax.tree.map(lambda x, n=stop - first: x[:, :n], losses))
        if stop < num_steps:
            keep(stop, functools.partial(_snapshot, task.batch, stop, state, chunks, shares))
    report(num_steps, chunks[-1])

    rendered = programs.render((static.field, task.rows), state.params, scans, arrays.stop_seen)
    errors = np.zeros(task.count)
    if static.asks_curve:
        errors = programs.curve_error(static, (state.params, rendered), scans, arrays)
    if static.keep_optimiser:
        state = state._replace(strategy=state.strategy | {MOMENTS: state.opt_state[0]._asdict()})
    ends = _snapshot(task.batch, num_steps, state, chunks, shares)
    outputs = np.asarray(rendered), np.asarray(errors)
    with ThreadPoolExecutor() as pool:  # the scores of many take long beside an accelerator
        done = pool.map(functools.partial(_finished, task), task.batch, ends.values(), *outputs)
        return dict(zip(ends, done, strict=True))


def start_batch(
    task: BatchTask,
    learned: Mapping[str, Learned],
    programs: Programs,
    arguments: tuple[Static, PaddedScan, TaskArrays],
) -> tuple[TrainState, Any]:
    """The state at the start of a task, and the strategy's memory, from what the last task left."""
    static, scans, arrays = arguments
    if len(task.tasks) == 1:
        return programs.start_task(static, (None, {}, None), scans, arrays), None
    resized = [task.resized(learned[scan.name], task.rows) for scan in task.batch]
    before, state = jax.tree.map(lambda *leaves: np.stack(leaves), *filled(resized, task.count))
    memory, moments = None, state.pop(MOMENTS, None)
    if static.strategy.begin:
        memory, state = programs.begin_task(static, (before, state), scans, arrays)
    return programs.start_task(static, (before, state, moments), scans, arrays), memory


def _finished(
    task: BatchTask, scan: Scan, end: Partial, flat: np.ndarray, curve_error: np.floating
) -> Partial:
    """What a scan has at the end of a task, scored and without its padding. `flat` are the outputs
    at its flat indices."""
    tasks = task.tasks
    shape = (num_frames(tasks), *scan.shape[-3:])
    outputs = flat[: int(np.prod(shape))].reshape(*shape, flat.shape[-1])
    number, share = len(tasks), end.penalty_share
    scores = [
        Score(scan.patient, scan.label(lesson.head.name), number, evaluated, metric, value)
        for evaluated, seen in enumerate(tasks, start=1)
        for lesson in seen.lessons
        if not scan.lacks(lesson)
        for metric, value in metrics.score(lesson, scan, outputs).items()
    ]
    bad = np.flatnonzero(~np.isfinite(end.losses.fit + end.losses.penalty))
    lessons = tasks[-1].lessons
    diverged = bool(bad.size) or any(metrics.has_diverged(own, outputs) for own in lessons)
    collapsed = any(metrics.has_collapsed(own, scan, outputs) for own in lessons)
    fit = Fit(
        patient=scan.patient,
        image=scan.image,
        task=number,
        final_loss=float(end.losses.fit[-1]),
        final_penalty=float(end.losses.penalty[-1]),
        collapsed=bool(not diverged and collapsed),
        diverged=diverged,
        first_bad_step=int(bad[0]) + 1 if bad.size else 0,
        penalty_share=share.loss if share else 0.0,
        penalty_gradient_share=share.gradient if share else 0.0,
        curve_error=float(curve_error),
    )
    own = task.resized(end.learned, scan.num_frames * scan.num_voxels)
    return end._replace(learned=own, optimiser=[], scores=scores, fits=[fit])


def _refuse_inactive(shares: list[PenaltyShare], batch: Sequence[Scan], number: int, step: int):
    for scan, share in zip(batch, shares, strict=False):
        if share.alive and (share.loss == 0 or share.gradient == 0):
            raise InactivePenaltyError(
                f"{scan.name}, task {number}: after {step} steps the strategy adds {share.loss:g} "
                f"times the fitting loss, and its gradient, or what it changes of the update, is "
                f"{share.gradient:g} times the fit's; neither may be 0, for that is fine-tuning by "
                "another name."
            )


def _snapshot(batch, step, state: TrainState, chunks, shares) -> dict[str, Partial]:
    """What each scan of a batch has after `step` steps."""
    host = jax.device_get(state)
    losses = Losses(*(np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)))
    scans = {}
    for i, scan in enumerate(batch):
        own, own_losses = jax.tree.map(lambda x, i=i: np.array(x[i]), (host, losses))
        learned, leaves = Learned(own.params, own.strategy), jax.tree.leaves(own.opt_state)
        share = shares[i] if shares else None
        scans[scan.name] = Partial(step, learned, leaves, own_losses, share, [], [])
    return scans


def _go_on(
    partial: list[Partial | None], state: TrainState
) -> tuple[TrainState, int, list[Losses], list[PenaltyShare]]:
    """Where a batch, whose fresh state is given, goes on: state, steps done, their losses, and the
    shares of the penalty. It begins again unless all its scans have done the same number of steps
    on a grid of this size."""
    leaves, structure = jax.tree.flatten(state)
    scans = [
        scan
        and jax.tree.leaves(TrainState(scan.learned.params, scan.optimiser, scan.learned.state))
        for scan in partial
    ]
    shapes = [leaf.shape[1:] for leaf in leaves]
    differ = any(scan is None or [leaf.shape for leaf in scan] != shapes for scan in scans)
    if differ or len({scan.step for scan in partial}) > 1:
        return state, 0, [], []
    count = len(leaves[0])
    stacked = [np.stack(filled(own, count)) for own in zip(*scans, strict=True)]
    losses = zip(*filled([scan.losses for scan in partial], count), strict=True)
    stacked_losses = Losses(*map(np.stack, losses))
    shares = [scan.penalty_share for scan in partial if scan.penalty_share]
    return jax.tree.unflatten(structure, stacked), partial[0].step, [stacked_losses], shares
