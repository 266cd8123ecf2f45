"""Slices of scans, reconstructions, errors and masks, in rows and columns."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from nfcl_jax.fields import field_title
from nfcl_jax.metrics import format_number, metric_title, metrics_of, truth
from nfcl_jax.report.figures import STYLE, series_title
from nfcl_jax.report.results import FinishedRun
from nfcl_jax.report.shown import View, views
from nfcl_jax.scan import Scan

CLASS_COLOURS = ("#56B4E9", "#F0E442", "#D55E00")  # right ventricle, myocardium, left ventricle
MOST_CLASSES = 64
OTHERS = [mpl.colormaps["tab20"](i % 20) for i in range(MOST_CLASSES - len(CLASS_COLOURS))]
COLOURS = ListedColormap([*CLASS_COLOURS, *OTHERS])
ERROR_LIMIT = 0.3  # of the intensity range [0, 1]: where the colours of an error map end


class Panel(NamedTuple):
    """A slice, (x, y): an intensity in [0, 1], an error, or classes over an intensity."""

    kind: str  # "image", "error" or "mask"
    values: np.ndarray
    title: str = ""
    behind: np.ndarray | None = None


def panel_grid(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Panel | None]]],
    pixel: tuple[float, float] = (1.0, 1.0),
) -> Figure:
    """Slices in rows and columns; errors (reconstruction - scan) share one scale.

    Args:
      columns: titles above the first row.
      rows: for each its title and a panel, or nothing, for every column.
      pixel: width and height of a pixel.
    """
    shape = next(panel.values.shape for _, panels in rows for panel in panels if panel)[:2]
    width, shape_of_box = 1.55, shape[1] * pixel[1] / (shape[0] * pixel[0])
    height = min(width * shape_of_box, 2 * width) + 0.16  # tall ones become slim
    width = max(width / max(shape_of_box / 2, 1), 0.9)  # under a title
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(
            figsize=(width * len(columns) + 0.9, height * len(rows) + 0.5), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        errors = None
        for axes_row, (title, panels) in zip(grid, rows, strict=True):
            for axes, panel in zip(axes_row, panels, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.set_box_aspect(shape_of_box)
                axes.spines[:].set(visible=panel is not None, color="#cccccc", linewidth=0.5)
                if panel is None:
                    continue
                drawn = _draw(axes, panel)
                axes.set_aspect("auto")  # to the box
                axes.set_title(panel.title, fontsize=8, pad=2)
                if panel.kind == "error":
                    errors = drawn
            axes_row[0].set_ylabel(title, fontsize=9)
        for axes, title in zip(grid[0], columns, strict=True):
            above = f"{title}\n{axes.get_title()}" if axes.get_title() else title
            axes.set_title(above, fontsize=9, pad=2)
        if errors is not None:
            bar = figure.colorbar(errors, ax=grid, shrink=0.5, aspect=30, pad=0.01)
            bar.set_label("reconstruction - scan", fontsize=8)
    return figure


def _draw(axes: Axes, panel: Panel):
    """A slice, its first axis to the right and its second one downwards."""
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    if panel.kind == "image":
        return axes.imshow(np.swapaxes(np.clip(panel.values, 0, 1), 0, 1), **gray)
    if panel.kind == "error":
        limits = {"vmin": -ERROR_LIMIT, "vmax": ERROR_LIMIT}
        return axes.imshow(panel.values.T, cmap="RdBu_r", interpolation="nearest", **limits)
    axes.imshow(panel.behind.T, **gray)
    classes = np.ma.masked_equal(panel.values, 0).T
    limits = {"vmin": 1, "vmax": MOST_CLASSES, "interpolation": "nearest"}
    return axes.imshow(classes, cmap=COLOURS, alpha=0.6, **limits)


def reconstructions(
    runs: Sequence[FinishedRun], scan: Scan, results: pd.DataFrame
) -> Figure | None:
    """What each field has at the end of the first task and of the last, where that is another head,
    in the middle slice: a column for each field, rows for each strategy. None without runs."""
    middle = scan.intensities.shape[3] // 2
    found, _ = views(runs, scan, [middle], results, last=True)  # the viewer's notes name faults
    if not found:
        return None
    first, last = found[0].run.scenario.ends
    tasks = [first] if first.head == last.head else [first, last]
    by_place = {(v.run.strategy, v.run.field, v.task): v for v in found}
    fields = list(dict.fromkeys(view.run.field for view in found))
    under = scan.intensities[0, ..., middle]
    rows = []
    for strategy in dict.fromkeys(view.run.strategy for view in found):
        for task in tasks:
            target = truth(task.lessons[0], scan)[task.frames[0], ..., middle]
            row = [by_place.get((strategy, field, task)) for field in fields]
            kind = task.head.kind
            title = series_title(strategy) if task == first else task.name
            shown = [Panel(kind, target, "", under), *(_panel(view, under) for view in row)]
            rows.append((title, shown))
            if kind == "image":
                errors = [view and Panel("error", view.values[..., 0] - target) for view in row]
                rows.append(("error", [None, *errors]))
    return panel_grid(["scan", *map(field_title, fields)], rows)


def _panel(view: View | None, under: np.ndarray) -> Panel | None:
    if view is None:
        return None
    metric = metrics_of(view.task.head.kind)[0]
    name, *unit = metric_title(metric).split(", ")
    score = format_number(metric, view.scores[metric])
    words = f"{score} {unit[0]}" if unit else f"{name} {score}"
    return Panel(view.task.head.kind, view.values[..., 0], words, under)
