"""One patient's field as a function of place and time, without the machinery that made it.

Coordinates are in one of two UNITS:

    grid    -1 to 1 along each axis of the scan, from its first voxel's centre to its last one's,
            and from its first frame to its last
    mm      scanner coordinates by the scan's affine, in mm; time as a fraction of the cardiac
            cycle, or as a table of scans has it
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nfcl_jax.fields import Params
from nfcl_jax.geometry import Grid
from nfcl_jax.params import evaluate
from nfcl_jax.points import VoxelGrid, grid_of

UNITS = ("grid", "mm")
BLOCK = 8192  # points that a field is asked at once
ON_GRID = 1e-3  # of a voxel: so close to its centre, a coordinate is that voxel's


def entries_between(module: nn.Module, params: Params, coords: jax.Array, shape: jax.Array):
    """DINER's table at coordinates (points, axes), linear between the entries around each."""
    if coords.shape[1] < shape.size:
        coords = jnp.insert(coords, 2, 0.0, axis=1)  # the only z
    sizes = jnp.roll(shape, 3 - shape.size)  # x, y, z, then the frames
    position = (coords + 1) / 2 * (sizes - 1)
    low = jnp.clip(jnp.floor(position), 0, jnp.maximum(sizes - 2, 0))
    fraction = position - low
    table, entries = params["params"]["table"], 0.0
    for corner in np.ndindex(*[2] * shape.size):
        place = jnp.minimum(low.astype(jnp.int32) + jnp.array(corner), sizes - 1)
        first_time = jnp.roll(place, shape.size - 3, axis=-1)
        index = jnp.zeros(len(coords), jnp.int32)
        for axis in range(shape.size):
            index = index * shape[axis] + first_time[:, axis]
        weights = jnp.prod(jnp.where(jnp.array(corner) == 1, fraction, 1 - fraction), axis=-1)
        entries += weights[:, None] * table[index]
    return entries


def answers(module: nn.Module, params: Params, coords: jax.Array, shape: jax.Array) -> jax.Array:
    """Raw outputs (points, channels) at coordinates in [-1, 1], between DINER's entries too."""
    if not module.on_grid:
        return module.apply(params, coords)
    entries = entries_between(module, params, coords, shape)
    small = {"params": params["params"] | {"table": entries}}
    return module.clone(rows=len(coords)).apply(small, jnp.arange(len(coords)))


def derivatives(module: nn.Module, params: Params, coords: jax.Array, shape: jax.Array):
    """Of each output along each axis, (points, channels, axes)."""
    if getattr(module, "detach_scale", False):
        # FINER trains without the derivative of its scale, which the function has.
        module = module.clone(detach_scale=False)

    def at_one(point):
        return answers(module, params, point[None], shape)[0]

    return jax.vmap(jax.jacfwd(at_one))(coords)


# Compiled once for all fields of one kind and size.
_answers = jax.jit(answers, static_argnums=0)
_derivatives = jax.jit(derivatives, static_argnums=0)
_evaluate = jax.jit(evaluate, static_argnums=0)


