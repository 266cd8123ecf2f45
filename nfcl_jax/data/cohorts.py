"""The scans of a cohort, from any data set: what can be used, and every fault of the rest.

A data set is added by an entry in DATASETS.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nfcl_jax.data import acdc
from nfcl_jax.data.volumes import collect
from nfcl_jax.errors import DataError, look_up
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, Scenario


class Dataset(NamedTuple):
    """How the files of a data set are read. Faults of files are DataErrors.

    Attributes:
      find: (root, names of patients, all if empty) -> their folders, in the order of their names.
      read: (folder, image, frames that a scenario needs) -> Scan; the image is one of those that a
        scenario names.
      stored_voxels: (folder, image, frame numbers) -> the scan's voxels as their file has them, or
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
      scans: of each scenario, in the order of the patients' names; none of a patient with faults.
      faults: a patient's, one line each.
      warnings: what should be known of patients without faults.
    """

    scans: dict[str, list[Scan]]
    faults: dict[str, list[str]]
    warnings: list[str]


def read_cohort(
    root: str | Path, scenarios: Iterable[str], patients: Sequence[str] = (), dataset: str = "acdc"
) -> Cohort:
    """Every scan that the scenarios need of the wanted patients, and every fault of them.

    Raises:
      DataError: if there is no such data set, or its patients cannot be found.
    """
    find, read, _ = look_up(DATASETS, "data set", dataset, DataError)
    cohort = Cohort({scenario: [] for scenario in scenarios}, {}, [])
    owners: dict[str, str] = {}
    for folder in find(root, patients):
        faults: list[str] = []
        scans = {
            scenario: [
                collect(faults, _read, folder, image, SCENARIOS[scenario], read)
                for image in SCENARIOS[scenario].images
            ]
            for scenario in cohort.scans
        }
        if faults:
            cohort.faults[folder.name] = faults
            continue
        for scenario, own in scans.items():
            cohort.scans[scenario] += own
            for scan in own:
                digest = hashlib.sha256(np.ascontiguousarray(scan.intensities)).hexdigest()
                owner = owners.setdefault(digest, folder.name)
                if owner != folder.name:
                    cohort.warnings.append(
                        f"{folder}: the same {scan.image} as {owner}'s; if that is one patient, "
                        "it counts twice."
                    )
    return cohort


def _read(folder: Path, image: str, scenario: Scenario, read: Callable) -> Scan:
    """What a reader gives.

    Raises:
      DataError: as the reader, or if it is not what the scenario needs.
    """
    scan = read(folder, image, scenario.num_frames)
    values = scan.intensities
    if values.dtype != np.float32 or values.ndim != 4 or len(values) != scenario.num_frames:
        raise DataError(
            f"{folder}: its reader gave {values.dtype} of shape {values.shape}; float32 of shape "
            f"({scenario.num_frames}, x, y, z) would be right."
        )
    if scan.labels is None and any(t.head.kind == "mask" for t in scenario.tasks(1.0)):
        raise DataError(f"{folder}: its reader gave no labels, which a task needs.")
    return scan


def read_scans(
    root: str | Path, scenario: str, patients: Sequence[str] = (), dataset: str = "acdc"
) -> list[Scan]:
    """Every scan that `scenario` needs of the wanted patients, in the order of their names.

    Raises:
      DataError: with one line for each fault of each patient.
    """
    cohort = read_cohort(root, [scenario], patients, dataset)
    refuse_faults(cohort)
    return cohort.scans[scenario]


def refuse_faults(cohort: Cohort) -> None:
    """Raises DataError with one line for each fault, if there are any."""
    lines = [line for faults in cohort.faults.values() for line in faults]
    if lines:
        raise DataError("\n".join(["the data cannot be used as it is:", *lines]))
