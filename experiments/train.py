"""Fits one field with one strategy to every patient, task by task.

    python -m experiments.train --config=configs/domain_expansion.py:siren,distillation \\
        --config.data.root=/data/ACDC/training --workdir=runs/siren

The same command on the same folder goes on where it was interrupted.
"""

import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from experiments.launch.cli import launch
from experiments.launch.console import ProgressBar, log_to_screen, summary_table
from nfcl_jax.checkpoints import num_learned
from nfcl_jax.config import check_config
from nfcl_jax.locks import locked, stopping
from nfcl_jax.run_folder import label_of, refuse_another_run, tasks_of
from nfcl_jax.runner import Caller, planned_work, read_data, run

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/SCENARIO.py:FIELD,STRATEGY")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the run writes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    train(_CONFIG.value.to_dict(), Path(_WORKDIR.value), Console())


def train(config: dict[str, Any], workdir: Path, console: Console) -> None:
    """Reads the scans, makes the run and shows its summary.

    Raises:
      ConfigError: if the config holds values that no run can be made with, or `workdir` another
        run.
      DataError: if the scans cannot be used.
      SystemExit: at the end, if the fits are not usable.
    """
    check_config(config)
    refuse_another_run(config, None, workdir)  # before anything is written there
    with log_to_screen(console), locked(workdir), stopping() as asked_to_stop:
        cohort = read_data(config, [config["scenario"]], workdir)
        scans = cohort.scans[config["scenario"]]
        work = planned_work(config, scans, learned=num_learned(workdir))
        with (
            ProgressBar(console, sum(work)) as bar,
            bar.of_run("", work, config["num_steps"]) as on_progress,
        ):
            caller = Caller(on_progress, asked_to_stop, left_out=cohort.faults)
            outcome = run(config, scans, workdir, caller)
    patients = len({scan.patient for scan in scans})
    console.print(summary_table(outcome.summary, label_of(config), tasks_of(config), patients))
    if outcome.failed:
        console.print(f"diverged or collapsed: {', '.join(outcome.failed)}; see {workdir}/fits.csv")
    if cohort.faults:
        console.print(f"left out: {', '.join(cohort.faults)}; why is in {workdir}/patients.json")
    if fault := outcome.fault(config["strict"], cohort.faults):
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    launch(main, required=["config", "workdir"])