class FittedField:
    """A field that was fitted, as a function: `field(coords)`, `field.gradient(coords)`.

    Attributes:
      shape: of the scan's grid, (x, y, z) or (frames, x, y, z).
      channels: of its outputs: the intensity, then, where a mask was learned, the logits of its
        classes.
      units: of the coordinates, one of UNITS.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Params,
        grid: Grid,
        units: str = "grid",
        interpolate: bool = False,
    ):
        """A field of `module` with `params`.

        Args:
          module: from `fields.create_field`, for this grid.
          params: its parameters.
          grid: of the scan.
          units: of the coordinates, one of UNITS.
          interpolate: whether DINER's table is interpolated linearly between its entries.

        Raises:
          ValueError: if there are no such units, or DINER is to be interpolated in a table's scan.
        """
        if units not in UNITS:
            raise ValueError(f"units must be one of {', '.join(UNITS)}, got {units!r}.")
        if interpolate and module.on_grid and grid.times is not None:
            raise ValueError("DINER is not interpolated in a table's scans that have times.")
        self._module, self._params = module, jax.tree.map(jnp.asarray, params)
        self.shape, self.channels, self.units = tuple(grid.shape), module.channels, units
        self._grid, self._interpolate = grid, interpolate

    def __repr__(self) -> str:
        axes = ", ".join(self._grid.axes)
        return (
            f"{type(self._module).__name__}: ({axes}) in {self.units} to {self.channels} outputs, "
            f"fitted on a grid of {' x '.join(map(str, self.shape))}"
        )

    def __call__(self, coords: np.ndarray) -> np.ndarray:
        """Raw outputs (points, channels) at coordinates (points, axes): x, y, z, and the time if
        the scan has frames. A single slice has no z in units of "grid"; in "mm", points beside it
        are those of the slice below them.

        Raises:
          ValueError: for coordinates of another shape, or for a DINER off its grid, or between its
            voxels without `interpolate`.
        """
        return self._in_blocks(_answers, self.to_grid(coords))

    def gradient(self, coords: np.ndarray) -> np.ndarray:
        """The outputs' derivatives (points, channels, axes), per unit of the coordinates: per mm
        along the scanner's axes and per cardiac cycle in units of "mm".

        Raises:
          ValueError: as for the outputs; DINER has derivatives only where it is interpolated.
        """
        if self._module.on_grid and not self._interpolate:
            raise ValueError(f"no derivatives: {self._no_between()}")
        per_grid = self._in_blocks(_derivatives, self.to_grid(coords))
        return per_grid if self.units == "grid" else per_grid @ self._grid.per_mm()

    def at_voxels(self, index: np.ndarray) -> np.ndarray:
        """Raw outputs (points, channels) at voxels, flat indices in C order over the grid.

        Raises:
          ValueError: for indices of another shape or type, or off the grid.
        """
        index, size = np.asarray(index), self._grid.size
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                f"expected integers of shape (points,), got {index.dtype} of shape {index.shape}."
            )
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ValueError(
                f"off the grid: the indices of a {self.shape} grid run from 0 to {size - 1}, got "
                f"{index.min()} to {index.max()}."
            )
        index = index.astype(np.int32)
        return _blockwise(lambda block: _evaluate(*self._field(), block, self._voxels()), index)

    def on_grid(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Raw outputs at the product of coordinates along each axis, (x, y, z, channels) or
        (x, y, z, t, channels), of which z may be no coordinate. Only the outputs, not the
        coordinates of all points, are held."""
        axes = [np.asarray(axis) for axis in axes]
        sizes = tuple(map(len, axes))
        coordinates = [a for a in range(len(axes)) if a != 2 or self._grid.space == 3]
        outputs = np.empty((int(np.prod(sizes)), self.channels), np.float32)
        for start in range(0, len(outputs), BLOCK * 32):
            stop = min(start + BLOCK * 32, len(outputs))
            index = np.unravel_index(np.arange(start, stop), sizes)
            coords = [axes[a][index[a]] for a in coordinates]
            outputs[start:stop] = self(np.stack(coords, axis=-1))
        return outputs.reshape(*sizes, self.channels)

    def to_grid(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (points, axes) of this field's units in [-1, 1], in double precision."""
        if self.units == "grid":
            return self._grid.check(coords, len(self._grid.axes))
        return self._grid.from_mm(self._grid.check(coords, len(self.shape)))

    def to_mm(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (points, axes) in [-1, 1] in mm and fractions of the cardiac cycle."""
        return self._grid.to_mm(coords)

    def _in_blocks(self, function: Callable, coords: np.ndarray) -> np.ndarray:
        if self._module.on_grid:
            voxels, last = self._grid.to_voxels(coords), self._grid.sizes - 1
            if not ((voxels >= -ON_GRID) & (voxels <= last + ON_GRID)).all():
                raise ValueError(BEYOND + (AMONG_TIMES if self._grid.times else "."))
            if not self._interpolate:
                near = np.rint(voxels).astype(int)
                if np.abs(voxels - near).max(initial=0) > ON_GRID:
                    raise ValueError(self._no_between())
                return self.at_voxels(self._grid.flat_index(near))
        return _blockwise(
            lambda block: function(*self._field(), block, self._shape()), coords.astype(np.float32)
        )

    def _no_between(self) -> str:
        return NO_BETWEEN + (ALSO_TABLES if self._grid.times else BY_LINES)

    def _field(self):
        return self._module, self._params

    def _voxels(self) -> VoxelGrid:
        times = self._grid.times
        times = times and np.array(times, np.float32)
        return grid_of(self._grid.space, self._shape(), times)

    def _shape(self) -> np.ndarray:
        return np.array(self.shape, np.int32)


BEYOND, AMONG_TIMES = "off the grid: DINER has no entries beyond its scan", " or between its times."
NO_BETWEEN = "DINER has one entry per voxel and frame, and nothing between them"
BY_LINES = (
    "; interpolate=True, or --interpolate, takes entries that are linear between those around."
)
ALSO_TABLES = "; nor is it interpolated in the scans of a table."


def _blockwise(answer: Callable[[np.ndarray], jax.Array], points: np.ndarray) -> np.ndarray:
    """`answer` at every point, in blocks of one size: bounded memory, one compiled program."""
    blocks = []
    for start in range(0, max(len(points), 1), BLOCK):
        block = points[start : start + BLOCK]
        padding = np.zeros((BLOCK - len(block), *block.shape[1:]), block.dtype)
        with jax.default_matmul_precision("float32"):
            blocks.append(np.asarray(answer(np.concatenate([block, padding])))[: len(block)])
    return np.concatenate(blocks)
