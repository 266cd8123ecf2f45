"""What an analysis of forgetting comes to: tables, figures, and whether the overlap explains it."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from nfcl_jax.analysis.spectrum import band_names
from nfcl_jax.fields import field_title
from nfcl_jax.report.figures import STYLE, figure_bytes, marker, series_title
from nfcl_jax.report.results import BASELINE
from nfcl_jax.report.statistics import mean_interval
from nfcl_jax.report.tables import format_mean, markdown
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.storage import write_file

HEAD = """# Why fields forget

Fine-tuned, as each new task begins: the share of the first task's tangent features (derivatives of
its outputs by the parameters), by squared length, that lies within the new task's; 1 means that the
new task can change the first in any way, to the first order. Beside it the PSNR that the first task
then loses, up to 60 dB. Means over patients with their 95% intervals."""
BANDS_HEAD = """## By frequency

The power of the first task's image when it was learned over that of what has become other by the
end, in dB, by bands of frequency in parts of the Nyquist frequency: 0 dB is nothing kept."""


def write_analysis(workdir: Path, overlaps: pd.DataFrame, bands: pd.DataFrame) -> str:
    """Writes overlap.csv, bands.csv, analysis.md and their figures to `workdir`.

    Args:
      workdir: is made.
      overlaps: of `forgetting.analyse`.
      bands: likewise.

    Returns:
      analysis.md.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([HEAD, *_overlap_tables(overlaps), BANDS_HEAD, *_band_tables(bands)]) + "\n"
    for name, frame in (("overlap", overlaps), ("bands", bands)):
        write_file(workdir / f"{name}.csv", frame.to_csv(index=False))
    for name, figure in (("overlap", overlap_figure(overlaps)), ("bands", band_figure(bands))):
        write_file(workdir / f"{name}.png", figure_bytes(figure, "png"))
        write_file(workdir / f"{name}.svg", figure_bytes(figure, "svg"))
    write_file(workdir / "analysis.md", text)
    return text


def rank_correlation(overlaps: pd.DataFrame) -> float:
    """Spearman's, between the share and what was lost, over fields, patients and later tasks."""
    each = overlaps.groupby(["field", "patient", "task"])[["share", "lost"]].mean().dropna()
    return float(spearmanr(each.share, each.lost).statistic)


def rank_correlation_of_means(overlaps: pd.DataFrame) -> float:
    """Spearman's over the fields, of their means over all the rest: which field forgets more."""
    each = overlaps.groupby("field")[["share", "lost"]].mean().dropna()
    return float(spearmanr(each.share, each.lost).statistic)


def _overlap_tables(overlaps: pd.DataFrame) -> list[str]:
    parts = []
    for scenario, own in _by_scenario(overlaps):
        rows = []
        for (field, task), group in _in_order(own, ["field", "task"]):
            each = group.groupby("patient")[["share", "largest_cosine", "lost"]].mean()
            rows.append(
                {
                    "field": field_title(field),
                    "new task": SCENARIOS[scenario].tasks(1.0)[task - 1].name,
                    "share": _mean("share", each.share),
                    "largest cosine": _mean("share", each.largest_cosine),
                    "first task loses, dB": _mean("psnr", each.lost),
                }
            )
        parts += [
            f"## {SCENARIOS[scenario].title}",
            markdown(pd.DataFrame(rows)),
            f"Spearman's rank correlation of share and loss, over fields, patients and tasks: "
            f"{rank_correlation(own):.2f}; over the means of the {own.field.nunique()} fields: "
            f"{rank_correlation_of_means(own):.2f}.",
        ]
    return parts


def _band_tables(bands: pd.DataFrame) -> list[str]:
    parts = []
    for scenario, own in _by_scenario(bands):
        rows = []
        for (field, strategy), group in _in_order(own, ["field", "strategy"]):
            each = group.groupby(["band", "patient"]).kept.mean()
            kept = {band: _mean("psnr", each[band]) for band in band_names()}
            rows.append({"field": field_title(field), "strategy": strategy} | kept)
        parts += [f"### {SCENARIOS[scenario].title}", markdown(pd.DataFrame(rows))]
    return parts


def _mean(metric: str, values: pd.Series) -> str:
    return format_mean(metric, values.mean(), *mean_interval(values.to_numpy()))


def _by_scenario(frame: pd.DataFrame):
    return frame.groupby("scenario", sort=False)


def _in_order(frame: pd.DataFrame, keys: list[str]):
    """Groups in the order of the runs, which is that of all tables."""
    return frame.groupby(keys, sort=False)


def overlap_figure(overlaps: pd.DataFrame) -> Figure:
    """For each scenario, what the first task loses to the second over their overlap: each patient,
    and each field's mean with its interval in both directions."""
    overlaps = overlaps[overlaps.task == 2]
    with mpl.rc_context(STYLE):
        panels = list(_by_scenario(overlaps))
        figure = Figure(figsize=(3.8 * len(panels), 3.9), layout="constrained")
        for axes, (scenario, own) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for field, group in own.groupby("field", sort=False):
                each = group.groupby("patient")[["share", "lost"]].mean()
                style = marker(field, "full")
                axes.plot(each.share, each.lost, **style, markersize=3.5, alpha=0.3, zorder=1)
                axes.plot(*each.mean(), **style, markersize=9, zorder=3)
            first, second = SCENARIOS[scenario].tasks(1.0)[:2]
            axes.set_xlim(0, min(1.03, 1.1 * own.share.max()))
            axes.set_title(f"{second.name} after {first.name}")
            axes.set_xlabel("share of the first task's tangent features\nwithin the second's")
            axes.set_ylabel("PSNR that the first task loses, dB")
        _legend(figure, overlaps)
    return figure


def band_figure(bands: pd.DataFrame) -> Figure:
    """For each scenario and strategy, what is kept of the first task in each band of frequency."""
    panels = list(bands.groupby(["scenario", "strategy"], sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(panels) + 0.4, 3.6), layout="constrained")
        for axes, ((scenario, strategy), own) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
        ):
            for field, group in own.groupby("field", sort=False):
                kept = group.groupby("band", sort=False).kept.mean()
                style = marker(field, "none" if strategy == BASELINE else "full")
                axes.plot(range(len(kept)), kept, **(style | {"linestyle": "-"}), lw=1.2)
            axes.set_xticks(range(len(band_names())), band_names(), rotation=40, ha="right")
            first = SCENARIOS[scenario].tasks(1.0)[0].name
            axes.set_title(f"{first}, {series_title(strategy)}", fontsize=10)
            axes.set_xlabel("frequency / Nyquist's")
        figure.axes[0].set_ylabel("kept against changed, dB")
        _legend(figure, bands)
    return figure


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    handles = [
        Line2D([], [], **marker(field, "full"), label=field_title(field))
        for field in frame.field.unique()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2)
