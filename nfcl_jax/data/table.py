"""A table of scans: whose they are, what each shows, and when it is learned.

One row is one thing to learn. The columns, in any order:

    patient   who; "p1/left" and "p1/right" are two fields of one patient
    task      when it is learned, from 1; rows of one task are learned together
    image     a NIfTI file or a picture (PNG, JPEG, TIFF, BMP, WebP); "cine.nii.gz#12" is frame 12,
              from 1, of a 4D file
    mask      a file of labels, of the same kind; a row has an image, a mask, or both
    time      optional: days, ms or a phase; of all rows of a patient, or of none
    channel   optional: the name of the modality, "image" if empty; of a row without an image, the
              name of the mask, "mask" if empty
    range     optional: which values of the image are 0 and 1 for the field, such as "-1000:1000";
              the smallest and the largest of the file if empty

Paths are relative to the table's folder. The table is text as spreadsheets write it: separated by
commas, semicolons or tabs, in UTF-8 or UTF-16, with quotes where they are needed.
"""

import codecs
import csv
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nfcl_jax.data.sources import Source
from nfcl_jax.data.volumes import check_file
from nfcl_jax.errors import DataError, first_line
from nfcl_jax.scan import ONLY, is_name

COLUMNS = ("patient", "task", "image", "mask", "time", "channel", "range")
SEPARATORS = ",;\t"
MAX_BYTES = 2**24
MAX_TASKS = 10_000
MAX_NAME = 200  # bytes, of 255 that most disks allow
WORKBOOKS = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel",
}


class File(NamedTuple):
    """A file, or one frame of it, from 1."""

    path: Source
    frame: int | None = None

    @property
    def is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError:  # such as a name that is too long
            return False

    def __str__(self) -> str:
        return f"{self.path}#{self.frame}" if self.frame else str(self.path)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
      line: of the table's file, from 1.
      patient: as the table names them.
      task: from 1.
      image, mask: one of them may be missing.
      time: as the table has it.
      channel: the name of the image.
      mask_name: the name of the mask.
      range: of the image.
    """

    line: int
    patient: str
    task: int
    image: File | None
    mask: File | None
    time: float | None
    channel: str
    mask_name: str
    range: tuple[float, float] | None = None

    @property
    def things(self) -> Iterator[tuple[str, File]]:
        """What is to be learned: its name, and the file that has it."""
        if self.image:
            yield self.channel, self.image
        if self.mask:
            yield self.mask_name, self.mask


def at_time(time: float | None, word: str = " at ") -> str:
    """Such as " at 365", to the last digit, which Julian days need; nothing without a time."""
    return "" if time is None else f"{word}{time:.15g}"


def read_table(path: Path) -> list[Row]:
    """The rows of a table.

    Raises:
      DataError: with a line for each fault.
    """
    header, lines, separator = _cells(path)
    rows, faults = [], []
    for number, cells in lines:
        own: list[str] = []
        row = _row(path.parent, number, dict(zip(header, cells, strict=False)), separator, own)
        if len(cells) != len(header):
            own = [f"{len(cells)} cells; the first line has {len(header)}."]
        faults += [f"{path}, line {number}: {fault}" for fault in own]
        rows += [row] if row and not own else []
    if not rows and not faults:
        faults = [f"{path}: no rows; one for each scan would be right."]
    faults += [f"{path}, {fault}" for fault in _contradictions(rows, whole=not faults)]
    if faults:
        raise DataError("\n".join(faults))
    return rows


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The names of the columns, the numbers and cells of the lines, and what separates them."""
    if not path.exists():
        columns = ", ".join(COLUMNS)
        raise DataError(f"{path}: missing; a table, with some of the columns {columns}, is needed.")
    check_file(path)
    text = _text(path)
    first, _, _ = text.lstrip().partition("\n")
    separator = max(SEPARATORS, key=first.count)
    if told := re.fullmatch(r"\"?sep=(.)\"?\r?", first):  # of which Excel makes its first line
        separator, text = told[1], text.replace(first, "", 1)
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    header = [name.lower() for name in lines[0][1]] if lines else []
    while header and not header[-1]:  # a spreadsheet's empty columns
        header.pop()
    lines = [(n, cells[: max(len(header), len(_trimmed(cells)))]) for n, cells in lines]
    unknown = [name or "(empty)" for name in header if name not in COLUMNS]
    twice = sorted({name for name in header if header.count(name) > 1})
    missing = [name for name in ("patient", "task") if name not in header]
    missing += [] if {"image", "mask"} & set(header) else ["image"]
    faults = [
        f"{what} in the first line: {', '.join(names)}"
        for what, names in (("unknown", unknown), ("there twice", twice), ("missing", missing))
        if names
    ]
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}; columns are {', '.join(COLUMNS)}.")
    return header, lines[1:], separator


