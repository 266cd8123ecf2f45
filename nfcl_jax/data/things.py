"""What the rows of a table teach, thing by thing: heads, tasks, values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.data.sources import Source, is_lossy
from nfcl_jax.data.table import File, Row, at_time
from nfcl_jax.errors import DataError
from nfcl_jax.scan import range_of, rescaled, scale_intensities
from nfcl_jax.scenarios import Head, Lesson, Task, image_head, mask_head

LEAST_STEPS = 1000  # that float32 must have from the darkest voxel of an image to the brightest
MAX_LABELS = 64  # of a mask; more are an image
EXACT = 2**24  # beyond, float32 does not tell whole numbers apart
# Of the width of a channel's range, from a patient's first image to another that states none.
MAX_CHANGE = 10.0

Range = tuple[float, float]
Place = tuple[str, int]  # the name of a head, and a frame, from 0
Fault = Callable[[Row, str], None]  # notes what is wrong with a row


class Thing(NamedTuple):
    """One thing to learn: what a row says of one of its files.

    Attributes:
      row, file: of the table.
      name: of the head that learns it.
      is_mask: or an image.
      frame: from 0.
      known: what patients.json has of it, if it was there before.
    """

    row: Row
    file: File
    name: str
    is_mask: bool
    frame: int
    known: Mapping[str, Any] | None

    @property
    def place(self) -> Place:
        return self.name, self.frame

    @property
    def is_gone(self) -> bool:
        """Whether the file is no longer there, and need not be."""
        return self.known is not None and not self.file.is_there


class Found(NamedTuple):
    """A file's voxels on the patient's grid, and which values are 0 and 1 by default: the range of
    the whole file, or of a picture's type."""

    data: np.ndarray
    whole: Range


def refuse_coarse(file: File, data: np.ndarray) -> None:
    """Raises DataError for an image of which float32, in which files are read, keeps little."""
    low, high = range_of(data)
    largest = np.float32(max(abs(low), abs(high)))
    if largest >= EXACT and np.spacing(largest) > (high - low) / LEAST_STEPS:
        raise DataError(
            f"{file}: in float32 its values, from {low:.9g} to {high:.9g}, have steps of "
            f"{np.spacing(largest):g}; the same file with {low:.9g} subtracted would be right."
        )


def whole_labels(data: np.ndarray) -> np.ndarray:
    """Labels as a file means them that stores them scaled: whole, where they are but for rounding
    in float32."""
    whole = np.rint(data)
    return whole if np.allclose(data, whole, rtol=3e-7, atol=1e-4) else data


def labels_of(
    things: Iterable[Thing], found: Mapping[Place, Found], earlier: Iterable[Task], fault: Fault
) -> dict[str, np.ndarray]:
    """The labels of each mask: those of the first one that was learned."""
    labels: dict[str, np.ndarray] = {}
    for lesson in (lesson for task in earlier for lesson in task.lessons):
        if lesson.head.kind == "mask":
            labels[lesson.head.name] = np.array(lesson.head.labels)
    for thing in things:
        if not thing.is_mask or thing.is_gone:
            continue
        own = np.unique(found[thing.place].data)
        known = labels.setdefault(thing.name, own)
        if is_lossy(thing.file.path) and not thing.known:
            words = "JPEG changes values, and with them labels; PNG would be right."
            fault(thing.row, f"{thing.file}: {words}")
        elif (own != np.rint(own)).any():
            found_ = ", ".join(f"{label:.9g}" for label in own[own != np.rint(own)][:8])
            fault(thing.row, f"{thing.file}: labels must be whole numbers, found {found_}.")
        elif len(own) > MAX_LABELS:
            fault(
                thing.row, f"{thing.file}: {len(own)} labels, at most {MAX_LABELS}; is it an image?"
            )
        elif np.abs(own).max() >= EXACT:
            largest = f"found {np.abs(own).max():.0f}"
            fault(thing.row, f"{thing.file}: labels must be below {EXACT}, {largest}.")
        elif len(own) == 1 and len(known) == 1:
            fault(
                thing.row,
                f"{thing.file}: every voxel is {own[0]:g}, nothing to learn; "
                "a row without the mask, until one has two labels, would be right.",
            )
        elif not np.isin(own, known).all():
            new = _listed(np.setdiff1d(own, known))
            fault(
                thing.row,
                f"{thing.file}: label {new} is not in the first {thing.name}, which has "
                f"{_listed(known)}; another channel would be right.",
            )
    return labels


def colours_of(
    things: Iterable[Thing], found: Mapping[Place, Found], earlier: Iterable[Task], fault: Fault
) -> dict[str, int]:
    """How many colours each image has: those of the first one that was learned."""
    colours: dict[str, int] = {}
    for lesson in (lesson for task in earlier for lesson in task.lessons):
        if lesson.head.kind == "image":
            colours[lesson.head.name] = lesson.head.num_channels
    for thing in things:
        if thing.is_gone:
            continue
        own = found[thing.place].data.shape[3:] or (1,)
        if thing.is_mask and own != (1,):
            fault(thing.row, f"{thing.file}: a mask in colour; grey or a palette would be right.")
        elif not thing.is_mask and colours.setdefault(thing.name, *own) != own[0]:
            words = "in colour" if own[0] > 1 else "grey"
            fault(
                thing.row,
                f"{thing.file}: {words}, which the first {thing.name} is not; another channel "
                "would be right.",
            )
    return colours


