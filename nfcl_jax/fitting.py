"""Fitting one batch of scans to one task: begin, steps in chunks, render, score."""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfcl_jax import metrics
from nfcl_jax.arguments import ScanAndMemory, Static, Steps, TaskArrays, TrainState
from nfcl_jax.batch_task import BatchTask, task_arguments
from nfcl_jax.batching import Programs, compile_for, filled
from nfcl_jax.errors import InactivePenaltyError
from nfcl_jax.padded import PaddedScan
from nfcl_jax.records import Fit, Learned, Losses, Partial, PenaltyShare, Score
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import num_frames

MOMENTS = "adam"  # beside the strategy's state, where a task leaves them to the next


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

    def stacked(trees):
        resized = [task.resized(tree, task.rows) for tree in trees]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *filled(resized, task.count))

    own = [learned[scan.name] for scan in task.batch]
    before, state = stacked(own)
    begun = [task.as_begun(scan, params) for scan, (params, _) in zip(task.batch, own, strict=True)]
    moved = any(params is not old for params, (old, _) in zip(begun, own, strict=True))
    first = stacked(begun) if moved else before
    memory, moments = None, state.pop(MOMENTS, None)
    if static.strategy.begin:
        memory, state = programs.begin_task(static, (before, state), scans, arrays)
    return programs.start_task(static, (first, state, moments), scans, arrays), memory


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
