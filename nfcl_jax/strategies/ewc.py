"""Elastic weight consolidation (Kirkpatrick et al., PNAS 114(13), 2017)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nfcl_jax import points as grid
from nfcl_jax.checks import POSITIVE
from nfcl_jax.fields import Params
from nfcl_jax.padded import stream
from nfcl_jax.params import field_of, looked_up, pad_output
from nfcl_jax.scenarios import Head
from nfcl_jax.strategies.base import Strategy, StrategyKind, TaskView

NUM_POINTS = 4096  # whose gradients make the importance of the layers
CHUNK = 32  # of them at once: so many gradients of all parameters are held
BLOCK = 8192  # voxels at once, for the importance of a table's rows


@functools.lru_cache
def ewc(weight: float = 1.0) -> Strategy:
    """Adds to the fitting loss

        weight / 2 * sum over i of F_i (theta_i - theta*_i)^2

    with the latest parameters theta* and F, the diagonal of the Fisher information of each earlier
    task, summed over them: one penalty about the latest parameters, as Huszar has it (PNAS
    115(11), 2018). F is that of the field's own answers, see `importance`, so it does not vanish
    where the field fits its data: for one earlier image the penalty with weight 1 is
    distillation's loss to the second order.
    """

    def begin(view: TaskView, params: Params, state: dict):
        total = importance(view, params)
        if state:
            total = jax.tree.map(jnp.add, total, state["importance"])
        channels = view.field.channels
        grown = {"importance": pad_output(total, channels), "latest": pad_output(params, channels)}
        return None, grown

    def loss(view: TaskView, state: dict, params: Params, sample: None, outputs):
        moved = jax.tree.map(
            lambda f, new, old: jnp.sum(f * (new - old) ** 2),
            state["importance"],
            params,
            state["latest"],
        )
        return weight / 2 * sum(jax.tree.leaves(moved))

    return Strategy(begin=begin, loss=loss)


def likelihood_gradients(
    head: Head, outputs: Float[Array, " channels"]
) -> Float[Array, "answers channels"]:
    """The gradients of log p(answer | outputs) for each answer that a head could give, times the
    square root of that answer's probability: the sum of their squares is a mean over answers.

    An image's answer is Gaussian with variance 1, whose mean squared gradient is 1 in each channel;
    a mask's is a class with the softmax's probability, with the gradient one-hot minus softmax.
    """
    if head.kind == "image":
        return jnp.eye(len(outputs))
    probabilities = jax.nn.softmax(outputs)
    return jnp.sqrt(probabilities)[:, None] * (jnp.eye(len(outputs)) - probabilities)


def importance(view: TaskView, params: Params) -> Params:
    """The diagonal of the Fisher information of the last task's head on its voxels:

        F_i = mean over voxels x, and answers y ~ p(y | f_theta(x)), of (d log p(y) / d theta_i)^2,

    per voxel, over NUM_POINTS of them. Every row of a table is asked at its own voxel.
    """
    field, (head, frames) = field_of(view.field, params), view.previous
    shape, key = view.scan.shape, stream(view.key, "importance")
    start, stop = grid.frame_range(frames, shape)
    drawn = grid.sample_points(key, NUM_POINTS, start, stop).index

    def squares(index):
        small, own, inputs = looked_up(field, params, index[None], shape)
        outputs, pull_back = jax.vjp(lambda p: small.apply(p, inputs)[0, head.channels], own)
        (gradients,) = jax.vmap(pull_back)(likelihood_gradients(head, outputs))
        return jax.tree.map(lambda g: jnp.sum(g**2, axis=0), gradients)

    def add(total, chunk):
        of_chunk = jax.vmap(squares)(chunk)
        return jax.tree.map(lambda t, s: t + s.sum(axis=0), total, of_chunk), None

    _, own, _ = looked_up(field, params, drawn[:1], shape)
    none = jax.tree.map(jnp.zeros_like, own)
    total, _ = jax.lax.scan(add, none, drawn.reshape(-1, CHUNK))
    total = jax.tree.map(lambda t: t / NUM_POINTS, total)
    if not field.on_grid:
        return total
    rows = _importance_of_rows(field, params, head, shape, start, stop)
    return {"params": total["params"] | {"table": rows}}


def _importance_of_rows(field, params, head: Head, shape, start, stop):
    """Of the table's rows from `start` to `stop - 1`, each at its own voxel; 0 elsewhere."""
    table = params["params"]["table"]

    def add(block, total):
        index = start + block * BLOCK + jnp.arange(BLOCK)
        inside, index = index < stop, jnp.minimum(index, stop - 1)
        small, own, inputs = looked_up(field, params, index, shape)

        def outputs_of(entries):
            changed = {"params": own["params"] | {"table": entries}}
            return small.apply(changed, inputs)[:, head.channels]

        outputs, pull_back = jax.vjp(outputs_of, own["params"]["table"])
        answers = jax.vmap(functools.partial(likelihood_gradients, head))(outputs)
        squares = sum(pull_back(answers[:, i])[0] ** 2 for i in range(answers.shape[1]))
        return total.at[index].add(jnp.where(inside[:, None], squares, 0) / (stop - start))

    blocks = (stop - start + BLOCK - 1) // BLOCK
    return jax.lax.fori_loop(0, blocks, add, jnp.zeros_like(table))


KIND = StrategyKind("EWC", ewc, {"weight": POSITIVE})
