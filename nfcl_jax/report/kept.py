"""What the fields of a table of scans keep of what they learned."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.checkpoints import num_learned
from nfcl_jax.data.things import title_of
from nfcl_jax.metrics import METRICS, format_number, metric_title, metrics_of
from nfcl_jax.records import Fit, Score
from nfcl_jax.report.scores import NOT_MEASURED
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import label_of, names_of
from nfcl_jax.scan import name_in_table
from nfcl_jax.scenarios import Head, Task, tasks_of
from nfcl_jax.table_run import stored_runs


class Field(NamedTuple):
    """One field of a table: its run's folder, record in patients.json, config, the tasks that it
    has learned, and what it left in metrics.csv and fits.csv."""

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    tasks: tuple[Task, ...]
    scores: list[Score]
    fits: list[Fit]

    @property
    def name(self) -> str:
        """What the table calls whose field it is."""
        return name_in_table(self.record["patient"], self.record["image"])

    def title(self, head: Head, frame: int) -> str:
        """Such as "T1 at 365"."""
        return title_of(self.record["rows"], head.name, frame)

    def learned(self, number: int, head: str) -> str:
        """What a head of that name learned in a task."""
        task = self.tasks[number - 1]
        return task.name if len(task.lessons) == 1 else f"{head} ({task.name})"

    def after(self, task: int, evaluated: int, head: Head) -> float | None:
        """The first metric of a head, taught in task `evaluated`, after a task; None if it was not
        measured."""
        wanted = head.name, task, evaluated, metrics_of(head.kind)[0]
        return next((s.value for s in self.scores if s[1:5] == wanted), None)


def fields_of(workdir: Path) -> list[Field]:
    """The fields of a table's folder that have learned something.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    found = []
    for folder, record, config in stored_runs(workdir):
        if learned := num_learned(folder):
            rows = read_rows(folder, config, names_of([record]), learned)
            found.append(Field(folder, record, config, tasks_of(config)[:learned], *rows))
    return found


class Kept(NamedTuple):
    """What a field scores on something when it was learned, and now, by its first metric."""

    patient: str
    task: int
    head: str
    learned: str
    metric: str
    then: float | None
    now: float | None
    later: int  # tasks since then

    @property
    def lost(self) -> float | None:
        """None where it was not measured, or is the newest."""
        if self.then is None or self.now is None or not self.later:
            return None
        return self.then - self.now

    def words(self) -> dict[str, str]:
        """A row of a table."""
        numbers = {
            "when learned": _number(self.metric, self.then),
            "now": _number(self.metric, self.now),
            "lost": "" if self.lost is None else _number(self.metric, self.lost),
        }
        what = {"patient": self.patient, "task": str(self.task), "learned": self.learned}
        return what | {"score": metric_title(self.metric)} | numbers


def _number(metric: str, value: float | None) -> str:
    return NOT_MEASURED if value is None else format_number(metric, value)


def kept_of(fields: Iterable[Field]) -> list[Kept]:
    """Everything that fields have learned, in order."""
    return [
        Kept(
            field.name,
            number,
            lesson.head.name,
            field.learned(number, lesson.head.name),
            metrics_of(lesson.head.kind)[0],
            field.after(number, number, lesson.head),
            field.after(len(field.tasks), number, lesson.head),
            len(field.tasks) - number,
        )
        for field in fields
        for number, task in enumerate(field.tasks, start=1)
        for lesson in task.lessons
    ]


