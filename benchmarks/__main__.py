"""Times the steps of every field, beside what the machine multiplies and, if asked, PyTorch.

    python -m benchmarks --out=runs/benchmark
    pip install -e '.[benchmark]' && python -m benchmarks --out=runs/benchmark \\
        --compare=torch

Writes benchmark.json, a list of records, benchmark.md, the same as tables, and benchmark.png.
"""

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console

from benchmarks import steps
from benchmarks.steps import Case
from benchmarks.tables import Timing, as_markdown, describe, machine, plot, timing_of
from experiments.launch.cli import launch
from nfcl_jax.config import MATMUL_PRECISIONS
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS
from nfcl_jax.inputs import written_phantom
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.storage import write_file
from nfcl_jax.strategies import STRATEGIES

# In signal expansion, whose default is to distil at the points that a step fits.
ALL_STRATEGIES = (*STRATEGIES, "distillation_voxels")

_OUT = flags.DEFINE_string("out", None, "folder for what the benchmark writes")
_COMPARE = flags.DEFINE_enum("compare", None, ["torch"], "what else takes its turns")
_FIELDS = flags.DEFINE_list("fields", list(FIELDS), "fields")
_STRATEGIES = flags.DEFINE_list(
    "strategies", ["finetune", "distillation", "distillation_voxels"], "strategies"
)
_SCENARIOS = flags.DEFINE_list("scenarios", list(SCENARIOS), "scenarios")
_POINTS = flags.DEFINE_list("points", ["1024", "4096", "16384"], "points of a draw")
_PATIENTS = flags.DEFINE_list("patients", ["1", "2", "4", "8", "16"], "patients, in the scaling")
_TASKS = flags.DEFINE_list("tasks", ["1", "2", "3", "4"], "tasks, in the scaling")
_PER_BATCH = flags.DEFINE_integer("scans_per_batch", None, "as in a config", lower_bound=0)
_ROOT = flags.DEFINE_string("root", None, "ACDC's training folder, instead of the phantom")
_PRECISION = flags.DEFINE_enum("matmul_precision", "float32", MATMUL_PRECISIONS, "as in a config")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "turns that each program takes", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "length of a turn", lower_bound=0.0)

SCALING_POINTS = 4096  # of a draw; the scaling is that of distillation in domain expansion


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _COMPARE.value:
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("--compare=torch needs PyTorch: pip install -e '.[benchmark]'")
        from benchmarks import torch_loop

        torch_loop.set_precision(_PRECISION.value)
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
        of = machine(with_torch=bool(_COMPARE.value))
        records = [{**timing._asdict(), "machine": of} for timing in timings]
        write_file(out / "benchmark.json", json.dumps(records, indent=1))
        write_file(out / "benchmark.md", as_markdown(timings, of))
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
        if (scenario, strategy) != ("domain_expansion", "distillation_voxels")
    ]
    if not groups:
        raise ConfigError("distillation_voxels is of signal_expansion: nothing is left to time.")
    if "domain_expansion" in scenarios and "distillation" in strategies:
        for field in fields:
            case = Case(field, "distillation", "domain_expansion", SCALING_POINTS, 1, 2)
            groups.append([case._replace(patients=n) for n in numbers(_PATIENTS, 2**16)])
            groups.append([case._replace(task=task) for task in numbers(_TASKS, 4)])
    return groups


def time_group(cases: Sequence[Case], scan: Scan) -> list[Timing]:
    """Times the cases in turns, each beside its matrix products."""
    runs, megabytes, at_once = {}, {}, {}
    for case in cases:
        config = steps.config_of(case)
        copies = [dataclasses.replace(scan, patient=f"{i:05d}") for i in range(case.patients)]
        runs[case, "jax"], used, together = steps.our_steps(case, copies, _PER_BATCH.value)
        megabytes[case] = used / 1e6
        products = steps.points_asked(case), steps.layer_sizes(case, config)
        runs[case, "matmul"] = steps.matmul_steps(*products, case.field == "diner", together)
        at_once[case] = together * jax.local_device_count()
        if _COMPARE.value == "torch" and len(cases) == 1:
            for how in ("eager", "compiled"):
                runs[case, how] = steps.torch_steps(case, scan, how == "compiled")
    times = steps.interleave(runs, _ROUNDS.value, _SECONDS.value)
    return [timing_of(case, times, megabytes[case], at_once[case]) for case in cases]


if __name__ == "__main__":
    launch(main, required=["out"])
