"""One run: learns every task on the scans it is given, and writes all results below its folder."""

import contextlib
import functools
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import pandas as pd
from ml_collections import ConfigDict

from configs.base import ConfigError, split_words
from experiments.guards import Stopped
from nfcl_jax import checkpoints, continual, unfinished
from nfcl_jax.data.acdc import Cohort, read_cohort, refuse_faults
from nfcl_jax.data.phantom import write_phantom
from nfcl_jax.fields import Params, create_field, init_params, num_parameters
from nfcl_jax.reporting.records import Label, read_csv, write_csv, write_file
from nfcl_jax.reporting.results import as_frame, per_patient
from nfcl_jax.reporting.tables import summary_of_run
from nfcl_jax.scenarios import SCENARIOS, Scan, Task, num_channels
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


def read_data(config: ConfigDict, scenarios: Iterable[str], workdir: Path) -> Cohort:
    """The scans of the config's patients for each scenario; of the phantom, written first, if the
    config names no root.

    Raises:
      DataError: if there are faults that the config does not skip, or nothing is left.
    """
    root = config.data.root
    if not root:
        root = written_phantom(workdir)
        log.info("no config.data.root: running on the built-in phantom, written to %s", root)
    patients = split_words(config.data.patients)
    cohort = read_cohort(root, scenarios, patients)
    for warning in cohort.warnings:
        log.warning(warning)
    if not config.data.skip_invalid or not any(cohort.scans.values()):
        refuse_faults(cohort)
    return cohort


def phantom_root(workdir: Path) -> Path:
    """Where the phantom goes that is used when no data are named."""
    return workdir / "phantom"


def written_phantom(workdir: Path) -> Path:
    """The phantom's folder; it is written the first time."""
    root = phantom_root(workdir)
    return root if root.exists() else write_phantom(root)


