"""The scans of a table: each patient's on one grid, with what is to be learned of them in turn."""

import collections
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.processing import resample_from_to

from nfcl_jax.data.table import File, Row, read_table
from nfcl_jax.data.volumes import Volume, collect, corner_distance, read_volume
from nfcl_jax.errors import DataError
from nfcl_jax.scan import Scan, range_of, rescaled, scale_intensities
from nfcl_jax.scenarios import Head, Lesson, Task, image_head, mask_head

MAX_LABELS = 64  # of a mask; more are an image
MAX_CHANGE = 10.0  # of the width of a channel's range, from a patient's first image to another
SAME_PLACE = 0.5  # of a voxel, between the corners of two grids


class Case(NamedTuple):
    """What one field is to learn: a scan with the frames of all tasks, and the tasks in order."""

    scan: Scan
    tasks: tuple[Task, ...]


class Cases(NamedTuple):
    """What `read_cases` found: a case of each patient without faults; the faults of the others,
    one line each; and what should be known of the cases."""

    cases: list[Case]
    faults: dict[str, list[str]]
    warnings: list[str]


class Reading(NamedTuple):
    """How the files of a table are read.

    Attributes:
      time_range: the times that are -1 and 1 for a field.
      resample: whether images on another grid than the patient's first one are resampled to it.
      huber_delta: of the images' loss.
    """

    time_range: tuple[float, float] | None = None
    resample: bool = False
    huber_delta: float = 1.0


def read_cases(path: Path, reading: Reading) -> Cases:
    """What each patient's field is to learn, by a table, see `table`.

    Frames are numbered in the order in which they are learned, and so are the channels of the
    output. Each image is scaled to [0, 1] by the range of its whole file.

    Raises:
      DataError: if the table has faults itself.
    """
    found = Cases([], {}, [])
    patients: dict[str, list[Row]] = {}
    for row in read_table(path):
        patients.setdefault(row.patient, []).append(row)
    for patient, rows in patients.items():
        own = _Patient(path, sorted(rows, key=lambda row: (row.task, row.line)), reading)
        case = own.case()
        if own.faults:
            found.faults[patient] = own.faults
        else:
            found.cases.append(case)
            found.warnings.extend(own.warnings)
    return found


