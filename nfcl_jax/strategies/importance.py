"""A quadratic penalty on what parameters move, by how much each matters to the earlier tasks: what
elastic weight consolidation and memory aware synapses share."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nfcl_jax import points as grid
from nfcl_jax.fields import Params
from nfcl_jax.padded import stream
from nfcl_jax.params import field_of, looked_up, pad_output
from nfcl_jax.scenarios import Head
from nfcl_jax.strategies.base import Strategy, TaskView

NUM_POINTS = 4096  # whose gradients make the importance of the layers
CHUNK = 32  # of them at once: so many gradients of all parameters are held
BLOCK = 8192  # voxels at once, for the importance of a table's rows

# (head, outputs of its channels) -> what these are multiplied by and summed up over, a row for each
# function whose gradient counts.
Directions = Callable[[Head, Float[Array, " channels"]], Float[Array, "functions channels"]]


def quadratic_penalty(
    weight: float, decay: float, directions: Directions, size: Callable[[Array], Array]
) -> Strategy:
    """Adds to the fitting loss

        weight / 2 * sum over i of F_i (theta_i - theta*_i)^2

    with the latest parameters theta*, and F the importances of the earlier tasks. After each task
    F becomes decay * F + the importance of that task: one penalty about the latest parameters, as
    Huszar has it (PNAS 115(11), 2018); with a decay below 1 that of Schwarz et al. (ICML 2018).

    Args:
      weight: the factor.
      decay: of the sum, at most 1.
      directions: as `importance` takes them.
      size: likewise.
    """

    def begin(view: TaskView, params: Params, state: dict):
        total = importance(view, params, directions, size)
        if state:
            total = jax.tree.map(lambda new, old: new + decay * old, total, state["importance"])
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


def importance(
    view: TaskView, params: Params, directions: Directions, size: Callable[[Array], Array]
) -> Params:
    """How much each parameter matters to what the last task taught, head by head on its voxels:

        F_i = mean over voxels x of the sum over functions g of size(d g(f_theta(x)) / d theta_i),

    per voxel, over NUM_POINTS of them; the sum over heads. Every row of a table is asked at its own
    voxel.

    Args:
      view: of the task that begins.
      params: that the last task left.
      directions: the gradient of each g by the field's outputs, where it is asked.
      size: of a derivative, its square for instance.
    """
    totals = [
        _importance_of(domain, number, view, params, directions, size)
        for number, domain in enumerate(view.previous.domains)
    ]
    return functools.reduce(optax.tree.add, totals)


def _importance_of(domain, number, view, params, directions, size):
    (head, frames), field = domain, field_of(view.field, params)
    key = stream(view.key, "importance")
    key = jax.random.fold_in(key, number) if number else key
    ranges = grid.index_ranges(frames, view.scan.grid)
    drawn = grid.sample_points(key, NUM_POINTS, ranges).index

    def sizes(index):
        small, own, inputs = looked_up(field, params, index[None], view.scan.grid)
        outputs, pull_back = jax.vjp(lambda p: small.apply(p, inputs)[0, head.channels], own)
        (gradients,) = jax.vmap(pull_back)(directions(head, outputs))
        return jax.tree.map(lambda g: jnp.sum(size(g), axis=0), gradients)

    def add(total, chunk):
        of_chunk = jax.vmap(sizes)(chunk)
        return jax.tree.map(lambda t, s: t + s.sum(axis=0), total, of_chunk), None

    _, own, _ = looked_up(field, params, drawn[:1], view.scan.grid)
    none = jax.tree.map(jnp.zeros_like, own)
    total, _ = jax.lax.scan(add, none, drawn.reshape(-1, CHUNK))
    total = jax.tree.map(lambda t: t / NUM_POINTS, total)
    if not field.on_grid:
        return total
    rows = _importance_of_rows(head, ranges, view, params, directions, size)
    return {"params": total["params"] | {"table": rows}}


def _importance_of_rows(head, ranges, view, params, directions, size):
    """Of the table's rows in ranges of flat indices, each at its own voxel; 0 elsewhere."""
    field, start, stop = field_of(view.field, params), ranges[0, 0], ranges[-1, 1]
    count = jnp.sum(ranges[:, 1] - ranges[:, 0])

    def add(block, total):
        index = start + block * BLOCK + jnp.arange(BLOCK)
        known, index = grid.inside(index, ranges), jnp.minimum(index, stop - 1)
        small, own, inputs = looked_up(field, params, index, view.scan.grid)

        def outputs_of(entries):
            changed = {"params": own["params"] | {"table": entries}}
            return small.apply(changed, inputs)[:, head.channels]

        outputs, pull_back = jax.vjp(outputs_of, own["params"]["table"])
        functions = jax.vmap(functools.partial(directions, head))(outputs)
        sizes = sum(size(pull_back(functions[:, i])[0]) for i in range(functions.shape[1]))
        return total.at[index].add(jnp.where(known[:, None], sizes, 0) / count)

    blocks = (stop - start + BLOCK - 1) // BLOCK
    return jax.lax.fori_loop(0, blocks, add, jnp.zeros_like(params["params"]["table"]))
