"""Scores of a reconstruction: PSNR, SSIM, Dice, and whether a fit failed."""

import numpy as np
from skimage.metrics import structural_similarity

from nfcl_jax.scenarios import NUM_CLASSES, SSIM_WINDOW, Scan, Task

FOREGROUND = {"dsc_rv": 1, "dsc_myo": 2, "dsc_lv": 3}
COLLAPSED_CONTRAST = 0.01


def psnr(target: np.ndarray, prediction: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for a data range of 1: -10 log10 of the mean squared error;
    infinite where both are equal."""
    error = float(np.mean((target.astype(np.float64) - prediction) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(target: np.ndarray, prediction: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of (x, y, z) volumes, slice by slice along z with
    a 7 x 7 window and a data range of 1; the mean over slices."""
    pairs = zip(np.moveaxis(target, 2, 0), np.moveaxis(prediction, 2, 0), strict=True)
    return float(
        np.mean(
            [structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=1.0) for a, b in pairs]
        )
    )


def dice(target: np.ndarray, prediction: np.ndarray, label: int) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of one class; NaN if neither has it."""
    a, b = target == label, prediction == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def score(task: Task, scan: Scan, outputs: np.ndarray) -> dict[str, float]:
    """Metrics of a task on its frames, each averaged over them.

    Args:
      task: what was learned.
      scan: the ground truth.
      outputs: raw outputs of the field, (frames, x, y, z, channels), at least the task's frames.

    Returns:
      `psnr` and `ssim` of an image, clipped to [0, 1]; `dsc_rv`, `dsc_myo`, `dsc_lv` and their
      mean `dsc` of a mask. A class that neither mask has is NaN and left out of that mean; every
      score of outputs that are not finite is NaN.
    """
    scores = [_score_frame(task, scan, outputs, frame) for frame in range(*task.frames)]
    return {metric: float(np.mean([s[metric] for s in scores])) for metric in scores[0]}


def _score_frame(task: Task, scan: Scan, outputs: np.ndarray, frame: int) -> dict[str, float]:
    prediction = outputs[frame][..., task.output.channels]
    finite = np.isfinite(prediction).all()
    if task.output.name == "image":
        if not finite:
            return {"psnr": float("nan"), "ssim": float("nan")}
        target, image = scan.intensities[frame], np.clip(prediction[..., 0], 0, 1)
        return {"psnr": psnr(target, image), "ssim": ssim(target, image)}
    if not finite:
        return dict.fromkeys([*FOREGROUND, "dsc"], float("nan"))
    labels = np.argmax(prediction, axis=-1)
    scores = {name: dice(scan.labels[frame], labels, k) for name, k in FOREGROUND.items()}
    present = [value for value in scores.values() if not np.isnan(value)]
    return scores | {"dsc": float(np.mean(present)) if present else float("nan")}


def has_diverged(task: Task, outputs: np.ndarray) -> bool:
    """Whether the field's outputs on the task's frames are not all finite."""
    return not np.isfinite(_taught(task, outputs)).all()


def has_collapsed(task: Task, scan: Scan, outputs: np.ndarray) -> bool:
    """Whether a fit came out as a constant: on the task's frames the field's outputs (for a mask,
    the probabilities of its classes) vary by less than 1% of the standard deviation that the
    target has, in every channel that varies in the target at all."""
    taught = _taught(task, outputs)
    frames = slice(*task.frames)
    if task.output.name == "image":
        target = scan.intensities[frames][..., None]
    else:
        target = np.eye(NUM_CLASSES)[scan.labels[frames]]
        exponentials = np.exp(taught - taught.max(axis=-1, keepdims=True))
        taught = exponentials / exponentials.sum(axis=-1, keepdims=True)
    axes = tuple(range(target.ndim - 1))
    varies = target.std(axis=axes) > 0
    contrast = taught.std(axis=axes)[varies] / target.std(axis=axes)[varies]
    return bool((contrast < COLLAPSED_CONTRAST).all())


def _taught(task: Task, outputs: np.ndarray) -> np.ndarray:
    """The task's own channels on the task's own frames."""
    return outputs[slice(*task.frames)][..., task.output.channels]