class Mean(NamedTuple):
    """The same of all fields that learned it in the same task. Means are over those that were
    measured both times and, if there are any, have learned something since; or else over those
    that were measured when they learned it. And who has lost the most, and how much."""

    task: int
    learned: str
    metric: str
    fields: int
    measured: int
    then: float | None
    now: float | None
    worst: Kept | None

    @property
    def lost(self) -> float | None:
        """None where it was not measured, or is the newest of all fields."""
        return None if self.worst is None else self.then - self.now

    def words(self) -> dict[str, str]:
        """A row of a table."""
        worst, most, few = self.worst, "", f"{self.measured} of {self.fields}"
        if worst:
            most = f"{_number(self.metric, worst.lost)} ({worst.patient})"
        return {
            "task": str(self.task),
            "learned": self.learned,
            "fields": str(self.fields) if self.measured == self.fields else few,
            "score": metric_title(self.metric),
            "when learned": _number(self.metric, self.then),
            "now": _number(self.metric, self.now),
            "lost": "" if self.lost is None else _number(self.metric, self.lost),
            "lost most": most,
        }


def means_of(kept: Iterable[Kept]) -> list[Mean]:
    """A mean for each task and each name that was learned in it."""
    groups: dict[tuple[int, str, str], list[Kept]] = {}
    for own in kept:
        groups.setdefault((own.task, own.head, own.metric), []).append(own)
    found = []
    for (task, head, metric), members in sorted(groups.items(), key=lambda item: item[0][0]):
        titles = {own.learned for own in members}
        both = [own for own in members if _are_finite(own.then, own.now)]
        losers = [own for own in both if own.later]
        both = losers or both
        measured = both or [own for own in members if _are_finite(own.then)]
        found.append(
            Mean(
                task,
                titles.pop() if len(titles) == 1 else head,
                metric,
                len(members),
                len(measured),
                float(np.mean([own.then for own in measured])) if measured else None,
                float(np.mean([own.now for own in both])) if both else None,
                max(losers, key=lambda own: own.lost) if losers else None,
            )
        )
    return found


def _are_finite(*values: float | None) -> bool:
    return all(value is not None and np.isfinite(value) for value in values)


def answer(fields: Sequence[Field], kept: Sequence[Kept]) -> str:
    """How much was lost, in a few sentences."""
    whose = f"{len(fields)} fields" if len(fields) > 1 else "One field"
    tasks = sum(len(field.tasks) for field in fields)
    sentences = [f"{whose}, {tasks} task{'s' if tasks > 1 else ''}."]
    for metric in ("psnr", "dsc"):
        lost = [own for own in kept if own.metric == metric and own.lost is not None]
        lost = [own for own in lost if np.isfinite(own.lost)]
        if lost:
            unit = " dB of PSNR" if metric == "psnr" else " of the Dice coefficient"
            what = "images" if metric == "psnr" else "masks"
            worst, decimals = max(lost, key=lambda own: own.lost), METRICS[metric].decimals
            mean = np.mean([own.lost for own in lost])
            word = "gained" if mean < 0 else "lost"
            sentence = (
                f"Since they were learned, the earlier {what} have {word} "
                f"{abs(mean):.{decimals}f}{unit} on average"
            )
            if round(worst.lost, decimals) > 0:
                sentence += f"; {worst.learned} of {worst.patient} has lost the most, "
                sentence += f"{worst.lost:.{decimals}f}"
            sentences.append(f"{sentence}.")
    gone = sum(own.now is None for own in kept)
    if gone:
        sentences.append(f"{gone} of {len(kept)} are not measured any more.")
    return " ".join(sentences)


def notes_of(workdir: Path, fields: Sequence[Field]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = []
    for folder, record, config in stored_runs(workdir):
        learned, total = num_learned(folder), len(tasks_of(config))
        if learned < total:
            name = name_in_table(record["patient"], record["image"])
            notes.append(f"{name}: {learned} of {total} tasks are learned yet.")
    for field in fields:
        failed = [str(fit.task) for fit in field.fits if fit.diverged or fit.collapsed]
        if failed:
            notes.append(f"{field.name}: collapsed or diverged in task {', '.join(failed)}.")
    labels = {label_of(field.config)[1:] for field in fields}
    if len(labels) > 1:
        notes.append("The fields were not fitted by one field, strategy and seed.")
    return notes
