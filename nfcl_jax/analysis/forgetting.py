"""Why fields forget, from the checkpoints of finished runs: how far each new task overlaps with the
first in the tangent kernel, beside what the first lost, and in which frequencies."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np
import pandas as pd

from nfcl_jax.analysis import spectrum, tangent
from nfcl_jax.errors import ReportError
from nfcl_jax.fields import Params, create_field
from nfcl_jax.metrics import metrics_of, predicted
from nfcl_jax.padded import scan_key, stable_hash
from nfcl_jax.params import begun
from nfcl_jax.report.results import BASELINE, NOTHING_TO_SEE, FinishedRun, finished_runs
from nfcl_jax.scenarios import Task, num_channels, tasks_of

ROWS = 256  # outputs of each task, at most, whose derivatives are compared
RUN = ("scenario", "field", "strategy", "seed")
OVERLAP = (*RUN, "patient", "image", "task", "share", "largest_cosine", "lost")
BANDS = (*RUN, "patient", "image", "band", "kept")
IN_ITS_PLACE = "the last one in its place"  # beside the strategies, in the table of bands


class Grown(NamedTuple):
    """A scan's field as a task begins, with the outputs that it needs; but with the table that the
    last task left, where DINER `separate_classes`, for which it would need the mask."""

    module: nn.Module
    params: Params


def analyse(workdir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of all finished runs in `workdir/cells`, or the one in `workdir`, that begin with an image.

    Returns:
      Overlaps, with the columns OVERLAP: a row for each fine-tuned run, scan and task after the
      first, as that task begins, see `Grown`. `share` and `largest_cosine` are those of
      `tangent.Overlap` of the first task with it, at the same voxels; `lost` is the PSNR, in dB
      and counted up to NOTHING_TO_SEE, that the first task loses while it is learned. NaN for a
      field that diverged.
      Bands, with the columns BANDS: a row for each run, scan and band of frequency. `kept` is the
      power of the first task's image when it was learned over that of its change by the end, in
      dB. Where the last task is an image too, there are rows of IN_ITS_PLACE, with the last task's
      image instead of the first one's at the end.

    Raises:
      ReportError: if there are no finished runs with their checkpoints, or two of the same.
      RunError, CheckpointError: if a run's files are damaged.
    """
    folders = [workdir, *sorted((workdir / "cells").glob("*"))]
    runs = finished_runs(f for f in folders if (f / "config.json").is_file())
    overlaps, bands = [], []
    for run in [run for run in runs if tasks_of(run.config)[0].head.kind == "image"]:
        if len(run.opened.tasks) < len(tasks_of(run.config)):
            raise ReportError(f"{run.path}: lacks checkpoints; a run with all of them is right.")
        label = run.config["scenario"], run.field, run.strategy, run.config["seed"]
        for record in run.opened.scans:
            named = *label, record["patient"], record["image"]
            if run.strategy == BASELINE:
                overlaps += [(*named, *row) for row in _overlaps(run, record)]
            for strategy, band, kept in _bands(run, record):
                bands.append((*named[:2], strategy, *named[3:], band, kept))
    if not bands:
        raise ReportError(
            f"{workdir}: no finished run here that begins with an image; the --workdir of a grid "
            "would be right."
        )
    return pd.DataFrame(overlaps, columns=OVERLAP), pd.DataFrame(bands, columns=BANDS)


def _overlaps(run: FinishedRun, record: dict) -> Iterator[tuple[int, float, float, float]]:
    tasks, scores = tasks_of(run.config), run.opened.scores
    own = scores[(scores.patient == record["patient"]) & (scores.image == record["image"])]
    metric = metrics_of(tasks[0].head.kind)[0]
    first = own[(own.evaluated_task == 1) & (own.metric == metric)].set_index("trained_task").value
    shown = first.clip(upper=NOTHING_TO_SEE)
    for number in range(2, len(tasks) + 1):
        field = _as_task_begins(run, record, number)
        pair = tasks[0], tasks[number - 1]
        count = ROWS // max(task.head.num_channels for task in pair)
        found = tangent.overlap(*(_sampled(field, task, record, count) for task in pair))
        cosine = float(found.cosines[0]) if found.cosines.size else float("nan")
        yield number, found.share, cosine, float(shown[number - 1] - shown[number])


def _as_task_begins(run: FinishedRun, record: dict, number: int) -> Grown:
    """With what the last task left, and new outputs drawn as the run drew them."""
    tasks = tasks_of(run.config)[:number]
    params = run.opened.params(record["patient"], number - 1, record["image"])
    module = create_field(run.config["field"], num_channels(tasks), int(np.prod(record["shape"])))
    key = scan_key(run.config["seed"], _name(record))
    return Grown(module, begun(module, params, key, number, axes=len(record["shape"])))


def _sampled(field: Grown, task: Task, record: dict, count: int) -> tangent.Tangent:
    """The derivatives of a task's outputs on its first frame, at voxels that are the same for all
    tasks and all runs of a scan."""
    voxels = int(np.prod(record["shape"][-3:]))
    drawn = np.random.default_rng(stable_hash(_name(record))).permutation(voxels)[:count]
    index = (task.frames[0] * voxels + drawn).astype(np.int32)
    return tangent.tangent(*field, index, task.head.channels, tuple(record["shape"]))


def _bands(run: FinishedRun, record: dict) -> Iterator[tuple[str, str, float]]:
    """The strategy, or IN_ITS_PLACE, the band and what is kept in it."""
    first, *_, last = tasks = tasks_of(run.config)
    before = _output(run, record, 1, first)
    ends = {run.strategy: first}
    if run.strategy == BASELINE and last.head.kind == "image":
        ends[IN_ITS_PLACE] = last
    for strategy, task in ends.items():
        changed = spectrum.band_power(_output(run, record, len(tasks), task) - before)
        with np.errstate(divide="ignore"):  # of what has not changed at all
            kept = 10 * np.log10(spectrum.band_power(before) / changed)
        for band, value in zip(spectrum.band_names(), kept, strict=True):
            yield strategy, band, float(value)


def _output(run: FinishedRun, record: dict, number: int, task: Task) -> np.ndarray:
    """The image on a task's first frame, by the field after task `number`, (x, y, z)."""
    field = run.opened.field(record["patient"], number, record["image"])
    voxels = int(np.prod(record["shape"][-3:]))
    start = task.frames[0] * voxels
    outputs = field.at_voxels(np.arange(start, start + voxels))
    image = predicted(task.lessons[0], outputs[:, task.head.channels])
    return image.reshape(record["shape"][-3:]).astype(np.float64)


def _name(record: dict) -> str:
    return f"{record['patient']}/{record['image']}"
