"""The figures of a report. One language for all: each field's own colour and marker, open for
fine-tuning, filled for the strategies beside it; means over patients with their 95%
intervals, which may go on beyond the axes, patients faint behind."""

import itertools
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nfcl_jax.fields import FIELDS, Field, field_title
from nfcl_jax.metrics import format_number, metric_title, metrics_of
from nfcl_jax.report.results import BASELINE, NOTHING_TO_SEE, Scores
from nfcl_jax.report.statistics import mean_interval
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import strategy_title

HALVES = ("full", "left", "top", "right", "bottom")  # of markers
FAINT = "faint "  # those once more, in a lighter colour
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ is no formula
    "svg.hashsalt": "nfcl_jax",  # the same figure is the same file
}


def earlier_against_last(scores: Scores, scenario: str) -> Figure:
    """After the last task: each patient's mean score of all earlier tasks of the same head, over
    that of the last."""
    *before, last = SCENARIOS[scenario].tasks(1.0)
    earlier = [n for n, task in enumerate(before, start=1) if task.head == last.head]
    metrics = metrics_of(last.head.kind, detail=False)
    fills = _fills(_strategies(scores, scenario))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.8 * len(metrics), 4.1), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics,
                                strict=True):  # fmt: skip
            ends = []
            for field, strategy in scores.of(scenario):
                key = scenario, field, strategy, 0
                x = scores.seen(*key, 0, metric).dropna()
                each = [scores.seen(*key, task, metric) for task in earlier]
                y = pd.concat(each, axis=1).mean(axis=1, skipna=False).dropna()
                cross(axes, x, y, marker(field, fills[strategy]))
                ends += [*x, *y]
            low, high = _limits(ends)
            axes.plot([low, high], [low, high], color="#999999", linewidth=1, zorder=0)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.set_xlabel(f"{_axis_title(metric)}: {last.name}")
            axes.set_ylabel(f"{_axis_title(metric)}: mean of earlier tasks")
            _along_diagonal(axes, low, high, "as good as the last")
        _legend(figure, scores, scenario)
    return figure


def _along_diagonal(axes: Axes, low: float, high: float, text: str) -> None:
    axes.annotate(
        text,
        ((low + 3 * high) / 4,) * 2,
        rotation=45,
        rotation_mode="anchor",
        xytext=(-3, 3),
        textcoords="offset points",
        ha="center",
        color="#777777",
        fontsize=8,
    )


def first_and_last(scores: Scores, scenario: str) -> Figure:
    """After the last task, which has another kind of head than the first: the scores of both."""
    first, last = SCENARIOS[scenario].ends
    panels = [(first, 1, m) for m in metrics_of(first.head.kind, detail=False)]
    panels += [(last, 0, m) for m in metrics_of(last.head.kind, detail=False)]
    fields, strategies = _fields(scores, scenario), _strategies(scores, scenario)
    fills, middle = _fills(strategies), (len(strategies) - 1) / 2
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(panels) + 0.1, 3.6), layout="constrained")
        for axes, (task, number, metric) in zip(figure.subplots(1, len(panels)), panels,
                                                strict=True):  # fmt: skip
            shown = [0.0]
            for field, strategy in scores.of(scenario):
                values = scores.seen(scenario, field, strategy, 0, number, metric).dropna()
                offset = (strategies.index(strategy) - middle) * 0.68 / len(strategies)
                style = marker(field, fills[strategy])
                _column(axes, fields.index(field) + offset, values, style)
                shown += [*values]
            for place, field in enumerate(fields) if number else ():
                before = scores.seen(scenario, field, BASELINE, 1, 1, metric).mean()
                axes.plot([place - 0.4, place + 0.4], [before] * 2, color="#555555", lw=1.2)
                shown += [before]
            axes.set_xticks(range(len(fields)), [field_title(field) for field in fields])
            axes.set_xlim(-0.6, len(fields) - 0.4)
            axes.set_ylim(*_limits(shown))
            axes.grid(axis="x", visible=False)
            axes.tick_params(axis="x", labelsize=8, length=0)
            axes.set_title(_axis_title(metric, of=f"the {task.name}"), fontsize=10)
        line = Line2D([], [], color="#555555", label=f"before the {last.name}")
        _legend(figure, scores, scenario, [line])
    return figure


