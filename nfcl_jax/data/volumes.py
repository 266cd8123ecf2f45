"""NIfTI volumes, checked before they are believed.

Every fault is a `DataError` that names the file, what is wrong and what would be right.
"""

import dataclasses
import gzip
import math
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from nfcl_jax.errors import DataError, first_line
from nfcl_jax.geometry import scanner_affine
from nfcl_jax.metrics import SSIM_WINDOW

MAX_ASPECT = 16  # longer against shorter side of a slice
MIN_SPACING, MAX_SPACING = 0.01, 1000  # mm; beyond, the header means other units
OTHER_UNITS = {1: "metres", 3: "micrometres"}  # by the low bits of xyzt_units; 2 is mm, 0 unknown
MAX_OFFSET = 2**20  # bytes before the voxels: a header, and extensions that say who made it
MAX_SPACING_RATIO = 50  # largest against smallest voxel size; ACDC's are 10 mm to 1.5 mm and less
# What a run holds of each voxel of its frames, at most: the scan twice, its outputs and the
# teacher's, and DINER's table with its gradient, two moments, an update and two copies, in float32.
BYTES_PER_VOXEL = 4 * (2 + 2 + 7)
# Of the whole file: its bytes, as stored, in float64 if it is scaled, and in float32.
BYTES_PER_VOXEL_READ = 28


@dataclasses.dataclass(frozen=True)
class Volume:
    """An image with its geometry.

    Attributes:
      data: (x, y, z) or (x, y, z, frame), or (x, y, 1, 3) of a colour picture.
      spacing: along x, y and z, in mm.
      affine: voxel indices to scanner coordinates, 4 x 4.
      placed: whether the file states its affine; otherwise it is nibabel's guess.
      range: which values are 0 and 1; None are the smallest and the largest of the file.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    placed: bool
    range: tuple[float, float] | None = None

    @property
    def scanner_affine(self) -> np.ndarray:
        """Voxel indices to mm, with the voxel size of `spacing`."""
        return scanner_affine(self.affine, self.spacing)


def corner_distance(a: Volume, b: Volume) -> float:
    """How far the corners of two volumes of one shape lie apart, the farthest, in mm; 0 where a
    file does not place them."""
    if not (a.placed and b.placed):
        return 0.0
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(a.data.shape[:3]) - 1)
    places = [nib.affines.apply_affine(volume.scanner_affine, corners) for volume in (a, b)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def check_file(path: Path) -> None:
    """Raises DataError unless `path` is a file, or a link to one, wherever that is: many data sets
    are trees of links to a shared disk."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link to {os.readlink(path)}, where there is no file.")
    if not path.is_file():
        raise DataError(_missing(path))


def _missing(path: Path) -> str:
    """That a file is missing, and what has nearly its name."""
    if path.exists():
        return f"{path}: missing; what is there is no file."
    if "\\" in path.name:
        return f"{path}: missing; folders are separated by / here."
    if not path.parent.is_dir():
        return f"{path}: missing; there is no folder {path.parent}."
    name, mark, _ = path.name.rpartition("#")
    if mark and (path.parent / name).is_file():
        return f"{path}: missing; {name} is there, of which #1 would be one frame."
    near = {path.name.lower(), path.name.lower().removesuffix(".gz")}
    others = [other.name for other in path.parent.iterdir() if other.name.lower() in near]
    return f"{path}: missing" + (f"; {others[0]} is there instead." if others else ".")


def read_volume(
    path: Path, dimensions: int, num_frames: int = 1, single_slice: bool = False
) -> Volume:
    """A NIfTI file with its intensities scaled as its header says, float32.

    The spacing is that of pixdim, which ACDC's headers have right where their sform may not.

    Args:
      path: of the file.
      dimensions: that it must have, 3 or 4.
      num_frames: that a field is fitted to, for the estimate of the memory that takes.
      single_slice: whether one slice may be all there is; of 2 dimensions, it gets a third of 1.
        Further ones of 1 are then left out.

    Raises:
      DataError: if the file is missing, unreadable, of other dimensions, too large for the memory
        of this machine, or holds no usable image.
    """
    check_file(path)
    try:
        kind, stored, header = _read_header(path)
        shape = tuple(int(size) for size in header.get_data_shape())
        # As it is in the file: nibabel turns a voxel size of 0 into 1 mm and takes its sign off.
        spacing = tuple(float(size) for size in stored["pixdim"][1:4])
        slope, offset = float(stored["scl_slope"]), header.get_data_offset()
        dtype, affine = header.get_data_dtype(), header.get_best_affine()
        placed = bool(header["sform_code"] or header["qform_code"])
        unit = OTHER_UNITS.get(int(stored["xyzt_units"]) & 7)
    except Exception as error:  # a damaged header fails in any way
        raise DataError(f"{path}: not a readable NIfTI file ({first_line(error)}).") from error
    if single_slice:
        shape = without_further_ones(shape, dimensions)
    if single_slice and shape[2:] in ((), (1,)):
        shape, spacing = (*shape[:2], 1), of_slice(spacing)
    if len(shape) != dimensions or min(shape) < 1:
        raise DataError(f"{path}: expected {dimensions} dimensions, found shape {shape}.")
    if unit:
        raise DataError(f"{path}: its lengths are in {unit}; mm would be right.")
    _check_geometry(str(path), shape, spacing, single_slice)
    _check_memory(path, shape, num_frames)
    if math.isinf(slope):  # which nibabel takes for none; NaN is how it writes that
        raise DataError(f"{path}: scl_slope must be finite, found {slope}.")
    if dtype.kind not in "iuf":
        raise DataError(f"{path}: holds {dtype}; real numbers would be right.")
    _check_affine(str(path), affine)
    if offset > MAX_OFFSET:
        raise DataError(
            f"{path}: vox_offset is {offset}; voxels that begin within the first {MAX_OFFSET} "
            "bytes would be right."
        )
    try:
        contents = _read_to_the_end(path, offset + math.prod(shape) * dtype.itemsize)
        with np.errstate(over="ignore"):  # of what is not finite in float32; see below
            data = np.asarray(kind.from_bytes(contents).get_fdata(dtype=np.float32))
    except Exception as error:  # and so do damaged data
        raise DataError(f"{path}: not a readable NIfTI file ({first_line(error)}).") from error
    _check_finite(str(path), data)
    return Volume(data.reshape(shape), spacing, affine, placed)


