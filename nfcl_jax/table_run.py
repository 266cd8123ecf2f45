"""The runs of a table of scans: one for each field, in a folder of its own.

    WORKDIR/patients/p1/scan/     a run's folder, as `runner.run` leaves it
    WORKDIR/metrics.csv           the scores of all of them

A row that is added to the table touches the folder of its patient alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nfcl_jax.checkpoints import num_learned
from nfcl_jax.config import check_config, read_config
from nfcl_jax.data.sequence import Case, Known, Reading, read_cases
from nfcl_jax.errors import ConfigError, DataError
from nfcl_jax.records import Score
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import describe_scans, read_records, refuse_another_run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import describe_tasks, tasks_of
from nfcl_jax.strategies import STRATEGIES

PATIENTS = "patients"  # the folder of the runs


class OwnRun(NamedTuple):
    """The run of one field of a table: its config, scan and folder."""

    config: dict[str, Any]
    scan: Scan
    workdir: Path

    @property
    def name(self) -> str:
        """What the table calls whose field it is."""
        return _cell(self.scan.patient, self.scan.image)


def time_range_of(words: str) -> tuple[float, float] | None:
    """The two times of a flag such as "0,730"; None if it is empty.

    Raises:
      ConfigError: if it is anything else.
    """
    try:
        ends = tuple(float(word) for word in words.split(",")) if words else None
        if ends and not (len(ends) == 2 and -1e30 < ends[0] < ends[1] < 1e30):
            raise ValueError(words)
    except ValueError as error:
        raise ConfigError(
            f"time_range must be two numbers, the smaller one first, such as 0,730, or empty; got "
            f"{words!r}."
        ) from error
    return ends


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
    reading = Reading(times, resample, config["huber_delta"])
    cases, faults = read_cases(Path(table), reading, learned_before(workdir))
    lines = [line for own in faults.values() for line in own]
    if lines:
        raise DataError("\n".join(["the data cannot be used as it is:", *lines]))
    return cases


def learned_before(workdir: Path) -> dict[str, Known]:
    """What the runs below a folder have learned, by the names that the table has.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    found = {}
    for path in sorted((workdir / PATIENTS).glob("*/*/patients.json")):
        (record,), config = read_records(path), read_config(path.parent / "config.json")
        learned = num_learned(path.parent)
        rows = [row for row in record["rows"] if row["task"] <= learned]
        if rows:
            known = Known({**record, "rows": rows}, tasks_of(config)[:learned])
            found[_cell(record["patient"], record["image"])] = known
    return found


def plan(config: Mapping[str, Any], cases: Iterable[Case], workdir: Path) -> list[OwnRun]:
    """A run for each case.

    Raises:
      ConfigError: if the config does not fit a case, or needs a file that is gone, or its folder
        holds another run: a row that was there before is missing or not the same.
    """
    runs = []
    for scan, tasks in cases:
        own = {**config, "tasks": describe_tasks(tasks)}
        check_config(own)
        folder = workdir / PATIENTS / scan.patient / scan.image
        if scan.missing and STRATEGIES[config["strategy"]].needs_data:
            gone = ", ".join(sorted({name for name, _ in scan.missing}))
            raise ConfigError(
                f"{scan.name}: {config['strategy']} needs earlier data, whose files are gone "
                f"({gone}); a strategy without them, such as distillation, would be right."
            )
        refuse_another_run(own, describe_scans([scan], own, {}), folder)
        runs.append(OwnRun(own, scan, folder))
    return runs


def scores_of(runs: Iterable[OwnRun]) -> list[Score]:
    """The scores of finished runs, by the names that the table has.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    scores = []
    for own in runs:
        rows, _ = read_rows(own.workdir, own.config, [own.scan.name], len(own.config["tasks"]))
        scores += [row._replace(patient=own.name) for row in rows]
    return scores


def _cell(patient: str, image: str) -> str:
    """What a table calls whose field it is."""
    return patient if image == "scan" else f"{patient}/{image}"
