"""Times the steps of every field, beside what the machine multiplies and, if asked, PyTorch.

    python -m experiments.benchmark --out=runs/benchmark
    pip install -e '.[benchmark]' && python -m experiments.benchmark --out=runs/benchmark \\
        --compare=torch

Writes benchmark.json, a list of records, benchmark.md, the same as tables, and benchmark.png.
"""

import dataclasses
import importlib.util
import itertools
import json
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib as mpl
import pandas as pd
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.console import Console

from configs.base import (
    FIELDS,
    MATMUL_PRECISIONS,
    SCENARIOS,
    STRATEGIES,
    ConfigError,
)
from experiments import measuring
from experiments.commandline import launch
from experiments.measuring import Case
from experiments.running import written_phantom
from nfcl_jax.data.acdc import read_scans
from nfcl_jax.reporting.figures import COLOURS, MARKERS, STYLE
from nfcl_jax.reporting.records import write_file
from nfcl_jax.reporting.results import FIELD_TITLES
from nfcl_jax.scenarios import Scan

ALL_STRATEGIES = (*STRATEGIES, "distillation_shared")  # points, in signal expansion only

_OUT = flags.DEFINE_string("out", None, "folder for what the benchmark writes")
_COMPARE = flags.DEFINE_enum("compare", None, ["torch"], "what else takes its turns")
_FIELDS = flags.DEFINE_list("fields", list(FIELDS), "fields")
_STRATEGIES = flags.DEFINE_list("strategies", list(ALL_STRATEGIES), "strategies")
_SCENARIOS = flags.DEFINE_list("scenarios", list(SCENARIOS), "scenarios")
_POINTS = flags.DEFINE_list("points", ["1024", "4096", "16384"], "points of a draw")
_PATIENTS = flags.DEFINE_list("patients", ["1", "2", "4", "8", "16"], "patients, in the scaling")
_TASKS = flags.DEFINE_list("tasks", ["1", "2", "3", "4"], "tasks, in the scaling")
_PER_BATCH = flags.DEFINE_integer("patients_per_batch", None, "as in a config", lower_bound=0)
_ROOT = flags.DEFINE_string("root", None, "ACDC's training folder, instead of the phantom")
_PRECISION = flags.DEFINE_enum("matmul_precision", "float32", MATMUL_PRECISIONS, "as in a config")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "turns that each program takes", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "length of a turn", lower_bound=0.0)

SCALING_POINTS = 4096  # of a draw; the scaling is that of distillation in domain expansion


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


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _COMPARE.value and jax.default_backend() != "cpu":
        raise ConfigError(f"--compare=torch is for CPUs; JAX runs on {jax.default_backend()}.")
    if _COMPARE.value and importlib.util.find_spec("torch") is None:
        raise ConfigError("--compare=torch needs PyTorch: pip install -e '.[benchmark]'")
    groups = plan()
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    root = _ROOT.value or written_phantom(out)
    scans = {name: read_scans(root, name, [])[0] for name in dict.fromkeys(_SCENARIOS.value)}
    console = Console()
    timings: list[Timing] = []
    for number, cases in enumerate(groups, start=1):
        title = f"{number}/{len(groups)} {' '.join(map(str, cases[0]))}"
        with console.status(title), jax.default_matmul_precision(_PRECISION.value):
            timings += time_group(cases, scans[cases[0].scenario])
        for timing in timings[-len(cases) :]:
            console.print(describe(timing), highlight=False, soft_wrap=True)
        records = [{**timing._asdict(), "machine": machine()} for timing in timings]
        write_file(out / "benchmark.json", json.dumps(records, indent=1))
        write_file(out / "benchmark.md", as_markdown(timings))
        plot(timings).savefig(out / "benchmark.png", dpi=150)
    console.print(f"everything is in {out}")


