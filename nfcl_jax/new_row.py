"""The row of a table that a call from Python stands for."""

import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.data import sources
from nfcl_jax.data.sequence import time_range_of
from nfcl_jax.data.sources import in_memory
from nfcl_jax.data.table import File, Row, at_time, file_of
from nfcl_jax.data.volumes import Volume
from nfcl_jax.errors import DataError
from nfcl_jax.records import Progress
from nfcl_jax.scan import is_name

PATIENT = "scan"  # whoever it is


class New(NamedTuple):
    """What is to be learned next: an image, a mask or both; see `Run.learn`."""

    image: Any = None
    mask: Any = None
    time: float | int | None = None
    channel: str | None = None
    intensity_range: tuple[float | int, float | int] | None = None
    spacing: Any = None
    colour: bool | None = None
    on_progress: Callable[[Progress], None] = lambda progress: None
    goes_on: bool = False  # from the last scan, whose time it has by default


def new_of(image: Any, goes_on: bool, words: Mapping[str, Any]) -> New:
    """What is to be learned next, from the arguments of a call.

    Raises:
      TypeError: for one that is unknown.
    """
    known = [name for name in New._fields if name not in ("image", "goes_on")]
    if unknown := [name for name in words if name not in known]:
        raise TypeError(f"learn has no {unknown[0]!r}; there are {', '.join(known)}")
    return New(image, **words, goes_on=goes_on)


def row_of(
    new: New,
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    held: tuple[Volume | None, Sequence[Row]],
) -> Row:
    """The row of something new; its time is the one at which it was learned already, if it was, or
    that of the last row, or where the range begins. `held` is the grid that is there, on which
    arrays lie, and the rows of what was learned.

    Raises:
      DataError: for a time, range, name or image that cannot be.
    """
    ends, (grid, rows) = time_range_of(config["data"]["time_range"]), held
    if new.time is not None and ends is None:
        raise DataError("a time needs a time_range, such as (0, 730), from the first image on.")
    if new.channel and not (isinstance(new.channel, str) and is_name(new.channel)):
        raise DataError(f"channel must be a name without slashes, got {new.channel!r}.")

    if new.intensity_range is not None and new.image is None:
        raise DataError("an intensity_range is of an image, and there is none.")
    arrays = any(map(sources.is_array, (new.image, new.mask)))
    if new.spacing is not None and not arrays:
        raise DataError("a spacing is of arrays; what is given has its own.")
    if new.colour and not sources.is_array(new.image):
        raise DataError("colour is said of an array; what is given says it itself.")

    def file(what: Any, kind: str) -> File | None:
        if what is None:
            return None
        if isinstance(what, str | Path):
            return file_of(Path.cwd(), str(what))
        is_mask = kind == "mask"
        colour = False if is_mask else new.colour
        spacing = grid.spacing if new.spacing is None and grid else new.spacing
        return File(in_memory(what, f"the {kind}", spacing, colour, is_mask))

    image = file(new.image, "image")
    if grid is None and image and sources.is_array(new.mask):  # which lies on the image's grid
        grid = sources.read(image.path, 4 if image.frame else 3)
    row = Row(
        line=0,
        patient=PATIENT,
        task=records[-1]["task"] + 1 if records else 1,
        image=image,
        mask=file(new.mask, "mask"),
        time=_number(new.time, "time"),
        channel=new.channel or "image",
        mask_name="mask" if new.image is not None else new.channel or "mask",
        range=_range(new.intensity_range),
    )
    if row.time is not None or ends is None:
        return row
    last = records[-1]["time"] if records and new.goes_on else ends[0]
    return row._replace(time=_time_of(row, records, rows, last))


def _time_of(
    row: Row, records: Sequence[Mapping[str, Any]], rows: Sequence[Row], last: float
) -> float:
    """When a row that says no time is learned: see `row_of`."""
    there = [
        own
        for record, own in zip(records, rows, strict=True)
        if learned_in(row._replace(time=record["time"]), [record], strict=False)
    ]
    if not there:
        return last
    # A script that runs again finds what it learned; a caller who holds it may mean a new one.
    held_already = any(file.path.exists() for _, file in there[0].things)
    if held_already and last not in {own.time for own in there}:
        names = " and ".join(name for name, _ in row.things)
        warnings.warn(
            f"{names} was learned at {there[0].time:.15g}, from the same values; time={last:.15g} "
            "would learn it at the time of the last scan, too.",
            stacklevel=5,
        )
    return there[0].time


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not np.isfinite(float(value))
    ):
        raise DataError(f"{what} must be a number, got {value!r}.")
    return float(value)


def _range(ends: Any) -> tuple[float, float] | None:
    if ends is None:
        return None
    try:
        low, high = (_number(end, "intensity_range") for end in ends)
    except (TypeError, ValueError) as error:
        raise DataError(f"intensity_range must be two numbers, got {ends!r}.") from error
    if low is None or high is None or not low < high:
        raise DataError(f"intensity_range must be two numbers, the smaller first; got {ends!r}.")
    return low, high


def learned_in(
    row: Row, records: Sequence[Mapping[str, Any]], strict: bool = True
) -> dict[int, dict[str, File]]:
    """In which tasks the things of a row were learned, by their kinds; empty if in none.

    Raises:
      DataError: if one was learned from other values, or one alone was, and that is `strict`.
    """
    things = [(name, "mask" if file is row.mask else "image", file) for name, file in row.things]
    found: dict[int, dict[str, File]] = {}
    for record in records:
        for name, kind, file in things:
            known = record.get(kind, {}).get("name") == name and record["time"] == row.time
            if known and file.path.exists():
                if record[kind]["sha256"] == sources.digest(file.path):
                    found.setdefault(record["task"], {})[kind] = file
                elif strict:
                    raise DataError(
                        f"{name}{at_time(row.time)} was learned in task {record['task']}, from "
                        "another file or other values (or from the same in another form, such as "
                        "an array); another time or channel would be right."
                    )
    if 0 < sum(map(len, found.values())) < len(things):
        if strict:
            (kind, *_) = next(iter(found.values()))
            raise DataError(f"the {kind} was learned already; the rest alone would be right.")
        return {}
    return found
