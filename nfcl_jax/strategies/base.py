"""The seam between the training step and what keeps a field from forgetting.

A strategy is a NamedTuple of pure functions, as an optax transformation is; the step knows none by
name. Each function is for one scan, runs under jit and vmap, and is optional:

    begin        (view, params, state) -> memory, state    once, at the start of a task
    sample       (view, state, new, key) -> Sample         in each step: where else to ask the field
    loss         (view, state, params, sample, outputs) -> what is added to the fitting loss
    on_gradient  (view, state, params, gradient, losses) -> gradient, state    before the optimiser
    on_update    (view, state, params, update, losses) -> update, state        after it

`memory` is constant while a task is learned, is found as `view.memory`, and is never saved: `begin`
makes it again when a run goes on. `state` is a nested dictionary of arrays of numbers, none of size
0. It starts as {}, goes into the checkpoints and to the next task's `begin`, which alone may change
its structure and shapes: through the steps they are fixed. An array that belongs to the rows of a
table is called "table", with the rows on its last axis but one, so that it is cut to a scan's own
size and padded again.

`begin` is given the last task's parameters and state. Where this task has more output channels than
they have, `view.field` has them already: `params.field_of` is the field of the old parameters, and
`params.pad_output` widens what a state keeps of them.

How each strategy fills it:

                   begin                       sample            loss                     on_...
    finetune       -                           -                 -                        -
    distillation   memory: the teacher         its answers       weight x L               -
    EWC, MAS       state: sum of importances,  -                 weight / 2 x             -
                   the latest parameters                         sum F (theta - theta*)^2
    OGD            state: extend the basis     -                 -                        update:
                   by gradients at voxels                                                 project
    joint          -                           voxels of         weight x L against       -
                                               `earlier`         `scan`
    replay         memory: which voxels        some of these     the same                 -
    adapting       as the strategy that it     the same          state's weight x L       gradient:
    weight         adapts; state: the weight                                              change it

A strategy that does nothing after the first 50 steps is refused. The first task has nothing to
keep: no strategy acts in it, and all share its program. A projection belongs into `on_update`: Adam
divides each direction by its own size, so that what was orthogonal before it is not any more.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nfcl_jax import points
from nfcl_jax.checks import Check
from nfcl_jax.losses import weighted_mean
from nfcl_jax.padded import PaddedScan
from nfcl_jax.points import Points, VoxelGrid
from nfcl_jax.scenarios import Head


class Domain(NamedTuple):
    """A head, and the frames on which it was taught, as ranges: the first frame and the one after
    the last."""

    head: Head
    frames: Int[Array, "ranges 2"]


class Taught(NamedTuple):
    """What some tasks taught: each head once, and the frames of all heads together."""

    domains: tuple[Domain, ...]
    frames: Int[Array, "ranges 2"]


class TaskView(NamedTuple):
    """What a strategy sees of one scan and the task at hand.

    Attributes:
      field: the module, with the output channels of this task.
      scan: with its data. A strategy that claims to need no earlier data looks at none.
      key: the scan's random key for this task; take a stream of it.
      new: what this task teaches.
      previous: what the last one did.
      earlier: what all earlier ones did.
      revisits: whether the points of each step are every voxel of all earlier tasks too.
      draw: ranges -> the step's points there; by default of all earlier tasks.
      num_indices: so many flat indices, from 0, cover that domain in every scan of the batch.
      stop_index: and so many in the largest of them, where rendering may stop.
      points_evaluated: so many points are asked during the whole task.
      memory: what `begin` gave first.
      progress: of the steps, 0 in the task's first one and 1 in its last.
    """

    field: nn.Module
    scan: PaddedScan
    key: Key[Array, ""]
    new: Taught
    previous: Taught
    earlier: Taught
    revisits: bool
    draw: Callable[..., Points]
    num_indices: int
    stop_index: Int[Array, ""]
    points_evaluated: int
    memory: Any = None
    progress: float | Float[Array, ""] = 0.0


class Sample(NamedTuple):
    """Where a strategy wants the field asked in a step, in the same pass as the new task.

    Attributes:
      inputs: as the field takes them: coordinates or indices, one row per point. None is the new
        task's points, where it is asked anyway.
      points: the voxels that they belong to; a field that is asked as a `curve` is asked at them.
      targets: what the strategy compares the answers with.
    """

    inputs: Array | None
    points: Points
    targets: Any


class Strategy(NamedTuple):
    """See the module. Fine-tuning is the empty one.

    Attributes:
      cost: points that the field is asked in a step for each point of the new task, for the
        estimate of the time that is left.
    """

    begin: Callable | None = None
    sample: Callable | None = None
    loss: Callable | None = None
    on_gradient: Callable | None = None
    on_update: Callable | None = None
    cost: float = 1.0

    @property
    def acts(self) -> bool:
        """Whether it does anything."""
        return any(callable(part) for part in self)


class StrategyKind(NamedTuple):
    """A strategy as a config names it.

    Attributes:
      title: in tables and figures.
      make: its keyword arguments are the constants, with their defaults. Equal constants must give
        the same object (functools.lru_cache), so that programs compiled for it are found again.
      checks: what a constant may be, by its name.
      refuse: (constants, the field's class, tasks) -> why they do not go together, or "".
      needs_data: whether it looks at the data of earlier tasks.
    """

    title: str
    make: Callable[..., Strategy]
    checks: Mapping[str, Check] = {}
    refuse: Callable[..., str] = lambda constants, field, tasks: ""
    needs_data: bool = False


def rehearsed(view: TaskView, new: Points) -> tuple[Points, bool]:
    """Points of the earlier domain for one step, and whether they are the new task's: where each
    step asks every voxel of both."""
    return (new, True) if view.revisits else (view.draw(), False)


def loss_on_earlier(
    view: TaskView,
    asked: Points,
    outputs: Array,
    targets: Callable[[Head], Array],
    padded: bool = False,
) -> Float[Array, ""]:
    """The loss of each earlier head, at those of the points that are on its frames; their sum.

    Args:
      view: of the task.
      asked: points in the domain of the earlier tasks.
      outputs: the field's there, (points, channels).
      targets: head -> what it should be there, (points, the head's channels).
      padded: whether points of weight 0 follow, as they do where `asked` is a range.
    """
    return loss_on(view.earlier.domains, view.scan.grid, asked, outputs, targets, padded)


def loss_on(
    domains: Iterable[Domain],
    grid: VoxelGrid,
    asked: Points,
    outputs: Array,
    targets: Callable[[Head], Array],
    padded: bool = False,
) -> Float[Array, ""]:
    """The loss of the head of each of the domains, as `loss_on_earlier`; their sum."""
    total = jnp.zeros(())
    for head, frames in domains:
        known = points.inside(asked.index, points.index_ranges(frames, grid))
        loss = head.loss(outputs[:, head.channels], targets(head))
        total += weighted_mean(loss, asked.weights * known, padded or asked.first is not None)
    return total
