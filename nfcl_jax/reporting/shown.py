"""The patients that a report shows: their scans, kept beside the runs, so that the report needs no
other files, and what a run's fields make of them."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nfcl_jax.reporting.records import write_file
from nfcl_jax.reporting.results import FinishedRun
from nfcl_jax.runs import Run, open_run
from nfcl_jax.scenarios import SCENARIOS, Scan


def save_shown(workdir: Path, scans: Iterable[Scan], patients: Sequence[str]) -> None:
    """Writes the scans of `patients` below `workdir`, where those of other patients are removed."""
    folder = workdir / "shown"
    folder.mkdir(parents=True, exist_ok=True)
    for scan in scans:
        if scan.patient in patients:
            name = f"{scan.patient}_{scan.image}.npz"
            arrays = {
                "intensities": scan.intensities,
                "frame_numbers": scan.frame_numbers,
                "spacing": scan.spacing,
                "affine": scan.affine,
            }
            if scan.labels is not None:
                arrays["labels"] = scan.labels
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_file(folder / name, buffer.getvalue())
    for path in folder.glob("*.npz"):
        if path.stem.rsplit("_", 1)[0] not in patients:
            path.unlink()


def load_shown(workdir: Path) -> list[Scan]:
    """What `save_shown` wrote, by patient, the cine first; empty if nothing was."""
    scans = []
    names = [path.stem.rsplit("_", 1) for path in (workdir / "shown").glob("*.npz")]
    for patient, image in sorted(names, key=lambda name: (name[0], name[1] != "cine", name[1])):
        path = workdir / "shown" / f"{patient}_{image}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            scans.append(
                Scan(
                    patient=patient,
                    image=image,
                    intensities=arrays["intensities"],
                    labels=arrays.get("labels"),
                    frame_numbers=tuple(arrays["frame_numbers"].tolist()),
                    spacing=tuple(arrays["spacing"].tolist()),
                    affine=arrays["affine"],
                )
            )
    return scans


def can_reconstruct(run: FinishedRun, scan: Scan) -> bool:
    """Whether the run has checkpoints of all tasks with this scan: the same image of the same
    patient, of the same shape, place and frames."""
    opened = open_run(run.path)
    complete = opened.tasks == tuple(range(1, len(SCENARIOS[scan.scenario]()) + 1))
    return complete and any(
        (record["patient"], record["image"]) == (scan.patient, scan.image)
        and tuple(record["shape"]) == scan.shape
        and tuple(record["frame_numbers"]) == scan.frame_numbers
        and np.array_equal(record["affine"], scan.affine)
        for record in opened.scans
    )


def reconstruct(
    run: Run, scan: Scan, task: int, num_frames: int, slices: Sequence[int]
) -> np.ndarray:
    """A field's raw outputs after `task` on some slices (along z) of the scan's first frames,
    (frames, x, y, slices, channels).

    Raises:
      KeyError: if the run has no such scan or task.
    """
    whole = np.arange(scan.intensities.size).reshape(scan.intensities.shape)
    index = whole[:num_frames][..., slices]
    outputs = run.field(scan.patient, task, scan.image).at_voxels(index.ravel())
    return outputs.reshape(*index.shape, -1)
