"""The parameters of a field: what it answers with them, and how they grow with its tasks."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nfcl_jax.fields import Params, init_params
from nfcl_jax.padded import stream
from nfcl_jax.points import VoxelGrid, index_to_coords

CLASS_GAP = 0.1  # between the entries of two classes, in widths of the entries that there were
FURTHEST_ENTRY = 6.0  # from 0, of those that are moved; all of an image lie within about 1


def evaluate(
    field: nn.Module, params: Params, index: Int[Array, " points"], grid: VoxelGrid
) -> Float[Array, "points channels"]:
    """The field's raw outputs at voxels."""
    return field.apply(params, field_inputs(field, index, grid))


def field_inputs(field: nn.Module, index: Int[Array, " points"], grid: VoxelGrid):
    """What the field takes for a voxel: its flat index (DINER) or its coordinates."""
    return index if field.on_grid else index_to_coords(index, grid)


def apply_in_blocks(
    field: nn.Module, params: Params, inputs: Array, block: int = 4096
) -> Float[Array, "points channels"]:
    """The field at many inputs, a block of fixed size at a time.

    Their gradients are added up block by block. So the memory is that of one block, whose
    activations are computed again on the way back, and what pads the inputs changes no bit.
    """
    missing = -len(inputs) % block
    padded = jnp.pad(inputs, [(0, missing)] + [(0, 0)] * (inputs.ndim - 1))
    blocks = padded.reshape(-1, block, *inputs.shape[1:])
    outputs = jax.lax.map(jax.checkpoint(lambda x: field.apply(params, x)), blocks)
    return outputs.reshape(-1, outputs.shape[-1])[: len(inputs)]


def render(
    field: nn.Module,
    params: Params,
    grid: VoxelGrid,
    num_points: int,
    stop: Int[Array, ""],
    block: int = 8192,
) -> Float[Array, "num_points channels"]:
    """Raw outputs at the flat indices below `stop`, asked in blocks; 0 or padding beyond.

    `num_points` is the length of the result and static; `stop` is not, so that one program
    serves any number of frames.
    """

    def fill(i, outputs):
        index = i * block + jnp.arange(block)
        return jax.lax.dynamic_update_slice(
            outputs, evaluate(field, params, index, grid), (i * block, 0)
        )

    padded = -(-num_points // block) * block
    outputs = jnp.zeros((padded, field.channels))
    return jax.lax.fori_loop(0, -(-stop // block), fill, outputs)[:num_points]


def grow_output(params: Params, fresh: Params) -> Params:
    """`params` with the output layer of `fresh` beyond the channels that it has.

    Args:
      params: parameters of a field with fewer output channels.
      fresh: newly initialised parameters of the same field with more.

    Returns:
      The parameters of the larger field: every hidden layer, the table and the old channels as in
      `params`, so the old outputs do not change; the new channels as in `fresh`.
    """

    def widen(old, new):
        return jnp.concatenate([old, new[..., old.shape[-1] :]], axis=-1)

    old, new = params["params"], fresh["params"]
    return {"params": old | {"output": jax.tree.map(widen, old["output"], new["output"])}}


def begun(
    field: nn.Module,
    params: Params | None,
    key: Key[Array, ""],
    number: int | Int[Array, ""],
    axes: int,
) -> Params:
    """A field's parameters as task `number` begins, from what the last task left, or None; `key` is
    the scan's. New outputs are drawn the same wherever this is called."""
    fresh = init_params(field, stream(jax.random.fold_in(key, number), "init"), axes)
    # A copy, because the state's buffers are donated to each step and a teacher's are not.
    params = jax.tree.map(jnp.copy, fresh if params is None else params)
    return params if num_output_channels(params) == field.channels else grow_output(params, fresh)


def grow_table(params: Params, fresh: Params) -> Params:
    """`params` with the rows of `fresh`'s table beyond those that it has."""
    table, new = params["params"]["table"], fresh["params"]["table"]
    return {"params": params["params"] | {"table": jnp.concatenate([table, new[len(table) :]])}}


def separate_classes(params: Params, frames: Sequence[int], classes: np.ndarray) -> Params:
    """DINER as it begins to learn a mask, with the table's entries of each class moved apart.

    Voxels of equal intensity share an entry. To learn a mask of them their entries must move apart,
    and on the way they pass others where the field answers with another class. So each class but
    the largest is moved as it is, in turn beyond the largest entry and the smallest of the table.
    None is moved if one would lie beyond FURTHEST_ENTRY, where the layers have few kinks.

    Args:
      params: of the field, with a table of all frames of a scan.
      frames: that the mask is taught on.
      classes: of all frames, (frames, x, y, z).

    Returns:
      The parameters with the first column of the table changed.
    """
    table, chosen_frames = np.array(params["params"]["table"]), list(frames)
    entries = table[:, 0].reshape(len(classes), -1)  # a view
    own, classes = entries[chosen_frames], classes[chosen_frames].reshape(len(frames), -1)
    low, high, gap = entries.min(), entries.max(), CLASS_GAP * np.ptp(own)
    labels, counts = np.unique(classes, return_counts=True)
    for number, label in enumerate(np.delete(labels, counts.argmax())):
        chosen = classes == label
        moved = own[chosen]
        if number % 2:
            moved += low - gap - moved.max()
            low = moved.min()
        else:
            moved += high + gap - moved.min()
            high = moved.max()
        if np.abs(moved).max() > FURTHEST_ENTRY:
            return params
        own[chosen] = moved
    entries[chosen_frames] = own
    return {"params": params["params"] | {"table": table}}


def pad_output(params: Params, channels: int) -> Params:
    """A tree like the parameters of a field, with zeros for output channels up to `channels`."""

    def widen(leaf):
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, channels - leaf.shape[-1])])

    own = params["params"]
    return {"params": own | {"output": jax.tree.map(widen, own["output"])}}


