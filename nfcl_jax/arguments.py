"""What the compiled programs are given, (static, state, scan, shared): what is static under jit,
what the steps change, what is one scan's own, and what all scans of a batch share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nfcl_jax.curve import is_curve
from nfcl_jax.fields import Params
from nfcl_jax.padded import PaddedScan
from nfcl_jax.records import State
from nfcl_jax.scenarios import Head, Lesson, ranges_of
from nfcl_jax.strategies.base import Domain, Strategy, Taught


class Static(NamedTuple):
    """What is static under jit: equal ones share compiled programs.

    Attributes:
      field: with the output channels that this task needs.
      strategy: the empty one in the first task.
      learning_rate: of Adam.
      muon_rate: of Muon, for the layers' matrices; 0 leaves them to Adam.
      output_rate: of Adam for the output layer; None treats it as the others.
      keep_optimiser: whether Adam's moments go on from one task to the next.
      warmup_steps: in which the rate grows to its value, from the start of the task on.
      schedule: of the rate after that, one of `config.SCHEDULES`.
      num_steps: of the task.
      steps_per_chunk: so many at most in one call of `fit_steps`.
      batch_size: points per step; 0 is every voxel of the task.
      in_passes: whether they are drawn in passes over all voxels, not with replacement.
      num_voxels: of one frame, padded: the longest scan's of the batch.
      heads: that are taught.
      num_frames: from the task's first to its last.
      previous_heads: of the last task, or none if the strategy does nothing: without them, the
        first task and the next are the same to the program.
      earlier_heads: of all earlier tasks, or none likewise.
      num_earlier_frames: that cover them.
      revisits: whether a step asks every voxel of all earlier tasks, because they had these frames.
    """

    field: nn.Module
    strategy: Strategy
    learning_rate: float
    muon_rate: float
    output_rate: float | None
    keep_optimiser: bool
    warmup_steps: int
    schedule: str
    num_steps: int
    steps_per_chunk: int
    batch_size: int
    in_passes: bool
    num_voxels: int
    heads: tuple[Head, ...]
    num_frames: int
    previous_heads: tuple[Head, ...]
    earlier_heads: tuple[Head, ...]
    num_earlier_frames: int
    revisits: bool

    @property
    def asks_curve(self) -> bool:
        """Whether the steps ask the field at the knots of a curve, see `curve`."""
        return self.batch_size == 0 and is_curve(self.field)


class Frames(NamedTuple):
    """Of some tasks, as ranges: the first frame and the one after the last."""

    of_heads: tuple[Int[Array, "ranges 2"], ...]
    of_all: Int[Array, "ranges 2"]


class TaskArrays(NamedTuple):
    """The task, for all scans of a batch alike. Arrays, so that the next task of the same kind runs
    in the same compiled program."""

    number: Int[Array, ""]
    new: Frames
    previous: Frames
    earlier: Frames
    stop_earlier: Int[Array, ""]  # one flat index beyond the earlier tasks, in the largest scan
    stop_seen: Int[Array, ""]  # and beyond this task too


class ScanAndMemory(NamedTuple):
    """One scan's own, during a task: its data, and the strategy's memory."""

    scan: PaddedScan
    memory: Any


class Steps(NamedTuple):
    """Steps `first` to `stop - 1` of a task."""

    task: TaskArrays
    first: Int[Array, ""]
    stop: Int[Array, ""]


class TrainState(NamedTuple):
    params: Params
    opt_state: optax.OptState
    strategy: State


def frames_of(lessons: Sequence[Lesson]) -> Frames:
    """The frames of each lesson, and of all."""

    def array(frames):
        return jnp.array(ranges_of(frames) or [(0, 0)], jnp.int32)

    of_all = (frame for lesson in lessons for frame in lesson.frames)
    return Frames(tuple(array(lesson.frames) for lesson in lessons), array(of_all))


def taught(heads: Sequence[Head], frames: Frames) -> Taught:
    """What was, or is, taught to each of the heads."""
    return Taught(tuple(map(Domain, heads, frames.of_heads)), frames.of_all)


def first_index(task: TaskArrays, scan: PaddedScan) -> Int[Array, ""]:
    """Of all flat indices that the task teaches."""
    return task.new.of_all[0, 0] * scan.grid.num_voxels
