"""The slices that the page's viewer shows."""

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from nfcl_jax.fields import field_title
from nfcl_jax.metrics import format_number, metric_title, metrics_of, truth
from nfcl_jax.report.panels import CLASS_COLOURS, ERROR_LIMIT
from nfcl_jax.report.results import FinishedRun
from nfcl_jax.report.shown import View, runs_of_scan, views
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task

MAX_VOXELS = 25_000_000  # about a tenth of a byte each; slices are left out beyond
MAX_HEIGHT = 16_383  # pixels of a WebP picture
QUALITY = 80  # of a picture of intensities, which are then right to 1 or 2% of the range


class Viewer(NamedTuple):
    """What the page's viewer shows. `data` is JSON; `notes` say what was left out."""

    data: str
    notes: list[str]


def make_viewer(
    runs: Sequence[FinishedRun], scans: Sequence[Scan], results: pd.DataFrame
) -> Viewer | None:
    """Slices of every field and strategy after every task, for the scans that are shown; None if
    no run has any of them.

    Of several seeds the first is shown. Slices are WebP pictures of 8 bits, one below the other:
    masks without loss.
    """
    notes, chosen = [], []
    for scan in scans:
        able, missing = runs_of_scan(runs, scan)
        if missing:
            names = ", ".join(missing)
            notes.append(f"Without {scan.name} as it is shown, or a checkpoint: {names}.")
        scenarios = dict.fromkeys(run.config["scenario"] for run in able)
        for name in scenarios:
            own = [run for run in able if run.config["scenario"] == name]
            chosen.append((scan, f", {name}" if len(scenarios) > 1 else "", own))
    if not chosen:
        return None
    step = _slice_step(chosen)
    if step > 1:
        notes.append(f"One slice of {step} is shown, to keep this file small.")
    names, shown = Counter(scan.name for scan, _, _ in chosen), {}
    for scan, scenario, able in chosen:
        number = scan.intensities.shape[3]
        slices = list(range(min(step // 2, number // 2), number, step))
        found, faults = views(able, scan, slices, results)
        notes += faults
        frames = f", {scan.num_frames} frames" if names[scan.name] > 1 else ""
        shown[scan.name + frames + scenario] = {
            "patient": scan.patient,
            "image": scan.image + frames + scenario,
            "size": scan.intensities.shape[1:3],
            "slices": [k + 1 for k in slices],
            "truth": _truth(able, scan, slices),
            "behind": _picture(scan.intensities[0][..., slices]),
            "views": [[*_names(view), _picture(view.values), _words(view)] for view in found],
        }
    titles = {run.field: field_title(run.field) for run in runs}
    data = {"scans": shown, "fieldTitles": titles}
    data |= {"errorLimit": ERROR_LIMIT, "classColours": CLASS_COLOURS}
    # No "<" from a name or a label may end the page's script, or begin one.
    return Viewer(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"), notes)


def _slice_step(chosen: Sequence[tuple[Scan, str, Sequence[FinishedRun]]]) -> int:
    """So that every `step`-th slice of everything stays below MAX_VOXELS, and of a scan below
    MAX_HEIGHT."""
    voxels = 0
    for scan, _, runs in chosen:
        sizes = [len(run.scenario.tasks(1.0)) for run in runs]
        voxels += (sum(n * (n + 1) // 2 for n in sizes) + max(sizes)) * scan.num_voxels
    heights = [scan.intensities.shape[2] * scan.intensities.shape[3] for scan, _, _ in chosen]
    return max(-(-voxels // MAX_VOXELS), -(-max(heights) // MAX_HEIGHT), 1)


def _truth(runs: Sequence[FinishedRun], scan: Scan, slices: Sequence[int]) -> dict[str, Any]:
    """By the task's name, what a field should say, and whether it is a mask."""

    def shown(task: Task) -> Mapping[str, Any]:
        volume = truth(task.lessons[0], scan)[task.frames[0]][..., slices]
        return {"picture": _picture(volume), "mask": task.head.kind == "mask"}

    tasks = dict.fromkeys(task for run in runs for task in run.scenario.tasks(1.0))
    return {task.name: shown(task) for task in tasks}


def _names(view: View) -> tuple[str, str, str, str]:
    """Field, strategy, task learned, task looked at."""
    return view.run.field, view.run.strategy, view.trained.name, view.task.name


def _words(view: View) -> str:
    """Such as "PSNR 31.2 dB, SSIM 0.91"."""
    found = []
    for metric in metrics_of(view.task.head.kind, detail=False):
        name, *unit = metric_title(metric).split(", ")
        if metric in view.scores:
            found.append(" ".join([name, format_number(metric, view.scores[metric]), *unit]))
    return ", ".join(found)


def _picture(volume: np.ndarray) -> str:
    """(x, y, slices) as one picture, x to the right, y downwards, slice below slice; base64.
    Intensities in [0, 1] are 0 to 255 (not a number 0), classes as they are."""
    is_mask = np.issubdtype(volume.dtype, np.integer)
    if not is_mask:
        volume = np.rint(np.clip(np.nan_to_num(volume), 0, 1) * 255)
    slices = np.moveaxis(volume.astype(np.uint8), 2, 0).transpose(0, 2, 1)
    buffer, picture = io.BytesIO(), Image.fromarray(np.concatenate(slices, axis=0))
    picture.convert("RGB").save(buffer, format="webp", lossless=is_mask, quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