def num_output_channels(params: Params) -> int:
    """Output channels of the field that has these parameters."""
    return params["params"]["output"]["bias"].shape[-1]


def field_of(field: nn.Module, params: Params) -> nn.Module:
    """`field` with as many output channels as `params` have: what it was before it grew."""
    return field.clone(channels=num_output_channels(params))


def resize_tables(tree: Any, rows: int) -> Any:
    """A tree with each array that is called "table", whose rows are its last axis but one, cut to
    `rows`, or padded with zeros; others unchanged."""

    def resize(path, leaf):
        if not (path and getattr(path[-1], "key", None) == "table"):
            return leaf
        cut = leaf[..., :rows, :]
        missing = rows - cut.shape[-2]
        return jnp.pad(cut, [(0, 0)] * (leaf.ndim - 2) + [(0, missing), (0, 0)])

    return jax.tree.map_with_path(resize, tree)


def looked_up(
    field: nn.Module, params: Params, index: Int[Array, " points"], grid: VoxelGrid
) -> tuple[nn.Module, Params, Array]:
    """A field at voxels as a module, parameters and inputs, the table, if it has one, with the
    entries of these voxels alone: differentiable by voxel, and small."""
    if not field.on_grid:
        return field, params, field_inputs(field, index, grid)
    entries = params["params"]["table"][index]
    own = {"params": params["params"] | {"table": entries}}
    return field.clone(rows=len(index)), own, jnp.arange(len(index))


def table_window(
    field: nn.Module, params: Params, start: Int[Array, ""], rows: int
) -> tuple[nn.Module, Params]:
    """DINER with `rows` of its table alone, from `start` on, which its indices then count from."""
    table = jax.lax.dynamic_slice_in_dim(params["params"]["table"], start, rows)
    return field.clone(rows=rows), {"params": params["params"] | {"table": table}}


def replace_window(params: Params, window: Params, start: Int[Array, ""]) -> Params:
    """`params` with what became of a `table_window` in its place."""
    table = params["params"]["table"]
    table = jax.lax.dynamic_update_slice_in_dim(table, window["params"]["table"], start, axis=0)
    return {"params": window["params"] | {"table": table}}


def num_parameters(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
