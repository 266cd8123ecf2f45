"""The scans of a cohort, from any data set: what can be used, and every fault of the rest.

A data set is added by an entry in DATASETS.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nfcl_jax import processes
from nfcl_jax.data import acdc
from nfcl_jax.data.volumes import collect
from nfcl_jax.errors import DataError, look_up
from nfcl_jax.scan import Scan, is_name, scaled_by_cine
from nfcl_jax.scenarios import SCENARIOS, Scenario

INTENSITY_RANGES = ("cine", "frames")


class Dataset(NamedTuple):
    """How the files of a data set are read. Faults of files are DataErrors.

    Attributes:
      find: (root, names of patients, all if empty) -> a path for each, in the order of their names.
      read: (path, image, frames that a scenario needs) -> Scan, scaled by its own range; the image
        is one of those that a scenario names.
      stored_voxels: (path, image, frame numbers) -> the scan's voxels as their file has them, or
        None if that is not to be known.
    """

    find: Callable[[str | Path, Sequence[str]], list[Path]]
    read: Callable[[Path, str, int], Scan]
    stored_voxels: Callable[[Path, str, Sequence[int]], bytes] | None = None


DATASETS: dict[str, Dataset] = {
    "acdc": Dataset(acdc.find_patients, acdc.read_image, acdc.stored_voxels),
}


class Cohort(NamedTuple):
    """What `read_cohort` found.

    Attributes:
      scans: of each scenario, in the order of the patients' names; none of a patient with faults,
        and of several processes its own.
      faults: a patient's, one line each.
      warnings: what should be known of patients without faults.
    """

    scans: dict[str, list[Scan]]
    faults: dict[str, list[str]]
    warnings: list[str]


def read_cohort(
    root: str | Path,
    scenarios: Iterable[str],
    patients: Sequence[str] = (),
    dataset: str = "acdc",
    intensity_range: str = "cine",
    kept_bytes: float | int = math.inf,
) -> Cohort:
    """Every scan that the scenarios need of the wanted patients, and every fault of them.

    Of several processes each reads a share of the patients, and is told all faults.

    Args:
      root: as the data set's `find` takes it.
      scenarios: names.
      patients: names; all if empty.
      dataset: one of DATASETS.
      intensity_range: one of INTENSITY_RANGES: what is scaled to [0, 1], the patient's whole cine,
        where there is one, or the frames of a scan alone.
      kept_bytes: of values that stay in memory; scans beyond them are read again when needed.

    Raises:
      DataError: if there is no such data set, or its patients cannot be found.
    """
    find, read, _ = look_up(DATASETS, "data set", dataset, DataError)
    paths = _found(find, root, patients, dataset)
    cohort, images, size = Cohort({scenario: [] for scenario in scenarios}, {}, []), [], 0
    needed = [(name, image) for name in cohort.scans for image in SCENARIOS[name].images]
    for folder in processes.own(paths):
        rest = read, intensity_range
        asked = [(name, (folder, image, SCENARIOS[name], *rest)) for name, image in needed]
        faults: list[str] = []
        scans = [collect(faults, _read, *arguments) for _, arguments in asked]
        if faults:
            cohort.faults[folder.name] = faults
            continue
        for (name, arguments), scan in zip(asked, scans, strict=True):
            cohort.warnings.extend(scan.warnings)
            images.append((str(folder), scan.image, _digest(scan.intensities)))
            size += sum(values.nbytes for values in scan.values.values())
            again = functools.partial(_read, *arguments)
            cohort.scans[name].append(scan if size <= kept_bytes else scan.unread(again))
    return _of_all_processes(cohort, images)


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def _found(find: Callable, root: str | Path, patients: Sequence[str], dataset: str) -> list[Path]:
    """The patients' paths; a DataError if there are too few, or one has a name that cannot be."""
    paths = find(root, patients)
    if len(paths) < max(len(set(patients)), 1):
        wanted = f" of the {len(set(patients))} that are wanted" if patients else ""
        raise DataError(f"{root}: {len(paths)}{wanted} are here, of the data set {dataset}.")
    for folder in paths:
        if not is_name(folder.name):
            raise DataError(
                f"{root}: a patient called {folder.name!a}; a name in UTF-8 without a backslash, "
                "that does not begin with a dot, would be right."
            )
    return paths


def _of_all_processes(cohort: Cohort, images: list[tuple[str, str, str]]) -> Cohort:
    """The faults and warnings of every process's patients, and which images are the same; `images`
    are folders, names and digests."""
    everyone = processes.gathered([cohort.faults, cohort.warnings, images])
    faults = {name: own for faults, *_ in everyone for name, own in faults.items()}
    warnings = [line for _, own, _ in everyone for line in own]
    owners: dict[str, str] = {}
    for folder, image, digest in (one for *_, own in everyone for one in own):
        owner = owners.setdefault(digest, folder)
        if owner != folder:
            warnings.append(
                f"{folder}: the same {image} as {Path(owner).name}'s; if that is one patient, it "
                "counts twice."
            )
    return Cohort(cohort.scans, dict(sorted(faults.items())), warnings)


def _read(folder: Path, image: str, scenario: Scenario, read: Callable, scaled_by: str) -> Scan:
    """What a reader gives, scaled.

    Raises:
      DataError: as the reader, or if it is not what the scenario needs.
    """
    scan = read(folder, image, scenario.num_frames)
    scan = scaled_by_cine(scan) if scaled_by == "cine" else scan
    values = scan.intensities
    if values.dtype != np.float32 or values.ndim != 4 or len(values) != scenario.num_frames:
        raise DataError(
            f"{folder}: its reader gave {values.dtype} of shape {values.shape}; float32 of shape "
            f"({scenario.num_frames}, x, y, z) would be right."
        )
    heads = [task.head for task in scenario.tasks(1.0) if task.head.kind == "mask"]
    if not heads:
        return dataclasses.replace(scan, values={"image": values})
    if scan.labels is None or scan.labels.shape != values.shape:
        what = "no labels" if scan.labels is None else f"labels of shape {scan.labels.shape}"
        raise DataError(f"{folder}: its reader gave {what}; a task needs shape {values.shape}.")
    classes = min(head.num_channels for head in heads)
    if not np.isin(scan.labels, np.arange(classes)).all():
        raise DataError(
            f"{folder}: its reader gave labels from {scan.labels.min()} to {scan.labels.max()}; "
            f"whole numbers from 0 to {classes - 1} would be right."
        )
    return scan


def read_scans(
    root: str | Path,
    scenario: str,
    patients: Sequence[str] = (),
    dataset: str = "acdc",
    intensity_range: str = "cine",
) -> list[Scan]:
    """Every scan that `scenario` needs of the wanted patients, in the order of their names. The
    arguments are those of `read_cohort`.

    Raises:
      DataError: with one line for each fault of each patient.
    """
    cohort = read_cohort(root, [scenario], patients, dataset, intensity_range)
    refuse_faults(cohort.faults)
    return cohort.scans[scenario]


def refuse_faults(faults: Mapping[str, list[str]]) -> None:
    """Raises DataError with one line for each fault of each patient, if there are any."""
    lines = [line for own in faults.values() for line in own]
    if lines:
        raise DataError("\n".join(["the data cannot be used as it is:", *lines]))
