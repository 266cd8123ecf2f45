"""What a run's folder has of the work already, for the run to go on from there."""

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from nfcl_jax import checkpoints, partial
from nfcl_jax.config import read_config
from nfcl_jax.errors import CheckpointError, RunError
from nfcl_jax.records import Fit, Learned, Partial, Score
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import (
    fingerprint,
    names_of,
    of_scans,
    params_like,
    refuse_another_checkpoint,
)
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import tasks_of

log = logging.getLogger("nfcl_jax")


def learned_before(
    workdir: Path,
    config: Mapping[str, Any],
    scan_records: list[dict[str, Any]],
    memory: MutableMapping[str, Learned],
) -> int:
    """How many tasks the folder holds; what the last of them left goes to the memory, unless it was
    the last of all. Checkpoints that cannot be used are set aside.

    Raises:
      RunError: if a checkpoint is another run's.
    """
    there, learned = checkpoints.finished_tasks(workdir), checkpoints.num_learned(workdir)
    if learned == len(tasks_of(config)):
        return learned
    if len(there) > learned:
        log.warning("%s: no checkpoint of task %d", workdir, learned + 1)
    while learned:
        try:
            memory.update(_load_each(workdir, learned, config, scan_records))
            break
        except CheckpointError as error:
            log.warning("%s", error)
            learned -= 1
    for task in there:
        if task > learned:
            aside = checkpoints.set_aside(workdir, task)
            log.warning("task %d is learned again; its checkpoint is now %s", task, aside)
    return learned


def _load_each(
    workdir: Path, task: int, config: Mapping[str, Any], scan_records: list[dict[str, Any]]
) -> Iterator[tuple[str, Learned]]:
    """What a task left of every scan, if this config and these scans are what it was learned by."""
    about = checkpoints.load_metadata(workdir, task)
    refuse_another_checkpoint(workdir, task, about, config, scan_records)
    # As they were then: a table of scans may have grown.
    likes = [params_like(config, record, task) for record in of_scans(about["scans"])]
    like = dict(zip(names_of(about["scans"]), likes, strict=True))
    return checkpoints.load_each(workdir, task, like)


def begun(
    config: Mapping[str, Any],
    scans: Sequence[Scan],
    workdir: Path,
    task: int,
    memory: MutableMapping[str, Learned],
) -> dict[str, Partial]:
    """What scans have of a task that was interrupted; what those that are done with it have learned
    goes to the memory."""
    found, made_by = {}, fingerprint(config, scans, task)
    for scan in scans:
        there, faults = partial.load(workdir, task, [scan.name], made_by)
        for fault in faults:
            log.warning(fault)
        for name, own in there.items():
            if own.fits:
                memory[name] = own.learned
                own = own._replace(learned=None)
            found[name] = own
    return found


def first_task_of(
    twin: Path,
    config: Mapping[str, Any],
    scan_records: list[dict[str, Any]],
    memory: MutableMapping[str, Learned],
) -> tuple[list[Score], list[Fit]] | None:
    """The rows that a run has of its first task on these scans, if that can be used; what it has
    learned goes to the memory."""
    if 1 not in checkpoints.finished_tasks(twin):
        return None
    try:
        own = read_config(twin / "config.json")
        rows = read_rows(twin, own, names_of(scan_records), 1)
        memory.update(_load_each(twin, 1, own, scan_records))
        return rows
    except (CheckpointError, RunError, OSError) as error:
        log.warning("%s Task 1 is learned again.", error)
        return None
