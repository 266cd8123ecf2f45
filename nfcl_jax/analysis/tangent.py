"""The empirical tangent kernel of a field, and how far two tasks overlap in it (Doan et al., "A
Theoretical Analysis of Catastrophic Forgetting through the NTK Overlap Matrix", AISTATS 2021)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nfcl_jax.fields import Params
from nfcl_jax.params import looked_up
from nfcl_jax.points import VoxelGrid

CHUNK = 16  # voxels whose derivatives by all parameters are made at once
COLUMNS = 2**10  # parameters whose products are added up in double precision
SMALLEST = 1e-7  # of a kernel's largest eigenvalue: what is below is float32's rounding


class Tangent(NamedTuple):
    """The derivatives phi(x) = d f(x) / d theta of some outputs, a row for each voxel and output.

    Attributes:
      layers: by the parameters of the layers.
      entries: by the voxel's own entries of a table; by the others it is 0. All 0 for a field
        without a table.
      index: of the voxel.
    """

    layers: Float[np.ndarray, "rows parameters"]
    entries: Float[np.ndarray, "rows features"]
    index: Int[np.ndarray, " rows"]


def tangent(
    field: nn.Module,
    params: Params,
    index: Int[np.ndarray, " points"],
    channels: slice,
    shape: tuple[int, ...],
) -> Tangent:
    """The derivatives of a field's raw outputs, its `channels`, at flat indices of a grid of
    `shape`."""
    where = jnp.asarray(index), (channels.start, channels.stop), VoxelGrid(np.array(shape))
    with jax.default_matmul_precision("float32"):
        layers, entries = _derivatives(field, params, *where)
    count = channels.stop - channels.start
    rows = len(index) * count
    return Tangent(
        np.asarray(layers).reshape(rows, -1),
        np.asarray(entries).reshape(rows, -1),
        np.repeat(np.asarray(index), count),
    )


def _derivatives_at_all(field, params, index, channels, grid):
    def at_one(voxel):
        small, own, inputs = looked_up(field, params, voxel[None], grid)
        found = jax.jacrev(lambda p: small.apply(p, inputs)[0, slice(*channels)])(own)["params"]
        count = channels[1] - channels[0]
        entries = found.pop("table", jnp.zeros((count, 1)))
        flat = [leaf.reshape(count, -1) for leaf in jax.tree.leaves(found)]
        return jnp.concatenate(flat, axis=1), entries.reshape(count, -1)

    return jax.lax.map(at_one, index, batch_size=CHUNK)


_derivatives = jax.jit(_derivatives_at_all, static_argnums=(0, 3))


def kernel(a: Tangent, b: Tangent) -> Float[np.ndarray, "rows others"]:
    """K(x, y) = phi(x) . phi(y)."""
    total = (a.entries.astype(np.float64) @ b.entries.T) * (a.index[:, None] == b.index)
    for start in range(0, a.layers.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        total += a.layers[:, part] @ b.layers[:, part].T
    return total


class Overlap(NamedTuple):
    """How far what an old task and a new one have the parameters do is the same.

    Attributes:
      matrix: O = V_old^T V_new, for phi = U S V^T of either task: how the directions in which the
        parameters matter to the old task lie to those in which the new one moves them.
      cosines: the singular values of O, the largest first: the cosines of the angles between the
        two spaces. Their squares are the eigenvalues of O O^T.
      share: of the squared length of the old task's derivatives, the part within the space of the
        new one's, |S_old O|^2 / |S_old|^2, from 0 to 1. Of samples it is less than of all outputs,
        whose space is larger.
    """

    matrix: Float[np.ndarray, "old new"]
    cosines: Float[np.ndarray, " smaller"]
    share: float


def overlap(old: Tangent, new: Tangent) -> Overlap:
    """The overlap of two tasks by samples of their outputs.

    The right singular vectors V are never made: with K = U S^2 U^T they are V = phi^T U S^-1, so
    that O = S_old^-1 U_old^T K(old, new) U_new S_new^-1. All is NaN, or empty, for derivatives that
    are not finite.
    """
    if not all(np.isfinite(t.layers).all() and np.isfinite(t.entries).all() for t in (old, new)):
        return Overlap(np.zeros((0, 0)), np.zeros(0), float("nan"))
    (u_old, s_old), (u_new, s_new) = (_singular(kernel(t, t)) for t in (old, new))
    matrix = (u_old / s_old).T @ kernel(old, new) @ (u_new / s_new)
    share = np.sum((s_old[:, None] * matrix) ** 2) / np.sum(s_old**2)
    return Overlap(matrix, np.linalg.svd(matrix, compute_uv=False), float(share))


def _singular(own: Float[np.ndarray, "rows rows"]):
    """Left singular vectors and values of derivatives, from their kernel, largest first."""
    values, vectors = np.linalg.eigh(own)
    there = values > SMALLEST * values[-1]
    return vectors[:, there][:, ::-1], np.sqrt(values[there][::-1])
