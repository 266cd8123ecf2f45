"""One image after the other for one field, whose state is its run's folder: from Python."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nfcl_jax.config import make_config
from nfcl_jax.data import sources
from nfcl_jax.data.sequence import Reading, read_case, time_range_of
from nfcl_jax.data.sources import InMemory, in_memory
from nfcl_jax.data.table import File, Row
from nfcl_jax.errors import ConfigError, DataError
from nfcl_jax.locks import locked
from nfcl_jax.recommended import recommended
from nfcl_jax.records import Progress
from nfcl_jax.run_folder import refuse_another_run
from nfcl_jax.runner import Caller, run
from nfcl_jax.scenarios import SEQUENCE
from nfcl_jax.table_run import known_of, plan_run, refuse_faults, stored_runs

PATIENT = "scan"  # whoever it is

log = logging.getLogger("nfcl_jax")


class New(NamedTuple):
    """What is to be learned next: an image, a mask or both; see `Run.learn`."""

    image: Any = None
    mask: Any = None
    time: float | int | None = None
    channel: str | None = None
    intensity_range: tuple[float | int, float | int] | None = None
    spacing: Sequence[float] | None = None
    colour: bool | None = None
    on_progress: Callable[[Progress], None] = lambda progress: None


def config_of(
    field: str,
    strategy: str,
    time_range: tuple[float | int, float | int] | None,
    resample: bool,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The config of a run, with the recommended recipe and, on top of it, `settings` by their names
    in a config, such as "num_steps" or "distillation.weight".

    Raises:
      ConfigError: for a name that is none.
    """
    config = recommended(make_config(SEQUENCE, field, strategy))
    ends = "" if time_range is None else ",".join(f"{float(end)!r}" for end in time_range)
    config["data"] |= {"time_range": ends, "resample": resample}
    for name, value in settings.items():
        *path, key = name.split(".")
        section = config
        for part in path:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict) or key not in section or name == "data.table":
            raise ConfigError(f"settings: a run has no {name!r}.")
        section[key] = type(section[key])(value) if isinstance(section[key], float) else value
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
    """
    time_range_of(config["data"]["time_range"])
    if config["data"]["table"]:
        raise ConfigError(
            f"{workdir}: is learned from {config['data']['table']}; a row there would be right."
        )
    with locked(workdir):
        stored = next(stored_runs(workdir), None)
        known = known_of(*stored) if stored else None
        if stored:
            refuse_another_run({**config, "tasks": stored[2].get("tasks", [])}, None, workdir)
        rows = _rows_before(known.record["rows"] if known else [], held)
        row = _row_of(new, rows, config)
        if _is_learned(row, known.record["rows"] if known else []):
            log.info("%s: is learned already", workdir)
            return rows
        reading = Reading(time_range_of(config["data"]["time_range"]), config["data"]["resample"])
        cases, faults = read_case([*rows, row], reading, known)
        refuse_faults(faults)
        own = plan_run(config, cases[0], workdir)
        run(own.config, [own.scan], workdir, Caller(new.on_progress))
    return *rows, row


def _rows_before(records: Sequence[Mapping[str, Any]], held: Sequence[Row]) -> tuple[Row, ...]:
    """A row for each that is learned: one that is held, or one whose image is kept no longer."""
    by_task = {row.task: row for row in held}

    def file(record: Mapping[str, Any], kind: str) -> File | None:
        if kind not in record:
            return None
        return File(InMemory(f"the {kind} of task {record['task']}"), record[kind]["frame"])

    return tuple(
        by_task.get(record["task"])
        or Row(
            line=0,
            patient=PATIENT,
            task=record["task"],
            image=file(record, "image"),
            mask=file(record, "mask"),
            time=record["time"],
            channel=record.get("image", {}).get("name", "image"),
            mask_name=record.get("mask", {}).get("name", "mask"),
        )
        for record in records
    )


def _row_of(new: New, before: Sequence[Row], config: Mapping[str, Any]) -> Row:
    """The row of something new; its time is that of the last one, or where the range begins."""
    ends = time_range_of(config["data"]["time_range"])
    if new.image is None and new.mask is None:
        raise DataError("neither an image nor a mask; one of them would be right.")
    if new.time is not None and ends is None:
        raise DataError("a time needs a time_range, such as (0, 730), from the first image on.")
    time = new.time
    if time is None and ends:
        time = before[-1].time if before else ends[0]

    def file(what: Any, name: str) -> File | None:
        if what is None:
            return None
        if isinstance(what, str | Path):
            return File(Path(what).absolute())
        return File(in_memory(what, f"the {name}", new.spacing, new.colour))

    return Row(
        line=0,
        patient=PATIENT,
        task=before[-1].task + 1 if before else 1,
        image=file(new.image, "image"),
        mask=file(new.mask, "mask"),
        time=time if time is None else float(time),
        channel=new.channel or "image",
        mask_name="mask" if new.image is not None else new.channel or "mask",
        range=new.intensity_range,
    )


def _is_learned(row: Row, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row teaches nothing that was not learned.

    Raises:
      DataError: if it teaches other values of something that was.
    """
    things = [(name, "mask" if file is row.mask else "image", file) for name, file in row.things]
    found = []
    for record in records:
        for name, kind, file in things:
            known = record.get(kind, {}).get("name") == name and record["time"] == row.time
            if known and file.path.exists():
                if record[kind]["sha256"] != sources.digest(file.path):
                    at = "" if row.time is None else f" at {row.time:g}"
                    raise DataError(
                        f"{name}{at} was learned in task {record['task']}, from other values; "
                        "another time or channel would be right."
                    )
                found.append(name)
    if found and len(found) < len(things):
        raise DataError(f"{found[0]} was learned already; the rest alone would be right.")
    return bool(found)
