"""Whether a claim holds on given scores.

An inequality is about a score, or the difference of two scores of the same patients: its mean over
patients must be above or below a limit. A claim holds if all its inequalities do, and is not tested
if a score that it needs is missing.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nfcl_jax.report.results import Scores
from nfcl_jax.report.statistics import bootstrap_interval


class Inequality(NamedTuple):
    """The mean of `values`, one per patient, is above (">") or below ("<") `limit`."""

    text: str
    values: pd.Series
    sense: str
    limit: float


class Claim(NamedTuple):
    """What is claimed, the inequality in words, and the inequalities for given scores."""

    id: str
    claim: str
    inequality: str
    inequalities: Callable[[Scores], Iterable[Inequality]]


def above(text: str, values: pd.Series, limit: float) -> Inequality:
    return Inequality(text, values, ">", limit)


def below(text: str, values: pd.Series, limit: float) -> Inequality:
    return Inequality(text, values, "<", limit)


def verdict(claim: Claim, scores: Scores) -> dict[str, Any]:
    """A claim with its numbers and a verdict, as claims.json holds it: `id`, `claim`, `inequality`
    (in words), `values` (a list of the inequalities: `text`, `mean` over patients, `low` and `high`
    of its 95% bootstrap interval, `sense`, `limit`, `patients`, `holds`), `patients` (the fewest of
    them), `verdict` ("holds", "does not hold" or "not tested") and `why`."""
    values = [_evaluate(inequality) for inequality in claim.inequalities(scores)]
    missing = [value["text"] for value in values if not value["patients"]]
    wrong = [value["text"] for value in values if value["holds"] is False]
    if missing:
        said, why = "not tested", "no scores: " + "; ".join(missing)
    elif wrong:
        said, why = "does not hold", "; ".join(wrong)
    else:
        said, why = "holds", ""
    return {
        "id": claim.id,
        "claim": claim.claim,
        "inequality": claim.inequality,
        "values": values,
        "patients": min(value["patients"] for value in values),
        "verdict": said,
        "why": why,
    }


def _evaluate(inequality: Inequality) -> dict[str, Any]:
    values = inequality.values.dropna().to_numpy()
    mean = float(np.mean(values)) if len(values) else np.nan
    low, high = bootstrap_interval(values)
    holds = mean > inequality.limit if inequality.sense == ">" else mean < inequality.limit

    def number(x):
        return x if np.isfinite(x) else None  # JSON has no NaN

    return {
        "text": inequality.text,
        "mean": number(mean),
        "low": number(low),
        "high": number(high),
        "sense": inequality.sense,
        "limit": inequality.limit,
        "patients": len(values),
        "holds": holds if len(values) else None,
    }
