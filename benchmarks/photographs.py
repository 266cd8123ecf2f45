"""SIREN and FINER on photographs: what they reach here, and in PyTorch as their own code fits them.

    pip install -e '.[benchmark]' && python -m benchmarks.photographs --out=runs/photographs

Their own code is https://github.com/vsitzmann/siren and https://github.com/liuzhen0212/FINER: five
layers, of which four are 256 wide, w0 = 30, every pixel in every step, intensities in [-1, 1], Adam
at 1e-4, which FINER's lets fall to a tenth. Writes photographs.json, a list of records, and
photographs.md, the same as a table.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from absl import app, flags
from PIL import Image
from rich.console import Console
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torch.nn import functional

import nfcl_jax
from benchmarks.tables import machine
from benchmarks.torch_loop import make_field, voxel_inputs
from experiments.launch.cli import launch
from nfcl_jax.errors import ConfigError, look_up
from nfcl_jax.fields import field_title
from nfcl_jax.report.tables import markdown
from nfcl_jax.storage import write_file

_OUT = flags.DEFINE_string("out", None, "folder for what the benchmark writes")
_FIELDS = flags.DEFINE_list("fields", ["siren", "finer"], "those that are fitted")
_PICTURES = flags.DEFINE_list("pictures", ["camera", "astronaut"], "scikit-image's")
_SIZE = flags.DEFINE_integer("size", 256, "pixels of a side, to which they are made", lower_bound=7)
_STEPS = flags.DEFINE_integer("steps", 500, "of every pixel", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the parameters", lower_bound=0)

PICTURES = {"camera": data.camera, "astronaut": data.astronaut}
WIDTH, DEPTH, W0, RATE = 256, 4, 30.0, 1e-4
DECAY = {"siren": 1.0, "finer": 0.1}
SCHEDULES = {"siren": "constant", "finer": "exponential"}


def their_field(name: str, channels: int) -> nn.Module:
    """A field as their code makes it: SIREN's rule for all weights, PyTorch's biases."""
    config = {"name": name, "width": WIDTH, "depth": DEPTH, "w0": W0}
    field = make_field(config, axes=2, channels=channels, rows=0)
    bound = (6 / WIDTH) ** 0.5 / W0  # as of the layers before
    nn.init.uniform_(field[-1].weight, -bound, bound)
    return field


def theirs(name: str, values: np.ndarray) -> np.ndarray:
    """What their code ends with, (height, width, channels), for values in [0, 1]."""
    torch.manual_seed(_SEED.value)
    field = their_field(name, values.shape[-1])
    adam = torch.optim.Adam(field.parameters(), RATE)
    falls = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: DECAY[name] ** (i / _STEPS.value))
    coords = voxel_inputs(name, values.shape[:2])
    targets = torch.from_numpy(2 * values - 1).reshape(len(coords), -1)
    for _ in range(_STEPS.value):
        loss = functional.mse_loss(field(coords), targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        falls.step()
    with torch.no_grad():
        return field(coords).reshape(values.shape).numpy() / 2 + 0.5


def ours(name: str, picture: Image.Image, workdir: Path) -> float:
    """The PSNR that this library ends with."""
    settings = {"batch_size": 0, "num_steps": _STEPS.value, "learning_rate": RATE,
                "schedule": SCHEDULES[name], "warmup_steps": 0, "muon_rate": 0.0,
                "seed": _SEED.value, "field.width": WIDTH, "field.depth": DEPTH, "field.w0": W0,
                "field.signed": True}  # fmt: skip
    shutil.rmtree(workdir, ignore_errors=True)  # else it would be learned already
    run = nfcl_jax.learn(picture, workdir=workdir, field=name, time_range=None, settings=settings)
    (scores,) = run.scores[run.scores.metric == "psnr"].itertuples()
    return scores.value


def compare(name: str, picture: str, size: int) -> dict:
    """A record of both."""
    image = Image.fromarray(PICTURES[picture]())
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    values = np.asarray(image, np.float32).reshape(size, size, -1) / 255
    record = {"field": field_title(name), "picture": picture, "pixels": size, "steps": _STEPS.value}
    answers = np.clip(theirs(name, values), 0, 1)
    record["theirs, dB"] = float(peak_signal_noise_ratio(values, answers, data_range=1))
    record["nfcl_jax, dB"] = ours(name, image, Path(_OUT.value) / f"{name}-{picture}-{size}")
    return record


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    for name in _FIELDS.value:
        look_up(SCHEDULES, "field", name, ConfigError)
    for name in _PICTURES.value:
        look_up(PICTURES, "picture", name, ConfigError)
    out, console, records = Path(_OUT.value), Console(), []
    out.mkdir(parents=True, exist_ok=True)
    of = machine(with_torch=True)
    for name in _FIELDS.value:
        for picture in _PICTURES.value:
            records.append(compare(name, picture, _SIZE.value))
            console.print(records[-1])
            write_file(out / "photographs.json", json.dumps(records, indent=1))
            table = pd.DataFrame(records).map(
                lambda x: f"{x:.1f}" if isinstance(x, float) else str(x)
            )
            write_file(out / "photographs.md", f"{of}\n\n{markdown(table)}\n")
    console.print(f"everything is in {out}")


if __name__ == "__main__":
    launch(main, required=["out"])
