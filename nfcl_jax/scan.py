"""One image that one field is fitted to, and the scaling of its intensities."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nfcl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Unread:
    """Stands for values that are not in memory; only their shape and type are known."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, *_, **__):
        raise RuntimeError("values that are not in memory; Scan.read has them.")


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image that one field is fitted to.

    Attributes:
      patient: the patient's name, such as "patient001".
      image: which image of the patient: "cine", "ED" or "ES" of ACDC's.
      values: what a head is to answer, by its name, (frames, x, y, z): float32 in [0, 1] of an
        image, uint8 classes of a mask; one frame for ED and ES. A colour image has its three
        colours along a fifth axis. A z of one voxel is no coordinate of the field.
      frame_numbers: the frames' numbers in the 4D scan, from 1; in a table, in their order.
      spacing: voxel size along x, y and z, in mm.
      affine: voxel indices to scanner coordinates, 4 x 4, in mm.
      intensity_range: what 0 and 1 stand for, in the file's values.
      cine_range: () -> the smallest and the largest of the patient's whole cine, likewise, or None
        where there is none. It is asked only where the intensities are to be scaled by it.
      warnings: what should be known of its files, a line each.
      times: of the frames, in [-1, 1]; None where they are equidistant, from -1 to 1.
      missing: heads and frames whose values are not there, since their files are gone.
      reader: () -> the scan with its values, which are not in memory then; None where they are.
      source: of a table's scan, what it was read from, for patients.json. Its scores are told apart
        by the names of heads, not by `image`.
    """

    patient: str
    image: str
    values: Mapping[str, np.ndarray | Unread]
    frame_numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: np.ndarray
    intensity_range: tuple[float, float] = (0.0, 1.0)
    cine_range: Callable[[], tuple[float, float] | None] = lambda: None
    warnings: tuple[str, ...] = ()
    times: tuple[float, ...] | None = None
    missing: frozenset[tuple[str, int]] = frozenset()
    reader: Callable[[], "Scan"] | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def unread(self, reader: Callable[[], "Scan"]) -> "Scan":
        """The same without its values, which `reader` reads again."""
        hollow = {name: Unread(own.shape, own.dtype) for name, own in self.values.items()}
        scan = dataclasses.replace(self, values=hollow, reader=reader)
        scan.__dict__["sha256"] = self.sha256  # where cached_property looks
        return scan

    def read(self) -> "Scan":
        """The scan with its values in memory.

        Raises:
          DataError: if they are others than before, or cannot be read.
        """
        if self.reader is None:
            return self
        scan = self.reader()
        if scan.sha256 != self.sha256:
            raise DataError(f"{self.name}: its files changed while the run was at work.")
        return scan

    @property
    def intensities(self) -> np.ndarray | Unread:
        """Of the image of ACDC's scans."""
        return self.values["image"]

    @property
    def labels(self) -> np.ndarray | Unread | None:
        """Of the mask of ACDC's scans, or None where no task needs them."""
        return self.values.get("mask")

    def label(self, head: str) -> str:
        """What tables call the image of a head's scores."""
        return head if self.source else self.image

    def lacks(self, lesson) -> bool:
        """Whether values of a lesson are missing."""
        return any((lesson.head.name, frame) in self.missing for frame in lesson.frames)

    @property
    def name(self) -> str:
        return f"{self.patient}/{self.image}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of coordinates: (frame, x, y, z) of a cine, (x, y, z) of a single frame without
        a time."""
        shape = self._any_values.shape[:4]
        return shape[1:] if self.times is None and shape[0] == 1 else shape

    @functools.cached_property
    def sha256(self) -> str:
        """Of the values, head by head."""
        state = hashlib.sha256()
        for values in self.values.values():
            state.update(np.ascontiguousarray(values))
        return state.hexdigest()

    @property
    def num_frames(self) -> int:
        return self._any_values.shape[0]

    @property
    def num_voxels(self) -> int:
        """Voxels of one frame."""
        return math.prod(self._any_values.shape[1:4])

    @property
    def _any_values(self) -> np.ndarray | Unread:
        return next(iter(self.values.values()))


ONLY = "scan"  # the image of a patient of a table who has one field


def name_in_table(patient: str, image: str) -> str:
    """What a table calls whose field it is."""
    return patient if image == ONLY else f"{patient}/{image}"


def is_name(patient: str) -> bool:
    """Whether a patient may have this name: it becomes a part of paths, of JSON and of pages."""
    # Bytes that are no UTF-8 are surrogates, which cannot be written.
    good = r"[^/\\\x00-\x1f\ud800-\udfff]+"
    return bool(re.fullmatch(good, patient)) and not patient.startswith(".")


def equidistant_frames(num_available: int, num_frames: int) -> tuple[int, ...]:
    """Frame numbers, from 1: the first, the last and those nearest to equal steps between.

    Raises:
      ValueError: if there are fewer frames than wanted.
    """
    if num_available < num_frames:
        raise ValueError(f"{num_frames} frames are wanted, the scan has {num_available}.")
    return tuple(int(f) + 1 for f in np.floor(np.linspace(0, num_available - 1, num_frames) + 0.5))


def range_of(image: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value."""
    return float(image.min()), float(image.max())


def scale_intensities(image: np.ndarray) -> np.ndarray:
    """`image` scaled by its minimum and maximum to [0, 1], as float32."""
    low, high = range_of(image)
    # In double precision: the range of float32 values may be beyond float32.
    return ((image - np.float64(low)) / (high - low)).astype(np.float32)


def scaled_by_cine(scan: Scan) -> Scan:
    """The scan with 0 and 1 at the ends of the patient's whole cine, or at its own where those are
    further out; unchanged where there is no cine.

    Raises:
      DataError: if the cine cannot be read.
    """
    own, cine = scan.intensity_range, scan.cine_range()
    if cine is None:
        return scan
    wider = min(own[0], cine[0]), max(own[1], cine[1])
    scaled = {"image": rescaled(scan.intensities, own, wider)}
    return dataclasses.replace(scan, values={**scan.values, **scaled}, intensity_range=wider)


def rescaled(
    intensities: np.ndarray, own: tuple[float, float], wider: tuple[float, float]
) -> np.ndarray:
    """Intensities whose 0 and 1 are the ends of one range, by those of a wider one."""
    low, high = wider
    values = intensities * np.float64(own[1] - own[0]) + (own[0] - low)
    return (values / (high - low)).astype(np.float32)