def without_further_ones(shape: tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """A shape without the ones at its end that are beyond so many dimensions."""
    while len(shape) > dimensions and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def of_slice(sizes: Sequence) -> tuple[float, float, float]:
    """Voxel sizes of a slice, of which it may have no third: it is as thick as it is wide."""
    x, y, *z = map(float, sizes)
    return x, y, (z[0] if z and z[0] else max(x, y))


def check_volume(name: str, volume: Volume) -> None:
    """Raises DataError for an image, of one slice maybe, that no field can be fitted to."""
    if volume.data.ndim not in (3, 4) or min(volume.data.shape) < 1:
        raise DataError(f"{name}: expected 2 or 3 dimensions, found shape {volume.data.shape}.")
    _check_geometry(name, volume.data.shape, volume.spacing, single_slice=True)
    _check_affine(name, volume.affine)
    _check_finite(name, volume.data)


def _check_affine(name: str, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        found = np.asarray(affine, float).tolist()
        raise DataError(f"{name}: the affine must be finite and invertible, found {found}.")


def _check_finite(name: str, data: np.ndarray) -> None:
    if not np.isfinite(data).all():
        raise DataError(
            f"{name}: {int((~np.isfinite(data)).sum())} voxels are not finite; "
            "a number for each, such as 0, would be right."
        )


def _read_header(path: Path) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header, nib.Nifti1Header]:
    """The kind of image that a file holds, and its header as it is stored and as nibabel mends it;
    without extensions, which may claim any length.

    Raises:
      ValueError: if there is none.
    """
    with _opened(path) as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class
        if header.may_contain_header(start):
            block = start[: header.sizeof_hdr]
            if header(block, check=False)["magic"].item().startswith(b"ni"):
                raise ValueError("a pair of .hdr and .img; one file .nii or .nii.gz would be right")
            return kind, header(block, check=False), header(block)
    raise ValueError("no NIfTI header; a file .nii or .nii.gz, as dcm2niix writes, would be right")


def _opened(path: Path):
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_to_the_end(path: Path, size: int) -> bytearray:
    """The file's contents, uncompressed, which must be `size` bytes. Gzip checks them at its end
    only; and what a header claims is not set aside in memory before it is there."""
    contents = bytearray()
    with _opened(path) as file:
        while len(contents) <= size and (piece := file.read(2**20)):
            contents += piece
    if len(contents) != size:
        there = "more" if len(contents) > size else str(len(contents))
        raise ValueError(f"its header says {size} bytes, there are {there}")
    return contents


def _check_geometry(
    path: str, shape: tuple[int, ...], spacing: tuple[float, ...], single_slice: bool
) -> None:
    """Raises DataError for a grid that no field can be fitted to, before it is read."""
    if min(shape[:2]) < SSIM_WINDOW:
        raise DataError(
            f"{path}: slices of {shape[0]} x {shape[1]} voxels are smaller "
            f"than the {SSIM_WINDOW} x {SSIM_WINDOW} window of SSIM."
        )
    if shape[2] < 2 and not single_slice:
        raise DataError(f"{path}: a single slice; a volume of at least 2 would be right.")
    if max(shape[:2]) > MAX_ASPECT * min(shape[:2]):
        raise DataError(
            f"{path}: slices of {shape[0]} x {shape[1]} voxels; one side at most {MAX_ASPECT} "
            "times the other would be right."
        )
    if not all(0 < size < float("inf") for size in spacing):
        raise DataError(f"{path}: the voxel size must be positive, found {spacing} mm.")
    if not MIN_SPACING <= min(spacing) <= max(spacing) <= MAX_SPACING:
        raise DataError(
            f"{path}: voxels of {spacing} mm; {MIN_SPACING} to {MAX_SPACING} mm would be right."
        )
    if max(spacing) > MAX_SPACING_RATIO * min(spacing):
        raise DataError(
            f"{path}: voxels of {spacing} mm; one side at most {MAX_SPACING_RATIO} times another "
            "would be right."
        )


def _check_memory(path: Path, shape: tuple[int, ...], num_frames: int) -> None:
    """Raises DataError for a volume that this machine cannot hold, before it is read."""
    needed = math.prod(shape) * BYTES_PER_VOXEL_READ
    needed += math.prod(shape[:3]) * num_frames * BYTES_PER_VOXEL
    available = memory_of_machine()
    if needed > available:
        raise DataError(
            f"{path}: {' x '.join(map(str, shape))} voxels need about {needed / 1e9:.1f} GB, this "
            f"machine has {available / 1e9:.1f} GB; a crop of it would be right."
        )


def memory_of_machine() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(machine, int(text)) if text.isdigit() else machine


def collect(faults: list[str], function, *arguments):
    """What the function returns or, if it finds faults, None. What it did not foresee, such as a
    file that may not be read, is a fault of the file or folder that it was given."""
    try:
        return function(*arguments)
    except DataError as error:
        lines = str(error).splitlines()
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        lines = [f"{arguments[0]}: cannot be read ({first_line(error)})."]
    faults += [line for line in lines if line not in faults]
    return None
