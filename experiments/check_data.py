"""Checks the files of every patient, without training anything.

    python -m experiments.check_data --root=/data/ACDC/training
    python -m experiments.check_data --table=scans.csv --time_range=0,730

The exit code is 0 if all can be used, 1 if some have faults, 2 if there is nothing to check.
"""

import sys
from pathlib import Path

from absl import app, flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.launch.cli import launch
from nfcl_jax.checks import split_words
from nfcl_jax.data.cohorts import read_cohort
from nfcl_jax.data.sequence import Reading, read_cases, time_range_of
from nfcl_jax.errors import ConfigError, look_up
from nfcl_jax.scan import Scan, name_in_table
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.table_run import GONE, contradictions, gone_of, learned_before

_ROOT = flags.DEFINE_string("root", None, "the folder of patientNNN folders")
_DATASET = flags.DEFINE_string("dataset", "acdc", "how the files are read")
_SCENARIOS = flags.DEFINE_list("scenarios", list(SCENARIOS), "what they are needed for")
_PATIENTS = flags.DEFINE_string("patients", "", "comma-separated; empty is all")
_TABLE = flags.DEFINE_string("table", None, "a table of scans, instead of a root")
_TIME_RANGE = flags.DEFINE_string("time_range", "", "of the table, as in a config")
_WORKDIR = flags.DEFINE_string("workdir", None, "what was learned by it, whose files may be gone")
_RESAMPLE = flags.DEFINE_bool("resample", False, "likewise")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if bool(_ROOT.value) == bool(_TABLE.value):
        raise ConfigError("either --root or --table must be given.")
    if _TABLE.value:
        check_table(Path(_TABLE.value), Console())
    else:
        check_root(Console())


def check_table(path: Path, console: Console) -> None:
    """Every case of a table, and every fault."""
    known = learned_before(Path(_WORKDIR.value)) if _WORKDIR.value else {}
    reading = Reading(time_range_of(_TIME_RANGE.value), _RESAMPLE.value)
    cases, faults = read_cases(path, reading, known)
    if _WORKDIR.value:
        data = {"time_range": _TIME_RANGE.value, "resample": _RESAMPLE.value}
        others = contradictions(cases, Path(_WORKDIR.value), data)
        faults = {**faults, **others}
        cases = [
            own for own in cases if name_in_table(own.scan.patient, own.scan.image) not in others
        ]
    gone = [
        GONE % (name_in_table(own.scan.patient, own.scan.image), gone_of(own.scan))
        for own in cases
        if own.scan.missing
    ]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("patient", "voxels", "mm", "tasks", "faults"):
        shown.add_column(column)
    for scan, tasks in cases:
        shown.add_row(
            escape(name_in_table(scan.patient, scan.image)),
            " x ".join(map(str, scan.shape[-3:])),
            " x ".join(f"{size:.3g}" for size in scan.spacing),
            escape("; ".join(task.name for task in tasks)),
            "",
        )
    for patient, own in faults.items():
        shown.add_row(escape(patient), "", "", "", str(len(own)), style="red")
    console.print(shown)
    _end(console, faults, gone, len(cases) + len(faults))


def check_root(console: Console) -> None:
    """Every scan of a folder of patients, and every fault."""
    for name in _SCENARIOS.value:
        look_up(SCENARIOS, "scenario", name, ConfigError)
    patients = split_words(_PATIENTS.value)
    cohort = read_cohort(_ROOT.value, _SCENARIOS.value, patients, _DATASET.value, kept_bytes=0)
    scans = [scan for own in cohort.scans.values() for scan in own]
    patients = sorted({scan.patient for scan in scans} | set(cohort.faults))
    console.print(table(cohort.faults, scans, patients))
    _end(console, cohort.faults, cohort.warnings, len(patients))


def _end(console: Console, faults: dict[str, list[str]], warnings: list[str], count: int) -> None:
    for line in [*(line for own in faults.values() for line in own), *warnings]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{count - len(faults)} of {count} patients can be used.")
    sys.exit(1 if faults else 0)


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
    launch(main, required=[])
