"""Where voxels are: flat indices, coordinates in [-1, 1], and mm in the scanner."""

import dataclasses
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from nfcl_jax.points import num_space_axes

MAX_SIZE = 2**15 - 1  # of a NIfTI file along an axis


def scanner_affine(affine: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A header's affine with voxels of the size that its pixdim gives: voxel indices to mm. The two
    agree in most files, but ACDC's frames have voxels of 1 mm in their sform, whatever they are."""
    return affine @ np.diag([*(np.asarray(spacing) / nib.affines.voxel_sizes(affine)), 1.0])


def radiological(affine: np.ndarray) -> tuple[tuple[int, ...], bool]:
    """How slices of a volume are shown as radiologists see them, with the patient's left, or back,
    at the right, and the back, or the feet, at the bottom.

    Args:
      affine: of the volume, 4 x 4, to coordinates that grow to the right, the front and the head.

    Returns:
      Which of the first two axes are flipped, and whether they then change places, so that the
      first one is to the right and the second one downwards.
    """
    codes = nib.aff2axcodes(affine)[:2]
    first, second = (("RL", "AP", "SI").index(pair) for code in codes
                     for pair in ("RL", "AP", "SI") if code in pair)  # fmt: skip
    return tuple(axis for axis, code in enumerate(codes) if code in "RAS"), first > second


def resampled(
    shape: Sequence[int],
    affine: np.ndarray,
    own: Sequence[float],
    spacing: Sequence[float],
) -> tuple[list[np.ndarray], np.ndarray]:
    """A grid of another spacing over a volume: its first voxel is the volume's first, its last ones
    are not beyond the volume's last.

    Args:
      shape: of the volume, (x, y, z).
      affine: of the volume, 4 x 4.
      own: voxel size of the volume along its axes, in mm.
      spacing: of the new grid along the volume's axes, in mm.

    Returns:
      Coordinates along each axis, -1 at the volume's first voxel and 1 at its last (0 if there is
      one), and the new grid's affine.

    Raises:
      ValueError: if the spacing is not three positive numbers, or too small for a NIfTI file.
    """
    spacing = np.asarray(spacing, float)
    if spacing.shape != (3,) or not ((spacing > 0) & np.isfinite(spacing)).all():
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing}.")
    axes = []
    for size, old, new in zip(shape, own, spacing, strict=True):
        steps = (size - 1) * old / new  # from the first voxel to the last
        if steps >= MAX_SIZE:
            raise ValueError(
                f"spacing of {new:g} mm makes {steps:.3g} voxels along an axis; a NIfTI file has "
                f"at most {MAX_SIZE}."
            )
        places = np.arange(int(np.floor(steps + 1e-6)) + 1)
        axes.append(2 * places / steps - 1 if size > 1 else np.zeros(1))
    return axes, affine @ np.diag([*(spacing / np.asarray(own)), 1.0])


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of a scan.

    Attributes:
      shape: (x, y, z), or (frames, x, y, z); a z of one voxel is no coordinate.
      affine: voxel indices along x, y and z to scanner coordinates, 4 x 4, in mm.
      frame_numbers: of the frames, in a cine whose last frame is the last of these.
      times: of the frames of a table's scan, in [-1, 1].
      time_range: which of the table's times are -1 and 1.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    frame_numbers: tuple[int, ...]
    times: tuple[float, ...] | None = None
    time_range: tuple[float, float] = (-1.0, 1.0)

    @property
    def space(self) -> int:
        """The coordinates of a place, 2 or 3."""
        return num_space_axes(self.shape)

    @property
    def axes(self) -> str:
        """Their letters, and t if there are frames."""
        return "xyz"[: self.space] + "t" * (len(self.shape) - 3)

    @property
    def sizes(self) -> np.ndarray:
        """Voxels along x, y and z, as far as these are coordinates, then the frames."""
        return np.array((*self.shape[-3:][: self.space], *self.shape[:-3]))

    @property
    def size(self) -> int:
        """All voxels of all frames."""
        return int(np.prod(self.shape))

    def check(self, coords: np.ndarray, axes: int) -> np.ndarray:
        """Coordinates in double precision.

        Raises:
          ValueError: unless they are of shape (points, axes).
        """
        coords = np.asarray(coords, np.float64)
        if coords.ndim != 2 or coords.shape[1] != axes:
            raise ValueError(f"expected shape (points, {axes}), got {coords.shape}.")
        return coords

    def from_mm(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (points, axes) in mm, and fractions of the cardiac cycle or a table's times,
        in [-1, 1]."""
        first, origin = self._first_voxel()
        return (coords - origin) @ self.per_mm().T + first

    def to_mm(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (points, axes) in [-1, 1] in mm and fractions of the cardiac cycle."""
        first, origin = self._first_voxel()
        return (np.asarray(coords) - first) @ self._in_mm().T + origin

    def to_voxels(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (points, axes) in [-1, 1] as positions in voxels and frames, from 0. Of
        frames that have times, the nearest one, and how far it is."""
        voxels = (coords + 1) / 2 * (self.sizes - 1)
        if self.times is not None:
            far = coords[:, -1:] - np.array(self.times)
            nearest = np.abs(far).argmin(axis=1)
            voxels[:, -1] = nearest + np.take_along_axis(far, nearest[:, None], axis=1)[:, 0]
        return voxels

    def flat_index(self, voxels: np.ndarray) -> np.ndarray:
        """Flat indices, in C order over the grid, of whole positions in voxels and frames."""
        if self.space == 2:
            voxels = np.insert(voxels, 2, 0, axis=1)
        first_time = np.roll(voxels, len(self.shape) - 3, axis=1)
        return np.ravel_multi_index(tuple(first_time.T), self.shape)

    def per_mm(self) -> np.ndarray:
        """How coordinates in [-1, 1] change with mm along the scanner's three axes, and with the
        fraction of the cycle, (axes, len(shape)). An axis of one voxel does not change."""
        sizes = self.sizes
        per_voxel = np.where(sizes > 1, 2 / np.maximum(sizes - 1, 1), 0.0)[: self.space]
        matrix = np.zeros((len(sizes), len(self.shape)))
        own = np.linalg.inv(self.affine[:3, :3])[: self.space]
        matrix[: self.space, :3] = per_voxel[:, None] * own
        if self.times is not None:
            matrix[-1, -1] = 2 / (self.time_range[1] - self.time_range[0])
        elif len(self.shape) == 4:
            first, last = self.frame_numbers[0], self.frame_numbers[-1]
            matrix[-1, -1] = 2 * last / (last - first)
        return matrix

    def _in_mm(self) -> np.ndarray:
        """How mm and the fraction of the cycle change with coordinates in [-1, 1], (len(shape),
        axes): within a single slice, its own two directions."""
        sizes, matrix = self.sizes, np.zeros((len(self.shape), len(self.axes)))
        half = np.maximum(sizes - 1, 0)[: self.space] / 2
        matrix[:3, : self.space] = self.affine[:3, : self.space] * half
        if len(self.shape) == 4:
            matrix[-1, -1] = 1 / self.per_mm()[-1, -1]
        return matrix

    def _first_voxel(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the first voxel of the first frame is: in [-1, 1], and in mm and the cycle."""
        first = np.where(self.sizes > 1, -1.0, 0.0)
        time = np.zeros(len(self.shape) - 3)
        if self.times is not None:  # where its range begins, which no frame need be at
            first[-1], time = -1.0, [self.time_range[0]]
        return first, np.append(self.affine[:3, 3], time)
