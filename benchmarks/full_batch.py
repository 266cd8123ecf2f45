"""Times DINER's steps over every voxel, at the knots of a curve and, by PyTorch, as its own code
has them: the whole table through the network.

    pip install -e '.[benchmark]' && python -m benchmarks.full_batch --out=runs/full_batch

Writes full_batch.json, a list of records, and full_batch.md, the same as a table. Scans are noise:
a step takes as long on any values.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags
from rich.console import Console

from benchmarks import steps
from benchmarks.steps import Case
from benchmarks.tables import machine
from experiments.launch.cli import launch
from nfcl_jax.report.tables import markdown
from nfcl_jax.scan import Scan
from nfcl_jax.storage import write_file

_OUT = flags.DEFINE_string("out", None, "folder for what the benchmark writes")
_KNOTS = flags.DEFINE_list("knots", ["512", "1024", "2048", "4096"], "knots of the curve")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "turns that each program takes", lower_bound=1)
_TORCH = flags.DEFINE_bool("torch", True, "whether PyTorch takes its turns too")

CROP, WHOLE = (100, 95, 7), (216, 256, 10)  # voxels of a frame of ACDC
# What is learned: the rows that a step asks are those of the task and of the earlier ones.
CASES = {
    "a frame of the crop": (CROP, Case("diner", "finetune", "signal_expansion", 0, 1, 1)),
    "a whole frame": (WHOLE, Case("diner", "finetune", "signal_expansion", 0, 1, 1)),
    "its mask, distilled": (WHOLE, Case("diner", "distillation", "signal_expansion", 0, 1, 2)),
    "the fourth whole frame, distilled": (
        WHOLE,
        Case("diner", "distillation", "domain_expansion", 0, 1, 4),
    ),
}
LARGEST_FOR_TORCH = 600_000  # rows: beyond, its activations take more memory than a laptop has


def noise(shape: tuple[int, ...], num_frames: int) -> Scan:
    """A scan of random values."""
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(num_frames, *shape)).astype(np.float32)
    return Scan(
        patient="noise",
        image="cine" if num_frames > 1 else "ED",
        values={"image": values, "mask": (4 * values).astype(np.uint8)},
        frame_numbers=tuple(range(1, num_frames + 1)),
        spacing=(1.5, 1.5, 10.0),
        affine=np.eye(4),
    )


def time_case(name: str, knots: list[int]) -> list[dict]:
    """A record for each number of knots."""
    shape, case = CASES[name]
    scan = noise(shape, 4 if case.scenario == "domain_expansion" else 1)
    rows = scan.num_voxels * (case.task if scan.num_frames > 1 else 1)
    runs, megabytes = {}, {}
    for count in knots:
        config = steps.config_of(case)
        config["field"]["knots"] = count
        runs[count], used, _ = steps.our_steps(case, [scan], None, config)
        megabytes[count] = used / 1e6
        sizes = steps.layer_sizes(case, config)
        runs[count, "matmul"] = steps.matmul_steps(count, sizes, towards_coords=True)
    if _TORCH.value and rows <= LARGEST_FOR_TORCH:
        runs["torch"] = steps.torch_steps(case, scan, compiled=False)
    times = steps.interleave(runs, _ROUNDS.value, seconds=0.5, fewest=2)
    records = []
    for count in knots:
        milliseconds = 1e3 * float(np.median(times[count]))
        record = {"task": name, "rows": rows, "knots": count, "ms per step": milliseconds}
        record["ns per row"] = 1e6 * milliseconds / rows
        record["MB"] = megabytes[count]
        record["part of matmul's rate"] = steps.median_ratio(times[count], times[count, "matmul"])
        if "torch" in times:
            record["PyTorch, ms"] = 1e3 * float(np.median(times["torch"]))
            record["times as fast"] = steps.median_ratio(times[count], times["torch"])
        records.append(record)
    return records


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    out, console = Path(_OUT.value), Console()
    out.mkdir(parents=True, exist_ok=True)
    of, records = machine(with_torch=_TORCH.value), []
    for name in CASES:
        with console.status(name):
            records += time_case(name, [int(word) for word in _KNOTS.value])
        table = pd.DataFrame(records)
        write_file(out / "full_batch.json", json.dumps({"machine": of, "steps": records}, indent=1))
        shown = markdown(table.map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)))
        write_file(out / "full_batch.md", f"{of}\n\n{shown}\n")
    console.print(f"everything is in {out}")


if __name__ == "__main__":
    launch(main, required=["out"])
