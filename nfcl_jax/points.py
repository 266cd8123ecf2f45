"""Voxel indices, coordinates in [-1, 1], and the points that a training step uses.

A scan's voxels are numbered by one flat index in C order over its grid: (x, y, z) for a 3D image,
(frame, x, y, z) for a cine, so that a frame is a contiguous range. Shapes are arrays rather than
static tuples, which lets patients of different shapes share one compiled program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped


class VoxelGrid(NamedTuple):
    """The grid of a scan, without what places it in the scanner.

    Attributes:
      shape: (x, y, z), or (frame, x, y, z).
      times: of the frames, in [-1, 1]; None where they are equidistant, from -1 to 1.
    """

    shape: Int[Array, " axes"]
    times: Float[Array, " frames"] | None = None

    @property
    def axes(self) -> int:
        """Of the coordinates of a voxel."""
        return self.shape.shape[-1]

    @property
    def num_voxels(self) -> Int[Array, ""]:
        """Of one frame."""
        return jnp.prod(self.shape[-3:])


class Points(NamedTuple):
    """Voxels that a step looks at.

    Attributes:
      index: flat.
      weights: 0 where padding stands in for a voxel.
      first: of indices that follow one another; `take` is a slice then.
    """

    index: Int[Array, " points"]
    weights: Float[Array, " points"]
    first: Int[Array, ""] | None = None

    def counted_from(self, offset: Int[Array, ""] | None) -> "Points":
        """The same voxels where index `offset`, 0 if None, is the first."""
        if offset is None:
            return self
        first = None if self.first is None else self.first - offset
        return self._replace(index=self.index - offset, first=first)


def take(values: Shaped[Array, "voxels ..."], points: Points) -> Shaped[Array, "points ..."]:
    """The values at the points."""
    if points.first is None:
        return values[points.index]
    return jax.lax.dynamic_slice_in_dim(values, points.first, len(points.index))


def index_to_coords(index: Int[Array, " points"], grid: VoxelGrid) -> Float[Array, "points axes"]:
    """Coordinates of voxels, one row each: (x, y, z), or (x, y, z, t) on a grid with frames.

    Each axis runs from -1 at its first voxel to 1 at its last, but for the frames of a grid that
    has their times; an axis of a single voxel is at 0.
    """
    positions = []
    for size in reversed(list(grid.shape)):
        if grid.times is not None and len(positions) == 3:
            positions.insert(0, grid.times[index])
            break
        # Not `%` and `//`, which take pains over negative numbers.
        position = jax.lax.rem(index, size)
        positions.insert(0, 2.0 * position / jnp.maximum(size - 1, 1) - jnp.where(size > 1, 1, 0))
        index = jax.lax.div(index, size)
    time_last = positions[-3:] + positions[:-3]
    return jnp.stack(time_last, axis=-1).astype(jnp.float32)


def frame_range(frames: Int[Array, "2"], grid: VoxelGrid) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """First flat index of frame `frames[0]`, and the one after the last of `frames[1] - 1`."""
    voxels = grid.num_voxels
    return frames[0] * voxels, frames[1] * voxels


def covering_range(
    frames: Int[Array, "ranges 2"], grid: VoxelGrid
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The `frame_range` from the first of several ranges of frames to the last."""
    return frame_range(jnp.stack([frames[:, 0].min(), frames[:, 1].max()]), grid)


def sample_points(
    key: Key[Array, ""], num_points: int, start: Int[Array, ""], stop: Int[Array, ""]
) -> Points:
    """`num_points` flat indices drawn uniformly, with replacement, from [start, stop).

    The remainder of 32 random bits favours the first indices by one part in 2^32 / (stop - start),
    which is nothing for a scan, and is half the program that `jax.random.randint` is.
    """
    bits = jax.random.bits(key, (num_points,), jnp.uint32)
    index = start + (bits % (stop - start).astype(jnp.uint32)).astype(jnp.int32)
    return Points(index, jnp.ones(num_points))


def all_points(num_points: int, start: Int[Array, ""], stop: Int[Array, ""]) -> Points:
    """Every flat index of [start, stop), and then, without weight, those that follow, up to
    `num_points`, which must be at least `stop - start`."""
    index = start + jnp.arange(num_points)
    return Points(index, (index < stop).astype(jnp.float32), jnp.asarray(start))


def sample_coords(
    key: Key[Array, ""], points: Points, grid: VoxelGrid
) -> Float[Array, "points axes"]:
    """Continuous positions: x, y and z uniform in [-1, 1], the time that of each point's frame."""
    coords = index_to_coords(points.index, grid)
    space = jax.random.uniform(key, (coords.shape[0], 3), minval=-1.0, maxval=1.0)
    return coords.at[:, :3].set(space)
