"""NIfTI files of what a field makes of a scan, on grids that lie over the scan's."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np


def check_name(path: str | Path) -> None:
    """Raises ValueError unless `path` is the name of a NIfTI file in a folder that exists."""
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the name must end in .nii or .nii.gz.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}.")


def scanner_affine(affine: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A header's affine with voxels of the size that its pixdim gives: voxel indices to mm. The two
    agree in most files, but ACDC's frames have voxels of 1 mm in their sform, whatever they are."""
    return affine @ np.diag([*(np.asarray(spacing) / nib.affines.voxel_sizes(affine)), 1.0])


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
      ValueError: if the spacing is not three positive numbers.
    """
    spacing = np.asarray(spacing, float)
    if spacing.shape != (3,) or not ((spacing > 0) & np.isfinite(spacing)).all():
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing}.")
    axes = []
    for size, old, new in zip(shape, own, spacing, strict=True):
        steps = (size - 1) * old / new  # from the first voxel to the last
        places = np.arange(int(np.floor(steps + 1e-6)) + 1)
        axes.append(2 * places / steps - 1 if size > 1 else np.zeros(1))
    return axes, affine @ np.diag([*(spacing / np.asarray(own)), 1.0])


def write(
    path: str | Path, volume: np.ndarray, affine: np.ndarray, voxel_size: Sequence[float]
) -> Path:
    """Writes a volume, (x, y, z), (x, y, z, t) or with channels after that.

    The affine goes into the sform, which can hold any; into the qform, too, if that can hold it:
    without shears, and with voxels of the size that is given.

    Args:
      path: of the file.
      volume: of the type that it is stored in.
      affine: voxel indices to scanner coordinates, 4 x 4.
      voxel_size: along each axis of the volume, in mm for the first three.

    Returns:
      The path.
    """
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code="aligned")
    image.set_qform(scanner_affine(affine, voxel_size[:3]), code="aligned", strip_shears=True)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, code="unknown")
    image.header.set_zooms(voxel_size)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return Path(path)
