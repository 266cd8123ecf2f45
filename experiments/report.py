"""Tables, figures, claims and report.html of all the runs in a folder; of the runs of a table of
scans, what each field keeps.

python -m experiments.report --workdir=runs/paper
"""

import contextlib
from pathlib import Path

from absl import app, flags
from rich.console import Console

from experiments.launch.cli import launch
from experiments.launch.console import claims_table, kept_table
from nfcl_jax.locks import locked
from nfcl_jax.report.report import write_report
from nfcl_jax.report.sequence import is_of_a_table, write_sequence_report

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of runs, or of a grid of them")
_PATIENT = flags.DEFINE_string("patient", None, "whose reconstructions the figures show")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console, workdir = Console(), Path(_WORKDIR.value)
    with locked(workdir) if workdir.is_dir() else contextlib.nullcontext():
        if is_of_a_table(workdir):
            console.print(kept_table(write_sequence_report(workdir, _PATIENT.value)))
        else:
            console.print(claims_table(write_report(workdir, _PATIENT.value)))
    console.print(f"the report is in {workdir / 'report.html'}")


if __name__ == "__main__":
    launch(main, required=["workdir"])
