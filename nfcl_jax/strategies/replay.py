"""Earlier data beside the new: all of it (joint training, the upper bound), or a part of it
(experience replay; Rolnick et al., NeurIPS 2019)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nfcl_jax import points as grid
from nfcl_jax.checks import FRACTION, POSITIVE
from nfcl_jax.fields import Params
from nfcl_jax.padded import stream, targets_at
from nfcl_jax.params import field_inputs
from nfcl_jax.strategies.base import (
    Sample,
    Strategy,
    StrategyKind,
    TaskView,
    earlier_range,
    loss_on_earlier,
    rehearsed,
)


class Buffer(NamedTuple):
    """Voxels that are kept, those of weight 1: in the order of their index, before all others."""

    index: Int[Array, " kept"]
    weights: Float[Array, " kept"]


@functools.lru_cache
def joint(weight: float = 1.0) -> Strategy:
    """Adds to the fitting loss

        weight * mean over x of L(f_theta(x), y(x)),   x uniform in the earlier domain,

    with the true values y of each earlier head: distillation from a teacher that is always right.
    What it ends with is the upper bound for every strategy that keeps less.

    Args:
      weight: the factor, as distillation's.
    """

    def sample(view: TaskView, state: dict, new: grid.Points, key) -> Sample:
        drawn, own = rehearsed(view, new, key)
        inputs = None if own else field_inputs(view.field, drawn.index, view.scan.shape)
        return Sample(inputs, drawn, None)

    return Strategy(sample=sample, loss=_loss_on_data(weight), cost=2.0)


@functools.lru_cache
def replay(weight: float = 1.0, fraction: float = 0.1) -> Strategy:
    """The loss of `joint` at some of the earlier voxels alone: one of each 1 / fraction that follow
    one another, drawn once and for all. Their values are what a run would have to keep; here they
    are read from the scan, and a checkpoint does not hold them.

    Args:
      weight: the factor, as distillation's.
      fraction: of the voxels of each earlier task.
    """

    def begin(view: TaskView, params: Params, state: dict):
        most = -int(-view.num_indices * fraction // 1)
        key = stream(view.scan.key, "buffer")
        # A key each, so that no voxel depends on how many there are.
        place = jax.vmap(lambda j: jax.random.uniform(jax.random.fold_in(key, j)))(jnp.arange(most))
        index = ((jnp.arange(most) + place) / fraction).astype(jnp.int32)
        start, stop = earlier_range(view)
        return Buffer(index, ((start <= index) & (index < stop)).astype(jnp.float32)), state

    def sample(view: TaskView, state: dict, new: grid.Points, key) -> Sample:
        kept = view.memory
        if new.first is not None:  # every voxel of the new task, so every one that is kept
            drawn = grid.Points(*kept)
        else:
            count = jnp.sum(kept.weights).astype(jnp.int32)
            first = jnp.argmax(kept.weights)
            chosen = grid.sample_points(key, len(new.index), first, first + count)
            drawn = grid.Points(kept.index[chosen.index], chosen.weights)
        return Sample(field_inputs(view.field, drawn.index, view.scan.shape), drawn, None)

    return Strategy(begin, sample, _loss_on_data(weight), cost=2.0)


def _loss_on_data(weight: float):
    def loss(view: TaskView, state: dict, params: Params, sample: Sample, outputs):
        def taught(head):
            return targets_at(head, view.scan, sample.points)

        return weight * loss_on_earlier(view, sample.points, outputs, taught)

    return loss


JOINT = StrategyKind("joint", joint, {"weight": POSITIVE})
REPLAY = StrategyKind("replayed", replay, {"weight": POSITIVE, "fraction": FRACTION})
