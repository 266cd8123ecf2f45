"""The CSV files of a run, and their summary over patients."""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.continual import Fit, Metric


class Label(NamedTuple):
    """What tells the rows of one run from another's."""

    scenario: str
    field: str
    strategy: str
    seed: int


class Summary(NamedTuple):
    """A metric over patients; `without_failed` leaves out collapsed and diverged fits.

    `scored` of the `patients` have a score: a diverged fit has none, nor has the Dice coefficient
    of a class that is in neither mask. `failed` counts patients with a collapsed or diverged fit
    in any task up to `trained_task`. A standard deviation over fewer than two scores is NaN.
    """

    trained_task: int
    evaluated_task: int
    metric: str
    patients: int
    scored: int
    mean: float
    std: float
    failed: int
    mean_without_failed: float
    std_without_failed: float


def write_file(path: Path, contents: str | bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    os.replace(temporary, path)


def write_csv(path: Path, rows: Sequence[Any], label: Label | None = None) -> None:
    """Rows, NamedTuples, one line each after the values of `label`, with their fields' names as
    header; floats with all their digits. No file is written if there are no rows."""
    if not rows:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(label._fields if label else ()), *rows[0]._fields])
    writer.writerows([*(label or ()), *row] for row in rows)
    write_file(path, buffer.getvalue())


def read_csv(path: Path, row_type: type) -> list[Any]:
    """What `write_csv` wrote: rows of a NamedTuple, to the last digit; other columns are left out.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it lacks a column, or a value cannot be read.
    """
    parse = {bool: {"True": True, "False": False}.__getitem__, str: str, int: int, float: float}
    with path.open(newline="") as file:
        try:
            return [
                row_type(**{k: parse[t](row[k]) for k, t in row_type.__annotations__.items()})
                for row in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not the rows of a run ({error!r}).") from error


def summarise(metrics: Iterable[Metric], fits: Iterable[Fit]) -> list[Summary]:
    """Means and standard deviations over patients of every task right after it was learned, and of
    the first and the last task after the last one.

    A patient's images (ED and ES) are averaged first. Scores that are NaN, such as the Dice
    coefficient of a class that is in neither mask, count as absent.
    """
    metrics = list(metrics)
    bad = [(fit.patient, fit.image, fit.task) for fit in fits if fit.collapsed or fit.diverged]
    last = max((row.trained_task for row in metrics), default=0)
    groups: dict[tuple[int, int, str], dict[str, list[tuple[float, bool]]]] = {}
    for row in metrics:
        pair = (row.trained_task, row.evaluated_task)
        if row.trained_task == row.evaluated_task or pair == (last, 1):
            failed = any(
                (row.patient, row.image) == (patient, image) and task <= row.trained_task
                for patient, image, task in bad
            )
            group = groups.setdefault((*pair, row.metric), {})
            group.setdefault(row.patient, []).append((row.value, failed))
    return [
        Summary(
            *key,
            len(patients),
            sum(any(not math.isnan(v) for v, _ in scores) for scores in patients.values()),
            *_mean_std([[v for v, _ in scores] for scores in patients.values()]),
            sum(any(failed for _, failed in scores) for scores in patients.values()),
            *_mean_std([[v for v, failed in s if not failed] for s in patients.values()]),
        )
        for key, patients in sorted(groups.items())
    ]


def _mean_std(values: list[list[float]]) -> tuple[float, float]:
    """Mean and sample standard deviation over patients of each one's mean over images."""
    present = [[v for v in images if not math.isnan(v)] for images in values]
    means = [float(np.mean(images)) for images in present if images]
    mean = float(np.mean(means)) if means else float("nan")
    spread = len(means) > 1 and math.isfinite(mean)  # a perfect PSNR is infinite
    return mean, float(np.std(means, ddof=1)) if spread else float("nan")


METRIC_TITLES: Mapping[str, str] = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "dsc_rv": "DSC RV",
    "dsc_myo": "DSC myo",
    "dsc_lv": "DSC LV",
    "dsc": "DSC",
}


def format_score(metric: str, mean: float, std: float) -> str:
    """Such as "31.2 ± 0.4" for a PSNR, "0.81 ± 0.01" for others; without a deviation if NaN."""
    digits = 1 if metric == "psnr" else 2
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")
