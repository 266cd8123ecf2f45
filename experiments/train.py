"""Fits one field with one strategy to every patient, task by task.

    python -m experiments.train --config=configs/domain_expansion.py:siren,distillation \\
        --config.data.root=/data/ACDC/training --workdir=runs/siren
"""

import functools
import json
import logging
import platform
import time
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from configs.base import check_config, patient_names
from experiments.commandline import launch
from nfcl_jax import checkpoints, continual
from nfcl_jax.data.acdc import read_scans
from nfcl_jax.data.phantom import write_phantom
from nfcl_jax.fields import create_field, init_params, num_parameters
from nfcl_jax.reporting.records import (
    METRIC_TITLES,
    Label,
    format_score,
    summarise,
    write_csv,
    write_text,
)
from nfcl_jax.scenarios import SCENARIOS, Scan, Task, num_channels
from nfcl_jax.strategies import create_strategy

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/SCENARIO.py:FIELD,STRATEGY")
_WORKDIR = flags.DEFINE_string("workdir", None, "new folder for everything that the run writes")

log = logging.getLogger("nfcl_jax")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    run(_CONFIG.value, Path(_WORKDIR.value), Console())


def run(config: ConfigDict, workdir: Path, console: Console) -> None:
    """One run: reads the scans, learns every task, and writes all results below `workdir`.

    Raises:
      ConfigError: if the config holds values that no run can be made with.
      DataError: if the scans cannot be used.
      FileExistsError: if `workdir` holds a run already.
    """
    check_config(config)
    if (workdir / "config.json").exists():
        raise FileExistsError(f"{workdir}: holds a run already; choose another --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    _log_to(workdir / "train.log", console)
    scans = read_data(config, workdir)
    tasks = SCENARIOS[config.scenario](config.huber_delta)
    scan_records = describe_scans(scans, tasks, config)
    write_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2))
    write_text(workdir / "patients.json", json.dumps(scan_records, indent=2))
    mesh = continual.device_mesh()
    log.info(
        "%s, Python %s, JAX %s on %d x %s",
        platform.node(),
        platform.python_version(),
        jax.__version__,
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
    )

    label = Label(config.scenario, config.field.name, config.strategy, config.seed)
    strategy = create_strategy(config.strategy, dict(config.get(config.strategy, {})))
    settings = continual.Settings(
        config.learning_rate,
        config.num_steps,
        config.batch_size,
        config.patients_per_batch,
        config.seed,
    )
    field = config.field.to_dict()
    metrics, fits = [], []
    started = time.monotonic()
    with TaskProgress(console, len(tasks), scans, settings, mesh) as bar:
        for result in continual.learn(scans, tasks, field, strategy, settings, mesh, bar.update):
            metrics += result.metrics
            fits += result.fits
            write_csv(workdir / "metrics.csv", metrics, label)
            write_csv(workdir / "fits.csv", fits)
            metadata = {"config": config.to_dict(), "scans": scan_records}
            checkpoints.save(workdir, result.number, result.params, metadata)
            _log_task(result, tasks)
    summary = summarise(metrics, fits)
    write_csv(workdir / "summary.csv", summary, label)
    log.info("done in %.0f s; everything is in %s", time.monotonic() - started, workdir)
    console.print(summary_table(summary, label, tasks, len({scan.patient for scan in scans})))


def read_data(config: ConfigDict, workdir: Path) -> list[Scan]:
    """The scans of the config's patients; of the phantom, written first, if it names no root."""
    root = config.data.root
    if not root:
        root = workdir / "phantom"
        if not root.exists():
            write_phantom(root)
        log.info("no config.data.root: running on the built-in phantom, written to %s", root)
    return read_scans(root, config.scenario, patient_names(config))