class _Patient:
    """One patient's rows, in the order in which they are learned, while their files are read."""

    def __init__(self, table: Path, rows: Sequence[Row], reading: Reading):
        self.table, self.rows, self.reading = table, rows, reading
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.grid: tuple[File, Volume] | None = None
        self.frames = {time: n for n, time in enumerate(dict.fromkeys(row.time for row in rows))}
        self.digests = functools.cache(lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
        self.volumes = functools.lru_cache(maxsize=2)(read_volume)  # rows of a cine come together

    def case(self) -> Case | None:
        """What the field is to learn, or None if there are faults."""
        times = self._times()
        images, masks = self._read()
        if self.faults:
            return None
        values, ranges = self._scaled(images)
        labels = self._labels(masks)
        if self.faults:
            return None
        for name, by_frame in masks.items():
            values[name] = {
                frame: np.searchsorted(labels[name], data).astype(np.uint8)
                for frame, data in by_frame.items()
            }
        patient, _, image = self.rows[0].patient.partition("/")
        _, first = self.grid
        scan = Scan(
            patient=patient,
            image=image or "scan",
            values={name: self._stacked(by_frame) for name, by_frame in values.items()},
            frame_numbers=tuple(range(1, len(self.frames) + 1)),
            spacing=first.spacing,
            affine=first.affine,
            warnings=tuple(self.warnings),
            times=times,
            source={"rows": [self._described(row, ranges) for row in self.rows]},
        )
        return Case(scan, self._tasks(images, labels))

    def _described(self, row: Row, ranges) -> dict[str, Any]:
        """What is kept of a row: enough to tell whether it is the same, and what 0 and 1 stand for
        in its image."""
        described: dict[str, Any] = {"task": row.task, "time": row.time}
        for name, file in row.things:
            kind = "mask" if file is row.mask else "image"
            described[kind] = {"name": name, "frame": file.frame, "sha256": self.digests(file.path)}
        if row.image:
            described["image"]["range"] = ranges[row.channel, self.frames[row.time]]
        return described

    def _fault(self, row: Row, what: str) -> None:
        self.faults.append(f"{self.table}, line {row.line}: {what}")

    def _times(self) -> tuple[float, ...] | None:
        """Of the frames, in [-1, 1]."""
        if None in self.frames:
            return None
        if self.reading.time_range is None:
            self._fault(self.rows[0], "times need a time_range, such as 0,730.")
            return None
        low, high = self.reading.time_range
        for row in self.rows:
            if not low <= row.time <= high:
                self._fault(row, f"time {row.time:g} is beyond the time_range {low:g},{high:g}.")
        # Rounded as `points.index_to_coords` has equidistant frames.
        scale = np.float32(high - low)
        return tuple(
            float(np.float32(2.0) * np.float32(time - low) / scale - np.float32(1.0))
            for time in self.frames
        )

    def _read(self):
        """Images, with the range of their file, and masks, by name and frame."""
        images = collections.defaultdict(dict)
        masks = collections.defaultdict(dict)
        for row in self.rows:
            for name, file in row.things:
                is_mask, faults = file is row.mask, []
                read = collect(faults, self._on_grid, file, is_mask)
                for fault in faults:
                    self._fault(row, fault)
                if read is None:
                    continue
                data, whole = read
                if is_mask:
                    masks[name][self.frames[row.time]] = data
                else:
                    images[name][self.frames[row.time]] = row, data, whole
        return images, masks

    def _on_grid(self, file: File, is_mask: bool) -> tuple[np.ndarray, tuple[float, float]]:
        """A file's voxels on the patient's grid, and the range of the whole file."""
        path, frame = file
        volume = self.volumes(path, 4 if frame else 3)
        whole = range_of(volume.data)
        if frame:
            count = volume.data.shape[3]
            if frame > count:
                raise DataError(f"{path}: frame {frame} of {count}; one of them would be right.")
            volume = Volume(
                volume.data[..., frame - 1], volume.spacing, volume.affine, volume.placed
            )
        if not is_mask and volume.data.min() == volume.data.max():
            raise DataError(f"{file}: every voxel is {volume.data.min():g}; nothing to fit.")
        if self.grid is None:
            self.grid = file, volume
            return volume.data, whole
        other, first = self.grid
        if same_grid(volume, first):
            return volume.data, whole
        if not self.reading.resample:
            raise DataError(
                f"{file}: {_grid(volume)}, but {other} has {_grid(first)}; one grid, or resample, "
                "would be right."
            )
        moved = resample_from_to(
            (volume.data, volume.scanner_affine),
            (first.data.shape, first.scanner_affine),
            order=0 if is_mask else 1,
        )
        return np.asarray(moved.dataobj, np.float32), whole

    def _scaled(self, images):
        """Each image by the range of its file, and the ranges; those of one file have theirs
        together, which is how a cine is scaled."""
        values, ranges = collections.defaultdict(dict), {}
        for name, by_frame in images.items():
            files = collections.defaultdict(list)
            for frame, (row, data, whole) in by_frame.items():
                files[row.image.path].append((frame, row, data, whole))
            first = None
            for own in files.values():
                stack, (_, row, _, whole) = np.stack([data for _, _, data, _ in own]), own[0]
                scaled = scale_intensities(stack)
                if row.image.frame:
                    scaled = rescaled(scaled, range_of(stack), whole)
                first = first or (row, whole)
                self._compare(name, row, whole, *first)
                for (frame, *_), image in zip(own, scaled, strict=True):
                    values[name][frame], ranges[name, frame] = image, whole
        return values, ranges

    def _compare(self, name, row, whole, first_row, first) -> None:
        ratio = np.ptp(whole) / np.ptp(first)
        if not 1 / MAX_CHANGE <= ratio <= MAX_CHANGE:
            self._fault(
                row,
                f"{row.image}: {name} from {whole[0]:g} to {whole[1]:g}, but {first_row.image} has "
                f"it from {first[0]:g} to {first[1]:g}; one scale, or another channel, would be "
                "right.",
            )

    def _labels(self, masks) -> dict[str, np.ndarray]:
        """The labels of each mask: those of its first file."""
        labels: dict[str, np.ndarray] = {}
        for row in self.rows:
            data = masks.get(row.mask_name, {}).get(self.frames[row.time]) if row.mask else None
            if data is None:
                continue
            found = np.unique(data)
            if (found != np.rint(found)).any():
                self._fault(row, f"{row.mask}: labels must be whole numbers, found {found[:8]}.")
            elif len(found) > MAX_LABELS:
                self._fault(row, f"{row.mask}: {len(found)} labels; is it an image?")
            elif len(found) == 1:
                self._fault(row, f"{row.mask}: every voxel is {found[0]:g}; nothing to learn.")
            elif not np.isin(found, labels.setdefault(row.mask_name, found)).all():
                known = labels[row.mask_name]
                self._fault(
                    row,
                    f"{row.mask}: label {_listed(np.setdiff1d(found, known))} is not in the first "
                    f"{row.mask_name}, which has {_listed(known)}; another channel would be right.",
                )
        return labels

    def _stacked(self, by_frame: Mapping[int, np.ndarray]) -> np.ndarray:
        """(frames, x, y, z); 0 on frames where this is not learned."""
        some = next(iter(by_frame.values()))
        values = np.zeros((len(self.frames), *some.shape), some.dtype)
        for frame, own in by_frame.items():
            values[frame] = own
        return values

    def _tasks(self, images, labels: Mapping[str, np.ndarray]) -> tuple[Task, ...]:
        heads: dict[str, Head] = {}
        for row in self.rows:
            for name, _ in row.things:
                if name in heads:
                    continue
                channel = max((head.channels.stop for head in heads.values()), default=0)
                if name in images:
                    heads[name] = image_head(self.reading.huber_delta, name, channel)
                else:
                    own = tuple(int(label) for label in labels[name])
                    heads[name] = mask_head(name, channel, len(own), own)
        return tuple(
            self._task([row for row in self.rows if row.task == number], heads)
            for number in range(1, self.rows[-1].task + 1)
        )

    def _task(self, rows: Iterable[Row], heads: Mapping[str, Head]) -> Task:
        frames: dict[str, set[int]] = {}
        for row in rows:
            for name, _ in row.things:
                frames.setdefault(name, set()).add(self.frames[row.time])
        times = dict.fromkeys(row.time for row in rows if row.time is not None)
        when = ", ".join(f"{time:g}" for time in times) if len(times) < 4 else f"{len(times)} times"
        name = " and ".join(frames) + (f" at {when}" if times else "")
        return Task(name, tuple(Lesson(heads[n], tuple(sorted(f))) for n, f in frames.items()))


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape and voxels, and lie together."""
    same = a.data.shape == b.data.shape and np.allclose(a.spacing, b.spacing, rtol=0.01)
    return same and corner_distance(a, b) <= SAME_PLACE * min(a.spacing)


def _listed(labels: np.ndarray) -> str:
    return ", ".join(f"{label:g}" for label in labels)


def _grid(volume: Volume) -> str:
    shape = " x ".join(map(str, volume.data.shape))
    return f"shape {shape} and affine {np.round(volume.scanner_affine, 3).tolist()}"
