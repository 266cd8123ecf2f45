"""The figures of a report. One language for all: a colour and a marker for each field (colours by
Okabe and Ito, 2008, told apart by colour-blind readers), open without distillation, filled with
it; means over patients with their 95% bootstrap intervals, patients faint behind."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nfcl_jax.reporting.records import METRIC_TITLES
from nfcl_jax.reporting.results import BASELINE, DISTILLATION, FIELD_TITLES, Scores
from nfcl_jax.reporting.statistics import bootstrap_interval
from nfcl_jax.reporting.weights import LAST_TASK_METRIC

COLOURS = {"pe_relu": "#0072B2", "siren": "#E69F00", "finer": "#009E73", "diner": "#CC3311"}
MARKERS = {"pe_relu": "o", "siren": "s", "finer": "^", "diner": "D"}
CLASS_COLOURS = ("#56B4E9", "#F0E442", "#D55E00")  # right ventricle, myocardium, left ventricle
ERROR_LIMIT = 0.3  # of the intensity range [0, 1]: where the colours of an error map end
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "nfcl_jax",  # the same figure is the same file
}


def first_against_last(scores: Scores) -> Figure:
    """Domain expansion, after the last task: the first frame's PSNR and SSIM over the last's."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.1), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("psnr", "ssim"), strict=True):
            ends = []
            for field, strategy in _pairs(scores, "domain_expansion"):
                key = ("domain_expansion", field, strategy)
                last, first = (scores.get(*key, 0, task, metric) for task in (0, 1))
                _cross(axes, last, first, field, strategy)
                ends += [*last, *first]
            low, high = _limits(ends)
            axes.plot([low, high], [low, high], color="#999999", linewidth=1, zorder=0)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.set_xlabel(f"{METRIC_TITLES[metric]}: last frame")
            axes.set_ylabel(f"{METRIC_TITLES[metric]}: first frame")
            axes.annotate(
                "as good as the last",
                ((low + 3 * high) / 4,) * 2,
                rotation=45,
                rotation_mode="anchor",
                xytext=(-3, 3),
                textcoords="offset points",
                ha="center",
                color="#777777",
                fontsize=8,
            )
        _legend(figure, _pairs(scores, "domain_expansion"))
    return figure


def image_and_mask(scores: Scores) -> Figure:
    """Signal expansion, after the mask was learned: PSNR and SSIM of the image, DSC of the mask."""
    key = "signal_expansion"
    pairs = _pairs(scores, key)
    fields = list(dict.fromkeys(field for field, _ in pairs))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 3), ("psnr", "ssim", "dsc"), strict=True):
            task = 0 if metric == "dsc" else 1
            for field, strategy in pairs:
                values = scores.get(key, field, strategy, 0, task, metric)
                place = fields.index(field) + (0.17 if strategy == DISTILLATION else -0.17)
                _column(axes, place, values, field, strategy)
            if metric != "dsc":
                for place, field in enumerate(fields):
                    before = scores.get(key, field, BASELINE, 1, 1, metric).mean()
                    axes.plot([place - 0.4, place + 0.4], [before] * 2, color="#555555", lw=1.2)
            axes.set_xticks(range(len(fields)), [FIELD_TITLES[field] for field in fields])
            axes.set_xlim(-0.6, len(fields) - 0.4)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            axes.grid(axis="x", visible=False)
            axes.tick_params(axis="x", labelsize=8, length=0)
            what = "mask" if metric == "dsc" else "image"
            name, *unit = METRIC_TITLES[metric].split(", ")
            axes.set_title(", ".join([f"{name} of the {what}", *unit]), fontsize=10)
        _legend(figure, pairs, [Line2D([], [], color="#555555", label="before the mask")])
    return figure


