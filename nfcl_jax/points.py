"""Voxel indices, coordinates in [-1, 1], and the points that a training step uses.

A scan's voxels are numbered by one flat index in C order over its grid: (x, y, z) for a 3D image,
(frame, x, y, z) for a cine, so that a frame is a contiguous range. Shapes are arrays rather than
static tuples, which lets patients of different shapes share one compiled program.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt

SHUFFLE_ROUNDS = 12  # then two neighbours may lie anywhere


class VoxelGrid(NamedTuple):
    """The grid of a scan, without what places it in the scanner.

    Attributes:
      shape: (x, y, z), or (frame, x, y, z).
      times: of the frames, in [-1, 1]; None where they are equidistant, from -1 to 1.
    """

    shape: Int[Array, " axes"]
    times: Float[Array, " frames"] | None = None
    space = 3  # coordinates of a place

    @property
    def axes(self) -> int:
        """Of the coordinates of a voxel."""
        return self.shape.shape[-1] - 3 + self.space

    @property
    def num_voxels(self) -> Int[Array, ""]:
        """Of one frame."""
        return jnp.prod(self.shape[-3:])


class PixelGrid(VoxelGrid):
    """The grid of a single slice: x and y alone are coordinates."""

    __slots__ = ()
    space = 2


def num_space_axes(shape: Sequence[int]) -> int:
    """The coordinates of a place on a grid (..., x, y, z): z is none where there is one slice."""
    return 3 if shape[-1] > 1 else 2


def num_axes(shape: Sequence[int]) -> int:
    """The coordinates of a voxel on a grid (x, y, z) or (frames, x, y, z)."""
    return len(shape) - 3 + num_space_axes(shape)


def grid_of(space: int, *arrays: Any) -> VoxelGrid:
    """The grid with so many coordinates of a place."""
    return (VoxelGrid if space == 3 else PixelGrid)(*arrays)


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
    """Coordinates of voxels, one row each: (x, y, z), or (x, y, z, t) on a grid with frames; of a
    single slice without z.

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
        # Times the spacing: a division XLA may make this of or not, so that the last bit would
        # depend on the program around it, such as on its number of devices.
        spacing = 2.0 / jnp.maximum(size - 1, 1)
        positions.insert(0, position * spacing - jnp.where(size > 1, 1, 0))
        index = jax.lax.div(index, size)
    time_last = positions[-3:][: grid.space] + positions[:-3]
    return jnp.stack(time_last, axis=-1).astype(jnp.float32)


def index_ranges(frames: Int[Array, "ranges 2"], grid: VoxelGrid) -> Int[Array, "ranges 2"]:
    """The flat indices of ranges of frames, both as their first and the one after their last."""
    return frames * grid.num_voxels


def inside(index: Int[Array, " points"], ranges: Int[Array, "ranges 2"]) -> Bool[Array, " points"]:
    """Whether indices are in one of the ranges."""
    first, stop = ranges[:, 0], ranges[:, 1]
    return jnp.any((index[:, None] >= first) & (index[:, None] < stop), axis=1)


def sample_points(key: Key[Array, ""], num_points: int, ranges: Int[Array, "ranges 2"]) -> Points:
    """`num_points` flat indices drawn uniformly, with replacement, from ranges in ascending order.

    The remainder of 32 random bits favours the first of N indices by one part in 2^32 / N, which is
    nothing for a scan, and is half the program that `jax.random.randint` is.
    """
    bits = jax.random.bits(key, (num_points,), jnp.uint32)
    total = jnp.sum(ranges[:, 1] - ranges[:, 0]).astype(jnp.uint32)
    return Points(_of_ranges(bits % total, ranges), jnp.ones(num_points))


