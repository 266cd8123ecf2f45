"""What an analysis of forgetting comes to: tables, figures, and whether the overlap explains it."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from nfcl_jax.analysis.forgetting import IN_ITS_PLACE
from nfcl_jax.analysis.spectrum import band_names
from nfcl_jax.fields import field_title
from nfcl_jax.report.drawn import figure_bytes
from nfcl_jax.report.figures import STYLE, cross, field_handles, marker, series_title
from nfcl_jax.report.results import BASELINE, NOTHING_TO_SEE
from nfcl_jax.report.statistics import mean_interval
from nfcl_jax.report.tables import format_mean, markdown
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.storage import write_file

HEAD = f"""# Why fields forget

## Overlap in the tangent kernel

Fine-tuned, as each new task begins: of the first task's tangent features (derivatives of its
outputs by the parameters), the share, by squared length, that lies within the new task's. Both are
sampled at the same voxels; of more voxels the share would be larger. Beside it the PSNR that the
first task then loses, counted up to {NOTHING_TO_SEE:g} dB. Means over patients with their 95%
intervals."""
BANDS_HEAD = f"""## By frequency

The power of the first task's image when it was learned, over the power of its change by the end, in
dB, by bands of frequency within slices, in parts of the Nyquist frequency. At 0 dB the change is as
large as the image was. Rows of "{IN_ITS_PLACE}" have the last frame, as the fine-tuned
field has it, instead of what the field says of the first at the end."""


def write_analysis(workdir: Path, overlaps: pd.DataFrame, bands: pd.DataFrame) -> str:
    """Writes overlap.csv, bands.csv, analysis.md and their figures to `workdir`; nothing of
    overlaps where no run was fine-tuned.

    Args:
      workdir: is made.
      overlaps: of `forgetting.analyse`.
      bands: likewise.

    Returns:
      analysis.md.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([HEAD, *_overlap_tables(overlaps), BANDS_HEAD, *_band_tables(bands)]) + "\n"
    drawn = {"overlap": (overlaps, overlap_figure), "bands": (bands, band_figure)}
    for name, (frame, draw) in drawn.items():
        if len(frame):
            figure = draw(frame)
            write_file(workdir / f"{name}.csv", frame.to_csv(index=False))
            write_file(workdir / f"{name}.png", figure_bytes(figure, "png"))
            write_file(workdir / f"{name}.svg", figure_bytes(figure, "svg"))
    write_file(workdir / "analysis.md", text)
    return text


def rank_correlation(overlaps: pd.DataFrame, of: list[str]) -> float:
    """Spearman's, between the share of the second task and what the first lost to it, of their
    means by `of`, such as ["field", "patient"]; NaN for fewer than three."""
    second = overlaps[overlaps.task == 2].groupby(of)[["share", "lost"]]
    each = second.agg(lambda values: values.mean(skipna=False)).dropna()
    return float(spearmanr(each.share, each.lost).statistic) if len(each) > 2 else float("nan")


def _overlap_tables(overlaps: pd.DataFrame) -> list[str]:
    parts = []
    for scenario, own in overlaps.groupby("scenario", sort=False):
        rows = []
        for (field, task), group in own.groupby(["field", "task"], sort=False):
            each = group.groupby("patient")[["share", "largest_cosine", "lost"]]
            each = each.agg(lambda values: values.mean(skipna=False)).dropna()
            rows.append(
                {
                    "field": field_title(field),
                    "new task": SCENARIOS[scenario].tasks(1.0)[task - 1].name,
                    "share": _mean("share", each.share),
                    "largest cosine": _mean("share", each.largest_cosine),
                    "first task loses, dB": _mean("psnr", each.lost),
                    "patients": str(len(each)),
                }
            )
        correlations = [rank_correlation(own, of) for of in (["field", "patient"], ["field"])]
        all_pairs, of_fields = (f"{x:.2f}" if x == x else "-" for x in correlations)
        parts += [
            f"### {SCENARIOS[scenario].title}",
            markdown(pd.DataFrame(rows)),
            "Spearman's rank correlation of share and loss, of the second task: over fields and "
            f"patients {all_pairs}; over the means of the {own.field.nunique()} fields "
            f"{of_fields}.",
        ]
    return parts


def _band_tables(bands: pd.DataFrame) -> list[str]:
    parts = []
    for scenario, own in bands.groupby("scenario", sort=False):
        rows = []
        for (field, strategy), group in own.groupby(["field", "strategy"], sort=False):
            each = group.groupby(["band", "patient"]).kept.agg(lambda x: x.mean(skipna=False))
            kept = {band: _mean("psnr", each[band].dropna()) for band in band_names()}
            rows.append({"field": field_title(field), "strategy": strategy} | kept)
        parts += [f"### {SCENARIOS[scenario].title}", markdown(pd.DataFrame(rows))]
    return parts


def _mean(metric: str, values: pd.Series) -> str:
    return format_mean(metric, values.mean(), *mean_interval(values.to_numpy()))


def overlap_figure(overlaps: pd.DataFrame) -> Figure:
    """For each scenario, what the first task loses to the second over their overlap: each patient,
    and each field's mean with its interval in both directions."""
    overlaps = overlaps[overlaps.task == 2].dropna()
    panels = list(overlaps.groupby("scenario", sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.8 * max(len(panels), 1), 3.9), layout="constrained")
        for axes, (scenario, own) in zip(_row(figure, panels), panels, strict=True):
            for field, group in own.groupby("field", sort=False):
                each = group.groupby("patient")[["share", "lost"]].mean()
                cross(axes, each.share, each.lost, marker(field, "full"))
            first, second = SCENARIOS[scenario].tasks(1.0)[:2]
            axes.set_xlim(left=0)
            axes.set_title(f"{second.name} after {first.name}", fontsize=10)
            axes.set_xlabel("share of the first task's tangent features\nwithin the second's")
            axes.set_ylabel("PSNR that the first task loses, dB")
        _legend(figure, overlaps)
    return figure


def band_figure(bands: pd.DataFrame) -> Figure:
    """For each scenario and strategy, what is kept of the first task in each band of frequency."""
    panels = list(bands.groupby(["scenario", "strategy"], sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(panels) + 0.6, 3.6), layout="constrained")
        for axes, ((scenario, strategy), own) in zip(
            _row(figure, panels, sharey=True), panels, strict=True
        ):
            for field, group in own.groupby("field", sort=False):
                kept = group.groupby("band", sort=False).kept.mean()
                style = marker(field, "none" if strategy == BASELINE else "full")
                axes.plot(range(len(kept)), kept, **(style | {"linestyle": "-"}), lw=1.2)
            axes.set_xticks(range(len(band_names())), band_names(), rotation=40, ha="right")
            first = SCENARIOS[scenario].tasks(1.0)[0].name
            how = strategy if strategy == IN_ITS_PLACE else series_title(strategy)
            axes.set_title(f"{first}, {how}", fontsize=9)
            axes.set_xlabel("frequency / Nyquist's")
        figure.axes[0].set_ylabel("image when learned / its change, dB")
        _legend(figure, bands)
    return figure


def _row(figure: Figure, panels: list, **how):
    return figure.subplots(1, max(len(panels), 1), squeeze=False, **how)[0][: len(panels)]


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    if handles := field_handles(frame.field.unique()):
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2)
