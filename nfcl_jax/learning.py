"""One image after the other for one field, whose state is its run's folder: from Python."""

import logging
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.config import make_config, read_config
from nfcl_jax.data import sources
from nfcl_jax.data.cohorts import refuse_faults
from nfcl_jax.data.sequence import Reading, grid_of_record, read_case, time_range_of
from nfcl_jax.data.sources import InMemory, in_memory
from nfcl_jax.data.table import File, Row, file_of, of_two_kinds
from nfcl_jax.data.things import refuse_other_terms
from nfcl_jax.data.volumes import Volume
from nfcl_jax.errors import ConfigError, DataError, RunError
from nfcl_jax.locks import locked
from nfcl_jax.recommended import recommended
from nfcl_jax.records import Progress
from nfcl_jax.run_folder import PATIENTS, refuse_another_run
from nfcl_jax.runner import Caller, run
from nfcl_jax.scan import is_name
from nfcl_jax.scenarios import SEQUENCE
from nfcl_jax.table_run import known_of, plan_run, stored_runs

PATIENT = "scan"  # whoever it is

log = logging.getLogger("nfcl_jax")


class New(NamedTuple):
    """What is to be learned next: an image, a mask or both; see `Run.learn`."""

    image: Any = None
    mask: Any = None
    time: float | int | None = None
    channel: str | None = None
    intensity_range: tuple[float | int, float | int] | None = None
    spacing: Any = None
    colour: bool | None = None
    on_progress: Callable[[Progress], None] = lambda progress: None
    goes_on: bool = False  # from the last scan, whose time it has by default


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
        row = _row_of(new, records, config, grid)
        if found := _learned_in(row, records):
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
                stacklevel=4,
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


def _row_of(
    new: New,
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    grid: Volume | None,
) -> Row:
    """The row of something new; its time is the one at which it was learned already, if it was, or
    that of the last row, or where the range begins. Arrays lie on the grid that is there.

    Raises:
      DataError: for a time, range, name or image that cannot be.
    """
    ends = time_range_of(config["data"]["time_range"])
    if new.time is not None and ends is None:
        raise DataError("a time needs a time_range, such as (0, 730), from the first image on.")
    if new.channel and not (isinstance(new.channel, str) and is_name(new.channel)):
        raise DataError(f"channel must be a name without slashes, got {new.channel!r}.")

    if new.intensity_range is not None and new.image is None:
        raise DataError("an intensity_range is of an image, and there is none.")
    arrays = any(map(sources.is_array, (new.image, new.mask)))
    if new.spacing is not None and not arrays:
        raise DataError("a spacing is of arrays; what is given has its own.")

    def file(what: Any, kind: str) -> File | None:
        if what is None:
            return None
        if isinstance(what, str | Path):
            return file_of(Path.cwd(), str(what))
        is_mask = kind == "mask"
        colour = False if is_mask else new.colour
        spacing = grid.spacing if new.spacing is None and grid else new.spacing
        return File(in_memory(what, f"the {kind}", spacing, colour, is_mask))

    image = file(new.image, "image")
    if grid is None and image and isinstance(image.path, InMemory):
        grid = image.path.volume  # on which its mask lies
    row = Row(
        line=0,
        patient=PATIENT,
        task=records[-1]["task"] + 1 if records else 1,
        image=image,
        mask=file(new.mask, "mask"),
        time=_number(new.time, "time"),
        channel=new.channel or "image",
        mask_name="mask" if new.image is not None else new.channel or "mask",
        range=_range(new.intensity_range),
    )
    if row.time is not None or ends is None:
        return row
    times = [
        record["time"]
        for record in records
        if _learned_in(row._replace(time=record["time"]), [record], strict=False)
    ]
    last = records[-1]["time"] if records and new.goes_on else ends[0]
    return row._replace(time=times[0] if times else last)


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or not np.isfinite(float(value)):
        raise DataError(f"{what} must be a number, got {value!r}.")
    return float(value)


def _range(ends: Any) -> tuple[float, float] | None:
    if ends is None:
        return None
    try:
        low, high = (_number(end, "intensity_range") for end in ends)
    except (TypeError, ValueError) as error:
        raise DataError(f"intensity_range must be two numbers, got {ends!r}.") from error
    if low is None or high is None or not low < high:
        raise DataError(f"intensity_range must be two numbers, the smaller first; got {ends!r}.")
    return low, high


def _learned_in(
    row: Row, records: Sequence[Mapping[str, Any]], strict: bool = True
) -> dict[int, dict[str, File]]:
    """In which tasks the things of a row were learned, by their kinds; empty if in none.

    Raises:
      DataError: if one was learned from other values, or one alone was, and that is `strict`.
    """
    things = [(name, "mask" if file is row.mask else "image", file) for name, file in row.things]
    found: dict[int, dict[str, File]] = {}
    for record in records:
        for name, kind, file in things:
            known = record.get(kind, {}).get("name") == name and record["time"] == row.time
            if known and file.path.exists():
                if record[kind]["sha256"] == sources.digest(file.path):
                    found.setdefault(record["task"], {})[kind] = file
                elif strict:
                    at = "" if row.time is None else f" at {row.time:g}"
                    raise DataError(
                        f"{name}{at} was learned in task {record['task']}, from another file or "
                        "other values; another time or channel would be right."
                    )
    if 0 < sum(map(len, found.values())) < len(things):
        if strict:
            (kind, *_) = next(iter(found.values()))
            raise DataError(f"the {kind} was learned already; the rest alone would be right.")
        return {}
    return found


def _with_files(rows: Sequence[Row], found: Mapping[int, Mapping[str, File]]) -> tuple[Row, ...]:
    """The rows with the files that a caller still has."""
    return tuple(row._replace(**found.get(row.task, {})) for row in rows)
