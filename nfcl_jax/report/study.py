"""Which choice decides which claim: the verdicts of several grids in one table."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.report.tables import markdown
from nfcl_jax.report.verdicts import shown
from nfcl_jax.storage import read_json, write_file

HOW_TO_READ = "The verdict, the mean that decides it and, in brackets, what that must be."
AS_WRITTEN = {"keep_default_na": False, "na_values": {"value": [""], "weight": [""]}}  # names too


def write_study(workdir: Path, names: Iterable[str]) -> None:
    """Writes study.json, the claims of each choice that has a report, and study.md: a table of
    their verdicts, a row for each choice and a column for each claim, with the mean that decides
    and its limit; how many fits failed; then for each claim the numbers behind them. Nothing where
    no choice has a report.

    Args:
      workdir: has the folder of each choice's grid.
      names: of the choices, in their order.
    """
    found = {
        name: read_json(workdir / name / "claims.json")
        for name in names
        if all((workdir / name / file).is_file() for file in ("claims.json", "results.csv"))
    }
    if not found:
        return
    verdicts = [
        {"choice": name} | {c["id"]: _in_short(decisive(name, c)) for c in own}
        for name, own in found.items()
    ]
    parts = ["# Which choice decides which claim", HOW_TO_READ, markdown(pd.DataFrame(verdicts))]
    results = {name: pd.read_csv(workdir / name / "results.csv", **AS_WRITTEN) for name in found}
    counted = pd.concat([failed_fits(own).assign(choice=name) for name, own in results.items()])
    parts += ["## Fits that collapsed or diverged", _failures(counted)]
    for claims in zip(*found.values(), strict=True):
        rows = [decisive(name, claim) for name, claim in zip(found, claims, strict=True)]
        parts += [f"## {claims[0]['id']}", claims[0]["claim"], markdown(pd.DataFrame(rows))]
    write_file(workdir / "study.json", json.dumps(found, indent=1))
    write_file(workdir / "study.md", "\n\n".join(parts) + "\n")


def decisive(name: str, claim: dict[str, Any]) -> dict[str, str]:
    """A row of a claim's table: the choice, its verdict and, of the inequalities with this verdict,
    the one that is furthest from holding."""
    values = [v for v in claim["values"] if v["verdict"] == claim["verdict"]]
    worst = min(values, key=_margin)
    row = {"choice": name, "verdict": claim["verdict"], "decided by": worst["text"]}
    return row | dict(zip(("mean", "must be"), shown(worst), strict=True))


def _in_short(row: dict[str, str]) -> str:
    mean, must_be = (row[name].split(" [")[0] for name in ("mean", "must be"))
    return row["verdict"] + (f": {mean} ({must_be})" if mean != "-" else "")


def failed_fits(results: pd.DataFrame) -> pd.DataFrame:
    """How many of a grid's fits collapsed or diverged.

    Args:
      results: of `load_results`.

    Returns:
      A row for each field and strategy: `field`, `strategy`, `fits` (one for each scan, scenario
      and seed), and how many had failed after the first task (`first`) and after the last (`last`).
    """
    fit = ["field", "strategy", "scenario", "seed", "patient", "image"]
    fits = results.sort_values("trained_task", kind="stable").groupby(fit, sort=False)["failed"]
    ends = fits.agg(["first", "last"]).astype(int).assign(fits=1)
    return ends.groupby(["field", "strategy"], sort=False).sum().reset_index()


def _failures(counted: pd.DataFrame) -> str:
    """For the reader: of the fields that had a failed fit under any choice."""
    some = counted.groupby("field")["last"].transform("sum") > 0
    if not some.any():
        return f"None of {counted['fits'].sum()}."
    rows = [
        {
            "choice": row.choice,
            "field": field_title(row.field),
            "strategy": row.strategy,
            "in the first task": f"{row.first} of {row.fits}",
            "in any task": f"{row.last} of {row.fits}",
        }
        for row in counted[some].itertuples()
    ]
    return markdown(pd.DataFrame(rows))


def _margin(value: dict[str, Any]) -> float:
    """How far the mean is on the right side of its limit, in lengths of its interval."""
    if value["mean"] is None:
        return float("-inf")
    distance = value["mean"] - value["limit"]
    length = (value["high"] or 0) - (value["low"] or 0)
    return (distance if value["sense"] == ">" else -distance) / max(length, 1e-9)