def spread_points(
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    num_points: int,
    ranges: Int[Array, "ranges 2"],
) -> Points:
    """`num_points` flat indices of ranges in ascending order, in passes over all of them.

    The N indices are cut into `num_points` strata of N / num_points that follow one another, from a
    place that each pass draws. A step takes one of each stratum, in an order that is drawn for each
    stratum and pass: to an optimiser that averages gradients, neighbours in turn would be much the
    same. So a pass of ceil(N / num_points) steps takes every index once, or, in strata that are one
    shorter than others, one of them twice. Of fewer indices than `num_points` each is taken as
    often as the others, or once more.
    """
    sizes = ranges[:, 1] - ranges[:, 0]
    total = jnp.sum(sizes).astype(jnp.uint32)
    short, longer = total // num_points, total % num_points
    steps = jnp.maximum(short + (longer > 0), 1)
    step = jnp.uint32(step)
    drawn = jax.random.bits(jax.random.fold_in(key, step // steps), (num_points + 1,), jnp.uint32)
    stratum = jnp.arange(num_points, dtype=jnp.uint32)
    first = jnp.where(short > 0, stratum * short + jnp.minimum(stratum, longer), stratum)
    size = jnp.maximum(short + (stratum < longer), 1)
    place = first + shuffled(step % steps % size, size, drawn[1:])
    return Points(_of_ranges((place + drawn[0] % total) % total, ranges), jnp.ones(num_points))


def shuffled(
    place: UInt[Array, " points"], size: UInt[Array, " points"], key: UInt[Array, " points"]
) -> UInt[Array, " points"]:
    """Where each place, of 0 to size - 1, goes in a random order of them: a permutation for each
    key, of any size, without a table. It is the swap-or-not shuffle (Hoang, Morris and Rogaway,
    CRYPTO 2012): in each round a place and its mirror image change places or not, by a bit that
    both have in common."""
    for _ in range(SHUFFLE_ROUNDS):
        key = _mixed(key + jnp.uint32(0x9E3779B9))
        mirror = key % size
        mirror = jnp.where(mirror >= place, mirror - place, mirror + size - place)
        swapped = _mixed(jnp.maximum(place, mirror) ^ key) >> 31
        place = jnp.where(swapped == 1, mirror, place)
    return place


def _mixed(bits: UInt[Array, " points"]) -> UInt[Array, " points"]:
    """Other 32 bits, each of which depends on all: the last steps of MurmurHash3."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _of_ranges(
    place: UInt[Array, " points"], ranges: Int[Array, "ranges 2"]
) -> Int[Array, " points"]:
    """The flat indices of places that are counted from the first range to the last."""
    place = place.astype(jnp.int32)
    if len(ranges) == 1:
        return ranges[0, 0] + place
    sizes = ranges[:, 1] - ranges[:, 0]
    before = jnp.cumsum(sizes) - sizes
    which = jnp.searchsorted(before, place, side="right") - 1
    return place + (ranges[:, 0] - before)[which]


def all_points(num_points: int, ranges: Int[Array, "ranges 2"]) -> Points:
    """Every flat index from the first range to the last, and then those that follow, up to
    `num_points`, which must be enough; without weight where they are in no range."""
    start = ranges[0, 0]
    index = start + jnp.arange(num_points)
    known = index < ranges[0, 1] if len(ranges) == 1 else inside(index, ranges)
    return Points(index, known.astype(jnp.float32), start)


def points_of_step(
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    batch_size: int,
    in_passes: bool,
    num_points: int,
    ranges: Int[Array, "ranges 2"],
) -> Points:
    """The points of one step on ranges of flat indices, by the key of the task: a sample, with
    replacement or `in_passes`; if `batch_size` is 0, every one of them, which `num_points` must
    cover."""
    if batch_size == 0:
        return all_points(num_points, ranges)
    if in_passes:
        return spread_points(key, step, batch_size, ranges)
    return sample_points(jax.random.fold_in(key, step), batch_size, ranges)


def sample_coords(
    key: Key[Array, ""], points: Points, grid: VoxelGrid
) -> Float[Array, "points axes"]:
    """Continuous positions: x, y and z uniform in [-1, 1], the time that of each point's frame."""
    coords = index_to_coords(points.index, grid)
    places = len(coords), grid.space
    space = jax.random.uniform(key, places, minval=-1.0, maxval=1.0)
    return coords.at[:, : grid.space].set(space)
