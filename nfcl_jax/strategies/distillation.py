"""Distillation from the field's own previous parameters (Visser and Wolterink, 2025)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nfcl_jax import points as grid
from nfcl_jax.checks import POSITIVE, one_of
from nfcl_jax.fields import Params
from nfcl_jax.params import field_inputs, field_of, render
from nfcl_jax.strategies.base import (
    Sample,
    Strategy,
    StrategyKind,
    TaskView,
    loss_on_earlier,
    rehearsed,
)


class Teacher(NamedTuple):
    """The previous parameters or, where that is cheaper than asking them in every step or every
    answer is looked at, what they answer at every voxel of the earlier tasks."""

    params: Params | None
    outputs: Float[Array, "voxels channels"] | None
    cumulative: Float[Array, " voxels"] | None = None  # of `density`, for "detailed" points


@functools.lru_cache
def distillation(weight: float = 1.0, points: str = "voxels", ramp: float = 1.0) -> Strategy:
    """Adds to the fitting loss

        weight * mean over x of L(f_theta(x), f_teacher(x)),   x uniform in the earlier domain,

    with the loss L of each head that the teacher knows, on the frames where it learned it
    (arXiv 2511.21409). No earlier data is kept.

    Args:
      weight: the factor lambda.
      points: "voxels" draws x among the voxels seen so far; "continuous" draws x, y and z from
        all of [-1, 1] on the frames seen so far, which DINER cannot be asked; "shared" takes the
        new task's points, for tasks on the same frames: half the work; "detailed" draws half of
        them uniformly, as "voxels" does, and half where the teacher's answers vary, see `detail`.
      ramp: what the factor is multiplied by from a task's first step to its last, step by step by
        the same ratio.
    """

    def begin(view: TaskView, params: Params, state: dict):
        cheaper = points != "continuous" and view.num_indices <= view.points_evaluated
        if not cheaper and points != "detailed":
            return Teacher(params, None), state
        field = field_of(view.field, params)
        outputs = render(field, params, view.scan.grid, view.num_indices, view.stop_index)
        cumulative = jnp.cumsum(density(view, outputs)) if points == "detailed" else None
        return Teacher(None, outputs, cumulative), state

    def sample(view: TaskView, state: dict, new: grid.Points, key) -> Sample:
        if points == "voxels":
            drawn, shared = rehearsed(view, new)
        elif points == "detailed":
            drawn, shared = _detailed(view, new.index.size, key), False
        else:
            shared = points == "shared"
            drawn = new if shared else view.draw()
        if points == "continuous":
            space_key = jax.random.fold_in(key, 1)
            inputs = grid.sample_coords(space_key, drawn, view.scan.grid)
        else:
            inputs = field_inputs(view.field, drawn.index, view.scan.grid)
        teacher = view.memory
        if teacher.outputs is None:
            targets = field_of(view.field, teacher.params).apply(teacher.params, inputs)
        else:
            targets = grid.take(teacher.outputs, drawn)
        return Sample(None if shared else inputs, drawn, targets)

    def loss(view: TaskView, state: dict, params: Params, sample: Sample, outputs):
        def taught(head):
            return head.as_targets(sample.targets[:, head.channels])

        factor = weight if ramp == 1 else weight * ramp**view.progress
        return factor * loss_on_earlier(view, sample.points, outputs, taught)

    return Strategy(begin, sample, loss, cost=1.0 if points == "shared" else 2.0)


def density(view: TaskView, outputs: Float[Array, "voxels channels"]) -> Float[Array, " voxels"]:
    """The probability of each voxel in proportion to the sum of the earlier heads' `detail` there;
    the same for all of the earlier domain where nothing varies."""
    index, total = jnp.arange(len(outputs)), jnp.zeros(len(outputs))
    anywhere = jnp.zeros(len(outputs), bool)
    for head, frames in view.earlier.domains:
        known = grid.inside(index, grid.index_ranges(frames, view.scan.grid))
        total += known * detail(head.as_targets(outputs[:, head.channels]), view.scan.grid.shape)
        anywhere |= known
    varied = jnp.where(total.sum() > 0, total, anywhere)
    return varied / varied.sum()


def detail(
    values: Float[Array, "voxels channels"], shape: Int[Array, " axes"]
) -> Float[Array, " voxels"]:
    """How much the values of a grid vary from a voxel to the next ones along x, y and z: the length
    of their differences, of all channels together. At the last voxel of an axis, that of the other
    axes."""
    index, stride, total = jnp.arange(len(values)), 1, jnp.zeros(len(values))
    for size in reversed(shape[-3:]):
        inside = index // stride % size < size - 1
        beside = values[jnp.minimum(index + stride, len(values) - 1)]
        total += inside * jnp.sum((beside - values) ** 2, axis=-1)
        stride *= size
    return jnp.sqrt(total)


def _detailed(view: TaskView, count: int, key: Key[Array, ""]) -> grid.Points:
    """Voxels of the earlier domain with replacement: half uniformly, half by their `density`."""
    ranges = grid.index_ranges(view.earlier.frames, view.scan.grid)
    anywhere = grid.sample_points(key, count - count // 2, ranges)
    cumulative, key = view.memory.cumulative, jax.random.fold_in(key, 1)
    places = jax.random.uniform(key, (count // 2,), maxval=cumulative[-1])
    varied = jnp.searchsorted(cumulative, places, side="right").astype(jnp.int32)
    varied = jnp.minimum(varied, len(cumulative) - 1)
    return grid.Points(jnp.concatenate([anywhere.index, varied]), jnp.ones(count))


def _refuse(constants, field, tasks) -> str:
    if constants["points"] == "shared" and len({task.frames for task in tasks}) > 1:
        return (
            "points must not be 'shared' in this scenario: the frame that a step fits is none "
            "that the teacher knows."
        )
    if constants["points"] == "continuous" and field.on_grid:
        return (
            f"points must not be 'continuous' for {field.title}: its table has nothing between "
            "voxels."
        )
    return ""


KIND = StrategyKind(
    "distilled",
    distillation,
    {
        "weight": POSITIVE,
        "points": one_of(["voxels", "continuous", "shared", "detailed"]),
        "ramp": POSITIVE,
    },
    _refuse,
)
