"""The paper's experiments as a grid: every scenario, field, strategy and seed, and their report.

    python -m experiments.paper --config=configs/paper.py \\
        --config.data.root=/data/ACDC/training --workdir=runs/paper

Each cell is an ordinary run in WORKDIR/cells. The same command on the same folder goes on where it
stopped: finished cells are not done again.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from experiments.launch.cli import launch, screen
from experiments.launch.dry_run import DRY_RUN, RATE, needs_of, prepare, show_all_needs
from experiments.launch.grid import make_cells, run_grid
from nfcl_jax.checkpoints import num_learned
from nfcl_jax.inputs import read_data

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/paper.py, or another grid")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the grid writes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, workdir, console = _CONFIG.value.to_dict(), Path(_WORKDIR.value), screen()
    if DRY_RUN.value:
        return dry_run(config, workdir, console, RATE.value)
    if not run_grid(config, workdir, console):
        sys.exit(1)


def dry_run(config: dict[str, Any], workdir: Path, console: Console, rate: float | None) -> None:
    """Says what the grid will take: of cells that share a first task, one learns it."""
    prepare()
    cells = make_cells(config, workdir)
    scenarios, needs = dict.fromkeys(cell.config["scenario"] for cell in cells), {}
    with tempfile.TemporaryDirectory() as folder:  # of the phantom, where no data are named
        cohort = read_data(config, scenarios, Path(folder))
        for cell in cells:
            learned = num_learned(workdir / "cells" / cell.name) or int(cell.twin is not None)
            scans = cohort.scans[cell.config["scenario"]]
            needs[cell.name] = needs_of(cell.config, scans, learned)
    show_all_needs(console, needs, rate)


if __name__ == "__main__":
    launch(main, required=["config", "workdir"], several=True)
