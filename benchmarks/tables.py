"""What the benchmark writes: records, tables and a plot."""

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import steps
from nfcl_jax.fields import FIELDS, field_title
from nfcl_jax.report.figures import STYLE
from nfcl_jax.report.tables import markdown


class Timing(NamedTuple):
    """Medians over the rounds; `megabytes` is what the compiled step takes, `fraction_of_matmul`
    and `speedup_over_torch` compare within each round."""

    field: str
    strategy: str
    scenario: str
    points: int
    patients: int
    task: int
    ms_per_step_per_patient: float
    million_points_per_second: float
    gflops: float
    fraction_of_matmul: float
    megabytes: float
    torch_eager_ms_per_step: float | None = None
    torch_compiled_ms_per_step: float | None = None
    torch_ms_per_step: float | None = None
    speedup_over_torch: float | None = None


def timing_of(case, times, megabytes: float, at_once: int) -> Timing:
    """The record of a case whose steps, and whose rivals', took so many seconds in each round; the
    products are those of so many patients `at_once`."""
    ours = [seconds / case.patients for seconds in times[case, "jax"]]
    products = [seconds / at_once for seconds in times[case, "matmul"]]
    median = statistics.median(ours)
    config = steps.config_of(case)
    timing = Timing(
        *case,
        ms_per_step_per_patient=1e3 * median,
        million_points_per_second=1e-6 * steps.points_asked(case) / median,
        gflops=1e-9 * steps.flops(case, steps.layer_sizes(case, config)) / median,
        fraction_of_matmul=steps.median_ratio(ours, products),
        megabytes=megabytes,
    )
    if (case, "eager") not in times:
        return timing
    eager, compiled = (1e3 * statistics.median(times[case, h]) for h in ("eager", "compiled"))
    better = times[case, "eager" if eager <= compiled else "compiled"]
    return timing._replace(
        torch_eager_ms_per_step=eager,
        torch_compiled_ms_per_step=compiled,
        torch_ms_per_step=min(eager, compiled),
        speedup_over_torch=steps.median_ratio(ours, better),
    )


def describe(timing: Timing) -> str:
    """One line for the screen."""
    line = (
        f"{timing.field:8}{timing.strategy:20}{timing.scenario:17}{timing.points:6} points "
        f"{timing.patients:2} patients task {timing.task}: "
        f"{timing.ms_per_step_per_patient:6.2f} ms, {timing.fraction_of_matmul:4.0%} of matmul"
    )
    if timing.speedup_over_torch:
        line += f", torch {timing.torch_ms_per_step:6.2f} ms: {timing.speedup_over_torch:.2f} x"
    return line


def machine(with_torch: bool) -> str:
    """What the figures are of."""
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        names = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
        device = f"{len(names)} cores of {names[0]}" if names else platform.processor()
    versions = ["jax", *(["torch"] if with_torch else [])]
    return ", ".join([device, *(f"{name} {version(name)}" for name in versions)])


def as_markdown(timings: Sequence[Timing], of: str) -> str:
    """What the figures are of, their summary, and all of them."""
    frame = pd.DataFrame([t._asdict() for t in timings]).dropna(axis=1, how="all")
    shown = frame.rename(columns=_words).map(_rounded)
    return f"{of}\n\n{summary(timings)}\n{markdown(shown)}\n"


def summary(timings: Sequence[Timing]) -> str:
    """How many times as fast as PyTorch, where that was timed, and the fraction of the matrix
    products' rate, for one patient's second task, by points."""
    columns: dict[int, dict[tuple, str]] = {}
    for t in timings:
        if (t.patients, t.task) == (1, 2):
            faster = f"{t.speedup_over_torch:.2f} x, " if t.speedup_over_torch else ""
            key = _words(t.scenario), _words(t.strategy), field_title(t.field)
            # The scaling times the case that it starts from again.
            columns.setdefault(t.points, {}).setdefault(key, f"{faster}{t.fraction_of_matmul:.0%}")
    frame = pd.DataFrame(columns).rename_axis(["scenario", "strategy", "field"]).reset_index()
    shown = frame.rename(columns=lambda name: f"{name:,}" if name in columns else name).fillna("-")
    return markdown(shown) + "\n"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rounded(value) -> str:
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def plot(timings: Sequence[Timing]) -> Figure:
    """Milliseconds over points, for each field, strategy and scenario; PyTorch's dashed."""
    frame = pd.DataFrame([t._asdict() for t in timings])
    frame = frame[(frame.patients == 1) & (frame.task == 2)]
    frame = frame.drop_duplicates(["field", "strategy", "scenario", "points"])  # the scaling's
    panels = list(frame.groupby(["scenario", "strategy"], sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, ((scenario, strategy), panel) in zip(axes, panels, strict=True):
            for field, rows in panel.groupby("field", sort=False):
                own = FIELDS[field]
                look = {"color": own.colour, "marker": own.marker, "markersize": 5}
                ours = rows.ms_per_step_per_patient
                ax.plot(rows.points, ours, **look, label=field_title(field))
                if rows.torch_ms_per_step.notna().any():
                    ax.plot(rows.points, rows.torch_ms_per_step, **look, ls="--", mfc="none")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(sorted(set(panel.points)), sorted(set(panel.points)))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
            ax.set_title(f"{_words(scenario)}, {_words(strategy)}", fontsize=9)
            ax.set_xlabel("points of a draw")
        axes[0].set_ylabel("ms per step and patient")
        axes[0].legend()
    return figure