def task_matrix(scores: Scores, scenario: str) -> Figure:
    """The mean of the first metric of every task after every task, per field and strategy."""
    tasks = SCENARIOS[scenario].tasks(1.0)
    metric, size = metrics_of(tasks[0].head.kind)[0], len(tasks)
    fields, strategies = _fields(scores, scenario), _strategies(scores, scenario)
    matrices = {
        pair: np.array(
            [
                [scores.seen(scenario, *pair, s, e, metric).mean() if e <= s else np.nan
                 for e in range(1, size + 1)]
                for s in range(1, size + 1)
            ]
        )
        for pair in scores.of(scenario)
    }  # fmt: skip
    finite = [value for m in matrices.values() for value in m[np.isfinite(m)]] or [0.0, 1.0]
    colours = ScalarMappable(Normalize(min(finite), max(finite)), "viridis")
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        size_of_figure = 1.9 * len(fields) + 0.9, 1.9 * len(strategies) + 0.6
        # For panels of a fixed shape; "constrained" cuts the titles of a column's rows.
        figure = Figure(figsize=size_of_figure, layout="compressed")
        grid = figure.subplots(len(strategies), len(fields), squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            matrix = matrices.get((fields[j], strategies[i]), np.full((size, size), np.nan))
            _draw_matrix(axes, matrix, colours, metric)
            if i == 0:
                axes.set_title(field_title(fields[j]), fontsize=10)
            if i == len(strategies) - 1:
                axes.set_xlabel("task")
            if j == 0:
                axes.set_ylabel(f"{series_title(strategies[i])}\nafter task")
        figure.colorbar(colours, ax=grid, label=_axis_title(metric), shrink=0.8, aspect=30,
                        pad=0.02)  # fmt: skip
    return figure


def over_tasks(scores: Scores, scenario: str) -> Figure:
    """The first metric of the first task over the number of tasks that were learned: the mean and,
    shaded, its interval."""
    tasks = SCENARIOS[scenario].tasks(1.0)
    metric, numbers = metrics_of(tasks[0].head.kind)[0], range(1, len(tasks) + 1)
    fields, fills = _fields(scores, scenario), _fills(_strategies(scores, scenario))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(fields) + 0.5, 3.6), layout="constrained")
        panels, shown = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0], []
        for axes, field in zip(panels, fields, strict=True):
            for strategy in [s for f, s in scores.of(scenario) if f == field]:
                each = [scores.seen(scenario, field, strategy, n, 1, metric) for n in numbers]
                means, ends = [e.mean() for e in each], [mean_interval(e.to_numpy()) for e in each]
                shown += [value for own in each for value in own]
                style = marker(field, fills[strategy]) | {"linestyle": "-"}
                axes.plot(numbers, means, **style, markersize=5, lw=1.2)
                axes.fill_between(numbers, *zip(*ends, strict=True), color=style["color"],
                                  alpha=0.12, lw=0)  # fmt: skip
            axes.set_title(field_title(field), fontsize=10)
            axes.set_xlabel("tasks learned")
        panels[0].set_ylim(*_limits(shown))
        panels[0].set_ylabel(_axis_title(metric, of=tasks[0].name))
        _legend(figure, scores, scenario)
    return figure


