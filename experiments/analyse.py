"""Why fields forget: tangent kernels and frequencies, from the checkpoints of finished runs.

    python -m experiments.analyse --workdir=runs/paper

writes WORKDIR/analysis: analysis.md, overlap.csv, bands.csv and their figures. No scans are needed.
"""

from pathlib import Path

from absl import app, flags

from experiments.launch.cli import launch
from nfcl_jax.analysis.forgetting import analyse
from nfcl_jax.analysis.summary import write_analysis

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run, or of a grid of them")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    workdir = Path(_WORKDIR.value)
    print(write_analysis(workdir / "analysis", *analyse(workdir)))


if __name__ == "__main__":
    launch(main, required=["workdir"])
