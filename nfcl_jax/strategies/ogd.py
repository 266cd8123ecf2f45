"""Orthogonal gradient descent (Farajtabar et al., AISTATS 2020) with a bounded basis, by its
principal directions (Doan et al., AISTATS 2021)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nfcl_jax import points as grid
from nfcl_jax.checks import AT_LEAST_1
from nfcl_jax.fields import Params
from nfcl_jax.padded import stream
from nfcl_jax.params import field_of, looked_up, pad_output
from nfcl_jax.strategies.base import Strategy, StrategyKind, TaskView

CHUNK = 16  # gradients of all parameters that are made at once
SMALLEST = 1e-6  # of the largest eigenvalue: what is below is rounding


@functools.lru_cache
def ogd(directions: int = 64, gradients: int = 128) -> Strategy:
    """Takes from each update u of the optimiser what would, to the first order, change the outputs
    at some voxels of the earlier tasks, as the field was when each of them ended:

        u - sum over k of b_k (b_k . u),

    where the b_k are an orthonormal basis of the principal directions of the gradients d f(x) /
    d theta at voxels x of the earlier tasks. After each task, `gradients` new ones join what is
    kept, and of all the `directions` principal ones are kept: so many times as many numbers as the
    field has parameters, DINER's table among them, in memory for each scan of a batch and in each
    checkpoint. Where that is too much, `scans_per_batch` has fewer scans at once.

    Adam divides each parameter's step by its own size, so that a gradient that was orthogonal to
    the basis would not stay so: what is projected here is the update that it makes.

    Args:
      directions: that are kept.
      gradients: of each task.
    """

    def begin(view: TaskView, params: Params, state: dict):
        found = sampled_gradients(view, params, gradients)
        if state:
            kept = jax.tree.map(lambda b: _scaled(b, state["size"]), state["basis"])
            found = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), kept, found)
        basis, size = principal_directions(found, directions)
        return None, {"basis": pad_output(basis, view.field.channels), "size": size}

    def on_update(view: TaskView, state: dict, params: Params, update: Params, losses):
        return without(state["basis"], update), state

    return Strategy(begin=begin, on_update=on_update)


def sampled_gradients(view: TaskView, params: Params, count: int) -> Params:
    """d f(x) / d theta at `count` voxels x of the last task, a leading axis of the parameters,
    divided by the root of `count`. Of several channels, those of the last task's heads there, it is
    that of their sum with random signs, whose mean square is the sum of theirs."""
    field, key = field_of(view.field, params), stream(view.key, "gradients")
    ranges = grid.index_ranges(view.previous.frames, view.scan.grid)
    drawn = grid.sample_points(key, count, ranges).index
    signs = jnp.zeros((count, field.channels))
    for i, (head, frames) in enumerate(view.previous.domains, start=1):
        known = grid.inside(drawn, grid.index_ranges(frames, view.scan.grid))
        shape = (count, head.num_channels)
        own = jax.random.rademacher(jax.random.fold_in(key, i), shape, float)
        signs = signs.at[:, head.channels].set(own * known[:, None])

    def gradient(of_voxel):
        index, sign = of_voxel
        small, own, inputs = looked_up(field, params, index[None], view.scan.grid)
        found = jax.grad(lambda p: small.apply(p, inputs)[0] @ sign)(own)
        if field.on_grid:
            table = jnp.zeros_like(params["params"]["table"])
            table = table.at[index].set(found["params"]["table"][0])
            found = {"params": found["params"] | {"table": table}}
        return found

    found = jax.lax.map(gradient, (drawn, signs), batch_size=CHUNK)
    return jax.tree.map(lambda g: g / jnp.sqrt(count), found)


def principal_directions(vectors: Params, count: int) -> tuple[Params, Float[Array, " count"]]:
    """The `count` principal directions of vectors along a leading axis, each of length 1, and
    their singular values, the largest first; both are 0 beyond the rank.

    By the eigenvectors of the vectors' products, which are few, and then once more by a Cholesky
    factor: the directions of small singular values would not be orthogonal otherwise.
    """
    values, mixtures = jnp.linalg.eigh(_products(vectors, vectors))
    values, mixtures = values[::-1][:count], mixtures[:, ::-1][:, :count]
    missing = count - len(values)
    values, mixtures = jnp.pad(values, (0, missing)), jnp.pad(mixtures, [(0, 0), (0, missing)])
    there = values > SMALLEST * values[0]
    roots = jnp.sqrt(jnp.where(there, values, 1))
    basis = jax.tree.map(
        lambda v: jnp.tensordot(jnp.where(there, mixtures / roots, 0).T, v, 1), vectors
    )
    lower = jnp.linalg.cholesky(_products(basis, basis) + jnp.diag(1.0 - there))
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(count), lower=True)
    basis = jax.tree.map(lambda b: jnp.tensordot(inverse, b, 1), basis)
    return basis, jnp.where(there, roots, 0)


def without(basis: Params, vector: Params) -> Params:
    """What is left of a vector beside an orthonormal basis, whose leading axis counts it."""
    shares = sum(jax.tree.leaves(jax.tree.map(_dot, basis, vector)))
    return jax.tree.map(lambda v, b: v - jnp.tensordot(shares, b, 1), vector, basis)


def _products(a: Params, b: Params) -> Float[Array, "vectors others"]:
    def of_leaf(x, y):
        return x.reshape(len(x), -1) @ y.reshape(len(y), -1).T

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, a, b)))


def _dot(basis: Array, vector: Array) -> Float[Array, " vectors"]:
    return basis.reshape(len(basis), -1) @ vector.ravel()


def _scaled(basis: Array, size: Float[Array, " vectors"]) -> Array:
    return basis * size.reshape(-1, *[1] * (basis.ndim - 1))


KIND = StrategyKind("OGD", ogd, {"directions": AT_LEAST_1, "gradients": AT_LEAST_1})
