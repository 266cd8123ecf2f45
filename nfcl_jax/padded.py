"""A scan as the training sees it: flat, padded to its batch's longest, with its own random key."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from nfcl_jax.points import Points, VoxelGrid, grid_of, num_space_axes, take
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Head


class PaddedScan(NamedTuple):
    """One scan, or a batch of them along a leading axis; `grid` is its own, without padding."""

    # By the name of a head; of a colour image with its colours along a last axis.
    values: Mapping[str, Shaped[Array, "*batch points"]]
    grid: VoxelGrid
    key: Key[Array, "*batch"]


def stable_hash(name: str) -> int:
    """A 32-bit hash that is the same in every process and version of Python."""
    return zlib.crc32(name.encode())


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """A key for one purpose, by its name: adding a purpose leaves the others' numbers alone."""
    return jax.random.fold_in(key, stable_hash(name))


def scan_key(seed: int, name: str) -> Key[Array, ""]:
    """A scan's key, by its name."""
    return stream(jax.random.key(seed), name)


def padded_size(size: int) -> int:
    """`size` rounded up by at most an eighth, to one of eight sizes per power of two, so that
    batches of similar scans share compiled programs."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def stack_scans(scans: Sequence[Scan], num_voxels: int, seed: int) -> PaddedScan:
    """Scans with a leading batch axis, padded to `num_voxels` per frame.

    A scan's key comes from the seed and the scan's name alone, never from its place.
    """

    rows = num_voxels * scans[0].num_frames

    def flat(volume, dtype):
        own = volume.reshape(-1, *volume.shape[4:])
        return np.pad(own.astype(dtype), [(0, rows - len(own)), *[(0, 0)] * (own.ndim - 1)])

    times = [scan.times for scan in scans] if scans[0].times else None
    types = {"f": np.float32, "u": np.int32}
    heads = {name: types[values.dtype.kind] for name, values in scans[0].values.items()}
    return PaddedScan(
        values={
            name: jnp.stack([flat(scan.values[name], dtype) for scan in scans])
            for name, dtype in heads.items()
        },
        grid=grid_of(
            num_space_axes(scans[0].shape),
            jnp.array([scan.shape for scan in scans], jnp.int32),
            times and jnp.array(times, jnp.float32),
        ),
        key=jnp.stack([scan_key(seed, scan.name) for scan in scans]),
    )


def targets_at(head: Head, scan: PaddedScan, points: Points) -> Float[Array, "points channels"]:
    """What `head` should be at voxels: intensities, or one-hot classes."""
    if head.kind == "image":
        return take(scan.values[head.name], points).reshape(-1, head.num_channels)
    return jax.nn.one_hot(take(scan.values[head.name], points), head.num_channels)
