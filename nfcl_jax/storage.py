"""Files that are written whole or not at all, and rows of results as CSV."""

import contextlib
import csv
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nfcl_jax.errors import RunError, first_line

MAX_RATIO = 100  # bytes of arrays to those of their files; scans and parameters hardly shrink
PART = ".part"  # ends the name of a file that is not whole yet
LOCK = ".lock"  # of a folder in which one process at a time is at work


class Label(NamedTuple):
    """What tells the rows of one run from another's."""

    scenario: str
    field: str
    strategy: str
    seed: int


def write_file(path: Path, contents: str | bytes) -> None:
    """Writes a file whole or not at all, whatever ends the process or the machine, and whoever
    else writes it: the last one's is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    try:
        with temporary.open("wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_parts(folder: Path) -> None:
    """Deletes what a process that was killed while it wrote has left below a folder, in which no
    other may be at work; but not below folders with a lock of their own, such as those of runs."""
    for inside, folders, files in os.walk(folder):
        below = Path(inside)
        folders[:] = [name for name in folders if not (below / name / LOCK).exists()]
        for name in files:
            if re.fullmatch(rf"\..+\.\d+-\d+{re.escape(PART)}", name):  # as `write_file` has them
                (below / name).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      RunError: if it is none, or there is none.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; a copy of the file would be right.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({first_line(error)}).") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; nothing is unpickled.

    Raises:
      FileNotFoundError: if there is no such file.
      Exception: of any kind, as the damage may be, or if they are out of proportion to the file.
    """
    contents = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(contents) as file:
        refuse_inflated(sum(part.file_size for part in file.infolist()), path.stat().st_size)
    with np.load(contents, allow_pickle=False) as arrays:
        return dict(arrays)


def refuse_inflated(size: int, there: int) -> None:
    """Raises ValueError if `size` bytes come out of `there` bytes of files and that is out of
    proportion: a folder of zeros takes next to nothing, and could fill the memory."""
    if size > MAX_RATIO * there + 2**20:
        raise ValueError(f"arrays of {size / 1e6:.0f} MB in files of {there / 1e6:.3f} MB")


def write_csv(path: Path, rows: Sequence[Any], label: Label | None = None) -> None:
    """Rows, NamedTuples, one line each after the values of `label`, with their fields' names as
    header; floats with all their digits. No file is written if there are no rows."""
    if not rows:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(label._fields if label else ()), *rows[0]._fields])
    writer.writerows([*(label or ()), *row] for row in rows)
    write_file(path, buffer.getvalue())


def read_csv(path: Path, row_type: type) -> list[Any]:
    """What `write_csv` wrote: rows of a NamedTuple, to the last digit; other columns are left out,
    and missing ones that have a default, which is given instead.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it lacks another column, or a value cannot be read.
    """
    parse = {bool: {"True": True, "False": False}.__getitem__, str: str, int: int, float: float}
    with path.open(newline="") as file:
        try:
            reader = csv.DictReader(file)
            missing = row_type._field_defaults.keys() - set(reader.fieldnames or ())
            types = {k: t for k, t in row_type.__annotations__.items() if k not in missing}
            return [row_type(**{k: parse[t](row[k]) for k, t in types.items()}) for row in reader]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path}: not the rows of a run ({error!r}).") from error
