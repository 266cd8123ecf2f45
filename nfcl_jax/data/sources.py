"""What a row of a table names: a NIfTI file, a picture, or an image in memory."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image, ImageOps

from nfcl_jax.data.volumes import (
    OTHER_UNITS,
    Volume,
    check_file,
    check_volume,
    of_slice,
    read_volume,
    without_further_ones,
)
from nfcl_jax.errors import DataError, first_line

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
BITS_PER_SAMPLE = 258  # among the tags of TIFF
GREY = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F")  # Pillow's modes


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """An image in the place of a file's path. `volume` is None where it is kept no longer."""

    name: str
    volume: Volume | None = None

    def __str__(self) -> str:
        return self.name

    def exists(self) -> bool:
        return self.volume is not None


Source = Path | InMemory


def read(source: Source, dimensions: int, is_mask: bool = False) -> Volume:
    """The image of a source; a single slice has one voxel along z.

    Args:
      source: where it is.
      dimensions: that a NIfTI file must have, 3 or 4.
      is_mask: whether it holds labels: those of a picture with a palette are its places.

    Raises:
      DataError: if it cannot be used.
    """
    if isinstance(source, InMemory):
        return source.volume
    if source.suffix.lower() not in PICTURES:
        return read_volume(source, dimensions, single_slice=True)
    if dimensions != 3:
        raise DataError(f"{source}: a picture has no frames; the name alone would be right.")
    check_file(source)
    try:
        with Image.open(source) as picture:
            _refuse_in_part(picture, str(source))
            picture.load()
    except DataError:
        raise
    except Exception as error:  # of any kind, as the damage may be
        raise DataError(f"{source}: not a readable picture ({first_line(error)}).") from error
    return volume_of_picture(picture, str(source), is_mask)


def is_lossy(source: Source) -> bool:
    """Whether a file has other values than it was written from."""
    return isinstance(source, Path) and source.suffix.lower() in (".jpg", ".jpeg")


def digest(source: Source) -> str:
    """SHA-256 of a file, or of the voxels in memory."""
    if isinstance(source, InMemory):
        voxels = np.ascontiguousarray(source.volume.data)
        kind = f"{voxels.dtype} {voxels.shape}".encode()
        return hashlib.sha256(kind + voxels.tobytes()).hexdigest()
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _refuse_in_part(picture: Image.Image, name: str) -> None:
    """Raises DataError for a picture of which Pillow would read a part: the first of several, or 8
    bits of several values of 16. It must not be loaded yet; afterwards nothing tells those."""
    if (pages := getattr(picture, "n_frames", 1)) > 1:
        raise DataError(f"{name}: holds {pages} pictures; a file for each would be right.")
    stored = str([tile[3] for tile in getattr(picture, "tile", [])])  # such as "RGB;16B"
    bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
    wide = max(np.atleast_1d(bits)) > 8 or re.search(";16[BLN]", stored)
    if len(picture.getbands()) > 1 and wide:
        raise DataError(
            f"{name}: its pixels have several values of 16 bits; values of 8 bits, or one of 16, "
            "would be right."
        )


def volume_of_picture(picture: Image.Image, name: str, is_mask: bool = False) -> Volume:
    """A picture as a single slice with pixels of 1 mm: x to the right, y downwards, its colours, if
    it has any, along a fourth axis. 0 and 1 are the ends of its type, as 0 and 255.

    Raises:
      DataError: if it has transparent pixels or other colours than red, green and blue, or is too
        small.
    """
    picture = ImageOps.exif_transpose(picture)  # as cameras mean it
    if picture.mode == "P" and is_mask:
        picture = Image.fromarray(np.asarray(picture))
    if picture.mode in ("P", "PA"):
        colours = picture.convert("RGBA")
        grey = all(len(set(colour[:3])) == 1 for _, colour in colours.getcolors(2**24))
        picture = colours.convert("LA") if grey else colours
    if picture.mode in ("LA", "RGBA"):
        if picture.getchannel("A").getextrema()[0] < 255:
            raise DataError(f"{name}: has transparent pixels; none would be right.")
        picture = picture.convert(picture.mode[:-1])
    if picture.mode not in (*GREY, "RGB"):
        raise DataError(f"{name}: its colours are {picture.mode}; RGB or grey would be right.")
    pixels = np.asarray(picture)
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else None
    if pixels.dtype == bool:
        largest = 1
    data = np.moveaxis(pixels, 0, 1)[:, :, None].astype(np.float32)
    volume = Volume(
        data, (1.0, 1.0, 1.0), np.eye(4), placed=False, range=largest and (0.0, float(largest))
    )
    check_volume(name, volume)
    return volume