def task_matrix(scores: Scores) -> Figure:
    """Domain expansion: mean PSNR of every frame after every task, per field and strategy."""
    pairs = _pairs(scores, "domain_expansion")
    fields = list(dict.fromkeys(field for field, _ in pairs))
    strategies = sorted({strategy for _, strategy in pairs}, key=lambda s: (s != BASELINE, s))
    size = scores.num_tasks["domain_expansion"]
    matrices = {}
    for pair in pairs:
        matrix = np.full((size, size), np.nan)
        for trained in range(1, size + 1):
            for evaluated in range(1, trained + 1):
                found = scores.get("domain_expansion", *pair, trained, evaluated, "psnr")
                matrix[trained - 1, evaluated - 1] = found.mean()
        matrices[pair] = matrix
    finite = [value for m in matrices.values() for value in m[np.isfinite(m)]] or [0.0, 1.0]
    colours = ScalarMappable(Normalize(min(finite), max(finite)), "viridis")
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(
            figsize=(1.9 * len(fields) + 0.9, 1.9 * len(strategies) + 0.6), layout="constrained"
        )
        grid = figure.subplots(len(strategies), len(fields), squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            matrix = matrices.get((fields[j], strategies[i]), np.full((size, size), np.nan))
            axes.imshow(matrix, cmap=colours.cmap, norm=colours.norm)
            for (row, column), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    colour = "white" if colours.norm(value) < 0.6 else "black"
                    axes.text(
                        column, row, f"{value:.1f}", ha="center", va="center", color=colour, size=8
                    )
            axes.set_xticks(range(size), range(1, size + 1))
            axes.set_yticks(range(size), range(1, size + 1))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(FIELD_TITLES[fields[j]], fontsize=10)
            if i == len(strategies) - 1:
                axes.set_xlabel("frame")
            if j == 0:
                axes.set_ylabel(f"{strategies[i]}\nafter frame")
        figure.colorbar(colours, ax=grid, label="PSNR, dB", shrink=0.8, aspect=30, pad=0.02)
    return figure


def weight_sweep(scores: Scores, weights: Mapping[tuple[str, str], float]) -> Figure:
    """Stability over plasticity, per field a curve through the weights of distillation; every
    panel has its own axes.

    Args:
      scores: with several strategies, one for each weight.
      weights: of each scenario and strategy; those without one are drawn open, alone.
    """
    titles = {
        "domain_expansion": ("last frame, PSNR in dB", "first frame, PSNR in dB"),
        "signal_expansion": ("mask, DSC", "image, PSNR in dB"),
    }
    scenarios = [scenario for scenario in titles if any(scenario == s for s, _ in weights)]
    pairs = {s: _pairs(scores, s, all_strategies=True) for s in scenarios}
    drawn = [pair for found in pairs.values() for pair in found]
    fields = [field for field in FIELD_TITLES if any(field == f for f, _ in drawn)]
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(2.1 * len(fields) + 0.6, 2.5 * len(scenarios) + 0.6), layout="constrained"
        )
        grid = figure.subplots(len(scenarios), len(fields), squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            scenario, field = scenarios[i], fields[j]
            points = []
            for strategy in [s for f, s in pairs[scenario] if f == field]:
                metric = LAST_TASK_METRIC[scenario]
                x = scores.get(scenario, field, strategy, 0, 0, metric).mean()
                y = scores.get(scenario, field, strategy, 0, 1, "psnr").mean()
                if (scenario, strategy) in weights:
                    points.append((weights[scenario, strategy], x, y))
                else:
                    axes.plot(x, y, **_marker(field, filled=False), markersize=6)
            order, xs, ys = np.array(sorted(points)).reshape(-1, 3).T
            axes.plot(xs, ys, color=COLOURS[field], linewidth=1, alpha=0.6)
            axes.plot(xs, ys, **_marker(field, filled=True), markersize=4)
            for weight, x, y in zip(order, xs, ys, strict=True):
                axes.annotate(
                    f"{weight:g}", (x, y), xytext=(-5, -2), textcoords="offset points", fontsize=7,
                    ha="right", color="#333333",
                )  # fmt: skip
            if i == 0:
                axes.set_title(FIELD_TITLES[field], fontsize=10)
            axes.set_xlabel(titles[scenario][0])
            if j == 0:
                axes.set_ylabel(titles[scenario][1])
            axes.margins(x=0.3, y=0.1)
        _legend(figure, drawn)
    return figure


def _pairs(scores: Scores, scenario: str, all_strategies: bool = False) -> list[tuple[str, str]]:
    """Fields and strategies that there are of a scenario."""
    return [
        (field, strategy)
        for found, field, strategy in scores.present
        if found == scenario and (all_strategies or strategy in (BASELINE, DISTILLATION))
    ]


def _marker(field: str, filled: bool) -> dict:
    return {
        "marker": MARKERS[field],
        "color": COLOURS[field],
        "markerfacecolor": COLOURS[field] if filled else "white",
        "linestyle": "none",
        "markeredgewidth": 1.4,
    }


def _interval(values: pd.Series) -> np.ndarray:
    """Lengths of an error bar below and above the mean."""
    low, high = bootstrap_interval(values.to_numpy())
    mean = values.mean()
    return np.nan_to_num([[mean - low], [high - mean]])


def _cross(axes: Axes, x: pd.Series, y: pd.Series, field: str, strategy: str) -> None:
    """Patients, and their mean with its interval in both directions."""
    both = pd.concat([x, y], axis=1, join="inner")
    style = _marker(field, filled=strategy == DISTILLATION)
    axes.plot(both.iloc[:, 0], both.iloc[:, 1], **style, markersize=3.5, alpha=0.25, zorder=1)
    axes.errorbar(
        x.mean(), y.mean(), xerr=_interval(x), yerr=_interval(y), **style, markersize=8, zorder=3
    )


def _column(axes: Axes, place: float, values: pd.Series, field: str, strategy: str) -> None:
    style = _marker(field, filled=strategy == DISTILLATION)
    axes.plot(np.full(len(values), place), values, **style, markersize=3.5, alpha=0.25, zorder=1)
    axes.errorbar(place, values.mean(), yerr=_interval(values), **style, markersize=8, zorder=3)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    finite = np.array([v for v in values if np.isfinite(v)])
    if not finite.size:
        return 0.0, 1.0
    margin = 0.05 * (np.ptp(finite) or 1.0)
    return float(finite.min() - margin), float(finite.max() + margin)


def _legend(figure: Figure, pairs: list[tuple[str, str]], others: Sequence[Line2D] = ()) -> None:
    fields = dict.fromkeys(field for field, _ in pairs)
    handles = [
        Line2D([], [], **_marker(field, filled=True), label=FIELD_TITLES[field]) for field in fields
    ]
    for title, filled in (("fine-tuned", False), ("distilled", True)):
        face = "#555555" if filled else "white"
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                color="#555555",
                markerfacecolor=face,
                linestyle="none",
                markeredgewidth=1.4,
                label=title,
            )
        )
    handles += others
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        handletextpad=0.2,
        columnspacing=1.2,
    )


