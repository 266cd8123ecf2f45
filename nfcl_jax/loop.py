"""The loop over tasks: fit every scan to a task, score it on all tasks so far, go on."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nfcl_jax import processes
from nfcl_jax.batch_task import BatchTask, Recipe
from nfcl_jax.batching import make_batches
from nfcl_jax.errors import RunError
from nfcl_jax.fields import FIELDS, create_field
from nfcl_jax.fitting import fit_batch
from nfcl_jax.padded import scan_key
from nfcl_jax.params import begun, grow_table, num_output_channels
from nfcl_jax.plan import scans_at_once
from nfcl_jax.points import num_axes
from nfcl_jax.records import Learned, Partial, Progress, TaskResult
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task

Snapshot = Callable[[], dict[str, Partial]]


class Start(NamedTuple):
    """Where the work goes on, to the same results as if it had not been interrupted.

    Attributes:
      task: how many tasks are learned already.
      learned: what they left, by the scan's name.
      partial: what scans have of the next task, by their names; those of one batch must have done
        the same number of steps, or they begin it again. Of those that are done with it, `learned`
        may be None where the memory has it.
    """

    task: int = 0
    learned: Mapping[str, Learned] = {}
    partial: Mapping[str, Partial] = {}


class Hooks(NamedTuple):
    """What is called meanwhile.

    Attributes:
      on_progress: between chunks of steps.
      on_chunk: with the numbers of the task and of the step between chunks of steps, and when a
        batch is done: not the last one, unless there are several processes. Calling the snapshot
        gives what its scans have.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    on_chunk: Callable[[int, int, Snapshot], None] = lambda task, step, snapshot: None


FROM_THE_START, NO_HOOKS = Start(), Hooks()


def learn(
    scans: Sequence[Scan],
    tasks: Sequence[Task],
    recipe: Recipe,
    mesh: Mesh,
    start: Start = FROM_THE_START,
    hooks: Hooks = NO_HOOKS,
    memory: MutableMapping[str, Learned] | None = None,
) -> Iterator[TaskResult]:
    """Fits a field to every scan, task by task.

    The scans go through the compiled program of a task in batches; what a scan gets does not
    depend on the batch that it is in. Values of scans that are not in memory are read while the
    batch before is fitted.

    Args:
      scans: all with the same number of frames.
      tasks: in the order in which they are learned.
      recipe: how.
      mesh: from `batching.device_mesh`.
      start: where the work goes on.
      hooks: what is called meanwhile.
      memory: where parameters wait between tasks, by the scan's name; a dictionary if None. What
        `start.learned` has is put there.

    Yields:
      A result after each further task, with scores on every task so far. Without a dictionary,
      what it says was learned is the memory itself.

    Raises:
      InactivePenaltyError: if what the strategy adds to the loss of a field that is not dead, or
        its gradient, is zero after the first steps.
      RunError: if values of a task that is to be learned are missing.
      DataError: if a scan that is read again is another, or cannot be.
    """
    _refuse_lacking(scans, tasks, start.task)
    count, batches = make_batches(scans, scans_at_once(scans, tasks, recipe, mesh), mesh)
    memory = {} if memory is None else memory
    memory.update(start.learned)
    _add_rows(scans, recipe, memory)
    partial = dict(start.partial)
    for number in range(start.task + 1, len(tasks) + 1):
        done = {name: own for name, own in partial.items() if own.fits}
        memory.update((name, own.learned) for name, own in done.items() if own.learned)
        left = [[scan for scan in batch if scan.name not in done] for batch in batches]
        places = [place for place, batch in enumerate(left, start=1) if batch]
        for place, batch in zip(places, _read_ahead(filter(None, left)), strict=True):
            task = BatchTask(batch, count, tasks[:number], recipe, mesh)
            report = _reporter(hooks, task, place, len(batches))
            keep = functools.partial(hooks.on_chunk, number)
            finished = fit_batch(task, memory, partial, report, keep)
            memory.update((name, own.learned) for name, own in finished.items())
            if place < len(batches) or processes.count() > 1:  # others may be in the middle
                keep(recipe.num_steps, lambda finished=finished: finished)
            done |= {name: own._replace(learned=None) for name, own in finished.items()}
        partial = {}
        scores = sorted(score for own in done.values() for score in own.scores)
        fits = sorted(fit for own in done.values() for fit in own.fits)
        learned = dict(memory) if isinstance(memory, dict) else memory
        yield TaskResult(number, learned, scores, fits)


def _reporter(hooks: Hooks, task: BatchTask, place: int, count: int) -> Callable:
    """What `fit_batch` calls between chunks, for batch `place` of `count`."""
    names = tuple(scan.name for scan in task.batch)

    def report(step, losses):
        mean = float(np.mean(np.asarray(losses.fit)[: len(names), -1]))
        hooks.on_progress(Progress(len(task.tasks), place, count, names, step, mean))

    return report


def _read_ahead(batches: Iterable[Sequence[Scan]]) -> Iterator[list[Scan]]:
    """The batches with their values, of which the next one's are read while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for batch in batches:
            ready, coming = coming, reader.submit(lambda own=batch: [scan.read() for scan in own])
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()


def _refuse_lacking(scans: Iterable[Scan], tasks: Sequence[Task], learned: int) -> None:
    for scan in scans:
        for number, task in enumerate(tasks[learned:], start=learned + 1):
            if any(scan.lacks(lesson) for lesson in task.lessons):
                raise RunError(
                    f"{scan.name}: task {number} must be learned, again maybe, but files of "
                    f"{task.name} are gone; a copy of them, or of the task's checkpoint, would be "
                    "right."
                )


def _add_rows(scans: Sequence[Scan], recipe: Recipe, memory: MutableMapping[str, Learned]) -> None:
    """Gives tables rows for frames that came later, as these would have been from the first task
    on."""
    for scan in scans if FIELDS[recipe.field["name"]].on_grid else ():
        own, rows = memory.get(scan.name), scan.num_frames * scan.num_voxels
        if own and len(own.params["params"]["table"]) < rows:
            field = create_field(recipe.field, num_output_channels(own.params), rows)
            fresh = begun(field, None, scan_key(recipe.seed, scan.name), 1, num_axes(scan.shape))
            grown = jax.tree.map(np.asarray, grow_table(own.params, fresh))
            memory[scan.name] = own._replace(params=grown)
