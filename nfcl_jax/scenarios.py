"""What is learned in which order: scans and the sequence of tasks over them.

A task says where (frames), what (output channels) and how (their loss). Growing the domain and
growing the output are then the same code, with other data.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nfcl_jax import losses

NUM_FRAMES = 4  # of a cine, at t = -1, -1/3, 1/3 and 1
SSIM_WINDOW = 7  # voxels: a slice must be as large to be scored
NUM_CLASSES = 4  # background, right ventricle, myocardium, left ventricle


class Output(NamedTuple):
    """A group of output channels with one meaning and one loss.

    `as_targets` turns the field's raw outputs into what the loss takes as targets: the output
    itself, or the softmax's probabilities.
    """

    name: str
    first_channel: int
    num_channels: int
    loss: Callable
    as_targets: Callable

    @property
    def channels(self) -> slice:
        return slice(self.first_channel, self.first_channel + self.num_channels)


def _identity(outputs):
    return outputs


@functools.lru_cache
def image_output(huber_delta: float) -> Output:
    """The intensity, channel 0. Equal arguments give the same object, so that programs compiled
    for it are found again."""
    return Output("image", 0, 1, functools.partial(losses.huber, delta=huber_delta), _identity)


MASK = Output("mask", 1, NUM_CLASSES, losses.binary_cross_entropy, jax.nn.softmax)


class Task(NamedTuple):
    """Learn `output` on the frames `frames[0]` to `frames[1] - 1`."""

    name: str
    output: Output
    frames: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image that one field is fitted to.

    Attributes:
      patient: the patient's name, such as "patient001".
      image: "cine", "ED" or "ES".
      intensities: float32 in [0, 1], (frames, x, y, z); one frame for ED and ES.
      labels: uint8 classes of the same shape, or None where no task needs them.
      frame_numbers: the frames' numbers in the 4D scan, from 1.
      spacing: voxel size along x, y and z, in mm.
      affine: voxel indices to scanner coordinates, 4 x 4, in mm.
    """

    patient: str
    image: str
    intensities: np.ndarray
    labels: np.ndarray | None
    frame_numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.patient}/{self.image}"

    @property
    def scenario(self) -> str:
        """The scenario that takes such an image."""
        return "domain_expansion" if self.image == "cine" else "signal_expansion"

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of coordinates: (frame, x, y, z) of a cine, (x, y, z) of a single frame."""
        return self.intensities.shape if self.image == "cine" else self.intensities.shape[1:]

    @property
    def num_frames(self) -> int:
        return self.intensities.shape[0]


def domain_expansion(huber_delta: float = 1.0) -> tuple[Task, ...]:
    """The four frames of a cine, one after the other."""
    image = image_output(huber_delta)
    return tuple(Task(f"frame {f + 1}", image, (f, f + 1)) for f in range(NUM_FRAMES))


def signal_expansion(huber_delta: float = 1.0) -> tuple[Task, ...]:
    """The image of one frame, then its segmentation mask."""
    return (Task("image", image_output(huber_delta), (0, 1)), Task("mask", MASK, (0, 1)))


SCENARIOS: dict[str, Callable[..., tuple[Task, ...]]] = {
    "domain_expansion": domain_expansion,
    "signal_expansion": signal_expansion,
}


def num_channels(tasks: Sequence[Task]) -> int:
    """Output channels that a field needs for `tasks`."""
    return max(task.output.channels.stop for task in tasks)


def merge_domains(tasks: Sequence[Task]) -> dict[Output, tuple[int, int]]:
    """For each output that `tasks` taught, the frames on which they did.

    Raises:
      ValueError: if an output's frames are not one contiguous range.
    """
    domains: dict[Output, tuple[int, int]] = {}
    for task in tasks:
        first, stop = domains.get(task.output, task.frames)
        if task.frames[0] > stop or task.frames[1] < first:
            raise ValueError(f"the frames of {task.output.name} before {task.name} leave a gap.")
        domains[task.output] = (min(first, task.frames[0]), max(stop, task.frames[1]))
    return domains


def equidistant_frames(num_available: int, num_frames: int = NUM_FRAMES) -> tuple[int, ...]:
    """Frame numbers, from 1: the first, the last and those nearest to equal steps between.

    Raises:
      ValueError: if there are fewer frames than wanted.
    """
    if num_available < num_frames:
        raise ValueError(f"{num_frames} frames are wanted, the scan has {num_available}.")
    return tuple(int(f) + 1 for f in np.floor(np.linspace(0, num_available - 1, num_frames) + 0.5))


def scale_intensities(image: np.ndarray) -> np.ndarray:
    """`image` scaled by its minimum and maximum to [0, 1], as float32."""
    low, high = float(image.min()), float(image.max())
    # In double precision: the range of float32 values may be beyond float32.
    return ((image - np.float64(low)) / (high - low)).astype(np.float32)
