"""The runs of a table of scans: one for each field, in a folder of its own.

    WORKDIR/patients/p1/scan/     a run's folder, as `runner.run` leaves it
    WORKDIR/metrics.csv           the scores of all of them

A row that is added to the table changes what was learned of its patient alone.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nfcl_jax.checkpoints import num_learned
from nfcl_jax.config import check_config, read_config
from nfcl_jax.data.cohorts import refuse_faults
from nfcl_jax.data.sequence import Case, Known, Reading, read_cases, time_range_of
from nfcl_jax.data.things import title_of
from nfcl_jax.errors import AnotherRunError, ConfigError, RunError
from nfcl_jax.records import Score
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import PATIENTS, describe_scans, read_records, refuse_another_run
from nfcl_jax.scan import Scan, name_in_table
from nfcl_jax.scenarios import SEQUENCE, describe_tasks, tasks_of
from nfcl_jax.strategies import STRATEGIES

log = logging.getLogger("nfcl_jax")
GONE = "%s: files of what was learned are gone: %s"


class OwnRun(NamedTuple):
    """The run of one field of a table: its config, scan and folder."""

    config: dict[str, Any]
    scan: Scan
    workdir: Path

    @property
    def name(self) -> str:
        """What the table calls whose field it is."""
        return name_in_table(self.scan.patient, self.scan.image)


def read_data(config: Mapping[str, Any], workdir: Path) -> list[Case]:
    """What each field of a config's table is to learn, where some may have been learned before.

    Raises:
      ConfigError: if the config names no table, or a time range that is none.
      DataError: with a line for each fault.
    """
    table = config["data"]["table"]
    if not table:
        raise ConfigError("config.data.table is empty; a CSV file of scans would be right.")
    times, resample = time_range_of(config["data"]["time_range"]), config["data"]["resample"]
    cases, faults = read_cases(Path(table), Reading(times, resample), learned_before(workdir))
    refuse_faults(faults)
    return cases


def learned_before(workdir: Path) -> dict[str, Known]:
    """What the runs below a folder have learned, by the names that the table has.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    found = {}
    for folder, record, config in stored_runs(workdir):
        known = known_of(folder, record, config)
        if known.tasks:
            found[name_in_table(record["patient"], record["image"])] = known
    return found


def known_of(folder: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> Known:
    """What one run has learned.

    Raises:
      RunError: if its files are not what it leaves.
    """
    learned = num_learned(folder)
    try:
        rows = [row for row in record["rows"] if row["task"] <= learned]
        return Known({**record, "rows": rows}, tasks_of(config)[:learned])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder}: not a run of a table ({error!r}).") from error


def stored_runs(workdir: Path) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """The folders of the runs of a table's fields, `workdir` itself or those below it, their scans'
    records, and configs.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    own = [workdir / "patients.json"] if (workdir / "patients.json").exists() else []
    for path in own or sorted((workdir / PATIENTS).glob("*/*/patients.json")):
        records, config = read_records(path), read_config(path.parent / "config.json")
        if len(records) != 1 or config["scenario"] != SEQUENCE:
            raise RunError(f"{path.parent}: not a run of a table.")
        yield path.parent, records[0], config


def plan(config: Mapping[str, Any], cases: Iterable[Case], workdir: Path) -> list[OwnRun]:
    """A run for each case.

    Raises:
      ConfigError: if the folder holds a run of something else; or if the config does not fit a
        case, or needs a file that is gone, or a row that was learned is missing or not the same.
    """
    if (workdir / "config.json").exists() or (workdir / "cells").exists():
        raise ConfigError(f"{workdir}: holds other runs; another --workdir would be right.")
    runs = []
    for case in cases:
        folder = workdir / PATIENTS / case.scan.patient / case.scan.image
        runs.append(plan_run(config, case, folder))
        if gone := gone_of(case.scan):
            log.warning(GONE, runs[-1].name, gone)
    there = {folder for folder, *_ in stored_runs(workdir)} - {own.workdir for own in runs}
    for folder in sorted(there):
        log.warning("%s: no longer in the table; what was learned stays as it is", folder)
    return runs


def contradictions(
    cases: Iterable[Case], workdir: Path, data: Mapping[str, Any]
) -> dict[str, list[str]]:
    """What the runs below a folder have learned otherwise than these cases say, or by other values
    of `config.data` than these, by the names that the table has.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    configs = {folder: config for folder, _, config in stored_runs(workdir)}
    found = {}
    for case in cases:
        folder = workdir / PATIENTS / case.scan.patient / case.scan.image
        if folder in configs:
            try:
                stored = configs[folder]
                plan_run({**stored, "data": {**stored["data"], **data}}, case, folder)
            except AnotherRunError as error:
                name = name_in_table(case.scan.patient, case.scan.image)
                own = f"patients.{case.scan.patient}/{case.scan.image}: "
                found[name] = [f"{name}: {line.removeprefix(own)}." for line in error.differing]
            except ConfigError as error:
                name = name_in_table(case.scan.patient, case.scan.image)
                found[name] = [" ".join(str(error).split())]
    return found


def plan_run(config: Mapping[str, Any], case: Case, workdir: Path) -> OwnRun:
    """The run of one case in this folder; see `plan` for the errors."""
    data = dict(config["data"])
    if data["table"]:  # of which a report from another folder reads the scans again
        data["table"] = os.path.abspath(data["table"])
    learned = {**config, "data": data, "tasks": describe_tasks(case.tasks)}
    own = OwnRun(learned, case.scan, workdir)
    try:
        check_config(own.config)
    except ConfigError as error:
        raise ConfigError(f"{own.name}: {error}") from error
    refuse_another_run(own.config, describe_scans([case.scan], own.config, {}), own.workdir)
    needed = STRATEGIES[config["strategy"]].needs_data and num_learned(workdir) < len(case.tasks)
    if (gone := gone_of(case.scan)) and needed:
        raise ConfigError(
            f"{own.name}: {config['strategy']} needs earlier data, which are gone ({gone}). With "
            "them this run goes on; a new run with a strategy that needs none, such as "
            "distillation, would not need them."
        )
    return own


def gone_of(scan: Scan) -> str:
    """What was learned from files that are gone, such as "T1 at 0, T2 at 0"."""
    in_turn = sorted(scan.missing, key=lambda place: place[::-1])
    return ", ".join(title_of(scan.source["rows"], *place) for place in in_turn)


def scores_below(workdir: Path) -> dict[Path, list[Score]]:
    """The scores of all runs below a folder, by the runs' folders.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    return {folder: _scores(folder, *stored) for folder, *stored in stored_runs(workdir)}


def scores_in(own: OwnRun) -> list[Score]:
    """The scores of one run, as `scores_below`."""
    record = {"patient": own.scan.patient, "image": own.scan.image}
    return _scores(own.workdir, record, own.config)


def _scores(folder: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> list[Score]:
    """What a run has scored, by the name that the table has."""
    name, learned = f"{record['patient']}/{record['image']}", num_learned(folder)
    rows, _ = read_rows(folder, config, [name], learned) if learned else ([], [])
    own = name_in_table(record["patient"], record["image"])
    return [row._replace(patient=own) for row in rows]
