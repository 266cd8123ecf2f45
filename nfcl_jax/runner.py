"""One run: learns every task on the scans it is given, and writes all results below its folder."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import pandas as pd

from nfcl_jax import checkpoints, partial, run_log
from nfcl_jax.batching import device_mesh
from nfcl_jax.config import constants_of, read_config, split_words
from nfcl_jax.data.cohorts import Cohort, read_cohort, refuse_faults
from nfcl_jax.data.phantom import write_phantom
from nfcl_jax.errors import CheckpointError, ConfigError, RunError
from nfcl_jax.fitting import Recipe, points_per_step
from nfcl_jax.locks import Stopped
from nfcl_jax.loop import Hooks, Start, learn
from nfcl_jax.records import Learned, Progress, TaskResult
from nfcl_jax.report.scores import as_frame, per_patient, summary_of_run
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import (
    describe_scans,
    fingerprint,
    label_of,
    names_of,
    of_scans,
    params_like,
    refuse_another_checkpoint,
    refuse_another_run,
    write_description,
)
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import tasks_of
from nfcl_jax.storage import write_csv, write_file
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


def read_data(config: Mapping[str, Any], scenarios: Iterable[str], workdir: Path) -> Cohort:
    """The scans of the config's patients for each scenario; of the phantom, written first, if the
    config names no root.

    Raises:
      ConfigError: if it names another data set than the phantom's, and no root.
      DataError: if there are faults that the config does not skip, or nothing is left.
    """
    data = config["data"]
    root, dataset = data["root"], data["dataset"]
    if not root:
        if dataset != "acdc":
            raise ConfigError(f"config.data.dataset = {dataset!r} needs config.data.root.")
        root = written_phantom(workdir)
        log.info("no config.data.root: running on the built-in phantom, written to %s", root)
    cohort = read_cohort(
        root, scenarios, split_words(data["patients"]), dataset, data["intensity_range"]
    )
    for warning in cohort.warnings:
        log.warning(warning)
    if not data["skip_invalid"] or not any(cohort.scans.values()):
        refuse_faults(cohort.faults)
    return cohort


def phantom_root(workdir: Path) -> Path:
    """Where the phantom goes that is used when no data are named."""
    return workdir / "phantom"


def written_phantom(workdir: Path) -> Path:
    """The phantom's folder; it is written the first time, whole or not at all."""
    root = phantom_root(workdir)
    if not root.exists():
        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_phantom(unfinished).rename(root)
    return root


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
    scan_records = describe_scans(scans, config, caller.left_out)
    refuse_another_run(config, scan_records, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        run_log.log_to(workdir / "train.log", quiet=Stopped),
        jax.default_matmul_precision(config["matmul_precision"]),
    ):
        run_log.log_start(scan_records)
        write_description(workdir, config, scan_records)
        label, metadata = label_of(config), {"config": config, "scans": scan_records}
        started = time.monotonic()
        start = _learned_before(workdir, config, scan_records)
        names = [scan.name for scan in scans]
        scores, fits = read_rows(workdir, config, names, start.task) if start.task else ([], [])
        if start.task:
            log.info("%d of %d tasks were learned before", start.task, len(tasks))
        if start.task < len(tasks):
            (workdir / "summary.csv").unlink(missing_ok=True)  # it says that the run is finished
        for result in _learn(config, scans, workdir, start, caller):
            scores += result.scores
            fits += result.fits
            write_csv(workdir / "metrics.csv", scores, label)
            write_csv(workdir / "fits.csv", fits)
            # The checkpoint comes last: where it is, the task's rows are.
            checkpoints.save(workdir, result.number, result.learned, metadata)
            partial.clear(workdir)
            run_log.log_task(result, tasks[result.number - 1].name, len(tasks))
            if caller.asked_to_stop() and result.number < len(tasks):
                raise Stopped(caller.asked_to_stop())
        frame = as_frame(config, config["strategy"], scores, fits)
        summary = summary_of_run(per_patient(frame))
        write_file(workdir / "summary.csv", summary.to_csv(index=False, na_rep="nan"))
        log.info("done in %.0f s; everything is in %s", time.monotonic() - started, workdir)
    failed = {(fit.patient, fit.image) for fit in fits if fit.diverged or fit.collapsed}
    everyone = {(scan.patient, scan.image) for scan in scans}
    return Outcome(summary, sorted(map("/".join, failed)), not everyone <= failed)


def _learned_before(
    workdir: Path, config: Mapping[str, Any], scan_records: list[dict[str, Any]]
) -> Start:
    """How many tasks the folder holds, and what the last of them left, unless it was the last of
    all. Checkpoints that cannot be used are set aside.

    Raises:
      RunError: if a checkpoint is another run's.
    """
    there, learned = checkpoints.finished_tasks(workdir), checkpoints.num_learned(workdir)
    if learned == len(tasks_of(config)):
        return Start(learned)
    if len(there) > learned:
        log.warning("%s: no checkpoint of task %d", workdir, learned + 1)
    left = {}
    while learned and not left:
        try:
            left = _load_all(workdir, learned, config, scan_records)
        except CheckpointError as error:
            log.warning("%s", error)
            learned -= 1
    for task in there:
        if task > learned:
            aside = checkpoints.set_aside(workdir, task)
            log.warning("task %d is learned again; its checkpoint is now %s", task, aside)
    return Start(learned, left)


def _load_all(
    workdir: Path, task: int, config: Mapping[str, Any], scan_records: list[dict[str, Any]]
) -> dict[str, Learned]:
    """What a task left of every scan, if this config and these scans are what it was learned by."""
    about = checkpoints.load_metadata(workdir, task)
    refuse_another_checkpoint(workdir, task, about, config, scan_records)
    # As they were then: a table of scans may have grown.
    likes = [params_like(config, record, task) for record in of_scans(about["scans"])]
    like = dict(zip(names_of(about["scans"]), likes, strict=True))
    return checkpoints.load_all(workdir, task, like)


def _learn(
    config: Mapping[str, Any], scans: Sequence[Scan], workdir: Path, start: Start, caller: Caller
) -> Iterator[TaskResult]:
    """The results of the tasks after those that are learned."""
    tasks = tasks_of(config)
    if start.task == len(tasks):
        return
    names = [scan.name for scan in scans]
    task = start.task + 1
    begun, faults = partial.load(workdir, task, names, fingerprint(config, scans, task))
    for fault in faults:
        log.warning(fault)
    start = start._replace(partial=begun)
    if not start.task and caller.twin:
        first = _first_task_of(caller.twin, describe_scans(scans, config, {}))
        if first:
            start = Start(1, first.learned)
            log.info("task 1 of %d is taken from %s", len(tasks), caller.twin)
            yield first
    mesh = device_mesh()
    run_log.log_machine(mesh)
    keep = keeper(config, workdir, caller.asked_to_stop, scans)
    hooks = Hooks(caller.on_progress, keep)
    yield from learn(scans, tasks, recipe_of(config), mesh, start, hooks)


def _first_task_of(twin: Path, scan_records: list[dict[str, Any]]) -> TaskResult | None:
    """What a run has of its first task on these scans, if that can be used."""
    if 1 not in checkpoints.finished_tasks(twin):
        return None
    try:
        config = read_config(twin / "config.json")
        rows = read_rows(twin, config, names_of(scan_records), 1)
        return TaskResult(1, _load_all(twin, 1, config, scan_records), *rows)
    except (CheckpointError, RunError, OSError) as error:
        log.warning("%s Task 1 is learned again.", error)
        return None


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
