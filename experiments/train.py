"""Fits one field with one strategy to every patient, task by task.

    python -m experiments.train --config=configs/domain_expansion.py:siren,distillation \\
        --config.data.root=/data/ACDC/training --workdir=runs/siren

The same command on the same folder goes on where it was interrupted.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from experiments.launch.cli import launch, screen
from experiments.launch.console import ProgressBar, kept_table, log_to_screen, summary_table
from experiments.launch.dry_run import DRY_RUN, RATE, needs_of, prepare, show_needs
from nfcl_jax import processes, table_run
from nfcl_jax.checkpoints import num_learned
from nfcl_jax.config import check_config
from nfcl_jax.errors import ConfigError, Stopped
from nfcl_jax.inputs import read_data
from nfcl_jax.locks import locked, stopping
from nfcl_jax.report.sequence import write_sequence_report
from nfcl_jax.run_folder import label_of, refuse_another_run
from nfcl_jax.runner import Caller, planned_work, run
from nfcl_jax.scenarios import SEQUENCE, tasks_of
from nfcl_jax.storage import write_csv

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/SCENARIO.py:FIELD,STRATEGY")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the run writes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, workdir, console = _CONFIG.value.to_dict(), Path(_WORKDIR.value), screen()
    if DRY_RUN.value:
        return dry_run(config, workdir, console, RATE.value)
    train(config, workdir, console)


def dry_run(config: dict[str, Any], workdir: Path, console: Console, rate: float | None) -> None:
    """Says what `train` will take with these arguments.

    Raises:
      ConfigError, DataError: as `train`.
    """
    check_config(config)
    prepare()
    if config["scenario"] == SEQUENCE:
        raise ConfigError("--dry_run is of the paper's scenarios, not of a table.")
    scenario = config["scenario"]
    with tempfile.TemporaryDirectory() as folder:  # of the phantom, where no data are named
        scans = read_data(config, [scenario], Path(folder)).scans[scenario]
        needs = needs_of(config, scans, num_learned(workdir))
    show_needs(console, needs, rate)


def train(config: dict[str, Any], workdir: Path, console: Console) -> None:
    """Reads the scans, makes the run and shows its summary.

    Raises:
      ConfigError: if the config holds values that no run can be made with, or `workdir` another
        run.
      DataError: if the scans cannot be used.
      SystemExit: at the end, if the fits are not usable.
    """
    check_config(config)
    if config["scenario"] == SEQUENCE:
        if processes.count() > 1:
            raise ConfigError("a table is learned in one process; give each a table of its own.")
        return train_table(config, workdir, console)
    refuse_another_run(config, None, workdir)  # before anything is written there
    with log_to_screen(console), locked(workdir), stopping(workdir) as asked_to_stop:
        cohort = read_data(config, [config["scenario"]], workdir)
        scans = cohort.scans[config["scenario"]]
        work = planned_work(config, scans, learned=num_learned(workdir))
        with (
            ProgressBar(console, sum(work)) as bar,
            bar.of_run("", work, config["num_steps"]) as on_progress,
        ):
            caller = Caller(on_progress, asked_to_stop, left_out=cohort.faults)
            outcome = run(config, scans, workdir, caller)
    names = {scan.patient for scan in scans}
    patients = len({name for own in processes.gathered(sorted(names)) for name in own})
    console.print(summary_table(outcome.summary, label_of(config), tasks_of(config), patients))
    if outcome.failed:
        console.print(f"diverged or collapsed: {', '.join(outcome.failed)}; see {workdir}/fits.csv")
    if cohort.faults:
        console.print(f"left out: {', '.join(cohort.faults)}; why is in {workdir}/patients.json")
    if fault := outcome.fault(config["strict"], cohort.faults):
        sys.exit(f"error: {fault}")


def train_table(config: dict[str, Any], workdir: Path, console: Console) -> None:
    """The same for a table of scans, each field of which has a run of its own."""
    failed: list[str] = []
    with log_to_screen(console), locked(workdir), stopping(workdir) as asked_to_stop:
        runs = table_run.plan(config, table_run.read_data(config, workdir), workdir)
        scores = table_run.scores_below(workdir)
        works = [
            planned_work(own.config, [own.scan], learned=num_learned(own.workdir)) for own in runs
        ]
        with ProgressBar(console, sum(map(sum, works))) as bar:
            for own, work in zip(runs, works, strict=True):
                with bar.of_run(own.name, work, config["num_steps"]) as on_progress:
                    caller = Caller(on_progress, asked_to_stop)
                    outcome = run(own.config, [own.scan], own.workdir, caller)
                failed += [own.name] if outcome.failed else []
                scores[own.workdir] = table_run.scores_in(own)
                rows = [row for folder in sorted(scores) for row in scores[folder]]
                write_csv(workdir / "metrics.csv", rows, label_of(config))
                if asked_to_stop() and own is not runs[-1]:
                    raise Stopped(asked_to_stop())
    scans = {own.name: own.scan for own in runs}
    console.print(kept_table(write_sequence_report(workdir, scans=scans)))
    console.print(f"the report is in {workdir / 'report.html'}")
    if failed:
        console.print(f"diverged or collapsed: {', '.join(failed)}; see their fits.csv")
    if len(failed) == len(runs) or (failed and config["strict"]):
        sys.exit(f"error: not usable: {', '.join(failed)}")


if __name__ == "__main__":
    launch(main, required=["config", "workdir"], several=True)
