"""report.html: one file with everything, the viewer's slices included, that needs no network."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from nfcl_jax.checkpoints import CheckpointError
from nfcl_jax.reporting.figures import CLASS_COLOURS, ERROR_LIMIT
from nfcl_jax.reporting.results import (
    BASELINE,
    DISTILLATION,
    FIELD_TITLES,
    FinishedRun,
    Scores,
    of_first_seed,
    scores_of_scan,
)
from nfcl_jax.reporting.shown import can_reconstruct, reconstruct
from nfcl_jax.runs import open_run
from nfcl_jax.scenarios import SCENARIOS, Scan

MAX_VOXELS = 60_000_000  # in the viewer, about half a byte each; slices are left out beyond

# What the paper does not say: what, the default, the config's field that changes it.
DECISIONS = [
    (
        "weight of distillation",
        "1 in domain, 10 in signal expansion",
        "distillation.weight",
    ),
    (
        "distillation loss",
        "Huber on the image; on the mask, cross-entropy against the teacher's probabilities",
        "",
    ),
    ("points per step", "4,096, drawn with replacement", "batch_size"),
    ("where distillation looks", "voxels of the frames seen so far", "distillation.points"),
    ("optimiser at a new task", "fresh Adam", "learning_rate"),
    ("Huber's delta", "1", "huber_delta"),
    (
        "initialisation",
        "SIREN and FINER by SIREN's rule; PE-ReLU by PyTorch's default; DINER's layers "
        "LeCun-normal with zero biases",
        "field.first_bias (FINER), field.table_range (DINER)",
    ),
    ("FINER's scale", "detached from the gradient", "field.detach_scale"),
    ("SSIM", "slice by slice, 7 x 7 window, data range 1, mean over slices", ""),
    ("PSNR", "data range 1, over the volume, predictions clipped to [0, 1]", ""),
    ("Dice", "per class; a class in neither mask is absent, not 1", ""),
    ("ED and ES", "two fields per patient, each image scaled by its own range; averaged", ""),
    ("intensities", "minimum to maximum over the frames that a field learns", ""),
]


class Viewer(NamedTuple):
    """What the page's viewer shows. `data` is JSON; `notes` say what was left out."""

    data: str
    notes: list[str]


