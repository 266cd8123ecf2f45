"""One step of training, for one scan: points -> losses -> gradient -> strategy -> optimiser.

`batching` maps these functions over the scans of a batch. Each takes (static, state, scan, shared):
what is static under jit, what the steps change, what is one scan's own, and what all share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nfcl_jax import points as grid
from nfcl_jax.fields import Params, init_params
from nfcl_jax.losses import weighted_mean
from nfcl_jax.padded import PaddedScan, stream, targets_at
from nfcl_jax.params import (
    field_inputs,
    grow_output,
    num_output_channels,
    replace_window,
    table_window,
)
from nfcl_jax.points import Points
from nfcl_jax.records import Losses, PenaltyShare, State
from nfcl_jax.scenarios import Head
from nfcl_jax.strategies.base import Domain, Strategy, TaskView


class Static(NamedTuple):
    """What is static under jit: equal ones share compiled programs.

    Attributes:
      field: with the output channels that this task needs.
      strategy: the empty one in the first task.
      learning_rate: of Adam.
      num_steps: of the task.
      steps_per_chunk: so many at most in one call of `fit_steps`.
      batch_size: points per step; 0 is every voxel of the task.
      num_voxels: of one frame, padded: the longest scan's of the batch.
      head: what is learned.
      num_frames: of the task.
      previous_head: of the last task, or None if the strategy does nothing: without it, the first
        task and the next are the same to the program.
      earlier_heads: of all earlier tasks, or none likewise.
      num_earlier_frames: that cover them.
    """

    field: nn.Module
    strategy: Strategy
    learning_rate: float
    num_steps: int
    steps_per_chunk: int
    batch_size: int
    num_voxels: int
    head: Head
    num_frames: int
    previous_head: Head | None
    earlier_heads: tuple[Head, ...]
    num_earlier_frames: int


class TaskArrays(NamedTuple):
    """The task, for all scans of a batch alike. Arrays, so that the next task of the same kind runs
    in the same compiled program."""

    number: Int[Array, ""]
    frames: Int[Array, "2"]
    previous_frames: Int[Array, "2"]
    earlier_frames: Int[Array, "heads 2"]
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


def optimiser(static: Static) -> optax.GradientTransformation:
    return optax.adam(static.learning_rate)


def begin_task(
    static: Static, state: tuple[Params, State], scan: PaddedScan, task: TaskArrays
) -> tuple[Any, State]:
    """The strategy's memory and state at the start of a task, from what the last one left; for a
    strategy that has a `begin`."""
    return static.strategy.begin(view_of(static, scan, task), *state)


def start_task(
    static: Static, state: tuple[Params | None, State], scan: PaddedScan, task: TaskArrays
) -> TrainState:
    """The state at the start of a task.

    The parameters are fresh for the first task (None), else the last task's, with the output layer
    grown where the task needs more channels. The optimiser is always fresh.
    """
    params, of_strategy = state
    key = stream(jax.random.fold_in(scan.key, task.number), "init")
    fresh = init_params(static.field, key, axes=scan.shape.size)
    if params is None:
        params = fresh
    # A copy, because the state's buffers are donated to each step and a teacher's are not.
    params = jax.tree.map(jnp.copy, params)
    if num_output_channels(params) < static.field.channels:
        params = grow_output(params, fresh)
    start, _ = grid.frame_range(task.frames, scan.shape)
    _, learning, _ = learning_part(static, params, start)
    return TrainState(params, optimiser(static).init(learning), of_strategy)


def fit_steps(
    static: Static, state: TrainState, own: ScanAndMemory, steps: Steps
) -> tuple[TrainState, Losses]:
    """Steps of Adam on one task; at most `static.steps_per_chunk` of them.

    Each minimises the fitting loss plus what the strategy adds.
    """
    start, _ = grid.frame_range(steps.task.frames, own.scan.shape)
    field, learning, offset = learning_part(static, state.params, start)
    draw = losses_of_step(static, field, offset, own, steps.task)
    adam, strategy = optimiser(static), static.strategy
    view = view_of(static, own.scan, steps.task, own.memory)

    def step(i, carry):
        (params, opt_state, of_strategy), all_losses = carry
        losses_at = draw(i, of_strategy)

        def loss(params):
            losses = losses_at(params)
            return losses.fit + losses.penalty, losses

        gradient, losses = jax.grad(loss, has_aux=True)(params)
        if strategy.on_gradient:
            gradient, of_strategy = strategy.on_gradient(
                view, of_strategy, params, gradient, losses
            )
        update, opt_state = adam.update(gradient, opt_state)
        if strategy.on_update:
            update, of_strategy = strategy.on_update(view, of_strategy, params, update, losses)
        all_losses = jax.tree.map(
            lambda all, new: all.at[i - steps.first].set(new), all_losses, losses
        )
        return (optax.apply_updates(params, update), opt_state, of_strategy), all_losses

    empty = Losses(jnp.zeros(static.steps_per_chunk), jnp.zeros(static.steps_per_chunk))
    carry = (learning, state.opt_state, state.strategy), empty
    carry, losses = jax.lax.fori_loop(steps.first, steps.stop, step, carry)
    learning, opt_state, of_strategy = carry
    params = learning if offset is None else replace_window(state.params, learning, offset)
    return TrainState(params, opt_state, of_strategy), losses


def losses_of_step(
    static: Static,
    field: nn.Module,
    offset: Int[Array, ""] | None,
    own: ScanAndMemory,
    task: TaskArrays,
) -> Callable[[Int[Array, ""], State], Callable[[Params], Losses]]:
    """The losses that a step looks at, as a function of the step's number and the strategy's state,
    and then of the parameters.

    A step draws points of the task, asks the field there and, in the same pass, wherever the
    strategy wants it asked. `field` and `offset` are those of `learning_part`.
    """
    scan, strategy = own.scan, static.strategy
    key = jax.random.fold_in(scan.key, task.number)
    # The names are part of every run's random numbers.
    fit_key, sample_key = stream(key, "fit"), stream(key, "rehearsal")
    start, stop = grid.frame_range(task.frames, scan.shape)
    view = view_of(static, scan, task, own.memory)

    def draw(i, of_strategy):
        points = draw_points(static, static.num_frames, start, stop, jax.random.fold_in(fit_key, i))
        inputs = field_inputs(static.field, points.index, scan.shape)
        targets = targets_at(static.head, scan, points.index)
        sample = None
        if strategy.sample:
            step_key = jax.random.fold_in(sample_key, i)
            sample = strategy.sample(view, of_strategy, points, step_key)
        elsewhere = sample is not None and sample.inputs is not None
        asked = jnp.concatenate([inputs, sample.inputs]) if elsewhere else inputs
        asked = asked if offset is None else asked - offset

        def losses(params):
            answers = field.apply(params, asked)
            new = answers[: len(inputs), static.head.channels]
            fit = weighted_mean(static.head.loss(new, targets), points.weights)
            if strategy.loss is None:
                return Losses(fit, jnp.zeros(()))
            outputs = answers[len(inputs) :] if elsewhere else answers
            return Losses(fit, strategy.loss(view, of_strategy, params, sample, outputs))

        return losses

    return draw


def draw_points(static: Static, num_frames: int, start, stop, key) -> Points:
    """The points of one step on a domain of flat indices: a sample, or every voxel."""
    if static.batch_size == 0:
        return grid.all_points(num_frames * static.num_voxels, start, stop)
    return grid.sample_points(key, static.batch_size, start, stop)


def view_of(
    static: Static, scan: PaddedScan, task: TaskArrays, memory: Any = None
) -> TaskView | None:
    """What the strategy sees; None if it does nothing."""
    if not static.strategy.acts:
        return None
    first, last = task.earlier_frames[:, 0].min(), task.earlier_frames[:, 1].max()
    start, stop = grid.frame_range(jnp.stack([first, last]), scan.shape)
    num_indices = static.num_earlier_frames * static.num_voxels
    return TaskView(
        field=static.field,
        scan=scan,
        key=jax.random.fold_in(scan.key, task.number),
        new=Domain(static.head, task.frames),
        previous=Domain(static.previous_head, task.previous_frames),
        earlier=tuple(map(Domain, static.earlier_heads, task.earlier_frames)),
        draw=lambda key: draw_points(static, static.num_earlier_frames, start, stop, key),
        num_indices=num_indices,
        stop_index=task.stop_earlier,
        points_evaluated=static.num_steps * (static.batch_size or num_indices),
        memory=memory,
    )


def learning_part(
    static: Static, params: Params, start: Int[Array, ""]
) -> tuple[nn.Module, Params, Int[Array, ""] | None]:
    """The field as a task can change it: DINER's table only where the task is, unless a strategy
    looks elsewhere. Rows that no step asks have no gradient, and Adam, fresh, leaves them.

    Args:
      static: what the task's programs are compiled for.
      params: of the field.
      start: the first flat index of the task.

    Returns:
      The field, its parameters, and which index they count from, if not 0.
    """
    if not static.field.on_grid or static.strategy.acts:
        return static.field, params, None
    rows = static.num_frames * static.num_voxels
    return *table_window(static.field, params, start, rows), start


def penalty_share(
    static: Static, state: TrainState, own: ScanAndMemory, steps: Steps
) -> PenaltyShare:
    """How large what the strategy adds is beside the fitting loss, at step `steps.stop`."""
    draw = losses_of_step(static, static.field, None, own, steps.task)
    losses_at = draw(steps.stop, state.strategy)
    losses = losses_at(state.params)
    fit = jax.grad(lambda params: losses_at(params).fit)(state.params)
    penalty = jax.grad(lambda params: losses_at(params).penalty)(state.params)
    return PenaltyShare(
        losses.penalty / losses.fit, optax.tree.norm(penalty) / optax.tree.norm(fit)
    )