def describe_scans(scans: list[Scan], tasks: tuple[Task, ...], config: ConfigDict) -> list[dict]:
    """What patients.json holds of each scan; logs how large its field is."""
    records = []
    for scan in scans:
        voxels = scan.intensities.size
        field = create_field(config.field.to_dict(), num_channels(tasks), rows=voxels)
        init = functools.partial(init_params, field, axes=len(scan.shape))
        parameters = num_parameters(jax.eval_shape(init, jax.random.key(0)))
        log.info(
            "%s: %s voxels, %d parameters, %.3f per voxel",
            scan.name,
            " x ".join(map(str, scan.shape)),
            parameters,
            parameters / voxels,
        )
        records.append(
            {
                "patient": scan.patient,
                "image": scan.image,
                "shape": scan.shape,
                "frame_numbers": scan.frame_numbers,
                "spacing": scan.spacing,
                "affine": scan.affine.tolist(),
                "parameters": parameters,
            }
        )
    return records


class TaskProgress:
    """A progress bar over all steps of all tasks; moved between chunks, never inside one."""

    def __init__(self, console, num_tasks, scans, settings, mesh):
        _, batches = continual.make_batches(scans, settings.patients_per_batch, mesh)
        self.num_tasks, self.num_steps = num_tasks, settings.num_steps
        self.finished = 0  # steps of batches that are through
        self.bar = Progress(
            TextColumn("task {task.fields[number]}/" + str(num_tasks)),
            TextColumn("{task.fields[patients]}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.fields[step]}/" + str(settings.num_steps)),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.id = self.bar.add_task(
            "",
            total=num_tasks * len(batches) * settings.num_steps,
            number=1,
            patients="compiling",
            step=0,
            loss="-",
        )

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def update(self, progress: continual.Progress) -> None:
        names = progress.patients
        self.bar.update(
            self.id,
            completed=self.finished + progress.step,
            number=progress.task,
            patients=names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
            step=progress.step,
            loss=f"{progress.loss:.2e}",
        )
        if progress.step == self.num_steps:
            self.finished += self.num_steps


def summary_table(summary, label: Label, tasks: tuple[Task, ...], num_patients: int) -> Table:
    """The summary as a table: a column per evaluation, a row per metric, and, where fits failed,
    their number and each metric without them."""
    table = Table(
        title=f"{label.scenario}: {label.field}, {label.strategy}, seed {label.seed}\n"
        f"mean ± standard deviation over {num_patients} patient{'s' if num_patients > 1 else ''}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # fits 80 columns
    )
    table.add_column("scored on\nafter", no_wrap=True)
    rows = {(row.trained_task, row.evaluated_task, row.metric): row for row in summary}
    evaluations = sorted({key[:2] for key in rows})
    for trained, evaluated in evaluations:
        heading = f"{tasks[evaluated - 1].name}\n{tasks[trained - 1].name}"
        table.add_column(heading, justify="right", no_wrap=True)
    any_failed = any(row.failed for row in summary)
    for metric, title in METRIC_TITLES.items():
        found = [rows.get((*evaluation, metric)) for evaluation in evaluations]
        if any(found):
            table.add_row(
                title, *(row and format_score(metric, row.mean, row.std) for row in found)
            )
        if any(found) and any_failed:
            without = (
                row and format_score(metric, row.mean_without_failed, row.std_without_failed)
                for row in found
            )
            table.add_row("w/o failed", *without)
    if any_failed:
        failed = [
            max(row.failed for key, row in rows.items() if key[:2] == evaluation)
            for evaluation in evaluations
        ]
        table.add_row("failed", *map(str, failed), style="bold red")
    return table


def _log_task(result: continual.TaskResult, tasks: tuple[Task, ...]) -> None:
    task = tasks[result.number - 1]
    log.info("task %d of %d (%s) learned and saved", result.number, len(tasks), task.name)
    for fit in result.fits:
        name = f"{fit.patient}/{fit.image}"
        if fit.diverged:
            when = f"from step {fit.first_bad_step} on" if fit.first_bad_step else "after its steps"
            log.warning("%s diverged in task %d: not finite %s", name, fit.task, when)
        if fit.collapsed:
            log.warning("%s collapsed to a constant in task %d", name, fit.task)


def _log_to(path: Path, console: Console) -> None:
    """Sends the log to the file and to the screen, above the progress bar."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    to_file = logging.FileHandler(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_screen = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    log.addHandler(to_file)
    log.addHandler(to_screen)
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    launch(main, required=["config", "workdir"])