def make_viewer(
    runs: Sequence[FinishedRun], scans: Sequence[Scan], results: pd.DataFrame
) -> Viewer | None:
    """Slices of every field and strategy after every task, for the scans that are shown; None if
    no run has any of them.

    Of several seeds the first is shown. Slices are PNG images of 8 bits, one below the other.
    """
    notes, chosen = [], {}
    for scan in scans:
        own = of_first_seed(runs, scan.scenario)
        able = [run for run in own if can_reconstruct(run, scan)]
        if len(able) < len(own):
            missing = ", ".join(run.path.name for run in own if run not in able)
            notes.append(f"Without {scan.name} as it is shown, or a checkpoint: {missing}.")
        if able:
            chosen[scan.name] = able
    scans = [scan for scan in scans if scan.name in chosen]
    if not scans:
        return None
    step = _slice_step(scans, chosen)
    if step > 1:
        notes.append(f"One slice of {step} is shown, to keep this file small.")
    shown = {}
    for scan in scans:
        number = scan.intensities.shape[3]
        slices = list(range(min(step // 2, number // 2), number, step))
        views = {}
        for run in chosen[scan.name]:
            try:
                views |= _views_of_run(run, scan, slices, results)
            except CheckpointError as error:
                notes.append(f"{scan.name} without {run.path.name}: {error}")
        shown[scan.name] = {
            "patient": scan.patient,
            "image": scan.image,
            "size": scan.intensities.shape[1:3],
            "slices": [k + 1 for k in slices],
            "truth": {
                task.name: _png(_as_bytes(_truth(task, scan)[..., slices]))
                for task in SCENARIOS[scan.scenario]()
            },
            "behind": _png(_as_bytes(scan.intensities[0][..., slices])),
            "views": views,
        }
    data = {"scans": shown, "errorLimit": ERROR_LIMIT, "classColours": CLASS_COLOURS}
    return Viewer(json.dumps(data, separators=(",", ":")), notes)


def _slice_step(scans: Sequence[Scan], chosen: Mapping[str, Sequence[FinishedRun]]) -> int:
    """So that every `step`-th slice of everything stays below MAX_VOXELS."""
    voxels = 0
    for scan in scans:
        num_tasks = len(SCENARIOS[scan.scenario]())
        views = len(chosen[scan.name]) * num_tasks * (num_tasks + 1) // 2
        voxels += (views + num_tasks) * scan.intensities[0].size
    return max(-(-voxels // MAX_VOXELS), 1)


def _views_of_run(run: FinishedRun, scan: Scan, slices, results: pd.DataFrame) -> dict[str, Any]:
    """By "field|strategy|task|what is looked at": the slices and their scores in words."""
    opened, tasks = open_run(run.path), SCENARIOS[scan.scenario]()
    views = {}
    for trained in range(1, len(tasks) + 1):
        num_frames = max(task.frames[1] for task in tasks[:trained])
        outputs = reconstruct(opened, scan, trained, num_frames, slices)
        for evaluated, task in enumerate(tasks[:trained], start=1):
            channels = outputs[task.frames[0]][..., task.output.channels]
            mask = task.output.name == "mask"
            values = np.argmax(channels, -1) if mask else channels[..., 0]
            found = scores_of_scan(results, run, scan.patient, scan.image, trained, evaluated)
            words = (
                f"DSC {found['dsc']:.2f}"
                if mask
                else f"PSNR {found['psnr']:.1f} dB, SSIM {found['ssim']:.2f}"
            )
            name = f"{run.field}|{run.strategy}|{tasks[trained - 1].name}|{task.name}"
            views[name] = [_png(_as_bytes(values)), words]
    return views


def _truth(task, scan: Scan) -> np.ndarray:
    of = scan.labels if task.output.name == "mask" else scan.intensities
    return of[task.frames[0]]


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Intensities in [0, 1] as 0 to 255 (not a number as 0); classes as they are."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.uint8)
    return np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)


def _png(volume: np.ndarray) -> str:
    """(x, y, slices) as one picture, x to the right, y downwards, slice below slice; base64."""
    picture = np.concatenate(np.moveaxis(volume, 2, 0).transpose(0, 2, 1), axis=0)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def answer(scores: Scores, claims: Sequence[Mapping[str, Any]]) -> str:
    """The report in two sentences."""
    verdicts = [claim["verdict"] for claim in claims]
    counts = ", ".join(
        f"{verdicts.count(verdict)} {words}"
        for verdict, words in (
            ("holds", "hold"),
            ("does not hold", "do not"),
            ("not tested", "could not be tested"),
        )
    )
    parts = [
        f"{_losses(scores, scenario, BASELINE)} of {what}{_with_distillation(scores, scenario)}"
        for scenario, what in (
            ("domain_expansion", "a frame while it learns three more"),
            ("signal_expansion", "an image while it learns the mask"),
        )
        if _losses(scores, scenario, BASELINE)
    ]
    claimed = f"Of the paper's {len(claims)} claims {counts} on these patients."
    return f"A field loses {', and '.join(parts)}. {claimed}" if parts else claimed


def _with_distillation(scores: Scores, scenario: str) -> str:
    losses = _losses(scores, scenario, DISTILLATION)
    return f" ({losses} with distillation)" if losses else ""


def _losses(scores: Scores, scenario: str, strategy: str) -> str:
    """PSNR lost by the end, of the field that loses least and the one that loses most, such as
    "-1.3 (PE-ReLU) to 15.4 dB (SIREN)"."""
    lost = {}
    for field, title in FIELD_TITLES.items():
        key = (scenario, field, strategy)
        mean = (scores.get(*key, 1, 1, "psnr") - scores.get(*key, 0, 1, "psnr")).mean()
        if np.isfinite(mean):
            lost[title] = mean
    if not lost:
        return ""
    least, most = min(lost, key=lost.get), max(lost, key=lost.get)
    words = f"{lost[most]:.1f} dB ({most})"
    if least != most:
        words = f"{lost[least]:.1f} ({least}) to {words}"
    return words.replace("-", "\N{MINUS SIGN}", 1) if lost[least] < 0 else words


def settings_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The settings of the runs, a row per setting, with all values that it has."""
    rows: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _flat(run.config):
            rows.setdefault(name, {})[str(value) or "-"] = None
    return pd.DataFrame(
        [{"setting": name, "value": ", ".join(values)} for name, values in rows.items()]
    )


def _flat(config: Mapping[str, Any], prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def render_page(**contents: Any) -> str:
    """The page; `contents` are the names that page.html uses."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nfcl_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**contents)


def data_url(contents: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` is "png" or "svg"."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(contents).decode()}"
