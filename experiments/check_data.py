"""Checks the files of every patient, without training anything.

    python -m experiments.check_data --root=/data/ACDC/training

The exit code is 0 if all can be used, 1 if some have faults, 2 if there is nothing to check.
"""

import sys

from absl import app, flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.launch.cli import launch
from nfcl_jax.config import split_words
from nfcl_jax.data.cohorts import read_cohort
from nfcl_jax.errors import ConfigError, look_up
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS

_ROOT = flags.DEFINE_string("root", None, "the folder of patientNNN folders")
_DATASET = flags.DEFINE_string("dataset", "acdc", "how the files are read")
_SCENARIOS = flags.DEFINE_list("scenarios", list(SCENARIOS), "what they are needed for")
_PATIENTS = flags.DEFINE_string("patients", "", "comma-separated; empty is all")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    for name in _SCENARIOS.value:
        look_up(SCENARIOS, "scenario", name, ConfigError)
    patients = split_words(_PATIENTS.value)
    cohort = read_cohort(_ROOT.value, _SCENARIOS.value, patients, _DATASET.value)
    scans = [scan for own in cohort.scans.values() for scan in own]
    patients = sorted({scan.patient for scan in scans} | set(cohort.faults))
    console = Console()
    console.print(table(cohort.faults, scans, patients))
    for line in [*(line for faults in cohort.faults.values() for line in faults), *cohort.warnings]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sound = len(patients) - len(cohort.faults)
    console.print(f"{sound} of {len(patients)} patients can be used.")
    sys.exit(1 if cohort.faults else 0)


def table(faults: dict[str, list[str]], scans: list[Scan], patients: list[str]) -> Table:
    """Each patient's grids, or the number of faults."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("patient", "image", "voxels", "mm", "frames", "faults"):
        shown.add_column(column)
    for patient in patients:
        if patient in faults:
            shown.add_row(escape(patient), "", "", "", "", str(len(faults[patient])), style="red")
        for scan in scans:
            if scan.patient == patient:
                shown.add_row(
                    escape(patient),
                    scan.image,
                    " x ".join(map(str, scan.intensities.shape[1:])),
                    " x ".join(f"{size:.3g}" for size in scan.spacing),
                    " ".join(map(str, scan.frame_numbers)),
                    "",
                )
    return shown


if __name__ == "__main__":
    launch(main, required=["root"])
