"""Scores of a reconstruction: PSNR, SSIM, Dice, and whether a fit failed.

A metric is added by an entry in METRICS: a function of two volumes, and how tables show it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import surface_distance
from skimage.metrics import structural_similarity

from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Lesson

SSIM_WINDOW = 7  # voxels: a slice must be as large to be scored
COLLAPSED_CONTRAST = 0.01


def psnr(target: np.ndarray, prediction: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a data range of 1: -10 log10 of the mean squared error;
    infinite where both are equal."""
    error = float(np.mean((target.astype(np.float64) - prediction) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(target: np.ndarray, prediction: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of (x, y, z) volumes, slice by slice along z with
    a 7 x 7 window and a data range of 1; the mean over slices and, of (x, y, z, 3), colours."""
    pairs = zip(np.moveaxis(target, 2, 0), np.moveaxis(prediction, 2, 0), strict=True)
    how = {"win_size": SSIM_WINDOW, "data_range": 1.0}
    how["channel_axis"] = -1 if target.ndim == 4 else None
    return float(np.mean([structural_similarity(a, b, **how) for a, b in pairs]))


def dice(target: np.ndarray, prediction: np.ndarray, label: int) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of one class; NaN if neither has it."""
    a, b = target == label, prediction == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def mean_dice(target: np.ndarray, prediction: np.ndarray, background: int = 0) -> float:
    """Mean Dice coefficient of the classes that either has, but that of the background; NaN if
    there is none."""
    present = np.union1d(target, prediction).tolist()
    scores = [dice(target, prediction, int(label)) for label in present if label != background]
    return float(np.mean(scores)) if scores else float("nan")


def surface_scores(
    target: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[float, float]:
    """How far the surfaces of two boolean volumes (x, y, z), or their outlines in a single slice,
    are apart, by the library `surface-distance` (Nikolov et al., JMIR 2021): the 95th percentile of
    the Hausdorff distance in mm, the lower the better, and the surface Dice coefficient with a
    tolerance of the smallest side of a voxel. Infinite and 0 if one is empty, NaN if both are.
    """
    there = target.any(), prediction.any()
    if not all(there):
        return (float("inf"), 0.0) if any(there) else (float("nan"), float("nan"))
    if target.shape[2] == 1:
        target, prediction, spacing = target[..., 0], prediction[..., 0], spacing[:2]
    distances = surface_distance.compute_surface_distances(target, prediction, spacing)
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, min(spacing))
    return float(surface_distance.compute_robust_hausdorff(distances, 95)), float(nsd)


class Metric(NamedTuple):
    """A score, the higher the better.

    Attributes:
      title: in tables, with its unit.
      kind: of the heads that it scores, "image" or "mask".
      function: (target, prediction) of one frame, (x, y, z) -> score. Intensities are in [0, 1],
        the predicted ones clipped; masks are labels.
      decimals: that tables show.
      detail: whether only the longer tables show it.
    """

    title: str
    kind: str
    function: Callable[[np.ndarray, np.ndarray], float]
    decimals: int = 2
    detail: bool = False


BY_LABEL = {"dsc": "DSC of {}", "hd95": "HD95 of {}, mm", "nsd": "surface DSC of {}"}
FOREGROUND = {1: ("dsc_rv", "DSC RV"), 2: ("dsc_myo", "DSC myo"), 3: ("dsc_lv", "DSC LV")}
# The first of a kind is the one that is shown where there is room for one.
METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR, dB", "image", psnr, decimals=1),
    "ssim": Metric("SSIM", "image", ssim),
    "dsc": Metric("DSC", "mask", mean_dice),
} | {
    name: Metric(title, "mask", functools.partial(dice, label=label), detail=True)
    for label, (name, title) in FOREGROUND.items()
}


def metrics_of(kind: str, detail: bool = True) -> list[str]:
    """Names of the metrics of a kind of head, without the details if so asked."""
    return [n for n, m in METRICS.items() if m.kind == kind and (detail or not m.detail)]


def metric_title(name: str) -> str:
    """What tables call the metric: its title, of a label such as "HD95 of 17, mm", or, if it is
    none that is known here, its name."""
    kind, _, label = name.partition("_")
    if name not in METRICS and kind in BY_LABEL and label:
        return BY_LABEL[kind].format(label)
    return METRICS[name].title if name in METRICS else name


def format_number(metric: str, value: float) -> str:
    """With the metric's decimals, one of a PSNR, two of others; zero has no sign. "-" if NaN."""
    if np.isnan(value):
        return "-"
    decimals = METRICS[metric].decimals if metric in METRICS else 2
    return f"{value:z.{decimals}f}"


def format_score(metric: str, mean: float, std: float) -> str:
    """Such as "31.2 ± 0.4" for a PSNR, "0.81 ± 0.01" for others; without a deviation if NaN."""
    deviation = "" if np.isnan(std) else f" ± {format_number(metric, std)}"
    return format_number(metric, mean) + deviation


def score(lesson: Lesson, scan: Scan, outputs: np.ndarray) -> dict[str, float]:
    """Every metric of a lesson's kind on its frames, averaged over them.

    Args:
      lesson: what was learned.
      scan: the ground truth.
      outputs: raw outputs of the field, (frames, x, y, z, channels), at least the lesson's frames.

    Returns:
      A value by each metric's name. A class that neither mask has is NaN and left out of means over
      classes and frames; every score of outputs that are not finite is NaN.
    """
    scores = [_score_frame(lesson, scan, outputs, frame) for frame in lesson.frames]
    if has_diverged(lesson, outputs):
        return dict.fromkeys(scores[0], float("nan"))
    return {metric: _mean_of_present([s[metric] for s in scores]) for metric in scores[0]}


def _mean_of_present(values: Sequence[float]) -> float:
    """NaN is what is in neither mask of a frame."""
    present = [value for value in values if not np.isnan(value)]
    return float(np.mean(present)) if present else float("nan")


def _score_frame(lesson: Lesson, scan: Scan, outputs: np.ndarray, frame: int) -> dict[str, float]:
    channels = outputs[frame][..., lesson.head.channels]
    target, prediction = truth(lesson, scan)[frame], predicted(lesson, channels)
    if lesson.head.labels:
        scores = _scores_by_label(lesson.head.labels, target, prediction, scan.spacing)
    else:
        functions = {name: METRICS[name].function for name in metrics_of(lesson.head.kind)}
        scores = {name: function(target, prediction) for name, function in functions.items()}
    return scores


def _scores_by_label(
    labels: Sequence[int],
    target: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
) -> dict[str, float]:
    """What a mask with labels of its own is scored by: Dice's coefficient of each but 0, by the
    label, their mean, and `surface_scores`. The volumes have the labels' places."""
    background = labels.index(0) if 0 in labels else -1
    scores = {"dsc": mean_dice(target, prediction, background)}
    for i, label in enumerate(labels):
        if i != background:
            hd95, nsd = surface_scores(target == i, prediction == i, spacing)
            own = {"dsc": dice(target, prediction, i), "hd95": hd95, "nsd": nsd}
            scores |= {f"{name}_{label}": value for name, value in own.items()}
    return scores


def truth(lesson: Lesson, scan: Scan) -> np.ndarray:
    """What a lesson's head should be on every frame, (frames, x, y, z): intensities, or labels."""
    return scan.values[lesson.head.name]


def predicted(lesson: Lesson, channels: np.ndarray) -> np.ndarray:
    """What the channels of a lesson's head say, (..., channels) -> (...): the intensity, clipped to
    [0, 1], with the colours of a colour image, or the label of the largest logit."""
    if lesson.head.kind == "image":
        return intensity(np.clip(channels, 0, 1))
    return np.argmax(channels, axis=-1)


def intensity(channels: np.ndarray) -> np.ndarray:
    """An image's channels, of which one needs no axis."""
    return channels[..., 0] if channels.shape[-1] == 1 else channels


def has_diverged(lesson: Lesson, outputs: np.ndarray) -> bool:
    """Whether the field's outputs on the lesson's frames are not all finite."""
    return not np.isfinite(_taught(lesson, outputs)).all()


def has_collapsed(lesson: Lesson, scan: Scan, outputs: np.ndarray) -> bool:
    """Whether a fit came out as a constant: on the lesson's frames the field's outputs (for a mask,
    the probabilities of its classes) vary by less than 1% of the standard deviation that the
    target has, in every channel that varies in the target at all."""
    taught, target = _taught(lesson, outputs), truth(lesson, scan)[list(lesson.frames)]
    if lesson.head.kind == "image":
        target = target.reshape(taught.shape)
    else:
        target = np.eye(lesson.head.num_channels)[target]
        exponentials = np.exp(taught - taught.max(axis=-1, keepdims=True))
        taught = exponentials / exponentials.sum(axis=-1, keepdims=True)
    axes = tuple(range(target.ndim - 1))
    varies = target.std(axis=axes) > 0
    contrast = taught.std(axis=axes)[varies] / target.std(axis=axes)[varies]
    return bool(varies.any() and (contrast < COLLAPSED_CONTRAST).all())


def _taught(lesson: Lesson, outputs: np.ndarray) -> np.ndarray:
    """Its own channels on its own frames."""
    return outputs[list(lesson.frames)][..., lesson.head.channels]
