"""The rows that a run leaves in metrics.csv and fits.csv, all of them, or none is believed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nfcl_jax.errors import RunError
from nfcl_jax.metrics import metrics_of
from nfcl_jax.records import Fit, Score
from nfcl_jax.run_folder import label_of
from nfcl_jax.scenarios import SEQUENCE, tasks_of
from nfcl_jax.storage import Label, read_csv


def read_rows(
    workdir: Path, config: Mapping[str, Any], scans: Iterable[str], most: int
) -> tuple[list[Score], list[Fit]]:
    """What a run's folder holds of its first `most` tasks: of each a fit of every scan, and its
    scores on every task so far.

    Args:
      workdir: the run's folder.
      config: of the run.
      scans: their names, such as "patient001/cine".
      most: tasks that are learned.

    Raises:
      RunError: if a file is missing, cannot be read, is another run's, or has other rows than
        these.
    """
    tasks, scans = tasks_of(config), list(scans)
    by_head = config["scenario"] == SEQUENCE  # what `image` says in metrics.csv
    numbers = range(1, most + 1)
    scores, fits = _rows(workdir / "metrics.csv", Score), _rows(workdir / "fits.csv", Fit)
    scores = [row for row in scores if row.trained_task <= most]
    fits = [row for row in fits if row.task <= most]
    labels = set(_rows(workdir / "metrics.csv", Label)) - {label_of(config)}
    if labels:
        raise RunError(
            f"{workdir / 'metrics.csv'}: has rows of {', '.join(map(str, labels.pop()))}, the run "
            f"is {', '.join(map(str, label_of(config)))}; a copy of its own file would be right."
        )
    # A metric that the program has or lacks since then is in all rows of a learned task or in none.
    heads = {lesson.head.name: lesson.head for task in tasks for lesson in task.lessons}
    metrics = {
        (number, name): [metrics_of(head.kind)[0]]
        for number in numbers
        for name, head in heads.items()
    }
    for row in scores:
        if 1 <= row.evaluated_task <= len(tasks) and row.trained_task >= 1:
            name = row.image if by_head else tasks[row.evaluated_task - 1].head.name
            metrics.get((row.trained_task, name), []).append(row.metric)
    expected = [
        (patient, head.name if by_head else image, trained, evaluated, metric)
        for trained in numbers
        for patient, image in (name.split("/") for name in scans)
        for evaluated in range(1, trained + 1)
        for head, _ in tasks[evaluated - 1].lessons
        for metric in dict.fromkeys(metrics[trained, head.name])
    ]
    if by_head:  # what was learned before may not be scored any more: its file is gone
        there = {row[:4] for row in scores}
        expected = [row for row in expected if row[2] == row[3] or row[:4] in there]
    _refuse_other_rows(workdir / "metrics.csv", [row[:-1] for row in scores], expected)
    of_fits = [(*name.split("/"), number) for number in numbers for name in scans]
    _refuse_other_rows(workdir / "fits.csv", [row[:3] for row in fits], of_fits)
    return scores, fits


def _rows(path: Path, row_type: type) -> list[Any]:
    try:
        return read_csv(path, row_type)
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing. {_remedy(1)}") from error
    except ValueError as error:
        raise RunError(f"{error} {_remedy(1)}") from error


def _refuse_other_rows(path: Path, found: Sequence[tuple], expected: Sequence[tuple]) -> None:
    """Raises RunError unless the rows are those that are expected, in any order. A row begins with
    the patient, the image and the task."""
    there, wanted = Counter(found), Counter(expected)
    faults = [(row, "missing") for row in (wanted - there).elements()]
    faults += [(row, "too many") for row in (there - wanted).elements()]
    if faults:
        row, what = min(faults, key=lambda fault: fault[0][2])
        raise RunError(
            f"{path}: {len(found)} rows instead of {len(expected)}; {what}: "
            f"{', '.join(map(str, row))}. {_remedy(max(row[2], 1))}"
        )


def _remedy(task: int) -> str:
    return (
        f"A copy of the file would be right. Without checkpoints/task_{task} and those after it, "
        "the run's command learns these tasks again."
    )
