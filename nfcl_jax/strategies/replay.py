"""Earlier data beside the new: all of it (joint training), or a part of it
(experience replay; Rolnick et al., NeurIPS 2019)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    It is the mark for strategies that keep less, though no strict bound: it takes as many steps,
    and goes on from the last task's parameters, as they do.

    Args:
      weight: the factor, as distillation's.
    """

    def sample(view: TaskView, state: dict, new: grid.Points, key) -> Sample:
        drawn, own = rehearsed(view, new)
        inputs = None if own else field_inputs(view.field, drawn.index, view.scan.grid)
        return Sample(inputs, drawn, None)

    return Strategy(sample=sample, loss=_loss_on_data(weight, padded=False), cost=2.0)


@functools.lru_cache
def replay(weight: float = 1.0, fraction: float = 0.1) -> Strategy:
    """The loss of `joint` at some of the earlier voxels alone. Voxels are taken in groups of 1 /
    fraction that follow one another; of each group one is drawn, the same in every task. The values
    of these are what would have to be kept. They are read from the scan here; a checkpoint does not
    hold them.

    Args:
      weight: the factor, as distillation's.
      fraction: of the voxels of each earlier task.
    """

    def begin(view: TaskView, params: Params, state: dict):
        count = math.ceil(view.num_indices * fraction - 1e-6)
        first = np.floor(np.arange(count + 1) / fraction + 1e-6).astype(np.int32)
        sizes, key = jnp.asarray(np.diff(first)), stream(view.scan.key, "buffer")

        def place(j, size):  # by a key of its own, so that it does not depend on the count
            return (jax.random.bits(jax.random.fold_in(key, j)) % size).astype(jnp.int32)

        index = first[:-1] + jax.vmap(place)(jnp.arange(count), sizes.astype(jnp.uint32))
        known = grid.inside(index, grid.index_ranges(view.earlier.frames, view.scan.grid))
        index = jnp.minimum(index, view.num_indices - 1)
        return Buffer(index, known.astype(jnp.float32)), state

    def sample(view: TaskView, state: dict, new: grid.Points, key) -> Sample:
        kept = view.memory
        if new.first is not None:  # every voxel of the new task, so every one that is kept
            drawn = grid.Points(*kept)
        else:
            count = jnp.sum(kept.weights).astype(jnp.int32)
            first = jnp.argmax(kept.weights)
            ranges = jnp.stack([first, first + count])[None]
            chosen = view.draw(ranges)
            drawn = grid.Points(kept.index[chosen.index], chosen.weights)
        return Sample(field_inputs(view.field, drawn.index, view.scan.grid), drawn, None)

    return Strategy(begin, sample, _loss_on_data(weight, padded=True), cost=2.0)


def _loss_on_data(weight: float, padded: bool):
    def loss(view: TaskView, state: dict, params: Params, sample: Sample, outputs):
        def taught(head):
            return targets_at(head, view.scan, sample.points)

        return weight * loss_on_earlier(view, sample.points, outputs, taught, padded)

    return loss


JOINT = StrategyKind("joint", joint, {"weight": POSITIVE}, needs_data=True)
REPLAY = StrategyKind(
    "replayed", replay, {"weight": POSITIVE, "fraction": FRACTION}, needs_data=True
)
