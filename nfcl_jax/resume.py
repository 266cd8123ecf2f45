"""What a run's folder has of the work already, for the run to go on from there."""

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from nfcl_jax import checkpoints, partial, processes
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
    scans: Sequence[Scan],
    memory: MutableMapping[str, Learned],
) -> int:
    """How many tasks the folder holds; what the last of them left of this process's scans goes to
    the memory, unless it was the last of all. Checkpoints that cannot be used are set aside.

    Raises:
      RunError: if a checkpoint is another run's.
    """
    there, learned = processes.on_first(
        lambda: (checkpoints.finished_tasks(workdir), checkpoints.num_learned(workdir))
    )
    if learned == len(tasks_of(config)):
        return learned
    if len(there) > learned:
        log.warning("%s: no checkpoint of task %d", workdir, learned + 1)
    while learned and (fault := _take(workdir, learned, config, scan_records, scans, memory)):
        log.warning("%s", fault)
        learned -= 1
    for task in (task for task in there if task > learned):
        aside = processes.on_first(lambda task=task: str(checkpoints.set_aside(workdir, task)))
        log.warning("task %d is learned again; its checkpoint is now %s", task, aside)
    return learned


def first_task_of(
    twin: Path,
    scan_records: list[dict[str, Any]],
    scans: Sequence[Scan],
    memory: MutableMapping[str, Learned],
) -> tuple[list[Score], list[Fit]] | None:
    """The rows that a run has of its first task, on everyone's scans, if that can be used; what it
    has learned of this process's goes to the memory."""

    def there():
        if 1 not in checkpoints.finished_tasks(twin):
            return None
        try:
            config = read_config(twin / "config.json")
            return config, read_rows(twin, config, names_of(scan_records), 1), ""
        except (RunError, OSError) as error:
            return None, None, str(error)

    if not (found := processes.on_first(there)):
        return None
    config, rows, fault = found
    if fault := fault or _take(twin, 1, config, scan_records, scans, memory):
        log.warning("%s Task 1 is learned again.", fault)
    return None if fault else rows


def _take(
    workdir: Path,
    task: int,
    config: Mapping[str, Any],
    scan_records: list[dict[str, Any]],
    scans: Sequence[Scan],
    memory: MutableMapping[str, Learned],
) -> str:
    """Puts what a task left of these scans into the memory, if this config and these scans are what
    it was learned by. Every process reads all of it: Orbax counts what it does, and waits for the
    others to have done as much.

    Returns:
      Why the checkpoint cannot be used, by any process.
    """
    fault, own = "", {scan.name for scan in scans}
    try:
        about = checkpoints.load_metadata(workdir, task)
        refuse_another_checkpoint(workdir, task, about, config, scan_records)
        # As they were then: a table of scans may have grown.
        likes = [params_like(config, record, task) for record in of_scans(about["scans"])]
        like = dict(zip(names_of(about["scans"]), likes, strict=True))
        for name, learned in checkpoints.load_each(workdir, task, like):
            if name in own:
                memory[name] = learned
    except CheckpointError as error:
        fault = str(error)
    return next(filter(None, processes.gathered(fault)), "")


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
