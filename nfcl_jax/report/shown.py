"""The patients that a report shows: their scans, kept beside the runs, so that the report needs no
other files, and what the runs' fields make of them."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nfcl_jax.errors import CheckpointError, ReportError, first_line
from nfcl_jax.fields import FIELDS
from nfcl_jax.metrics import predicted
from nfcl_jax.report.results import FinishedRun, of_first_seed, scores_of_scan
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, Task, num_frames
from nfcl_jax.storage import read_npz, write_file

KEPT = ("intensities", "labels", "frame_numbers", "spacing", "affine")  # of a scan


def save_shown(workdir: Path, scans: Iterable[Scan], patients: Sequence[str]) -> None:
    """Writes the scans of `patients` below `workdir`, where those of other patients are removed."""
    folder = workdir / "shown"
    folder.mkdir(parents=True, exist_ok=True)
    for scan in scans:
        if scan.patient in patients:
            name = f"{scan.patient}_{scan.image}"
            scan = scan.read()
            values = {name: getattr(scan, name) for name in KEPT}
            arrays = {name: value for name, value in values.items() if value is not None}
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # what shrinks too well is refused when it is read
            # Scenarios may take different frames of one cine.
            write_file(folder / f"{name}_{scan.num_frames}.npz", buffer.getvalue())
            (folder / f"{name}.npz").unlink(missing_ok=True)  # of an earlier version
    for path in folder.glob("*.npz"):
        if _patient_and_image(path)[0] not in patients:
            path.unlink(missing_ok=True)  # another process may be as far


def _patient_and_image(path: Path) -> list[str]:
    """From the name of a file, without the number of frames if it has one."""
    return re.sub(r"_\d+$", "", path.stem).rsplit("_", 1)


def load_shown(workdir: Path) -> list[Scan]:
    """What `save_shown` wrote, by patient, the cine first; empty if nothing was.

    Raises:
      ReportError: if a file is none of its.
    """
    scans = []
    for path in (workdir / "shown").glob("*.npz"):
        try:
            scans.append(_load(path))
        except Exception as error:  # of any kind, as the damage may be
            raise ReportError(
                f"{path}: damaged ({first_line(error)}); without it, the grid's command writes it "
                "again."
            ) from error
    return sorted(scans, key=lambda s: (s.patient, s.num_frames == 1, s.image, s.num_frames))


def _load(path: Path) -> Scan:
    arrays, (patient, image) = read_npz(path), _patient_and_image(path)
    scan = Scan(
        patient=patient,
        image=image,
        values={
            head: arrays[name]
            for head, name in (("image", "intensities"), ("mask", "labels"))
            if name in arrays
        },
        frame_numbers=tuple(arrays["frame_numbers"].tolist()),
        spacing=tuple(arrays["spacing"].tolist()),
        affine=arrays["affine"],
    )
    shapes = scan.intensities.shape, scan.labels is not None and scan.labels.shape
    if len(shapes[0]) != 4 or shapes[1] not in (False, shapes[0]):
        raise ValueError(f"arrays of shape {shapes}")
    return scan


def runs_of_scan(runs: Sequence[FinishedRun], scan: Scan) -> tuple[list[FinishedRun], list[str]]:
    """Of each scenario, field and strategy the first seed's run that can show the scan, and the
    names of those that cannot though they should."""
    able, missing = [], []
    for scenario in SCENARIOS:
        own = [run for run in of_first_seed(runs, scenario) if scan.image in run.scenario.images]
        can = [run for run in own if can_reconstruct(run, scan)]
        able += can
        if not own or own[0].scenario.num_frames == scan.num_frames:
            missing += [run.path.name for run in own if run not in can]
    return able, missing


def can_reconstruct(run: FinishedRun, scan: Scan) -> bool:
    """Whether the run has checkpoints of all tasks with this scan: the same image of the same
    patient, of the same shape, place, frames and values."""
    if run.field not in FIELDS:  # its definition is not loaded
        return False
    complete = run.opened.tasks == tuple(range(1, len(run.scenario.tasks(1.0)) + 1))
    return complete and any(
        (record["patient"], record["image"]) == (scan.patient, scan.image)
        and tuple(record["shape"]) == scan.shape
        and tuple(record["frame_numbers"]) == scan.frame_numbers
        and np.array_equal(record["affine"], scan.affine)
        and record.get("sha256") in (None, scan.sha256)  # early runs have none
        for record in run.opened.scans
    )


class View(NamedTuple):
    """Slices of what a run's field has of one task after another.

    Attributes:
      run: the run.
      trained: the task after which the field is asked.
      task: what it is asked for.
      values: (x, y, slices) on the task's first frame: intensities in [0, 1], or labels.
      scores: of the whole volume, by metric.
    """

    run: FinishedRun
    trained: Task
    task: Task
    values: np.ndarray
    scores: dict[str, float]


def views_of_run(
    run: FinishedRun, scan: Scan, slices: Sequence[int], results: pd.DataFrame, last: bool = False
) -> Iterator[View]:
    """Every task after every task, or after the last one alone, on some slices (along z).

    Raises:
      CheckpointError: if a checkpoint is damaged.
    """
    tasks = run.scenario.tasks(1.0)
    whole = np.arange(scan.intensities.size).reshape(scan.intensities.shape)
    for trained in range(len(tasks) if last else 1, len(tasks) + 1):
        index = whole[: num_frames(tasks[:trained])][..., slices]
        outputs = run.opened.field(scan.patient, trained, scan.image).at_voxels(index.ravel())
        outputs = outputs.reshape(*index.shape, -1)
        for evaluated, task in enumerate(tasks[:trained], start=1):
            values = predicted(task.lessons[0], outputs[task.frames[0]][..., task.head.channels])
            scores = scores_of_scan(results, run, scan, trained, evaluated)
            yield View(run, tasks[trained - 1], task, values, scores)


def views(
    runs: Sequence[FinishedRun], scan: Scan, slices: Sequence[int], results: pd.DataFrame,
    last: bool = False,
) -> tuple[list[View], list[str]]:  # fmt: skip
    """`views_of_run` of all runs, and a note for each that cannot be shown."""
    found, notes = [], []
    for run in runs:
        try:
            found += list(views_of_run(run, scan, slices, results, last))
        except CheckpointError as error:
            notes.append(f"{scan.name} without {run.path.name}: {error}")
    return found, notes
