"""Which choice decides which claim: the verdicts of several grids in one table."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from nfcl_jax.config import read_json
from nfcl_jax.report.tables import markdown
from nfcl_jax.report.verdicts import shown
from nfcl_jax.storage import write_file


def write_study(workdir: Path, names: Iterable[str]) -> None:
    """Writes study.json, the claims of each choice that has a report, and study.md: a table of
    their verdicts, a row for each choice and a column for each claim, then for each claim the
    numbers behind them.

    Args:
      workdir: has the folder of each choice's grid.
      names: of the choices, in their order.
    """
    found = {
        name: read_json(workdir / name / "claims.json")
        for name in names
        if (workdir / name / "claims.json").is_file()
    }
    verdicts = [
        {"choice": name} | {c["id"]: c["verdict"] for c in own} for name, own in found.items()
    ]
    parts = ["# Which choice decides which claim", markdown(pd.DataFrame(verdicts))]
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


def _margin(value: dict[str, Any]) -> float:
    """How far the mean is on the right side of its limit, in lengths of its interval."""
    if value["mean"] is None:
        return float("-inf")
    distance = value["mean"] - value["limit"]
    length = (value["high"] or 0) - (value["low"] or 0)
    return (distance if value["sense"] == ">" else -distance) / max(length, 1e-9)
