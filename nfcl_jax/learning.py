"""One image after the other for one field, whose state is its run's folder: from Python."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfcl_jax.config import make_config, read_config
from nfcl_jax.data import sources
from nfcl_jax.data.cohorts import refuse_faults
from nfcl_jax.data.compared import refuse_other_terms
from nfcl_jax.data.grids import grid_of_record
from nfcl_jax.data.sequence import Reading, read_case, time_range_of
from nfcl_jax.data.sources import InMemory
from nfcl_jax.data.table import File, Row, of_two_kinds
from nfcl_jax.errors import ConfigError, DataError, RunError
from nfcl_jax.locks import locked
from nfcl_jax.new_row import PATIENT, New, learned_in, row_of
from nfcl_jax.recommended import recommended
from nfcl_jax.run_folder import PATIENTS, refuse_another_run
from nfcl_jax.runner import Caller, run
from nfcl_jax.scenarios import SEQUENCE
from nfcl_jax.table_run import known_of, plan_run, stored_runs

log = logging.getLogger("nfcl_jax")


def config_of(
    field: str,
    strategy: str,
    time_range: Any,
    resample: bool,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The config of a run, with the recommended recipe and, on top of it, `settings` by their names
    in a config, such as "num_steps" or "distillation.weight".

    Raises:
      ConfigError: for a name that is none.
    """
    config = recommended(make_config(SEQUENCE, field, strategy))
    ends = ""
    if time_range is not None:
        if np.shape(time_range) != (2,):
            raise ConfigError(f"time_range must be two numbers or None, got {time_range!r}.")
        ends = ",".join(str(end) for end in time_range)
        time_range_of(ends)
    config["data"] |= {"time_range": ends, "resample": resample}
    for name, value in settings.items():
        *path, key = name.split(".")
        section = config
        for part in path:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict) or key not in section or name == "data.table":
            raise ConfigError(f"settings: a run has no {name!r}.")
        section[key] = value.item() if isinstance(value, np.generic) else value
    return config


def learn_next(
    workdir: Path, config: Mapping[str, Any], held: Sequence[Row], new: New
) -> tuple[Row, ...]:
    """Learns something in a run's folder, unless it is learned already.

    Args:
      workdir: the folder; what is not there yet is made.
      config: of the run.
      held: the rows of what was learned that the caller still has.
      new: what is learned.

    Returns:
      The rows of everything that is learned then, for the next call.

    Raises:
      ConfigError: if the folder holds another run, or one of a table.
      DataError: if the image cannot be used.
      RunError: if the run that is to go on is no longer there.
    """
    _refuse_others(workdir, config)
    if new.goes_on and not (workdir / "patients.json").exists():
        raise RunError(f"{workdir}: the run is no longer there; open_run opens it elsewhere.")
    if new.image is None and new.mask is None:
        raise DataError("neither an image nor a mask; one of them would be right.")
    with locked(workdir):
        stored = next(stored_runs(workdir), None)
        known = known_of(*stored) if stored else None
        if stored:
            refuse_another_run({**config, "tasks": stored[2].get("tasks", [])}, None, workdir)
        records = known.record["rows"] if known else []
        rows = _rows_before(records, held)
        grid = grid_of_record(known.record) if known else None
        row = row_of(new, records, config, (grid, rows))
        if found := learned_in(row, records):
            refuse_other_terms(row, found, records, grid, config["data"]["resample"])
            log.info("%s: is learned already", workdir)
            return _with_files(rows, found)
        if fault := next(iter(of_two_kinds([*rows, row])), ""):
            raise DataError(fault)
        reading = Reading(time_range_of(config["data"]["time_range"]), config["data"]["resample"])
        cases, faults = read_case([*rows, row], reading, known)
        refuse_faults(faults)
        own = plan_run(config, cases[0], workdir)
        if run(own.config, [own.scan], workdir, Caller(new.on_progress)).failed:
            warnings.warn(
                f"{workdir}: a fit diverged or collapsed; fits.csv says in which task. What comes "
                "after it goes on from there.",
                stacklevel=3,
            )
    return *rows, row


def _refuse_others(workdir: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigError if the folder holds other runs, or the run is a table's."""
    if table := config["data"]["table"]:
        raise ConfigError(f"{workdir}: is learned from {table}; a row there would be right.")
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir}: not a folder; another workdir would be right.")
    if (workdir / PATIENTS).is_dir() or (workdir / "cells").is_dir():
        raise ConfigError(f"{workdir}: holds other runs; another workdir would be right.")
    path = workdir / "config.json"
    if path.exists() and (scenario := read_config(path)["scenario"]) != SEQUENCE:
        raise ConfigError(f"{workdir}: holds a run of {scenario}; another workdir would be right.")


def _rows_before(records: Sequence[Mapping[str, Any]], held: Sequence[Row]) -> tuple[Row, ...]:
    """A row for each that is learned: one that is held, or one whose image is kept no longer, or
    is another now."""
    by_task = {row.task: row for row in held}

    def file(record: Mapping[str, Any], kind: str) -> File | None:
        if kind not in record:
            return None
        own = getattr(by_task.get(record["task"]), kind, None)
        if own and own.path.exists() and sources.digest(own.path) == record[kind]["sha256"]:
            return own
        return File(InMemory(f"the {kind} of task {record['task']}"), record[kind]["frame"])

    return tuple(
        Row(
            line=0,
            patient=PATIENT,
            task=record["task"],
            image=file(record, "image"),
            mask=file(record, "mask"),
            time=record["time"],
            channel=record.get("image", {}).get("name", "image"),
            mask_name=record.get("mask", {}).get("name", "mask"),
            range=tuple(record["image"]["range"]) if "image" in record else None,
        )
        for record in records
    )


def _with_files(rows: Sequence[Row], found: Mapping[int, Mapping[str, File]]) -> tuple[Row, ...]:
    """The rows with the files that a caller still has."""
    return tuple(row._replace(**found.get(row.task, {})) for row in rows)
