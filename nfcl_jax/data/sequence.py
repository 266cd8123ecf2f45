"""The scans of a table: each patient's on one grid, with what is to be learned of them in turn."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.data import sources
from nfcl_jax.data.compared import KINDS, in_order, named
from nfcl_jax.data.grids import Placed, described_grid, grid_of_record, resampled, same_grid
from nfcl_jax.data.table import File, Row, read_table
from nfcl_jax.data.things import (
    Found,
    Range,
    Thing,
    colours_of,
    described,
    heads_of,
    images_of,
    labels_of,
    refuse_coarse,
    tasks_of_things,
    whole_labels,
)
from nfcl_jax.data.volumes import Volume, collect
from nfcl_jax.errors import ConfigError, DataError
from nfcl_jax.scan import ONLY, Scan, range_of
from nfcl_jax.scenarios import Head, Task


class Case(NamedTuple):
    """What one field is to learn: a scan with the frames of all tasks, and the tasks in order."""

    scan: Scan
    tasks: tuple[Task, ...]


class Cases(NamedTuple):
    """What `read_cases` found: a case of each patient without faults; the faults of the others,
    one line each."""

    cases: list[Case]
    faults: dict[str, list[str]]


class Reading(NamedTuple):
    """How the files of a table are read.

    Attributes:
      time_range: the times that are -1 and 1 for a field.
      resample: whether images on another grid than the patient's first one are resampled to it.
    """

    time_range: Range | None = None
    resample: bool = False


class Known(NamedTuple):
    """What was learned of a patient before, whose files may be gone: the patient's record in
    patients.json, and the tasks."""

    record: Mapping[str, Any]
    tasks: tuple[Task, ...]


def read_cases(path: Path, reading: Reading, known: Mapping[str, Known] = {}) -> Cases:
    """What each patient's field is to learn, by a table, see `table`.

    Frames are numbered in the order in which they are learned, and so are the channels of the
    output. Each image is scaled to [0, 1] by the range of its whole file. Where a file is gone
    whose row was `known` before, the scan has zeros and says that it is missing.

    Raises:
      DataError: if the table has faults itself.
    """
    cases, faults = [], {}
    patients: dict[str, list[Row]] = {}
    table = read_table(path)
    times = [row.time for row in table if row.time is not None]
    lacking = times and reading.time_range is None
    if lacking:  # the other faults are found nevertheless
        reading = reading._replace(time_range=(min(times) - 1, max(times) + 1))
    for row in table:
        patients.setdefault(row.patient, []).append(row)
    for patient, rows in patients.items():
        own = read_case(rows, reading, known.get(patient), f"{path}, line ")
        cases += own.cases
        faults |= own.faults
    if lacking:
        first = (
            f"{path}: has times, which need --config.data.time_range=0,730 (with other ends; of "
            "check_data --time_range)."
        )
        raise DataError("\n".join([first, *(line for own in faults.values() for line in own)]))
    return Cases(cases, faults)


def read_case(rows: Sequence[Row], reading: Reading, known: Known | None, where: str = "") -> Cases:
    """The same for the rows of one patient. Faults begin with `where` and the line or, if it is
    empty, with the file."""
    reader = _Reader(where, reading, known)
    case = reader.case(in_order(rows, known.record["rows"] if known else []))
    return Cases([case], {}) if case else Cases([], {rows[0].patient: reader.faults})


def time_range_of(words: str) -> tuple[float, float] | None:
    """The two times of a flag such as "0,730"; None if it is empty.

    Raises:
      ConfigError: if it is anything else.
    """
    try:
        ends = tuple(float(word) for word in words.split(",")) if words else None
        if ends and not (len(ends) == 2 and -1e30 < ends[0] < ends[1] < 1e30):
            raise ValueError(words)
    except ValueError as error:
        raise ConfigError(
            f"time_range must be two numbers, the smaller one first, such as 0,730, or empty; got "
            f"{words!r}."
        ) from error
    return ends


class _Reader:
    """Reads one patient's files, and gathers their faults."""

    def __init__(self, where: str, reading: Reading, known: Known | None):
        self.where, self.reading, self.known, self.faults = where, reading, known, []
        self.digest = functools.cache(sources.digest)
        self.volume = functools.lru_cache(maxsize=2)(sources.read)  # rows of a cine come together
        self.grid: tuple[str, Volume] | None = None
        self.placed: Placed | None = None  # the first that is, if that one is not
        if known:
            self.grid = "what was learned", grid_of_record(known.record)
            later = known.record.get("placed_at", {})
            if later.get("task", len(known.tasks) + 1) <= len(known.tasks):
                spacing = later.get("spacing", self.grid[1].spacing)
                place = tuple(spacing), np.array(later["affine"], float)
                volume = Volume(self.grid[1].data, *place, placed=True)
                self.placed = Placed("what was learned", volume, later["task"])

    def case(self, rows: Sequence[Row]) -> Case | None:
        """What the field is to learn by rows in their order; None if there are faults."""
        frames = {time: n for n, time in enumerate(dict.fromkeys(row.time for row in rows))}
        times, things = self.times(rows, frames), list(self.things(rows, frames))
        read = {thing.place: self.found(thing) for thing in things if not thing.is_gone}
        found = {place: own for place, own in read.items() if own}
        before = self.known.tasks if self.known else ()
        # Without the first of its name, which cannot be read, there is nothing to compare with.
        firsts = {thing.name: thing for thing in reversed(things)}
        usable = {name for name, own in firsts.items() if own.is_gone or own.place in found}
        usable |= {lesson.head.name for task in before for lesson in task.lessons}
        there = [own for own in things if own.is_gone or own.place in found]
        things = [own for own in there if own.name in usable]
        colours = colours_of(things, found, before, self.fault)
        labels = labels_of(things, found, before, self.fault)
        images, ranges = images_of(things, found, self.fault)
        if self.faults:
            return None
        heads = heads_of(things, labels, colours)
        values = {
            name: _nothing((len(frames), *self.grid[1].data.shape[:3]), head)
            for name, head in heads.items()
        }
        for place, own in found.items():
            name, frame = place
            is_mask = heads[name].kind == "mask"
            values[name][frame] = (
                np.searchsorted(labels[name], own.data) if is_mask else images[place]
            )
        patient, _, image = rows[0].patient.partition("/")
        scan = Scan(
            patient=patient,
            image=image or ONLY,
            values=values,
            frame_numbers=tuple(range(1, len(frames) + 1)),
            spacing=self.grid[1].spacing,
            affine=self.grid[1].affine,
            times=times,
            missing=frozenset(thing.place for thing in things if thing.is_gone),
            source={
                "rows": [described(row, things, ranges, self.digest) for row in rows],
                "placed": self.grid[1].placed,
                **(self.placed.described() if self.placed else {}),
            },
        )
        return Case(scan, tasks_of_things(things, heads))

    def fault(self, row: Row, what: str) -> None:
        self.faults.append(f"{self.where}{row.line}: {what}" if self.where else what)

    def times(self, rows: Sequence[Row], frames: Iterable[float | None]):
        """Of the frames, in [-1, 1]; None if the rows have none."""
        if None in frames:
            return None
        if self.reading.time_range is None:
            self.fault(rows[0], "times need a time_range, such as 0,730.")
            return None
        low, high = self.reading.time_range
        for row in rows:
            if not low <= row.time <= high:
                self.fault(
                    row, f"time {row.time:.15g} is beyond the time_range {low:.15g},{high:.15g}."
                )
        # Rounded as `points.index_to_coords` has equidistant frames.
        scale = np.float32(high - low)
        places = {
            time: float(np.float32(2) * np.float32(time - low) / scale - np.float32(1))
            for time in frames
        }
        if len(set(places.values())) < len(places):
            self.fault(
                rows[0],
                f"times are too close together for a field, to which {low:g} is -1 and {high:g} is "
                "1 in float32; a smaller time_range would be right.",
            )
        return tuple(places.values())

    def things(self, rows: Sequence[Row], frames: Mapping[float | None, int]) -> Iterator[Thing]:
        """What the rows teach."""
        before = {
            (old["task"], old["time"], kind, old[kind]["name"], old[kind]["frame"]): old[kind]
            for old in (self.known.record["rows"] if self.known else [])
            for kind in KINDS
            if kind in old
        }
        for row in rows:
            for name, file in row.things:
                is_mask = file is row.mask
                kind = "mask" if is_mask else "image"
                stored = before.get((row.task, row.time, kind, name, file.frame))
                yield Thing(row, file, name, is_mask, frames[row.time], stored)

    def found(self, thing: Thing) -> Found | None:
        faults: list[str] = []
        read = collect(faults, self.on_grid, thing.file, thing.is_mask, thing.row.task)
        task, records = thing.row.task, self.known.record["rows"] if self.known else []
        learned = [named(row) for row in records if row["task"] == task]
        hint = ""
        if learned and not thing.known and not thing.file.is_there:
            hint = f" The row was another one when it was learned: {' and '.join(learned)}."
        if read and not (thing.is_mask or thing.known):
            collect(faults, refuse_coarse, thing.file, read.data)
        for fault in faults:
            self.fault(thing.row, fault + hint)
        return read

    def on_grid(self, file: File, is_mask: bool, task: int) -> Found:
        """A file, or a frame of it."""
        try:
            volume = self.volume(file.path, 4 if file.frame else 3, is_mask)
        except DataError as error:
            _, _, shape = str(error).partition("dimensions, found shape ")
            hint = ""
            if file.frame and shape.count(",") == 2:
                hint = f" The file without #{file.frame} would be right."
            elif not file.frame and shape.count(",") == 3:
                hint = " A frame of it would be file.nii.gz#1."
            raise DataError(f"{error}{hint}") from error
        whole = volume.range or range_of(volume.data)
        if file.frame:
            count = volume.data.shape[3]
            if file.frame > count:
                raise DataError(f"{file.path}: has {count} frames, frame {file.frame} is wanted.")
            frame = volume.data[..., file.frame - 1].copy()  # and not all of them
            volume = Volume(frame, volume.spacing, volume.affine, volume.placed)
        if is_mask:
            volume = dataclasses.replace(volume, data=whole_labels(volume.data))
        if not is_mask and volume.data.min() == volume.data.max():
            raise DataError(f"{file}: every voxel is {volume.data.min():g}, nothing to fit.")
        if self.grid is None:
            self.grid = str(file), volume
        for other, first in [self.grid, *([self.placed[:2]] if self.placed else [])]:
            if not same_grid(volume, first):
                if self.reading.resample:
                    return Found(resampled(str(file), volume, other, first, is_mask), whole)
                raise DataError(
                    f"{file}: {described_grid(volume)}; {other} has {described_grid(first)}. One "
                    "grid, or resample=True (--config.data.resample; of volumes), would be right."
                )
        if volume.placed and not self.grid[1].placed and self.placed is None:
            self.placed = Placed(str(file), volume, task)
        return Found(volume.data, whole)


def _nothing(shape: tuple[int, ...], head: Head) -> np.ndarray:
    if head.kind == "mask":
        return np.zeros(shape, np.uint8)
    return np.zeros(shape + (head.num_channels,) * (head.num_channels > 1), np.float32)