class Panel(NamedTuple):
    """A slice, (x, y): an intensity in [0, 1], an error, or classes over an intensity."""

    kind: str  # "image", "error" or "mask"
    values: np.ndarray
    title: str = ""
    behind: np.ndarray | None = None


def panel_grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Panel | None]]]
) -> Figure:
    """Slices in rows and columns; errors (reconstruction - scan) share one scale.

    Args:
      columns: titles above the first row.
      rows: for each its title and a panel, or nothing, for every column.
    """
    shape = next(panel.values.shape for _, panels in rows for panel in panels if panel)
    width = 1.55
    height = width * shape[1] / shape[0] + 0.16
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
                axes.spines[:].set(visible=panel is not None, color="#cccccc", linewidth=0.5)
                if panel is None:
                    continue
                drawn = _draw(axes, panel)
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
    """A slice as radiologists see it: x to the right, y downwards."""
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    if panel.kind == "image":
        return axes.imshow(np.clip(panel.values, 0, 1).T, **gray)
    if panel.kind == "error":
        limits = {"vmin": -ERROR_LIMIT, "vmax": ERROR_LIMIT}
        return axes.imshow(panel.values.T, cmap="RdBu_r", interpolation="nearest", **limits)
    axes.imshow(panel.behind.T, **gray)
    classes = np.ma.masked_equal(panel.values, 0).T
    colours = ListedColormap(CLASS_COLOURS)
    return axes.imshow(classes, cmap=colours, vmin=1, vmax=3, alpha=0.6, interpolation="nearest")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a "png" or "svg" file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()
