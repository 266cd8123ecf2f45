"""How long until every task of a patient is as good as the paper's recipe leaves it: that recipe by
PyTorch, and here the recommended one with as few steps as that takes.

    pip install -e '.[benchmark]'
    python -m benchmarks.quality --root=/data/ACDC/training --patient=patient001 --out=runs/quality

Writes quality.json and quality.md. Both sides fit, score and save every task. Imports are not
counted; compilation is, with no program kept from before. The numbers of steps in --steps are tried
in turn until one is enough. So few may need other rates than the recipe's: --overrides.
"""

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import torch
from absl import app, flags
from rich.console import Console

from benchmarks.tables import machine
from benchmarks.torch_loop import render, voxel_inputs
from benchmarks.torch_paper import learn
from configs import paper, recommended
from experiments.launch.cli import launch
from experiments.launch.grid import make_cells
from nfcl_jax.batching import compile_for
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.fields import field_title
from nfcl_jax.metrics import metrics_of, score
from nfcl_jax.report.tables import markdown
from nfcl_jax.runner import Caller, run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, num_frames, tasks_of
from nfcl_jax.storage import write_file

_ROOT = flags.DEFINE_string("root", None, "the folder of patientNNN folders")
_PATIENT = flags.DEFINE_string("patient", "patient001", "whose scans are fitted")
_OUT = flags.DEFINE_string("out", None, "folder for what the benchmark writes")
_FIELDS = flags.DEFINE_list("fields", ["pe_relu", "siren", "finer"], "those that are fitted")
_SCENARIOS = flags.DEFINE_list("scenarios", list(SCENARIOS), "the sequences of tasks")
_STEPS = flags.DEFINE_list(
    "steps", ["60", "80", "100", "150", "200", "250", "300", "400", "500"], "per task"
)
_OVERRIDES = flags.DEFINE_string("overrides", "", "of the recipe here, as in a grid's config")


def cell_of(
    recipe: Any, scenario: str, field: str, overrides: str = "", **changes: Any
) -> dict[str, Any]:
    """The config of one distilled run of a grid."""
    grid = recipe.get_config()
    grid.scenarios, grid.fields, grid.strategies = scenario, field, "distillation"
    words = [grid.overrides, overrides, *(f"*:{name}={value}" for name, value in changes.items())]
    grid.overrides = ",".join(filter(None, words))
    (cell,) = make_cells(grid.to_dict(), Path())
    return cell.config


def by_torch(scan: Scan, config: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds, and the first metric of every task at the end."""
    torch.manual_seed(config["seed"])
    started, tasks = time.perf_counter(), tasks_of(config)
    for number, field in enumerate(learn(scan, config, False, None), start=1):
        seen = num_frames(tasks[:number])
        inputs = voxel_inputs(config["field"]["name"], scan.shape)[: seen * scan.num_voxels]
        answers = render(field, inputs).reshape(seen, *scan.intensities.shape[1:], -1)
        scores = [
            score(t.lessons[0], scan, answers)[metrics_of(t.head.kind)[0]] for t in tasks[:number]
        ]
        torch.save(field.state_dict(), Path(_OUT.value) / f"{number}.pt")
    return time.perf_counter() - started, scores


def by_jax(scan: Scan, config: dict[str, Any], workdir: Path) -> tuple[float, list[float]]:
    """The same of a run."""
    compile_for.cache_clear()
    jax.clear_caches()
    shutil.rmtree(workdir, ignore_errors=True)  # else a finished run would be found there
    started, tasks = time.perf_counter(), tasks_of(config)
    run(config, [scan], workdir, Caller())
    seconds = time.perf_counter() - started
    rows = pd.read_csv(workdir / "metrics.csv")
    last = rows[rows.trained_task == len(tasks)].set_index(["evaluated_task", "metric"]).value
    return seconds, [float(last[n, metrics_of(t.head.kind)[0]]) for n, t in enumerate(tasks, 1)]


def tried(scenario: str, field: str) -> list[dict[str, Any]]:
    """The configs of the recommended recipe, one for each number of steps."""
    return [
        cell_of(recommended, scenario, field, _OVERRIDES.value, num_steps=n, warmup_steps=n // 10)
        for n in map(int, _STEPS.value)
    ]


def compare(scan: Scan, scenario: str, field: str, configs: list[dict[str, Any]]) -> list[dict]:
    """A record of the paper's recipe by PyTorch, and of each number of steps, up to the one that is
    enough."""
    config = cell_of(paper, scenario, field)
    seconds, wanted = by_torch(scan, config)
    same = {"scenario": scenario, "field": field, "scan": scan.name}
    records = [same | {"by": "PyTorch", "steps": config["num_steps"], "seconds": seconds,
                       "scores": wanted}]  # fmt: skip
    for config in configs:
        steps = config["num_steps"]
        folder = Path(_OUT.value) / f"{scenario}-{field}-{scan.image}-{steps}"
        seconds, scores = by_jax(scan, config, folder)
        enough = all(a >= b for a, b in zip(scores, wanted, strict=True))
        records.append(same | {"by": "nfcl_jax", "steps": steps, "seconds": seconds,
                               "scores": scores, "enough": enough})  # fmt: skip
        if enough:
            break
    return records


def table(records: list[dict]) -> str:
    """A row for each field and scenario: the seconds of both, and what every task ends with."""
    rows = []
    frame = pd.DataFrame(records)
    for (scenario, field, scan), own in frame.groupby(["scenario", "field", "scan"], sort=False):
        theirs, ours = own.iloc[0], own.iloc[-1]
        ends = [", ".join(f"{s:.4g}" for s in side.scores) for side in (theirs, ours)]
        rows.append(
            {
                "scenario": scenario,
                "field": field_title(field),
                "scan": scan,
                "PyTorch, s": f"{theirs.seconds:.0f}",
                "nfcl_jax, s": f"{ours.seconds:.0f}" if ours.enough else "not reached",
                "steps": str(ours.steps),
                "times as fast": f"{theirs.seconds / ours.seconds:.1f}" if ours.enough else "-",
                "PyTorch ends with": ends[0],
                "nfcl_jax": ends[1],
            }
        )
    return markdown(pd.DataFrame(rows))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_enable_compilation_cache", False)
    out, console, records = Path(_OUT.value), Console(), []
    out.mkdir(parents=True, exist_ok=True)
    pairs = itertools.product(_SCENARIOS.value, _FIELDS.value)
    configs = {pair: tried(*pair) for pair in pairs}  # a fault in one ends it before any is fitted
    for scenario in _SCENARIOS.value:
        scan = read_scans(_ROOT.value, scenario, [_PATIENT.value])[0]
        for field in _FIELDS.value:
            for record in compare(scan, scenario, field, configs[scenario, field]):
                console.print(record)
                records.append(record)
            write_file(out / "quality.json", json.dumps(records, indent=1))
            write_file(out / "quality.md", f"{machine(with_torch=True)}\n\n{table(records)}\n")
    console.print(table(records))


if __name__ == "__main__":
    launch(main, required=["root", "out"])
