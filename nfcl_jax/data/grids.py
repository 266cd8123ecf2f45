"""Whether two volumes lie on one grid, and one volume on the grid of another."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from nfcl_jax.data.volumes import Volume, corner_distance
from nfcl_jax.errors import DataError

SAME_PLACE = 0.5  # of a voxel, between the corners of two grids
EDGE = 1e-3  # of a voxel, by which affines in float32 may be off

log = logging.getLogger("nfcl_jax")


class Placed(NamedTuple):
    """The first volume of a patient that has a place in the scanner, where the first of all has
    none: what it is called, itself, and its task."""

    name: str
    volume: Volume
    task: int

    def described(self) -> dict[str, Any]:
        """What is kept of it: later files must lie there, even if it is gone."""
        place = {"affine": self.volume.affine.tolist(), "spacing": self.volume.spacing}
        return {"placed_at": {"task": self.task, **place}}


def grid_of_record(record: Mapping[str, Any]) -> Volume:
    """A volume on the grid of a scan in patients.json, with voxels that do not matter."""
    voxels = np.broadcast_to(np.float32(0), record["shape"][-3:])
    place = np.array(record["affine"], float), record["placed"]
    return Volume(voxels, tuple(record["spacing"]), *place)


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether the voxels of two volumes are at the same places, as far as both are placed."""
    same = a.data.shape[:3] == b.data.shape[:3] and np.allclose(a.spacing, b.spacing, rtol=0.01)
    return bool(same) and corner_distance(a, b) <= SAME_PLACE * min(a.spacing)


def described_grid(volume: Volume) -> str:
    """Its shape and affine, in words."""
    shape = " x ".join(map(str, volume.data.shape[:3]))
    return f"shape {shape}, affine {np.round(volume.scanner_affine, 3).tolist()}"


def resampled(name: str, volume: Volume, other: str, grid: Volume, is_mask: bool) -> np.ndarray:
    """The values of a volume on the grid of another: linear between voxels or, of a mask, the
    nearest. Beyond the volume they are its smallest; of a mask, 0.

    Args:
      name: of the volume, for messages.
      volume: (x, y, z).
      other: what `grid` belongs to, for messages.
      grid: the one that is wanted.
      is_mask: whether the values are labels.

    Raises:
      DataError: if one of the two is not placed in the scanner or is a single slice; if they do not
        overlap, or in one value alone; or if a mask does not cover the grid and has no label 0 for
        the rest.
    """
    both = f"{name}: {described_grid(volume)}; {other} has {described_grid(grid)}. "
    if 1 in (volume.data.shape[2], grid.data.shape[2]):
        raise DataError(f"{both}A single slice is not resampled; one grid would be right.")
    for whose, own in ((name, volume), (other, grid)):
        if not own.placed:
            raise DataError(
                f"{both}Resampling needs places in the scanner, and {whose} has none; a header "
                "with an affine would be right."
            )
    inside = _inside(volume, grid)
    if not inside.any():
        raise DataError(f"{name}: none of it lies on the grid of {other}.")
    if is_mask and not inside.all() and not (volume.data == 0).any():
        raise DataError(
            f"{name}: does not cover the grid of {other}, and has no label 0 for the rest; a file "
            "that covers it would be right."
        )
    own, wanted = nib.Nifti1Image(volume.data, volume.scanner_affine), grid.data.shape[:3]
    # "nearest", since "constant" would leave out the outer half of the outermost voxels.
    moved = resample_from_to(
        own, (wanted, grid.scanner_affine), order=0 if is_mask else 1, mode="nearest"
    )
    outside = 0.0 if is_mask else float(volume.data.min())
    data = np.where(inside, np.asarray(moved.dataobj), outside).astype(np.float32)
    if not is_mask and data.min() == data.max():
        raise DataError(f"{name}: every voxel on the grid of {other} is {data.min():g}.")
    if not inside.all():
        log.warning(
            "%s: covers %.0f%% of the grid of %s; the rest is learned as %g",
            name, 100 * inside.mean(), other, outside,
        )  # fmt: skip
    return data


def _inside(volume: Volume, grid: Volume) -> np.ndarray:
    """Which voxels of a grid have their centres within the voxels of a volume."""
    to_volume = np.linalg.inv(volume.scanner_affine) @ grid.scanner_affine
    axes = np.ogrid[tuple(slice(size) for size in grid.data.shape[:3])]
    inside = np.ones(grid.data.shape[:3], bool)
    for row, size in zip(to_volume[:3], volume.data.shape, strict=True):
        place = sum(step * axis for step, axis in zip(row[:3], axes, strict=True)) + row[3]
        inside &= (place > -0.5 - EDGE) & (place < size - 0.5 + EDGE)
    return inside
