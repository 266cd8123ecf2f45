"""Whether a claim holds on given scores.

An inequality is about a score, or the difference of two scores of the same patients: its mean over
patients must be above or below a limit. It holds, or does not, where the 95% interval of that mean
lies on one side of the limit, and is undecided elsewhere. A claim holds if all its inequalities do,
and does not if one does not. It is not tested if a score that it needs is missing: that of a single
patient too, such as one whose fit diverged.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nfcl_jax.report.results import Scores
from nfcl_jax.report.statistics import (
    Interval,
    mean_interval,
    patients_needed,
    share_interval,
)


class Inequality(NamedTuple):
    """The mean of `values`, one per patient, is above (">") or below ("<") `limit`, both in `unit`;
    `share` if they are 1 for the patients of whom something is true, and 0 for the others."""

    text: str
    values: pd.Series
    sense: str
    limit: float
    unit: str = ""
    share: bool = False


class Claim(NamedTuple):
    """What is claimed, the inequality in words, and the inequalities for given scores."""

    id: str
    claim: str
    inequality: str
    inequalities: Callable[[Scores], Iterable[Inequality]]


def above(text: str, values: pd.Series, limit: float, unit="", share=False) -> Inequality:
    return Inequality(text, values, ">", limit, unit, share)


def below(text: str, values: pd.Series, limit: float, unit="", share=False) -> Inequality:
    return Inequality(text, values, "<", limit, unit, share)


def verdict(claim: Claim, scores: Scores) -> dict[str, Any]:
    """A claim with its numbers and a verdict, as claims.json holds it.

    Returns:
      `id`, `claim`, `inequality` (in words), `values` (a list of the inequalities: `text`, `mean`
      over patients, `low` and `high` of its 95% interval, `sense`, `limit`, `unit` ("dB" or ""),
      `patients`, `missing` (patients without the score), `verdict` and, where it is undecided,
      `needed`: how many patients would decide it, at this mean and spread, or None), `patients`
      (the fewest of them), `verdict` ("holds", "does not hold", "undecided" or "not tested"),
      `needed` (the most of them) and `why`.
    """
    values = [_evaluate(inequality) for inequality in claim.inequalities(scores)]
    by_verdict: dict[str, list[str]] = {}
    for value in values:
        missing = f" ({', '.join(value['missing'])})" if value["missing"] else ""
        by_verdict.setdefault(value["verdict"], []).append(value["text"] + missing)
    said = next(
        (v for v in ("not tested", "does not hold", "undecided") if v in by_verdict), "holds"
    )
    needed = [value["needed"] for value in values if value["verdict"] == "undecided"]
    return {
        "id": claim.id,
        "claim": claim.claim,
        "inequality": claim.inequality,
        "values": values,
        "patients": min(value["patients"] for value in values),
        "verdict": said,
        "needed": max(needed) if said == "undecided" and None not in needed else None,
        "why": "; ".join(by_verdict[said]) if said != "holds" else "",
    }


def _evaluate(inequality: Inequality) -> dict[str, Any]:
    missing = [str(name) for name in inequality.values.index[inequality.values.isna()]]
    values = inequality.values.dropna().to_numpy()
    mean = float(np.mean(values)) if len(values) else np.nan
    interval = mean_interval(values)
    if inequality.share:
        interval = share_interval(int(np.sum(values)), len(values))
    said, needed = "undecided", None
    if missing or not len(values):
        said = "not tested"
    elif _beyond(interval, inequality):
        said = "holds"
    elif _beyond(interval, inequality._replace(sense="<" if inequality.sense == ">" else ">")):
        said = "does not hold"
    elif len(values) > 1 and np.isfinite(values).all():
        deviation = float(np.std(values, ddof=1))
        needed = patients_needed(mean - inequality.limit, deviation)

    def number(x):
        return x if np.isfinite(x) else None  # JSON has no NaN

    return {
        "text": inequality.text,
        "mean": number(mean),
        "low": number(interval.low),
        "high": number(interval.high),
        "sense": inequality.sense,
        "limit": inequality.limit,
        "unit": inequality.unit,
        "patients": len(values),
        "missing": missing,
        "verdict": said,
        "needed": needed,
    }


def shown(value: Mapping[str, Any]) -> tuple[str, str]:
    """The mean with its interval and what it must be, of an inequality as claims.json holds it:
    ("6.29 dB [5.60, 6.98]", "> 3 dB"), or "-" without a mean. Small numbers have more decimals."""
    unit = f" {value['unit']}" if value.get("unit") else ""  # reports of earlier versions have none
    must_be = f"{value['sense']} {value['limit']:g}{unit}"
    numbers = [value[name] for name in ("mean", "low", "high") if value[name] is not None]
    smallest = min((abs(x) for x in numbers if x), default=1.0)
    decimals = 2 + (smallest < 0.1) + (smallest < 0.01)
    mean, *ends = [f"{x:z.{decimals}f}" for x in numbers] or ["-"]
    return mean + unit * bool(numbers) + (f" [{', '.join(ends)}]" if ends else ""), must_be


def _beyond(interval: Interval, inequality: Inequality) -> bool:
    """Whether the whole interval is where the inequality says. An interval that is one point, the
    limit, is not."""
    return bool(
        interval.low > inequality.limit
        if inequality.sense == ">"
        else interval.high < inequality.limit
    )
