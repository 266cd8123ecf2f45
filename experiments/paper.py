"""The paper's experiments as a grid: every scenario, field, strategy and seed, and their report.

    python -m experiments.paper --config=configs/paper.py \\
        --config.data.root=/data/ACDC/training --workdir=runs/paper

Each cell is an ordinary run in WORKDIR/cells. The same command on the same folder goes on where it
stopped: finished cells are not done again.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from experiments.launch.cli import launch, screen
from experiments.launch.grid import run_grid

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/paper.py, or another grid")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the grid writes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not run_grid(_CONFIG.value.to_dict(), Path(_WORKDIR.value), screen()):
        sys.exit(1)


if __name__ == "__main__":
    launch(main, required=["config", "workdir"], several=True)
