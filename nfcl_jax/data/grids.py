"""Whether two volumes lie on one grid, and one volume on the grid of another."""

import logging

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from nfcl_jax.data.volumes import Volume, corner_distance
from nfcl_jax.errors import DataError

SAME_PLACE = 0.5  # of a voxel, between the corners of two grids

log = logging.getLogger("nfcl_jax")


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
        overlap; or if a mask does not cover the grid and has no label 0 for the rest.
    """
    if 1 in (volume.data.shape[2], grid.data.shape[2]):
        raise DataError(f"{name}: a single slice is not resampled; one grid would be right.")
    for whose, own in ((name, volume), (other, grid)):
        if not own.placed:
            raise DataError(
                f"{name}: {described_grid(volume)}; {other} has {described_grid(grid)}. Resampling "
                f"needs places in the scanner, and {whose} has none; a header with an affine "
                "would be right."
            )
    wanted = grid.data.shape[:3], grid.scanner_affine
    everywhere = nib.Nifti1Image(np.ones(volume.data.shape, np.float32), volume.scanner_affine)
    inside = np.asarray(resample_from_to(everywhere, wanted, order=0, cval=0).dataobj) > 0
    if not inside.any():
        raise DataError(f"{name}: none of it lies on the grid of {other}.")
    if is_mask and not inside.all() and not (volume.data == 0).any():
        raise DataError(
            f"{name}: does not cover the grid of {other}, and has no label 0 for the rest; a file "
            "that covers it would be right."
        )
    outside = 0.0 if is_mask else volume.data.min()
    own = nib.Nifti1Image(volume.data, volume.scanner_affine)
    moved = resample_from_to(own, wanted, order=0 if is_mask else 1, cval=outside)
    data = np.asarray(moved.dataobj, np.float32)
    if not is_mask and data.min() == data.max():
        raise DataError(f"{name}: none of it lies on the grid of {other}.")
    if (share := 1 - inside.mean()) > 0:
        log.warning(
            "%s: covers %.0f%% of the grid of %s; the rest is learned as %g",
            name, 100 * (1 - share), other, outside,
        )  # fmt: skip
    return data
