"""One step of training, for one scan: points -> losses -> gradient -> strategy -> optimiser.

`batching` maps these functions over the scans of a batch. Each takes (static, state, scan, shared),
see `arguments`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nfcl_jax import points as grid
from nfcl_jax.arguments import (
    ScanAndMemory,
    Static,
    Steps,
    TaskArrays,
    TrainState,
    first_index,
    taught,
)
from nfcl_jax.curve import class_losses, error, interpolate
from nfcl_jax.fields import Params
from nfcl_jax.losses import weighted_mean
from nfcl_jax.optimiser import optimiser
from nfcl_jax.padded import PaddedScan, stream, targets_at
from nfcl_jax.params import (
    apply_in_blocks,
    begun,
    field_inputs,
    pad_output,
    replace_window,
    table_window,
)
from nfcl_jax.points import Points, take
from nfcl_jax.records import Losses, PenaltyShare, State
from nfcl_jax.strategies.base import TaskView, loss_on

REHEARSAL = "rehearsal"  # what a strategy draws


def begin_task(
    static: Static, state: tuple[Params, State], scan: PaddedScan, task: TaskArrays
) -> tuple[Any, State]:
    """The strategy's memory and state at the start of a task, from what the last one left; for a
    strategy that has a `begin`."""
    return static.strategy.begin(view_of(static, scan, task), *state)


def start_task(
    static: Static,
    state: tuple[Params | None, State, dict[str, Any] | None],
    scan: PaddedScan,
    task: TaskArrays,
) -> TrainState:
    """The state at the start of a task: of parameters, strategy and optimiser.

    The parameters are fresh for the first task (None), else the last task's, with the output layer
    grown where the task needs more channels. So is the optimiser, unless Adam's moments are given.
    """
    params, of_strategy, moments = state
    params = begun(static.field, params, scan.key, task.number, scan.grid.axes)
    _, learning, _ = learning_part(static, params, first_index(task, scan))
    of_optimiser = optimiser(static).init(learning)
    if moments is not None:
        adam, *schedule = of_optimiser
        grown = {k: pad_output(moments[k], static.field.channels) for k in ("mu", "nu")}
        of_optimiser = (adam._replace(count=moments["count"], **grown), *schedule)
    return TrainState(params, of_optimiser, of_strategy)


def fit_steps(
    static: Static, state: TrainState, own: ScanAndMemory, steps: Steps
) -> tuple[TrainState, Losses]:
    """Steps of the optimiser on one task; at most `static.steps_per_chunk` of them.

    Each minimises the fitting loss plus what the strategy adds.
    """
    start = first_index(steps.task, own.scan)
    field, learning, offset = learning_part(static, state.params, start)
    losses_in = losses_of_step(static, field, offset, own, steps.task)
    change, strategy = optimiser(static), static.strategy

    def step(i, carry):
        (params, opt_state, of_strategy), all_losses = carry
        losses_at = losses_in(i, of_strategy)

        def loss(params):
            losses = losses_at(params)
            return losses.fit + losses.penalty, losses

        gradient, losses = jax.grad(loss, has_aux=True)(params)
        view = view_of(static, own.scan, steps.task, own.memory, i)
        if strategy.on_gradient:
            gradient, of_strategy = strategy.on_gradient(
                view, of_strategy, params, gradient, losses
            )
        update, opt_state = change.update(gradient, opt_state, params)
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
    fit_key, sample_key = stream(key, "fit"), stream(key, REHEARSAL)
    new = taught(static.heads, task.new)
    ranges = grid.index_ranges(new.frames, scan.grid)
    cover = static.num_frames * static.num_voxels
    (head,) = static.heads if len(static.heads) == 1 else (None,)
    as_curve = static.asks_curve and head is not None and head.kind == "mask"

    def losses_at(i, of_strategy):
        view = view_of(static, scan, task, own.memory, i)
        how = static.batch_size, static.in_passes, cover, ranges
        points = grid.points_of_step(fit_key, i, *how)
        inputs = field_inputs(static.field, points.index, scan.grid)
        sample = None
        if strategy.sample:
            step_key = jax.random.fold_in(sample_key, i)
            sample = strategy.sample(view, of_strategy, points, step_key)

        def targets(head):
            return targets_at(head, scan, points)

        elsewhere = sample is not None and sample.inputs is not None

        asked = (
            [(inputs, points), (sample.inputs, sample.points)] if elsewhere else [(inputs, points)]
        )

        def losses(params):
            if as_curve:
                of_points = [points for _, points in asked]
                classes = take(scan.values[head.name], points)
                loss, answers = class_losses(field, params, of_points, offset, head, classes)
                fit = weighted_mean(loss, points.weights, padded=points.first is not None)
            else:
                answers = answers_at(static, field, params, asked, offset)
                fit = loss_on(new.domains, scan.grid, points, answers[0], targets)
            if strategy.loss is None:
                return Losses(fit, jnp.zeros(()))
            return Losses(fit, strategy.loss(view, of_strategy, params, sample, answers[-1]))

        return losses

    return losses_at


def answers_at(
    static: Static,
    field: nn.Module,
    params: Params,
    asked: Sequence[tuple[Array, Points]],
    offset: Int[Array, ""] | None,
) -> list[Float[Array, "points channels"]]:
    """What the field answers in a step, at inputs and the voxels that they belong to. Every voxel
    is asked in blocks, or at the knots of a curve. `field` and `offset` are as in `learning_part`.
    """
    shifted = [inputs if offset is None else inputs - offset for inputs, _ in asked]
    if static.batch_size == 0 and not static.asks_curve:
        # One after the other, so that one's padding moves no other's blocks.
        return [apply_in_blocks(field, params, inputs) for inputs in shifted]
    if static.asks_curve:
        answers = interpolate(field, params, [points for _, points in asked], offset)
    else:
        answers = field.apply(params, jnp.concatenate(shifted))
    first = len(shifted[0])
    return [answers[:first], answers[first:]] if len(asked) > 1 else [answers]


def view_of(
    static: Static, scan: PaddedScan, task: TaskArrays, memory: Any = None, step: Any = 0
) -> TaskView | None:
    """What the strategy sees in a step; None if it does nothing."""
    if not static.strategy.acts:
        return None
    earlier = taught(static.earlier_heads, task.earlier)
    ranges = grid.index_ranges(earlier.frames, scan.grid)
    num_indices = static.num_earlier_frames * static.num_voxels
    key = jax.random.fold_in(scan.key, task.number)

    def draw(ranges=ranges):
        how = static.batch_size, static.in_passes, num_indices, ranges
        return grid.points_of_step(stream(key, REHEARSAL), step, *how)

    return TaskView(
        field=static.field,
        scan=scan,
        key=key,
        new=taught(static.heads, task.new),
        previous=taught(static.previous_heads, task.previous),
        earlier=earlier,
        revisits=static.revisits,
        draw=draw,
        num_indices=num_indices,
        stop_index=task.stop_earlier,
        points_evaluated=static.num_steps * (static.batch_size or num_indices),
        memory=memory,
        progress=jnp.minimum(step / max(static.num_steps - 1, 1), 1.0),
    )


def learning_part(
    static: Static, params: Params, start: Int[Array, ""]
) -> tuple[nn.Module, Params, Int[Array, ""] | None]:
    """The field as a task can change it: DINER's table only where the task is, unless a strategy
    looks elsewhere, or Adam is not fresh. Rows that no step asks have no gradient, and a fresh
    Adam leaves them.

    Args:
      static: what the task's programs are compiled for.
      params: of the field.
      start: the first flat index of the task.

    Returns:
      The field, its parameters, and which index they count from, if not 0.
    """
    if not static.field.on_grid or static.strategy.acts or static.keep_optimiser:
        return static.field, params, None
    rows = static.num_frames * static.num_voxels
    return *table_window(static.field, params, start, rows), start


def curve_error(
    static: Static, state: tuple[Params, Array], scan: PaddedScan, task: TaskArrays
) -> Float[Array, ""]:
    """How far the curve of the last step is from the field; see `curve.error`.

    Args:
      static: of a task whose steps ask a curve.
      state: the parameters, and what the field itself answers with them, by flat index.
      scan: that was fitted.
      task: that was learned.
    """
    view = view_of(static, scan, task)
    domains = taught(static.heads, task.new).domains + (view.earlier.domains if view else ())
    ranges = [(head, grid.index_ranges(frames, scan.grid)) for head, frames in domains]
    return error(static.field, *state, ranges)


def penalty_share(
    static: Static, state: TrainState, own: ScanAndMemory, steps: Steps
) -> PenaltyShare:
    """How large what the strategy does is, at step `steps.stop`: what it adds beside the fitting
    loss; if it adds nothing, what it changes of the update, beside that."""
    strategy, params = static.strategy, state.params
    losses_at = losses_of_step(static, static.field, None, own, steps.task)(
        steps.stop, state.strategy
    )
    losses = losses_at(params)
    fit = jax.grad(lambda params: losses_at(params).fit)(params)
    hidden = {name: layer for name, layer in fit["params"].items() if name != "output"}
    alive = optax.tree.norm(hidden) > 0
    if strategy.loss:
        penalty = jax.grad(lambda params: losses_at(params).penalty)(params)
        share = optax.tree.norm(penalty) / optax.tree.norm(fit)
        return PenaltyShare(losses.penalty / losses.fit, share, alive)
    view, change = view_of(static, own.scan, steps.task, own.memory, steps.stop), optimiser(static)
    changed, of_strategy = fit, state.strategy
    if strategy.on_gradient:
        changed, of_strategy = strategy.on_gradient(view, of_strategy, params, fit, losses)
    gradients = fit, changed
    updates = tuple(change.update(own, state.opt_state, params)[0] for own in gradients)
    still = optax.tree.norm(updates[0]) == 0  # at the end of a cosine gradients stand for them
    update, changed = jax.tree.map(lambda u, g: jnp.where(still, g, u), updates, gradients)
    if strategy.on_update:
        changed, _ = strategy.on_update(view, of_strategy, params, changed, losses)
    share = optax.tree.norm(optax.tree.sub(changed, update)) / optax.tree.norm(update)
    return PenaltyShare(share, share, alive)
