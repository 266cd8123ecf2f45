"""What a user sees of a run while it goes on and when it is done."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from nfcl_jax import records
from nfcl_jax.metrics import METRICS, format_score, metric_title
from nfcl_jax.report.kept import Kept, means_of
from nfcl_jax.runner import log
from nfcl_jax.scenarios import Task
from nfcl_jax.storage import Label

MOST_FIELDS = 5  # of a table, that a screen has a line for each thing of


@contextlib.contextmanager
def log_to_screen(console: Console, level: int = logging.INFO):
    """Sends the log to the screen, above a progress bar."""
    handler = RichHandler(level, console, show_path=False, show_level=False, markup=False)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)


class ProgressBar:
    """A bar over all the work of one or several runs; moved between chunks of steps."""

    def __init__(self, console: Console, total: float):
        self.bar = Progress(
            TimeElapsedColumn(),
            BarColumn(bar_width=10),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            transient=True,
            expand=True,
            speed_estimate_period=1800.0,
        )
        self.id = self.bar.add_task("compiling", total=total)
        self.completed = 0

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    @contextlib.contextmanager
    def of_run(self, title: str, work: list[float], num_steps: int):
        """Gives what `run` takes as `on_progress`; afterwards all the run's `work` counts as done,
        however it ended."""
        self.bar.update(self.id, description=f"{title} compiling".strip())

        def on_progress(progress: records.Progress) -> None:
            steps = (progress.batch - 1) * num_steps + progress.step
            share = steps / (progress.num_batches * num_steps)
            first, *others = progress.scans
            self.bar.update(
                self.id,
                completed=self.completed
                + sum(work[: progress.task - 1])
                + share * work[progress.task - 1],
                description=f"{title} task {progress.task}/{len(work)} {first}"
                f"{f' and {len(others)} more' if others else ''} "
                f"step {progress.step}/{num_steps} loss {progress.loss:.1e}".strip(),
            )

        try:
            yield on_progress
        finally:
            self.completed += sum(work)
            self.bar.update(self.id, completed=self.completed)


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
    rows = {(r.trained_task, r.evaluated_task, r.metric): r for r in summary.itertuples()}
    evaluations = sorted({key[:2] for key in rows})
    for trained, evaluated in evaluations:
        heading = f"{tasks[evaluated - 1].name}\n{tasks[trained - 1].name}"
        table.add_column(heading, justify="right", no_wrap=True)
    any_failed = any(summary["failed"])
    for metric in [name for name in METRICS if any(name == key[2] for key in rows)]:
        found = [rows.get((*evaluation, metric)) for evaluation in evaluations]
        cells = (row and format_score(metric, row.mean, row.std) for row in found)
        table.add_row(metric_title(metric), *cells)
        if any_failed:
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


def kept_table(kept: Sequence[Kept]) -> Table:
    """Of each field of a table of scans, what each thing scored when it was learned, and now; of
    more than MOST_FIELDS the means."""
    many = len({own.patient for own in kept}) > MOST_FIELDS
    rows = means_of(kept) if many else kept
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in rows[0].words():
        table.add_column(column)
    for own in rows:
        table.add_row(*map(escape, own.words().values()))
    return table


def claims_table(claims: list[dict[str, Any]]) -> Table:
    """The verdicts on the paper's claims."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "claim", "verdict", "patients"):
        table.add_column(column)
    colours = {"holds": "green", "does not hold": "red", "undecided": "yellow", "not tested": "dim"}
    for claim in claims:
        verdict = claim["verdict"]
        style = colours[verdict]
        table.add_row(claim["id"], claim["claim"], f"[{style}]{verdict}[/]", str(claim["patients"]))
    return table