def is_array(image: Any) -> bool:
    """Whether an image is neither a path nor one that knows its own voxel size."""
    others = str | Path | Image.Image | nib.spatialimages.SpatialImage
    return image is not None and not isinstance(image, others)


def in_memory(
    image: Any,
    name: str,
    spacing: Any = None,
    colour: bool | None = None,
    is_mask: bool = False,
) -> InMemory:
    """An image that a caller has.

    Args:
      image: a numpy array (x, y) or (x, y, z), of a colour image (x, y, 3); a nibabel image, or a
        Pillow picture.
      name: for messages.
      spacing: voxel size of an array along its axes, in mm; 1 if None.
      colour: whether an array's last axis of three are colours; it must be said of such an array.
      is_mask: as for `read`.

    Raises:
      DataError: if it cannot be used.
    """
    if isinstance(image, Image.Image):
        _refuse_in_part(image, name)
        return InMemory(name, volume_of_picture(image, name, is_mask))
    if isinstance(image, nib.spatialimages.SpatialImage):
        volume = _volume_of_nibabel(image, name)
    else:
        volume = _volume_of_array(np.asanyarray(image), name, spacing, colour)
    check_volume(name, volume)
    return InMemory(name, volume)


def _volume_of_nibabel(image: Any, name: str) -> Volume:
    shape, header = without_further_ones(image.shape, 3), image.header
    shape += (1,) * (len(shape) == 2)
    if len(shape) != 3:
        raise DataError(
            f"{name}: shape {image.shape}; one frame, such as image.slicer[..., 0], would be right."
        )
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{name}: holds {image.get_data_dtype()}; real numbers would be right.")
    placed = True
    if isinstance(header, nib.Nifti1Header):
        placed = bool(header["sform_code"] or header["qform_code"])
        if unit := OTHER_UNITS.get(int(header["xyzt_units"]) & 7):
            raise DataError(f"{name}: its lengths are in {unit}; mm would be right.")
    # A copy: nibabel's may be a view of what the caller writes to later.
    voxels = np.array(image.get_fdata(dtype=np.float32)).reshape(shape)
    sizes = header.get_zooms()[: min(len(image.shape), 3)]
    sizes = of_slice(sizes) if shape[2] == 1 else tuple(map(float, sizes))
    if image.affine is None:
        return Volume(voxels, sizes, np.diag([*sizes, 1.0]), False)
    return Volume(voxels, sizes, np.array(image.affine), placed)


def _volume_of_array(array: np.ndarray, name: str, spacing: Any, colour: bool | None) -> Volume:
    if np.ma.is_masked(array):
        raise DataError(f"{name}: some of its values are masked; filled ones would be right.")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {array.dtype}; real numbers would be right.")
    if array.ndim == 3 and array.shape[2] == 3 and colour is None:
        raise DataError(
            f"{name}: shape {array.shape} may be a colour image or a volume of "
            f"3 slices; colour=True or colour=False would be right."
        )
    if array.ndim not in (2, 3) or (colour and array.shape[2:] != (3,)):
        wanted = "(x, y, 3)" if colour else "(x, y) or (x, y, z)"
        raise DataError(f"{name}: shape {array.shape}; {wanted} would be right.")
    if array.ndim == 2 or colour:
        array = array[:, :, None]
    flat = array.shape[2] == 1
    if spacing is None:
        spacing = (1.0,) * 3
    try:
        sizes = np.asarray(spacing, float)
    except (TypeError, ValueError):
        sizes = np.array(np.nan)
    if sizes.shape not in (((2,), (3,)) if flat else ((3,),)) or np.isnan(sizes).any():
        raise DataError(f"{name}: spacing {spacing!r}; a number for each axis would be right.")
    sizes = of_slice(spacing) if flat else tuple(map(float, spacing))
    with np.errstate(over="ignore"):
        voxels = np.array(array, np.float32)
    bytes_of_colour = (0.0, 255.0) if colour and array.dtype == np.uint8 else None
    return Volume(voxels, sizes, np.diag([*sizes, 1.0]), False, bytes_of_colour)
