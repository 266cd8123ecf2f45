"""Why fields forget, from the checkpoints of finished runs: how far each new task overlaps with the
first in the tangent kernel, beside what the first lost, and in which frequencies."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pandas as pd

from nfcl_jax.analysis import spectrum, tangent
from nfcl_jax.errors import ReportError
from nfcl_jax.fields import Params, create_field
from nfcl_jax.metrics import metrics_of, predicted
from nfcl_jax.padded import scan_key, stream
from nfcl_jax.report.results import BASELINE, NOTHING_TO_SEE, FinishedRun, finished_runs
from nfcl_jax.scenarios import Task, num_channels
from nfcl_jax.step import begun

ROWS = 256  # outputs of each task whose derivatives are compared
RUN = ("scenario", "field", "strategy", "seed")  # columns that say which run a row is of


class Grown(NamedTuple):
    """A scan's field as a task begins: with the outputs that it needs."""

    module: nn.Module
    params: Params


def analyse(workdir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of all finished runs below `workdir/cells`, or of the one in `workdir`.

    Returns:
      Overlaps: a row for each fine-tuned run, scan and task after the first, as that task begins:
      RUN, patient, image, task, `share` and `largest_cosine` of `tangent.Overlap` of the first task
      with it, and `lost`, the decibels of PSNR that the first task loses while it is learned.
      Bands: a row for each run, scan and band of frequency: RUN, patient, image, band and `kept`,
      the power of what the first task's output was when it was learned over that of what has
      become other by the end, in dB.

    Raises:
      ReportError: if there are no finished runs, or two of the same.
      RunError, CheckpointError: if a run's files are damaged.
    """
    folders = [workdir, *sorted((workdir / "cells").glob("*"))]
    runs = finished_runs(f for f in folders if (f / "config.json").is_file())
    if not runs:
        raise ReportError(
            f"{workdir}: no finished run here; the --workdir of a grid would be right."
        )
    overlaps, bands = [], []
    for run in runs:
        label = dict(zip(RUN, (run.config["scenario"], run.field, run.strategy,
                               run.config["seed"]), strict=True))  # fmt: skip
        for record in run.opened.scans:
            named = label | {"patient": record["patient"], "image": record["image"]}
            if run.strategy == BASELINE:
                overlaps += [named | row for row in _overlaps(run, record)]
            bands += [named | row for row in _bands(run, record)]
    return pd.DataFrame(overlaps), pd.DataFrame(bands)


def _overlaps(run: FinishedRun, record: dict) -> Iterator[dict]:
    tasks, scores = run.scenario.tasks(run.config["huber_delta"]), run.opened.scores
    own = scores[(scores.patient == record["patient"]) & (scores.image == record["image"])]
    metric = metrics_of(tasks[0].head.kind)[0]
    first = own[(own.evaluated_task == 1) & (own.metric == metric)].set_index("trained_task").value
    shown = first.clip(upper=NOTHING_TO_SEE)
    for number in range(2, len(tasks) + 1):
        module, params = _as_task_begins(run, record, number)
        pair = [_sampled(module, params, tasks[n - 1], record, n) for n in (1, number)]
        found = tangent.overlap(*pair)
        yield {
            "task": number,
            "share": found.share,
            "largest_cosine": float(found.cosines[0]),
            "lost": float(shown[number - 1] - shown[number]),
        }


def _as_task_begins(run: FinishedRun, record: dict, number: int) -> Grown:
    """With what the last task left, and new outputs drawn as the run drew them."""
    tasks = run.scenario.tasks(run.config["huber_delta"])[:number]
    params = run.opened.params(record["patient"], number - 1, record["image"])
    module = create_field(run.config["field"], num_channels(tasks), int(np.prod(record["shape"])))
    key = scan_key(run.config["seed"], f"{record['patient']}/{record['image']}")
    return Grown(module, begun(module, params, key, number, axes=len(record["shape"])))


def _sampled(module, params, task: Task, record: dict, number: int) -> tangent.Tangent:
    """The derivatives of a task's outputs at voxels of its frames, drawn once for all runs."""
    voxels, (start, stop) = int(np.prod(record["shape"][-3:])), task.frames
    key = stream(jax.random.key(number), f"{record['patient']}/{record['image']}")
    count = min(ROWS // task.head.num_channels, (stop - start) * voxels)
    index = jax.random.choice(key, (stop - start) * voxels, (count,), replace=False)
    channels = task.head.channels
    return tangent.tangent(module, params, start * voxels + index, channels, tuple(record["shape"]))


def _bands(run: FinishedRun, record: dict) -> Iterator[dict]:
    tasks = run.scenario.tasks(run.config["huber_delta"])
    if tasks[0].head.kind != "image":
        return
    before, after = (_output(run, record, n, tasks[0]) for n in (1, len(tasks)))
    powers = zip(spectrum.band_power(before), spectrum.band_power(after - before), strict=True)
    for band, (power, changed) in zip(spectrum.band_names(), powers, strict=True):
        yield {"band": band, "kept": 10 * float(np.log10(power / changed))}


def _output(run: FinishedRun, record: dict, number: int, task: Task) -> np.ndarray:
    """The image on a task's first frame, by the field after task `number`, (x, y, z)."""
    field = run.opened.field(record["patient"], number, record["image"])
    voxels = int(np.prod(record["shape"][-3:]))
    start = task.frames[0] * voxels
    outputs = field.at_voxels(np.arange(start, start + voxels))
    image = predicted(task, outputs[:, task.head.channels])
    return image.reshape(record["shape"][-3:]).astype(np.float64)