def run(
    config: ConfigDict,
    scans: list[Scan],
    workdir: Path,
    on_progress: Callable[[continual.Progress], None],
    asked_to_stop: Callable[[], int | None] = lambda: None,
    twin: Path | None = None,
    left_out: Mapping[str, list[str]] = MappingProxyType({}),
) -> Outcome:
    """One run; its folder may hold a part of the same run, which is not done again.

    Args:
      config: checked, see `configs.base.check_config`.
      scans: as `read_data` gives them for this config.
      workdir: the run's folder.
      on_progress: called between chunks of steps.
      asked_to_stop: the number of the signal that asked for it, if one has; see `guards.stopping`.
      twin: a run that differs in the strategy alone. The first task knows no strategy: if this run
        has not learned it, it is taken from there.
      left_out: the faults of patients without scans, for patients.json.

    Returns:
      What came out.

    Raises:
      ConfigError: if the folder holds another run.
      CheckpointError, OSError: if something cannot be written.
      InactivePenaltyError: if the strategy does nothing.
      Stopped: once asked to stop, when all that was done is saved.
    """
    tasks = SCENARIOS[config.scenario](config.huber_delta)
    scan_records = describe_scans(scans, tasks, config, left_out)
    refuse_another_run(config, scan_records, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with _log_to(workdir / "train.log"), jax.default_matmul_precision(config.matmul_precision):
        _log_start(scan_records)
        write_file(workdir / "config.json", _json(config.to_dict()))
        write_file(workdir / "patients.json", _json(scan_records))
        label = Label(config.scenario, config.field.name, config.strategy, config.seed)
        metadata = {"config": config.to_dict(), "scans": scan_records}
        started = time.monotonic()
        learned, params = _learned_before(workdir, len(tasks))
        metrics, fits = read_rows(workdir, learned) if learned else ([], [])
        if learned:
            log.info("%d of %d tasks were learned before", learned, len(tasks))
        keep = _keeper(config, workdir, asked_to_stop)
        results = _learn(config, scans, tasks, workdir, learned, params, on_progress, keep, twin)
        for result in results:
            metrics += result.metrics
            fits += result.fits
            write_csv(workdir / "metrics.csv", metrics, label)
            write_csv(workdir / "fits.csv", fits)
            # The checkpoint comes last: where it is, the task's rows are.
            checkpoints.save(workdir, result.number, result.params, metadata)
            unfinished.clear(workdir)
            _log_task(result, tasks)
            if asked_to_stop() and result.number < len(tasks):
                raise Stopped(asked_to_stop())
        frame = as_frame(config.to_dict(), config.strategy, metrics, fits)
        summary = summary_of_run(per_patient(frame))
        write_file(workdir / "summary.csv", summary.to_csv(index=False, na_rep="nan"))
        log.info("done in %.0f s; everything is in %s", time.monotonic() - started, workdir)
    failed = {(fit.patient, fit.image) for fit in fits if fit.diverged or fit.collapsed}
    everyone = {(scan.patient, scan.image) for scan in scans}
    return Outcome(summary, sorted(map("/".join, failed)), not everyone <= failed)


def _keeper(config: ConfigDict, workdir: Path, asked_to_stop) -> Callable:
    """What saves the task in the middle: scans that are done with it; all between chunks of steps
    if the config says so; and everything before `Stopped`."""
    saved_at = 0

    def keep(task, step, snapshot):
        nonlocal saved_at
        done, number = step == config.num_steps, asked_to_stop()
        every = config.checkpoint_every_steps
        if done or number or (every and step - saved_at >= every):
            unfinished.save(workdir, task, snapshot())
            saved_at = 0 if done else step
        if number:
            raise Stopped(number)

    return keep


def _learned_before(workdir: Path, num_tasks: int) -> tuple[int, dict[str, Params]]:
    """How many tasks the folder holds, and what the last of them left, unless it was the last of
    all. Checkpoints that cannot be used are set aside."""
    there, learned = checkpoints.finished_tasks(workdir), checkpoints.num_learned(workdir)
    if learned == num_tasks:
        return learned, {}
    if len(there) > learned:
        log.warning("%s: no checkpoint of task %d", workdir, learned + 1)
    params = {}
    while learned and not params:
        try:
            params = checkpoints.load_all(workdir, learned)
        except checkpoints.CheckpointError as error:
            log.warning("%s", error)
            learned -= 1
    for task in there:
        if task > learned:
            aside = checkpoints.set_aside(workdir, task)
            log.warning("task %d is learned again; its checkpoint is now %s", task, aside)
    return learned, params


def _learn(
    config, scans, tasks, workdir, learned, params, on_progress, keep, twin
) -> Iterator[continual.TaskResult]:
    """The results of the tasks after the first `learned`."""
    if learned == len(tasks):
        return
    begun, faults = unfinished.load(workdir, learned + 1, [scan.name for scan in scans])
    for fault in faults:
        log.warning(fault)
    if not learned and twin and 1 in checkpoints.finished_tasks(twin):
        try:
            first = continual.TaskResult(1, checkpoints.load_all(twin, 1), *read_rows(twin, 1))
        except (checkpoints.CheckpointError, ConfigError, OSError) as error:
            log.warning("%s Task 1 is learned again.", error)
        else:
            learned, params = 1, first.params
            log.info("task 1 of %d is taken from %s", len(tasks), twin)
            yield first
    mesh = continual.device_mesh()
    log.info(
        "%s, Python %s, JAX %s on %d x %s",
        platform.node(),
        platform.python_version(),
        jax.__version__,
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
    )
    settings = continual.Settings(
        config.learning_rate,
        config.num_steps,
        config.batch_size,
        config.patients_per_batch,
        config.seed,
    )
    strategy = create_strategy(config.strategy, dict(config.get(config.strategy, {})))
    field = config.field.to_dict()
    yield from continual.learn(
        scans, tasks, field, strategy, settings, mesh, on_progress, learned, params, begun, keep
    )


def read_rows(workdir: Path, most: int) -> tuple[list[continual.Metric], list[continual.Fit]]:
    """What a run's folder holds of its first `most` tasks.

    Raises:
      ConfigError: if they cannot be read, or a task has no rows.
    """
    try:
        metrics = read_csv(workdir / "metrics.csv", continual.Metric)
        fits = read_csv(workdir / "fits.csv", continual.Fit)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for task in range(1, most + 1):
        if not any(row.trained_task == task for row in metrics):
            raise ConfigError(f"{workdir / 'metrics.csv'}: has no rows of task {task}.")
    return (
        [row for row in metrics if row.trained_task <= most],
        [row for row in fits if row.task <= most],
    )


def refuse_another_run(config: ConfigDict, scan_records: list[dict], workdir: Path) -> None:
    """Raises ConfigError, naming what differs, if `workdir` holds a run of something else."""
    differing = []
    for name, wanted in (("config.json", config.to_dict()), ("patients.json", scan_records)):
        path = workdir / name
        if path.exists():
            pair = [json.loads(path.read_text()), json.loads(_json(wanted))]
            if name == "config.json":
                pair = [_what_matters(config) for config in pair]
            differing += _differences(*pair, name.split(".")[0])
    if differing:
        raise ConfigError(
            f"{workdir}: holds a run with\n  "
            + "\n  ".join(differing)
            + "\nGo on with it by its own settings, or choose another --workdir."
        )


def _what_matters(config: dict) -> dict:
    """A config without what changes no result: the size of batches, when it is saved, what is an
    error, the spelling of a path."""
    data = config["data"] | {"root": str(Path(config["data"]["root"]).resolve())}
    data.pop("skip_invalid", None)  # patients.json tells who was left out
    indifferent = ("patients_per_batch", "checkpoint_every_steps", "strict")
    return {k: v for k, v in config.items() if k not in indifferent} | {"data": data}


def _differences(there, wanted, name: str) -> list[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = sorted(there.keys() | wanted.keys())
        pairs = [(there.get(k), wanted.get(k), f"{name}.{k}") for k in keys]
        return [line for pair in pairs for line in _differences(*pair)]
    return [] if there == wanted else [f"{name} = {there!r} instead of {wanted!r}"]


def _json(value) -> str:
    return json.dumps(value, indent=2)


def describe_scans(
    scans: list[Scan],
    tasks: tuple[Task, ...],
    config: ConfigDict,
    left_out: Mapping[str, list[str]],
) -> list[dict]:
    """What patients.json holds: of each scan, with the size of its field, and of each patient that
    is left out, with the reasons."""
    records = []
    for scan in scans:
        field = create_field(config.field.to_dict(), num_channels(tasks), scan.intensities.size)
        records.append(
            {
                "patient": scan.patient,
                "image": scan.image,
                "shape": scan.shape,
                "frame_numbers": scan.frame_numbers,
                "spacing": scan.spacing,
                "affine": scan.affine.tolist(),
                "parameters": _count_parameters(field, len(scan.shape)),
            }
        )
    return records + [{"patient": name, "left_out": faults} for name, faults in left_out.items()]


@functools.lru_cache
def _count_parameters(field, axes: int) -> int:
    init = functools.partial(init_params, field, axes=axes)
    return num_parameters(jax.eval_shape(init, jax.random.key(0)))


def _log_start(scan_records: list[dict]) -> None:
    for record in scan_records:
        if "left_out" in record:
            log.warning("%s is left out: %s", record["patient"], " ".join(record["left_out"]))
            continue
        voxels = functools.reduce(int.__mul__, record["shape"])
        log.info(
            "%s/%s: %s voxels, %d parameters, %.3f per voxel",
            record["patient"],
            record["image"],
            " x ".join(map(str, record["shape"])),
            record["parameters"],
            record["parameters"] / voxels,
        )


def _log_task(result: continual.TaskResult, tasks: tuple[Task, ...]) -> None:
    task = tasks[result.number - 1]
    log.info("task %d of %d (%s) learned and saved", result.number, len(tasks), task.name)
    if any(fit.penalty_share for fit in result.fits):
        log.info(
            "after the first steps the penalty is %.3g times the fitting loss and its gradient "
            "%.3g times the fit's (medians)",
            statistics.median(fit.penalty_share for fit in result.fits),
            statistics.median(fit.penalty_gradient_share for fit in result.fits),
        )
    for fit in result.fits:
        name = f"{fit.patient}/{fit.image}"
        if fit.diverged:
            when = f"from step {fit.first_bad_step} on" if fit.first_bad_step else "after its steps"
            log.warning("%s diverged in task %d: not finite %s", name, fit.task, when)
        if fit.collapsed:
            log.warning("%s collapsed to a constant in task %d", name, fit.task)


@contextlib.contextmanager
def _log_to(path: Path):
    """Sends the log, and what ends the run early, to a file too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk is told of by what cannot do without it.
    handler.handleError = lambda record: None
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Stopped as stop:
        log.info("%s; the same command goes on from here", stop)
        raise
    except BaseException:
        record = log.makeRecord(log.name, logging.ERROR, "", 0, "ended early", (), sys.exc_info())
        handler.handle(record)
        raise
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def planned_work(config: ConfigDict, scans: list[Scan], learned: int) -> list[int]:
    """Points that the field is asked in each task, none in the first `learned`."""
    tasks = SCENARIOS[config.scenario](config.huber_delta)
    points = config.batch_size * len(scans) or sum(scan.intensities[0].size for scan in scans)
    elsewhere = config.strategy != "finetune" and config[config.strategy].points != "shared"
    return [
        config.num_steps * points * (1 + elsewhere * (task > 0)) * (task >= learned)
        for task in range(len(tasks))
    ]
