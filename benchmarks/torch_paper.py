"""The fits of a grid by PyTorch, to time `experiments.paper` beside them.

    pip install -e '.[benchmark]'
    python -m benchmarks.torch_paper --config=configs/quickstart.py --workdir=runs/torch

scores each field on all tasks so far and saves its parameters, as `experiments.paper` does, and
says how many seconds it took after its imports; there is no report. `--compiled` is torch.compile.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from absl import app, flags
from ml_collections import config_flags
from torch import nn

from benchmarks.torch_loop import field_for, frozen, render, set_precision, task_step, voxel_inputs
from experiments.launch.cli import launch
from experiments.launch.grid import make_cells
from nfcl_jax.errors import ConfigError
from nfcl_jax.inputs import read_data
from nfcl_jax.metrics import score
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import num_frames, tasks_of

_CONFIG = config_flags.DEFINE_config_file("config", None, "as of experiments.paper")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for what is written")
_COMPILED = flags.DEFINE_bool("compiled", False, "whether torch.compile is used")


def learn(scan: Scan, config: dict, compiled: bool, first: nn.Module | None) -> Iterator[nn.Module]:
    """The field after each task; `first` is what another run had after its first task, if that
    was the same."""
    field = copy.deepcopy(first) if first else field_for(scan, config)
    for number in range(1, len(tasks_of(config)) + 1):
        if number > 1 or first is None:
            distil = number > 1 and config["strategy"] == "distillation"
            teacher = frozen(field) if distil else None
            step = task_step(field, teacher, scan, config, number, compiled)
            for _ in range(config["num_steps"]):
                step()
        yield field


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    started = time.perf_counter()
    config, out = _CONFIG.value.to_dict(), Path(_WORKDIR.value)
    cells = make_cells(config, out)
    others = {cell.config["strategy"] for cell in cells} - {"finetune", "distillation"}
    if others:
        raise ConfigError(
            f"{', '.join(sorted(others))}: PyTorch's loop has none; "
            "--config.strategies=finetune,distillation would be right."
        )
    out.mkdir(parents=True, exist_ok=True)
    set_precision(config["matmul_precision"])
    scans = read_data(config, dict.fromkeys(cell.config["scenario"] for cell in cells), out).scans
    firsts = {}
    for cell in cells:
        tasks = tasks_of(cell.config)
        for scan in map(Scan.read, scans[cell.config["scenario"]]):
            first = firsts.get((cell.twin, scan.name))
            fields = learn(scan, cell.config, _COMPILED.value, first)
            for number, field in enumerate(fields, start=1):
                if number == 1:
                    firsts[cell.name, scan.name] = copy.deepcopy(field)
                torch.save(
                    field.state_dict(), out / f"{cell.name}-{scan.patient}-{scan.image}-{number}.pt"
                )
                seen = num_frames(tasks[:number])
                inputs = voxel_inputs(cell.config["field"]["name"], scan.shape)
                answers = render(field, inputs[: seen * scan.num_voxels])
                answers = answers.reshape(seen, *scan.intensities.shape[1:], -1)
                for task in tasks[:number]:
                    print(
                        cell.name,
                        scan.name,
                        number,
                        task.name,
                        score(task.lessons[0], scan, answers),
                    )
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    launch(main, required=["config", "workdir"])