def images_of(
    things: Iterable[Thing], found: Mapping[Place, Found], fault: Fault
) -> tuple[dict[Place, np.ndarray], dict[Place, Range]]:
    """Each image by the range of its file, and the ranges; frames of one file are scaled
    together, as those of a cine are."""
    images, ranges, first = {}, {}, {}
    files: dict[tuple[str, Source, Range | None], list[Thing]] = {}
    for thing in (thing for thing in things if not thing.is_mask):
        if thing.is_gone:
            ranges[thing.place] = thing.row.range or tuple(thing.known["range"])
            first.setdefault(thing.name, (thing.file, ranges[thing.place]))
        else:
            key = thing.name, thing.file.path, thing.row.range
            files.setdefault(key, []).append(thing)
    for (name, path, given), own in files.items():
        stack = np.stack([found[thing.place].data for thing in own])
        scaled, whole = scale_intensities(stack), given or found[own[0].place].whole
        if given or own[0].file.frame or range_of(stack) != whole:  # such as after resampling
            scaled = np.clip(rescaled(scaled, range_of(stack), whole), 0, 1)
        other, range_there = first.setdefault(name, (path, whole))
        if not given and not 1 / MAX_CHANGE <= np.ptp(whole) / np.ptp(range_there) <= MAX_CHANGE:
            ends = [f"from {low:g} to {high:g}" for low, high in (whole, range_there)]
            fault(
                own[0].row,
                f"{path}: {name} is {ends[0]}, that of {other} {ends[1]}; the same units, "
                "a range (intensity_range) of its own, or another channel, would be right.",
            )
        for thing, image in zip(own, scaled, strict=True):
            if image.min() == image.max():
                fault(thing.row, f"{thing.file}: nothing of it lies within its range.")
            images[thing.place], ranges[thing.place] = image, whole
    return images, ranges


def heads_of(
    things: Iterable[Thing],
    labels: Mapping[str, np.ndarray],
    colours: Mapping[str, int],
) -> dict[str, Head]:
    """A head for each name, in the order in which they are learned. Their losses' constants are the
    config's to say, see `scenarios.tasks_of`."""
    heads: dict[str, Head] = {}
    for thing in things:
        if thing.name in heads:
            continue
        channel = max((head.channels.stop for head in heads.values()), default=0)
        if thing.is_mask:
            own = tuple(int(label) for label in labels[thing.name])
            heads[thing.name] = mask_head(thing.name, channel, len(own), own)
        else:
            heads[thing.name] = image_head(1.0, thing.name, channel, colours[thing.name])
    return heads


def tasks_of_things(things: Sequence[Thing], heads: Mapping[str, Head]) -> tuple[Task, ...]:
    """The tasks, called by what they teach and when it was."""
    tasks = []
    for number in range(1, things[-1].row.task + 1):
        own = [thing for thing in things if thing.row.task == number]
        frames: dict[str, set[int]] = {}
        for thing in own:
            frames.setdefault(thing.name, set()).add(thing.frame)
        times = dict.fromkeys(thing.row.time for thing in own)
        name = " and ".join(frames)
        if None not in times:
            when = [f"{time:.15g}" for time in times]
            name += f" at {', '.join(when) if len(when) < 4 else f'{len(when)} times'}"
        lessons = (Lesson(heads[head], tuple(sorted(own))) for head, own in frames.items())
        tasks.append(Task(name, tuple(lessons)))
    return tuple(tasks)


def described(
    row: Row,
    things: Iterable[Thing],
    ranges: Mapping[Place, Range],
    digest: Callable[[Source], str],
) -> dict[str, Any]:
    """What is kept of a row: enough to tell whether it is the same, and what 0 and 1 stand for
    in its image."""
    described: dict[str, Any] = {"task": row.task, "time": row.time}
    for thing in (thing for thing in things if thing.row is row):
        kind = "mask" if thing.is_mask else "image"
        sha256 = thing.known["sha256"] if thing.is_gone else digest(thing.file.path)
        described[kind] = {"name": thing.name, "frame": thing.file.frame, "sha256": sha256}
        if not thing.is_mask:
            described[kind]["range"] = ranges[thing.place]
    return described


def title_of(rows: Sequence[Mapping[str, Any]], name: str, frame: int) -> str:
    """What is learned in a frame, from 0, of a scan with these rows in patients.json, such as "T1
    at 365"."""
    return name + at_time(list(dict.fromkeys(row["time"] for row in rows))[frame])


def _listed(labels: np.ndarray) -> str:
    return ", ".join(f"{label:g}" for label in labels)
