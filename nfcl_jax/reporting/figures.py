"""Figures of a run's reconstructions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

ERROR_LIMIT = 0.3  # of the intensity range [0, 1]: where the colours of an error map end


class Panel(NamedTuple):
    """A reconstructed slice, (x, y) in [0, 1], with what to write above it."""

    title: str
    image: np.ndarray


def reconstruction_panels(truth: np.ndarray, rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Reconstructions of one slice beside the truth, each with its error below.

    Args:
      truth: the slice, (x, y) in [0, 1].
      rows: for each row its title and its panels; every row has as many.

    Returns:
      A figure; errors (reconstruction minus truth) share one scale.
    """
    columns = 1 + len(rows[0][1])
    aspect = truth.shape[1] / truth.shape[0]
    figure = Figure(figsize=(1.9 * columns, 3.95 * aspect * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(2 * len(rows), columns, squeeze=False)
    errors = None
    for r, (title, panels) in enumerate(rows):
        above, below = axes[2 * r], axes[2 * r + 1]
        _show(above[0], truth, cmap="gray", vmin=0, vmax=1)
        above[0].set_title("scan", fontsize=9)
        below[0].axis("off")
        below[0].text(0.5, 0.5, title, ha="center", va="center", fontsize=12, weight="bold")
        for image_axis, error_axis, panel in zip(above[1:], below[1:], panels, strict=True):
            _show(image_axis, np.clip(panel.image, 0, 1), cmap="gray", vmin=0, vmax=1)
            image_axis.set_title(panel.title, fontsize=9)
            errors = _show(
                error_axis, panel.image - truth, cmap="RdBu_r", vmin=-ERROR_LIMIT, vmax=ERROR_LIMIT
            )
    bar = figure.colorbar(errors, ax=axes, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("reconstruction - scan", fontsize=9)
    return figure


def _show(axis, image, **colours):
    """A slice as radiologists see it: x to the right, y downwards."""
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(image.T, interpolation="nearest", **colours)
