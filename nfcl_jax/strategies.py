"""What keeps a field from forgetting: fine-tuning (nothing) and distillation.

A strategy is a NamedTuple of pure functions, as an optax transformation is; the training step
knows no strategy by name. All functions are for one patient and run under jit and vmap.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nfcl_jax import coordinates
from nfcl_jax.coordinates import Points
from nfcl_jax.fields import Params, field_inputs, field_of, render
from nfcl_jax.losses import weighted_mean
from nfcl_jax.scenarios import Output


class Past(NamedTuple):
    """What the earlier tasks of one patient taught, and how much of it a step may ask.

    Attributes:
      field: the module.
      shape: the patient's grid.
      outputs: the outputs learned so far.
      frames: the range of frames on which each of them was.
      draw: key -> points of the domain of the earlier tasks, for one step.
      num_voxels: at most so many voxels has that domain.
      last_voxel: rendering may stop here, the same for all patients of a batch.
      points_asked: so many points are asked during the whole task.
    """

    field: nn.Module
    shape: Int[Array, " axes"]
    outputs: tuple[Output, ...]
    frames: Int[Array, "outputs 2"]
    draw: Callable[[Key[Array, ""]], Points]
    num_voxels: int
    last_voxel: Int[Array, ""]
    points_asked: int


class Recall(NamedTuple):
    """Where a strategy wants the field asked in a step, besides the new task's points."""

    inputs: Array  # as the field takes them: coordinates or indices, one row per point
    points: Points
    targets: Float[Array, "points channels"]


class Strategy(NamedTuple):
    """The three things that a strategy does.

    Attributes:
      remember: (past, params) -> memory; once, at the start of a task, from the parameters that
        the last one left.
      recall: (past, memory, key) -> Recall or None; in each step, before the field is asked.
      penalty: (past, recall, outputs) -> scalar that is added to the fitting loss; `outputs` are
        the field's at the recalled inputs.
    """

    remember: Callable[[Past, Params], Any]
    recall: Callable[[Past, Any, Key[Array, ""]], Recall | None]
    penalty: Callable[[Past, Recall | None, Any], Float[Array, ""]]


@functools.lru_cache
def finetune() -> Strategy:
    """Nothing is remembered: the paper's baseline."""
    return Strategy(
        remember=lambda past, params: None,
        recall=lambda past, memory, key: None,
        penalty=lambda past, recall, outputs: jnp.zeros(()),
    )


class Teacher(NamedTuple):
    """The previous parameters or, where that is cheaper than asking them in every step, what they
    answer at every voxel of the earlier tasks."""

    params: Params | None
    outputs: Float[Array, "voxels channels"] | None


@functools.lru_cache
def distillation(weight: float, points: str = "voxels") -> Strategy:
    """Distillation from the field's own previous parameters (Visser and Wolterink, 2025):

        weight * mean over x of L(f_theta(x), f_teacher(x)),   x uniform in the earlier domain,

    with the loss L of each output that the teacher knows, on the frames where it learned it.

    Args:
      weight: the factor lambda.
      points: "voxels" draws x among the voxels seen so far; "continuous" draws x, y and z from
        all of [-1, 1] on the frames seen so far, which DINER cannot be asked.

    The cache makes equal arguments give one and the same object, so that programs compiled for it
    are found again.
    """

    def remember(past: Past, params: Params) -> Teacher:
        if points == "voxels" and past.num_voxels <= past.points_asked:
            field = field_of(past.field, params)
            outputs = render(field, params, past.shape, past.num_voxels, past.last_voxel)
            return Teacher(None, outputs)
        return Teacher(params, None)

    def recall(past: Past, teacher: Teacher, key) -> Recall:
        drawn = past.draw(key)
        if points == "continuous":
            inputs = coordinates.sample_coords(jax.random.fold_in(key, 1), drawn, past.shape)
        else:
            inputs = field_inputs(past.field, drawn.index, past.shape)
        if teacher.outputs is None:
            targets = field_of(past.field, teacher.params).apply(teacher.params, inputs)
        else:
            targets = teacher.outputs[drawn.index]
        return Recall(inputs, drawn, targets)

    def penalty(past: Past, recall: Recall, outputs) -> Float[Array, ""]:
        total = jnp.zeros(())
        for output, frames in zip(past.outputs, past.frames, strict=True):
            first, stop = coordinates.frame_range(frames, past.shape)
            known = (recall.points.index >= first) & (recall.points.index < stop)
            targets = output.as_targets(recall.targets[:, output.channels])
            loss = output.loss(outputs[:, output.channels], targets)
            total += weighted_mean(loss, recall.points.weights * known)
        return weight * total

    return Strategy(remember, recall, penalty)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "finetune": finetune,
    "distillation": distillation,
}


def create_strategy(name: str, constants: Mapping[str, Any]) -> Strategy:
    """The strategy of that name with its constants.

    Raises:
      ValueError: for a name that is not in STRATEGIES.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; there are {', '.join(STRATEGIES)}.")
    return STRATEGIES[name](**constants)
