"""Whether rows are what they were when they were learned."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nfcl_jax.data.grids import described_grid, same_grid
from nfcl_jax.data.sources import InMemory
from nfcl_jax.data.table import File, Row, at_time
from nfcl_jax.data.volumes import Volume
from nfcl_jax.errors import DataError

KINDS = ("image", "mask")  # of what a row teaches


def refuse_other_terms(
    row: Row,
    found: Mapping[int, Mapping[str, File]],
    records: Sequence[Mapping[str, Any]],
    grid: Volume | None,
    resample: bool,
) -> None:
    """Raises DataError if something was learned by another intensity range, or at other places
    than on this grid, to which a volume that has a place may be resampled."""
    for task, files in found.items():
        (record,) = [own for own in records if own["task"] == task]
        for kind, file in files.items():
            name = record[kind]["name"]
            held = file.path.volume if isinstance(file.path, InMemory) else None
            if held and grid and not (resample and held.placed) and not same_grid(held, grid):
                raise DataError(
                    f"{name} was learned in task {task} with {described_grid(grid)}; here it has "
                    f"{described_grid(held)}. Another workdir would be right."
                )
            if kind == "image" and row.range and _other_ends(row.range, record[kind]["range"]):
                low, high = record[kind]["range"]
                raise DataError(
                    f"{name} was learned in task {task} with an intensity_range of {low:g}, "
                    f"{high:g}; another workdir would be right for another one."
                )


def _other_ends(a: Sequence[float], b: Sequence[float]) -> bool:
    return not np.allclose(a, b, rtol=1e-6, atol=0)


def in_order(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows by their tasks, and within a task that was learned in the order in which it was, which
    a spreadsheet may have changed."""
    before = [
        (
            record["task"],
            record["time"],
            [(record[kind]["name"], record[kind]["frame"]) for kind in KINDS if kind in record],
        )
        for record in records
    ]

    def place(row: Row) -> tuple[int, int, int]:
        things = [(name, file.frame) for name, file in row.things]
        own = row.task, row.time, things
        return row.task, before.index(own) if own in before else len(before), row.line

    return sorted(rows, key=place)


def differing_rows(there: dict[str, Any], wanted: dict[str, Any], learned: int) -> list[str]:
    """A line for each row of the first `learned` tasks of a table's scan that is not as it was in
    `there`. In the records is left what must not differ beside them: the grid."""
    if "rows" not in there or "rows" not in wanted:
        return []
    lines, old_and_new = [], [record.pop("rows") for record in (there, wanted)]
    before, now = ([row for row in own if row["task"] <= learned] for own in old_and_new)
    for record in (there, wanted):
        record["grid"] = record["shape"][-3:]
        for key in ("shape", "frame_numbers", "times", "parameters", "sha256", "placed_at"):
            record.pop(key, None)
    if not learned:  # by another first file, maybe
        for record in (there, wanted):
            for key in ("grid", "spacing", "affine", "placed"):
                record.pop(key, None)
    name = f"patients.{there['patient']}/{there['image']}"
    known, there_now = map(_by_what_they_teach, (before, now))
    new = [row for what, row in there_now.items() if what not in known]
    lost = collections.Counter(old["task"] for what, old in known.items() if what not in there_now)
    for what, old in known.items():
        words, own = named(old), there_now.get(what)
        if own is None:
            instead = [row for row in new if row["task"] == old["task"]]
            instead = instead[:1] if lost[old["task"]] > 1 else instead  # one for each
            new = [row for row in new if row not in instead]
            has = " and ".join(map(named, instead)) or "no such row"
            lines.append(f"{name}: learned {words}; the table has {has}")
        elif own != old:
            lines.append(f"{name}: learned {words}; the table has {_what_differs(old, own)}")
    ends = f"is new; a task after {learned} would be right"
    return lines + [f"{name}: {named(row)} {ends}" for row in new]


def _what_differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Between two rows that teach the same."""
    for kind in KINDS:
        then, now = old.get(kind, {}), new.get(kind, {})
        if then.get("frame") != now.get("frame"):
            return f"another frame of the {kind}'s file"
        if then.get("sha256") != now.get("sha256"):
            return f"another file of the {kind}, or one that has changed"
        if then.get("range") != now.get("range"):
            ends = (" to ".join(f"{end:.9g}" for end in own["range"]) for own in (now, then))
            return "the range {} instead of {}".format(*ends)
    return "another row"


def _by_what_they_teach(rows: Sequence[Mapping[str, Any]]) -> dict[tuple, Mapping[str, Any]]:
    """Rows of one scan by their task, time and names, of which no two are the same."""
    names = [tuple(row.get(kind, {}).get("name") for kind in KINDS) for row in rows]
    return {(row["task"], row["time"], *own): row for row, own in zip(rows, names, strict=True)}


def named(row: Mapping[str, Any]) -> str:
    """What a row in patients.json teaches, and when, such as "T1 at 365 in task 2"."""
    names = [row[kind]["name"] for kind in KINDS if kind in row]
    return f"{' and '.join(names)}{at_time(row['time'])} in task {row['task']}"
