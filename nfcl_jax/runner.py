"""One run: learns every task on the scans it is given, and writes all results below its folder."""

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import pandas as pd

from nfcl_jax import checkpoints, partial, processes, resume, run_log
from nfcl_jax.batch_task import Recipe, points_per_step
from nfcl_jax.batching import device_mesh
from nfcl_jax.config import constants_of
from nfcl_jax.errors import Stopped
from nfcl_jax.loop import Hooks, Start, learn
from nfcl_jax.records import Fit, Learned, Progress, Score, TaskResult
from nfcl_jax.report.scores import as_frame, per_patient, summary_of_run
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import (
    describe_scans,
    fingerprint,
    label_of,
    names_of,
    refuse_another_run,
    write_description,
)
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import tasks_of
from nfcl_jax.shelf import Shelf, agree, memory_of
from nfcl_jax.storage import Label, write_csv, write_file
from nfcl_jax.strategies import create_strategy

log = logging.getLogger("nfcl_jax")


class Outcome(NamedTuple):
    """What came out of a run: what its summary.csv holds, the scans whose fits diverged or
    collapsed in any task, and whether there are others."""

    summary: pd.DataFrame
    failed: list[str]
    usable: bool

    def fault(self, strict: bool, left_out: Iterable[str]) -> str:
        """Why the exit code is 1, if it is."""
        if not self.usable:
            return "every fit diverged or collapsed; fits.csv tells in which task"
        if strict and (self.failed or left_out):
            return f"not usable, in a strict run: {', '.join([*self.failed, *left_out])}"
        return ""