def _draw_matrix(axes: Axes, matrix: np.ndarray, colours: ScalarMappable, metric: str) -> None:
    axes.imshow(matrix, cmap=colours.cmap, norm=colours.norm)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "white" if colours.norm(value) < 0.6 else "black"
            words = format_number(metric, value)
            axes.text(column, row, words, ha="center", va="center", color=colour, size=8)
    axes.set_xticks(range(len(matrix)), range(1, len(matrix) + 1))
    axes.set_yticks(range(len(matrix)), range(1, len(matrix) + 1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _fields(scores: Scores, scenario: str) -> list[str]:
    return list(dict.fromkeys(field for field, _ in scores.of(scenario)))


def _strategies(scores: Scores, scenario: str) -> list[str]:
    """Fine-tuning first, then as in the dictionary of strategies, with their variants."""
    return list(dict.fromkeys(strategy for _, strategy in scores.of(scenario)))


def series_title(strategy: str) -> str:
    """A strategy in words, with the constants that tell it from others: "distilled, weight 10"."""
    name, *constants = strategy.split(", ")
    return ", ".join([strategy_title(name), *constants])


def marker(field: str, fill: str) -> dict:
    """Open for fine-tuning, full for the first strategy beside it, half for others in turn."""
    look = FIELDS.get(field, Field)
    colour = np.array(to_rgb(look.colour))
    colour = to_hex((colour + 1.5) / 2.5 if fill.startswith(FAINT) else colour)
    return {
        "marker": look.marker,
        "color": colour,
        "fillstyle": "full" if fill == "none" else fill.removeprefix(FAINT),
        "markerfacecolor": "white" if fill == "none" else colour,
        "markerfacecoloralt": "white",
        "linestyle": "none",
        "markeredgewidth": 1.4,
    }


def _axis_title(metric: str, of: str = "") -> str:
    """The metric's, with what it is of, and where it is cut off."""
    name, *unit = metric_title(metric).split(", ")
    title = ", ".join([f"{name} of {of}" if of else name, *unit])
    return title + (f" (at most {NOTHING_TO_SEE:g})" if metric == "psnr" else "")


def _fills(strategies: Sequence[str]) -> dict[str, str]:
    others = [strategy for strategy in strategies if strategy != BASELINE]
    looks = itertools.cycle([*HALVES, *(FAINT + half for half in HALVES)])
    return {BASELINE: "none"} | dict(zip(others, looks, strict=False))


def _interval(values: pd.Series) -> np.ndarray:
    """Lengths of an error bar below and above the mean."""
    low, high = mean_interval(values.to_numpy())
    mean = values.mean()
    return np.nan_to_num([[mean - low], [high - mean]])


def cross(axes: Axes, x: pd.Series, y: pd.Series, style: dict) -> None:
    """Patients, and their mean with its interval in both directions."""
    both = pd.concat([x, y], axis=1, join="inner")
    axes.plot(both.iloc[:, 0], both.iloc[:, 1], **style, markersize=3.5, alpha=0.25, zorder=1)
    bars = {"xerr": _interval(x), "yerr": _interval(y)}
    axes.errorbar(x.mean(), y.mean(), **bars, **style, markersize=8, zorder=3)


def _column(axes: Axes, place: float, values: pd.Series, style: dict) -> None:
    axes.plot(np.full(len(values), place), values, **style, markersize=3.5, alpha=0.25, zorder=1)
    axes.errorbar(place, values.mean(), yerr=_interval(values), **style, markersize=8, zorder=3)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Of an axis that covers what patients have; the intervals of few of them go far beyond."""
    finite = np.array([v for v in values if np.isfinite(v)])
    if not finite.size:
        return 0.0, 1.0
    margin = 0.05 * (np.ptp(finite) or 1.0)
    return float(finite.min() - margin), float(finite.max() + margin)


def field_handles(fields: Iterable[str]) -> list[Line2D]:
    """For a legend of fields."""
    return [Line2D([], [], **marker(f, "full"), label=field_title(f)) for f in fields]


def _legend(figure: Figure, scores: Scores, scenario: str, others: Sequence[Line2D] = ()) -> None:
    handles = field_handles(_fields(scores, scenario))
    strategies = _strategies(scores, scenario)
    for strategy in strategies:
        style = marker("", _fills(strategies)[strategy])
        handles.append(Line2D([], [], **style, label=series_title(strategy)))
    handles += others
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), max(int(figure.get_figwidth() / 1.6), 2)),
        handletextpad=0.2,
        columnspacing=1.2,
    )
