"""The same work in PyTorch, for `benchmarks --compare=torch`: the paper's four fields,
losses, points and optimiser, in the loop that one would write there.

The teacher is asked in every step, in one pass without gradients; student and teacher are otherwise
asked as sparingly as here: the new points and the rehearsed ones, if they are others, go through
the student together.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nfcl_jax.errors import ConfigError
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import NUM_CLASSES, num_channels, num_frames, tasks_of


def device() -> str:
    """Where PyTorch works: on the kind of device that JAX runs on.

    Raises:
      ConfigError: if PyTorch does not have it.
    """
    name = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if name is None or (name == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            f"JAX runs on {jax.default_backend()}, which PyTorch does not have here; install one "
            "that has it, or set JAX_PLATFORMS=cpu."
        )
    return name


def set_precision(name: str) -> None:
    """Of matrix products on a GPU, by its name in `config.MATMUL_PRECISIONS`; a CPU has one."""
    if device() == "cuda":
        levels = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}
        torch.set_float32_matmul_precision(levels[name])


def wait() -> None:
    """Until all steps are done."""
    if device() == "cuda":
        torch.cuda.synchronize()


class Encoding(nn.Module):
    def __init__(self, num_frequencies: int):
        super().__init__()
        self.register_buffer("scales", torch.pi * 2.0 ** torch.arange(num_frequencies))

    def forward(self, coords):
        scaled = (coords[:, :, None] * self.scales).flatten(1)
        return torch.cat([torch.sin(scaled), torch.cos(scaled)], dim=1)


class Table(nn.Module):
    def __init__(self, rows: int, features: int, bound: float):
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, features).uniform_(-bound, bound))

    def forward(self, index):
        return self.table[index]


class Sine(nn.Module):
    def __init__(self, w0: float):
        super().__init__()
        self.w0 = w0

    def forward(self, z):
        return torch.sin(self.w0 * z)


class FINERSine(Sine):
    def forward(self, z):
        return torch.sin(self.w0 * (z.abs() + 1).detach() * z)


def make_field(config: dict, axes: int, channels: int, rows: int) -> nn.Module:
    """A field as `nfcl_jax.fields.create_field` makes it, sine layers initialised by SIREN's rule,
    ReLU layers by PyTorch's.

    Raises:
      ValueError: for a time scale, which is not here.
    """
    name, width = config["name"], config["width"]
    if config.get("time_scale", 1) != 1:
        raise ValueError("PyTorch's fields have no time_scale.")
    if name == "pe_relu":
        first, inputs = Encoding(config["num_frequencies"]), 2 * axes * config["num_frequencies"]
    elif name == "diner":
        inputs = config["table_features"]
        first = Table(rows, inputs, config["table_range"])
    else:
        first, inputs = nn.Identity(), axes
    layers = [first]
    for layer in range(config["depth"]):
        dense = nn.Linear(inputs, width)
        if "w0" in config:
            bound = 1 / inputs if layer == 0 else (6 / inputs) ** 0.5 / config["w0"]
            nn.init.uniform_(dense.weight, -bound, bound)
        activation = {"siren": Sine, "finer": FINERSine}.get(name)
        layers += [dense, activation(config["w0"]) if activation else nn.ReLU()]
        inputs = width
    layers.append(nn.Linear(inputs, channels))
    return nn.Sequential(*layers)


class TaskData(NamedTuple):
    """What a task teaches.

    Attributes:
      inputs: what the field takes for every voxel.
      values: what it should answer there: the intensity, or one-hot classes, learned by the
        channels after the image's.
      new: first voxel of the task, and the one after the last.
      earlier: the same of what the teacher knows.
    """

    inputs: torch.Tensor
    values: torch.Tensor
    new: tuple[int, int]
    earlier: tuple[int, int]


def make_step(
    field: nn.Module,
    teacher: nn.Module | None,
    data: TaskData,
    batch_size: int,
    learning_rate: float,
    weight: float,
    compiled: bool,
    shared: bool = False,
) -> Callable[[], None]:
    """One step of Adam on one task, as a function without arguments.

    Args:
      field: to be fitted.
      teacher: the field before, for distillation of its image; None is fine-tuning.
      data: of the task.
      batch_size: points of a draw; 0 is every voxel.
      learning_rate: of Adam.
      weight: of distillation.
      compiled: by torch.compile.
      shared: whether it is distilled at the points that are fitted.
    """
    optimiser = torch.optim.Adam(field.parameters(), learning_rate, fused=True)
    inputs, values, new, earlier = data
    is_image = values.shape[1] == 1

    def loss_of(x, y, rehearsed):
        answers = field(x if rehearsed is None or shared else torch.cat([x, rehearsed]))
        new = answers[: len(x)]
        if is_image:
            loss = functional.huber_loss(new[:, :1], y)
        else:
            loss = functional.binary_cross_entropy(torch.softmax(new[:, 1:], 1), y)
        if rehearsed is not None:
            with torch.no_grad():
                targets = teacher(rehearsed)[:, :1]
            earlier = answers[:, :1] if shared else answers[len(x) :, :1]
            loss = loss + weight * functional.huber_loss(earlier, targets)
        return loss

    if compiled:
        torch.compiler.reset()  # else it generalises over earlier sizes, and gives up after eight
        loss_of = torch.compile(loss_of)

    def draw(first, stop):
        if batch_size == 0:
            return slice(first, stop)
        return torch.randint(first, stop, (batch_size,), device=inputs.device)

    def step():
        index, rehearsed = draw(*new), None
        if teacher is not None:
            rehearsed = inputs[index if shared else draw(*earlier)]
        loss = loss_of(inputs[index], values[index], rehearsed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def voxel_inputs(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """What a field takes for every voxel of a grid: its index, for DINER, or its coordinates."""
    if name == "diner":
        return torch.arange(int(np.prod(shape)))
    axes = [torch.linspace(-1, 1, size) for size in shape]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    return coords.roll(-1, 1) if len(shape) == 4 else coords  # time comes last


def frozen(field: nn.Module) -> nn.Module:
    """A copy that does not learn."""
    return copy.deepcopy(field).requires_grad_(False)


@torch.no_grad()
def render(field: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """What the field answers at every voxel, asked in blocks."""
    blocks = inputs.to(next(field.parameters()).device).split(8192)
    return torch.cat([field(block) for block in blocks]).cpu().numpy()


def field_for(scan: Scan, config: dict) -> nn.Module:
    """A fresh field for all tasks of a scan, on `device()`."""
    channels, rows = num_channels(tasks_of(config)), scan.intensities.size
    return make_field(config["field"], len(scan.shape), channels, rows).to(device())


def task_step(
    field: nn.Module, teacher: nn.Module | None, scan: Scan, config: dict, number: int,
    compiled: bool,
) -> Callable[[], None]:  # fmt: skip
    """One step of task `number`, from 1, as `make_step` makes it."""
    tasks = tasks_of(config)[:number]
    voxels = scan.num_voxels
    if tasks[-1].head.kind == "image":
        values = scan.intensities.reshape(-1, 1)
    else:
        values = np.eye(NUM_CLASSES, dtype=np.float32)[scan.labels.ravel()]
    data = TaskData(
        voxel_inputs(config["field"]["name"], scan.shape).to(device()),
        torch.from_numpy(values).to(device()),
        (tasks[-1].frames[0] * voxels, num_frames(tasks) * voxels),
        (0, num_frames(tasks[:-1]) * voxels),
    )
    weight = config["distillation"]["weight"] if teacher else 0.0
    constants = config["batch_size"], config["learning_rate"], weight
    shared = teacher is not None and config["distillation"]["points"] == "shared"
    return make_step(field, teacher, data, *constants, compiled, shared)