class Caller(NamedTuple):
    """What the caller of a run has to do with it.

    Attributes:
      on_progress: called between chunks of steps.
      asked_to_stop: the number of the signal that asked for it, if one has; see `locks.stopping`.
      twin: a run with the same first task. The first task knows no strategy: if this run
        has not learned it, it is taken from there.
      left_out: the faults of patients without scans, for patients.json.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    asked_to_stop: Callable[[], int | None] = lambda: None
    twin: Path | None = None
    left_out: Mapping[str, list[str]] = MappingProxyType({})


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """How a config has every task fitted."""
    shared = {name: config[name] for name in Recipe._fields if name not in ("field", "strategy")}
    strategy = create_strategy(config["strategy"], constants_of(config))
    return Recipe(field=config["field"], strategy=strategy, **shared)


def run(config: Mapping[str, Any], scans: Sequence[Scan], workdir: Path, caller: Caller) -> Outcome:
    """One run; its folder may hold a part of the same run, which is not done again.

    Args:
      config: checked, see `config.check_config`.
      scans: as `read_data` gives them for this config.
      workdir: the run's folder.
      caller: see there.

    Returns:
      What came out.

    Raises:
      ConfigError: if the folder holds another run.
      RunError: if its files are not what a run leaves.
      CheckpointError, OSError: if something cannot be written.
      InactivePenaltyError: if the strategy does nothing.
      Stopped: once asked to stop, when all that was done is saved.
    """
    tasks = tasks_of(config)
    scan_records = records_of_all(scans, config, caller.left_out)
    refuse_another_run(config, scan_records, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        run_log.log_to(workdir / "train.log", quiet=Stopped),
        jax.default_matmul_precision(config["matmul_precision"]),
        memory_of(names_of(scan_records), workdir) as memory,
    ):
        if processes.index() == 0:
            run_log.log_start(scan_records)
        processes.on_first(lambda: write_description(workdir, config, scan_records))
        label, metadata = label_of(config), {"config": config, "scans": scan_records}
        started, names = time.monotonic(), names_of(scan_records)
        start = resume.learned_before(workdir, config, scan_records, scans, memory)
        scores, fits = read_rows(workdir, config, names, start) if start else ([], [])
        if start:
            log.info("%d of %d tasks were learned before", start, len(tasks))
        if start < len(tasks):  # the summary says that the run is finished
            processes.on_first(lambda: (workdir / "summary.csv").unlink(missing_ok=True))
        for result in _learn(config, (scans, scan_records), (workdir, start), caller, memory):
            scores, fits = scores + result.scores, fits + result.fits
            write = functools.partial(_write_rows, workdir, scores, fits, label)
            processes.on_first(write)
            # The checkpoint comes last: where it is, the task's rows are.
            checkpoints.save(workdir, result.number, result.learned, metadata)
            processes.on_first(lambda: partial.clear(workdir))
            if processes.index() == 0:
                run_log.log_task(result, tasks[result.number - 1].name, len(tasks))
            if result.number < len(tasks):
                processes.jointly(lambda: _stop_if_asked(caller))
        outcome = _outcome(config, names, scores, fits)
        text = outcome.summary.to_csv(index=False, na_rep="nan")
        processes.on_first(lambda: write_file(workdir / "summary.csv", text))
        run_log.log_memory()
        log.info("done in %.0f s; everything is in %s", time.monotonic() - started, workdir)
    return outcome


def _outcome(
    config: Mapping[str, Any], names: Iterable[str], scores: list[Score], fits: list[Fit]
) -> Outcome:
    frame = as_frame(config, config["strategy"], scores, fits)
    failed = {f"{fit.patient}/{fit.image}" for fit in fits if fit.diverged or fit.collapsed}
    return Outcome(summary_of_run(per_patient(frame)), sorted(failed), not set(names) <= failed)


def records_of_all(
    scans: Sequence[Scan], config: Mapping[str, Any], left_out: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """What patients.json holds of the scans of all processes, and of who is left out."""
    own_records = describe_scans(scans, config, {})
    everyone = [record for own in processes.gathered(own_records) for record in own]
    everyone.sort(key=lambda record: record["patient"])  # as they are in one process
    return everyone + describe_scans([], config, left_out)


def _write_rows(workdir: Path, scores: list[Score], fits: list[Fit], label: Label) -> None:
    write_csv(workdir / "metrics.csv", scores, label)
    write_csv(workdir / "fits.csv", fits)


def _stop_if_asked(caller: Caller) -> None:
    if number := caller.asked_to_stop():
        raise Stopped(number)


def _learn(
    config: Mapping[str, Any],
    data: tuple[Sequence[Scan], list[dict[str, Any]]],
    place: tuple[Path, int],
    caller: Caller,
    memory: Shelf,
) -> Iterator[TaskResult]:
    """The results of the tasks after those that are learned, of the scans of all processes.

    Args:
      config: of the run.
      data: this process's scans, and the records of everyone's.
      place: the run's folder, and how many tasks are learned.
      caller: of the run.
      memory: with what the last of these tasks left.
    """
    (scans, scan_records), (workdir, start) = data, place
    tasks, names = tasks_of(config), [scan.name for scan in scans]
    if start == len(tasks):
        return
    begun = resume.begun(config, scans, workdir, start + 1, memory)
    twin = caller.twin if not start else None
    if rows := twin and resume.first_task_of(twin, scan_records, scans, memory):
        log.info("task 1 of %d is taken from %s", len(tasks), twin)
        start, begun = 1, {}
        agree(memory, names)
        yield _result(1, memory, [rows])
    agree(memory, names)
    mesh = device_mesh()
    run_log.log_machine(mesh)
    hooks = Hooks(caller.on_progress, keeper(config, workdir, caller.asked_to_stop, scans))
    begin = Start(start, partial=begun)
    results = learn(scans, tasks, recipe_of(config), mesh, begin, hooks, memory)
    meet = (workdir / "unfinished" / "learned" / f".met_{n}" for n in itertools.count())
    work = functools.partial(next, results, None)
    while result := processes.jointly(work, next(meet), caller.asked_to_stop):
        agree(memory, names)
        rows = processes.gathered([result.scores, result.fits])
        yield _result(result.number, result.learned, rows)


def _result(
    number: int, learned: Mapping[str, Learned], rows: Iterable[Sequence[Any]]
) -> TaskResult:
    """With the scores and fits of several processes."""
    scores, fits = ([row for own in kind for row in own] for kind in zip(*rows, strict=True))
    return TaskResult(
        number, learned, sorted(Score(*row) for row in scores), sorted(Fit(*row) for row in fits)
    )


def keeper(
    config: Mapping[str, Any], workdir: Path, asked_to_stop, scans: Sequence[Scan] = ()
) -> Callable:
    """What saves the task in the middle: batches that are done with it; all between chunks of steps
    if the config says so; and everything before `Stopped`."""
    saved = 1, 0  # task and step

    def keep(task, step, snapshot):
        nonlocal saved
        last = saved[1] if saved[0] == task else 0
        done, number = step == config["num_steps"], asked_to_stop()
        every = config["checkpoint_every_steps"]
        if done or number or (every and step - last >= every):
            partial.save(workdir, task, snapshot(), fingerprint(config, scans, task))
            saved = task, 0 if done else step
        if number:
            raise Stopped(number)

    return keep


def planned_work(config: Mapping[str, Any], scans: Sequence[Scan], learned: int) -> list[float]:
    """Points that the field is asked in each task, none in the first `learned`."""
    recipe = recipe_of(config)
    points = sum(points_per_step(recipe, scan) for scan in scans)
    return [
        recipe.num_steps * points * (recipe.strategy.cost if task else 1.0) * (task >= learned)
        for task in range(len(tasks_of(config)))
    ]
