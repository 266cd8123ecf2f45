"""Which choice decides which claim: the grid once for each choice of what the paper leaves open.

    python -m experiments.study --config=configs/study.py \\
        --config.data.root=/data/ACDC/training --workdir=runs/study

Each choice is an ordinary grid in WORKDIR/NAME, with its own report; study.md and study.json have
the verdicts of all. A cell that several choices have is run once, and copied. The same command on
the same folder goes on where it stopped. --config.only='as_shipped,diner_*' runs some.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from experiments.launch.cli import launch
from experiments.launch.console import log_to_screen
from experiments.launch.grid import run_grid
from experiments.launch.study import check_choices, choices_of
from nfcl_jax.locks import locked
from nfcl_jax.report.study import write_study

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/study.py, or another study")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the study writes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    workdir, console = Path(_WORKDIR.value), Console()
    choices = choices_of(_CONFIG.value.to_dict(), workdir)
    with log_to_screen(console), locked(workdir):
        check_choices(choices, workdir)
    done = []
    for name, config in choices.items():
        console.rule(name)
        others = [workdir / other for other in choices if other != name]
        done.append(run_grid(config, workdir / name, console, others))
        write_study(workdir, choices)
    if (workdir / "study.md").exists():
        console.print(f"the verdicts are in {workdir / 'study.md'}")
    if not all(done):
        sys.exit(1)


if __name__ == "__main__":
    launch(main, required=["config", "workdir"])
