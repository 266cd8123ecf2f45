"""The fields of a finished run of one of the paper's experiments as those of a table of scans,
which then goes on with them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nfcl_jax import checkpoints
from nfcl_jax.config import make_config, read_config
from nfcl_jax.data.sequence import Case
from nfcl_jax.errors import ConfigError, RunError
from nfcl_jax.records import Score
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import (
    PATIENTS,
    describe_scans,
    label_of,
    names_of,
    of_scans,
    params_like,
    read_records,
    write_description,
)
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SEQUENCE, Task, describe_tasks, tasks_of
from nfcl_jax.storage import write_csv


def config_of_table(run: Mapping[str, Any], table: Path, time_range: str) -> dict[str, Any]:
    """The config that goes on with a run: its field, strategy and steps, and a table's data. Points
    of distillation that are shared with the task's own become voxels: a new time is none that the
    teacher knows. A mask weighs against earlier images as it does by default."""
    own = make_config(SEQUENCE, run["field"]["name"], run["strategy"])
    config = own | {key: value for key, value in run.items() if key in own}
    config |= {"scenario": SEQUENCE, "data": own["data"]}
    config["data"] |= {"table": os.path.abspath(table), "time_range": time_range}
    constants = config.get(run["strategy"], {})
    if "weight" in constants:
        config["mask_factor"] = constants["weight"] / own[run["strategy"]]["weight"]
    if constants.get("points") == "shared":
        config[run["strategy"]] = constants | {"points": "voxels"}
    return config


def adopt(run: Path, cases: Iterable[Case], config: Mapping[str, Any], workdir: Path) -> list[Path]:
    """Gives each case whose scan is in a finished run a run folder of its own below `workdir`, with
    the checkpoints, scores and fits of that run.

    Args:
      run: the run's folder.
      cases: of the table that teaches what the run has learned, and no more.
      config: of `config_of_table`.
      workdir: of the table's runs.

    Returns:
      The folders.

    Raises:
      RunError: if the run is not finished, or its files are not what it leaves.
      ConfigError: if no scan is in the run, or one is not as the table has it, or a folder is there
        already.
      CheckpointError: if a checkpoint is damaged, or cannot be written.
    """
    theirs, records = read_config(run / "config.json"), read_records(run / "patients.json")
    tasks, names = tasks_of(theirs), names_of(records)
    by_name = dict(zip(names, of_scans(records), strict=True))
    if checkpoints.num_learned(run) < len(tasks):
        raise RunError(f"{run}: not finished; its own command, to the end, would be right.")
    scores, fits = read_rows(run, theirs, names, len(tasks))
    own = []
    for case in cases:
        scan, folder = case.scan, workdir / PATIENTS / case.scan.patient / case.scan.image
        record = by_name.get(scan.name)
        if record is None:  # which is learned from the start
            continue
        if record.get("sha256") != scan.sha256 or not _same_tasks(tasks, case.tasks):
            raise ConfigError(f"{scan.name}: {run} has not learned it as the table has it.")
        if folder.exists():
            raise ConfigError(f"{folder}: is there already; another --workdir would be right.")
        whole = {**config, "tasks": describe_tasks(case.tasks)}
        described = describe_scans([scan], whole, {})
        folder.mkdir(parents=True)
        write_description(folder, whole, described)
        rows = _by_head(_of(scan, scores), tasks)
        write_csv(folder / "metrics.csv", rows, label_of(whole))
        write_csv(folder / "fits.csv", _of(scan, fits))
        own.append((folder, scan.name, whole, described))
    if not own:
        raise ConfigError(f"{run}: has learned {', '.join(names)}, none of which is in the table.")
    for task in range(1, len(tasks) + 1):
        like = {name: params_like(theirs, by_name[name], task) for name in names}
        learned = checkpoints.load_all(run, task, like)
        for folder, name, whole, described in own:
            about = {"config": whole, "scans": described}
            checkpoints.save(folder, task, {name: learned[name]}, about)
    return [folder for folder, *_ in own]


def _same_tasks(theirs: Iterable[Task], own: Iterable[Task]) -> bool:
    """Whether two sequences of tasks teach the same channels on the same frames, whatever their
    names."""

    def what(tasks):
        return [
            [(head.name, head.kind, head.channels, frames) for head, frames in task.lessons]
            for task in tasks
        ]

    return what(theirs) == what(own)


def _by_head(rows: Iterable[Score], tasks: tuple[Task, ...]) -> list[Score]:
    """Scores as a table's runs have them, told apart by the head."""
    return [row._replace(image=tasks[row.evaluated_task - 1].head.name) for row in rows]


def _of(scan: Scan, rows: Iterable[Any]) -> list[Any]:
    """The scores, or fits, of one scan."""
    return [row for row in rows if (row.patient, row.image) == (scan.patient, scan.image)]