def _trimmed(cells: list[str]) -> list[str]:
    cells = list(cells)
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _text(path: Path) -> str:
    """The contents of a text file.

    Raises:
      DataError: if it is none.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; a table of scans would be right.")
    contents = path.read_bytes()
    for start, what in WORKBOOKS.items():
        if contents.startswith(start):
            raise DataError(f"{path}: {what} file; saved as CSV it would be right.")
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = contents.decode("utf-16" if contents.startswith(marks) else "utf-8-sig")
    except UnicodeError as error:
        raise DataError(
            f"{path}: not text in UTF-8 or UTF-16 ({first_line(error)}); saved as CSV UTF-8 it "
            "would be right."
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: not a table of text; a CSV file would be right.")
    return text


def _row(
    folder: Path, line: int, cells: dict[str, str], separator: str, faults: list[str]
) -> Row | None:
    """What the cells of a line say, or their faults."""
    patient, task = cells.get("patient", ""), cells.get("task", "")
    names = patient.split("/")
    if len(names) > 2 or not all(map(is_name, names)) or names[1:] == [ONLY]:
        faults.append(
            "patient must be a name, or two with one slash between them, of which the second is "
            f"not {ONLY}, as a folder can have; found {patient[:80]!r}."
        )
    if any(len(name.encode()) > MAX_NAME for name in names):
        faults.append(f"patient is longer than the {MAX_NAME} bytes that a folder's name may have.")
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}([.,]0+)?", task, re.ASCII):
        faults.append(f"task must be a whole number from 1, found {task[:80]!r}.")
    files = {name: file_of(folder, cells.get(name, "")) for name in ("image", "mask")}
    if not any(files.values()):
        faults.append("neither an image nor a mask; one of them would be right.")
    if any(file and file.frame == 0 for file in files.values()):
        faults.append("frames of a file count from 1.")
    time = cells.get("time", "")
    if time and _number(time, separator) is None:
        faults.append(f"time must be a number, found {time[:80]!r}.")
    name = cells.get("channel", "")
    if name and ("/" in name or not is_name(name)):
        faults.append(f"channel must be a name without slashes, found {name[:80]!r}.")
    words = cells.get("range", "")
    ends = [_number(word.strip(), separator) for word in words.split(":")] if words else []
    if words and not (len(ends) == 2 and None not in ends and ends[0] < ends[1]):
        faults.append(
            f"range must be two numbers, the smaller one first, such as -1000:1000, found "
            f"{words[:80]!r}."
        )
    if words and not files["image"]:
        faults.append("a range is of an image, and there is none.")
    if faults:
        return None
    return Row(
        line,
        patient,
        int(re.split("[.,]", task)[0]),
        files["image"],
        files["mask"],
        _number(time, separator) if time else None,
        channel=name or "image",
        mask_name="mask" if files["image"] else name or "mask",
        range=tuple(ends) or None,
    )


def file_of(folder: Path, cell: str) -> File | None:
    """What a cell names: a file relative to a folder, or a frame of one."""
    if not cell:
        return None
    name, frame = cell, None
    if found := re.fullmatch(r"(.+)#([0-9]{1,5})", cell):
        name, frame = found[1], int(found[2])
    return File(folder / name, frame)


def _number(cell: str, separator: str) -> float | None:
    """A finite number; with a decimal comma, where commas separate no cells."""
    try:
        number = float(cell if separator == "," else cell.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _contradictions(rows: Iterable[Row], whole: bool) -> Iterator[str]:
    """What is wrong between the rows of each patient, of which there may be others unless the
    table is `whole`."""
    patients: dict[str, list[Row]] = {}
    for row in rows:
        patients.setdefault(row.patient, []).append(row)
    for patient, own in patients.items():
        tasks = sorted({row.task for row in own})
        lacking = sorted(set(range(1, min(tasks[-1], MAX_TASKS))) - set(tasks))
        if whole and lacking:
            yield f"{patient}: no task {lacking[0]}, but a task {tasks[-1]}; they count from 1."
        timed = [row for row in own if row.time is not None]
        if timed and len(timed) < len(own):
            (untimed, *_) = [row for row in own if row.time is None]
            yield (
                f"line {untimed.line}: no time, but line {timed[0].line} of {patient} has one; all "
                "or none would be right."
            )
        first: dict[tuple[str, float | None], int] = {}
        for row in own:
            for name, _ in row.things:
                line = first.setdefault((name, row.time), row.line)
                if line != row.line:
                    at = at_time(row.time, " at time ")
                    yield (
                        f"line {row.line}: {name} of {patient}{at} is in line {line} already; "
                        "another time or channel would be right (of a second mask, in a row "
                        "without an image)."
                    )
        yield from (f"{patient}: {fault}" for fault in of_two_kinds(own))


def of_two_kinds(rows: Iterable[Row]) -> list[str]:
    """What is wrong with names of one patient that are an image's and a mask's."""
    rows = list(rows)
    both = {row.channel for row in rows if row.image} & {r.mask_name for r in rows if r.mask}
    return [
        f"{name} is an image and a mask; another channel would be right." for name in sorted(both)
    ]