def plan() -> list[list[Case]]:
    """Groups of cases; those of one group take turns."""

    def words(flag, known):
        if not flag.value or not set(flag.value) <= set(known):
            raise ConfigError(f"--{flag.name} must be of {', '.join(known)}, got {flag.value}.")
        return flag.value

    def numbers(flag, most):
        if not flag.value or not all(w.isdigit() and 1 <= int(w) <= most for w in flag.value):
            raise ConfigError(f"--{flag.name} must be numbers from 1 to {most}, got {flag.value}.")
        return [int(word) for word in flag.value]

    fields = words(_FIELDS, FIELDS)
    strategies, scenarios = words(_STRATEGIES, ALL_STRATEGIES), words(_SCENARIOS, SCENARIOS)
    points = numbers(_POINTS, 2**24)
    groups = [
        [Case(field, strategy, scenario, p, patients=1, task=2)]
        for field, scenario, strategy, p in itertools.product(fields, scenarios, strategies, points)
        if (scenario, strategy) != ("domain_expansion", "distillation_shared")
    ]
    if not groups:
        raise ConfigError("points are shared in signal_expansion only: nothing is left to time.")
    if "domain_expansion" in scenarios and "distillation" in strategies:
        for field in fields:
            case = Case(field, "distillation", "domain_expansion", SCALING_POINTS, 1, 2)
            groups.append([case._replace(patients=n) for n in numbers(_PATIENTS, 2**16)])
            groups.append([case._replace(task=task) for task in numbers(_TASKS, 4)])
    return groups


def time_group(cases: Sequence[Case], scan: Scan) -> list[Timing]:
    """Times the cases in turns, each beside its matrix products."""
    runs, megabytes = {}, {}
    for case in cases:
        config = measuring.config_of(case)
        copies = [dataclasses.replace(scan, patient=f"{i:05d}") for i in range(case.patients)]
        runs[case, "jax"], used = measuring.our_steps(case, copies, _PER_BATCH.value)
        megabytes[case] = used / 1e6
        products = measuring.points_asked(case), measuring.layer_sizes(case, config.field)
        runs[case, "matmul"] = measuring.matmul_steps(*products, case.field == "diner")
        if _COMPARE.value == "torch" and len(cases) == 1:
            for how in ("eager", "compiled"):
                runs[case, how] = measuring.torch_steps(case, scan, how == "compiled")
    times = measuring.interleave(runs, _ROUNDS.value, _SECONDS.value)
    return [timing_of(case, times, megabytes[case]) for case in cases]


def timing_of(case, times, megabytes: float) -> Timing:
    """The record of a case whose steps, and whose rivals', took so many seconds in each round."""
    ours = [seconds / case.patients for seconds in times[case, "jax"]]
    median = statistics.median(ours)
    config = measuring.config_of(case)
    timing = Timing(
        *case,
        ms_per_step_per_patient=1e3 * median,
        million_points_per_second=1e-6 * measuring.points_asked(case) / median,
        gflops=1e-9 * measuring.flops(case, measuring.layer_sizes(case, config.field)) / median,
        fraction_of_matmul=measuring.median_ratio(ours, times[case, "matmul"]),
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
        speedup_over_torch=measuring.median_ratio(ours, better),
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


def machine() -> str:
    """What the figures are of."""
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        names = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
        device = f"{len(names)} cores of {names[0]}" if names else platform.processor()
    versions = ["jax", *(["torch"] if _COMPARE.value else [])]
    return ", ".join([device, *(f"{name} {version(name)}" for name in versions)])


def as_markdown(timings: Sequence[Timing]) -> str:
    """What the figures are of, their summary, and all of them."""
    frame = pd.DataFrame([t._asdict() for t in timings]).dropna(axis=1, how="all")
    shown = frame.rename(columns=_words).map(_rounded)
    return f"{machine()}\n\n{summary(timings)}\n{_table(shown)}"


def summary(timings: Sequence[Timing]) -> str:
    """How many times as fast as PyTorch, where that was timed, and the fraction of the matrix
    products' rate, for one patient's second task, by points."""
    columns: dict[int, dict[tuple, str]] = {}
    for t in timings:
        if (t.patients, t.task) == (1, 2):
            faster = f"{t.speedup_over_torch:.2f} x, " if t.speedup_over_torch else ""
            key = _words(t.scenario), _words(t.strategy), FIELD_TITLES[t.field]
            # The scaling times the case that it starts from again.
            columns.setdefault(t.points, {}).setdefault(key, f"{faster}{t.fraction_of_matmul:.0%}")
    frame = pd.DataFrame(columns).rename_axis(["scenario", "strategy", "field"]).reset_index()
    return _table(frame.rename(columns=lambda name: f"{name:,}" if name in columns else name))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(frame: pd.DataFrame) -> str:
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


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
                look = {"color": COLOURS[field], "marker": MARKERS[field], "markersize": 5}
                ours = rows.ms_per_step_per_patient
                ax.plot(rows.points, ours, **look, label=FIELD_TITLES[field])
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


if __name__ == "__main__":
    launch(main, required=["out"])
