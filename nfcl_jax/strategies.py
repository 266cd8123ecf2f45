"""What keeps a field from forgetting: nothing (fine-tuning), or distillation.

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


class EarlierTasks(NamedTuple):
    """What the earlier tasks of one patient taught, and where.

    Attributes:
      field: the module.
      shape: the patient's grid.
      outputs: the outputs learned so far.
      frames: the range of frames on which each of them was.
      draw: key -> points of the domain of the earlier tasks, for one step.
      num_voxels: so many flat indices, from 0, cover that domain in every patient of the batch.
      stop_voxel: and so many in the largest of them, where rendering may stop.
      points_evaluated: so many points are asked during the whole task.
    """

    field: nn.Module
    shape: Int[Array, " axes"]
    outputs: tuple[Output, ...]
    frames: Int[Array, "outputs 2"]
    draw: Callable[[Key[Array, ""]], Points]
    num_voxels: int
    stop_voxel: Int[Array, ""]
    points_evaluated: int


class Rehearsal(NamedTuple):
    """Where a strategy wants the field asked in a step.

    Attributes:
      inputs: as the field takes them: coordinates or indices, one row per point. None is the new
        task's points, where it is asked anyway.
      points: the voxels that they belong to.
      targets: what the field should answer.
    """

    inputs: Array | None
    points: Points
    targets: Float[Array, "points channels"]


class Strategy(NamedTuple):
    """The three things that a strategy does.

    Attributes:
      remember: (earlier, params) -> memory; once, at the start of a task, from the parameters
        that the last one left.
      rehearse: (earlier, memory, new, key) -> Rehearsal; in each step, before the field is
        evaluated; `new` are the points of the new task.
      penalty: (earlier, rehearsal, outputs) -> scalar that is added to the fitting loss;
        `outputs` are the field's at the rehearsed inputs.
    """

    remember: Callable[[EarlierTasks, Params], Any]
    rehearse: Callable[[EarlierTasks, Any, Points, Key[Array, ""]], Rehearsal]
    penalty: Callable[[EarlierTasks, Rehearsal, Array], Float[Array, ""]]


def finetune() -> None:
    """Nothing is remembered: the paper's baseline."""


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
        all of [-1, 1] on the frames seen so far, which DINER cannot be asked; "shared" takes the
        new task's points, for tasks on the same frames: half the work.

    The cache makes equal arguments give one and the same object, so that programs compiled for it
    are found again.
    """

    def remember(earlier: EarlierTasks, params: Params) -> Teacher:
        if points != "continuous" and earlier.num_voxels <= earlier.points_evaluated:
            field = field_of(earlier.field, params)
            outputs = render(field, params, earlier.shape, earlier.num_voxels, earlier.stop_voxel)
            return Teacher(None, outputs)
        return Teacher(params, None)

    def rehearse(earlier: EarlierTasks, teacher: Teacher, new: Points, key) -> Rehearsal:
        drawn = new if points == "shared" else earlier.draw(key)
        if points == "continuous":
            space_key = jax.random.fold_in(key, 1)
            inputs = coordinates.sample_coords(space_key, drawn, earlier.shape)
        else:
            inputs = field_inputs(earlier.field, drawn.index, earlier.shape)
        if teacher.outputs is None:
            targets = field_of(earlier.field, teacher.params).apply(teacher.params, inputs)
        else:
            targets = teacher.outputs[drawn.index]
        return Rehearsal(None if points == "shared" else inputs, drawn, targets)

    def penalty(earlier: EarlierTasks, rehearsal: Rehearsal, outputs) -> Float[Array, ""]:
        total = jnp.zeros(())
        for output, frames in zip(earlier.outputs, earlier.frames, strict=True):
            first, stop = coordinates.frame_range(frames, earlier.shape)
            known = (rehearsal.points.index >= first) & (rehearsal.points.index < stop)
            targets = output.as_targets(rehearsal.targets[:, output.channels])
            loss = output.loss(outputs[:, output.channels], targets)
            total += weighted_mean(loss, rehearsal.points.weights * known)
        return weight * total

    return Strategy(remember, rehearse, penalty)


STRATEGIES: dict[str, Callable[..., Strategy | None]] = {
    "finetune": finetune,
    "distillation": distillation,
}


def create_strategy(name: str, constants: Mapping[str, Any]) -> Strategy | None:
    """The strategy of that name with its constants; None is to do nothing.

    Raises:
      ValueError: for a name that is not in STRATEGIES.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; there are {', '.join(STRATEGIES)}.")
    return STRATEGIES[name](**constants)
