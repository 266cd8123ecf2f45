"""The scores of one run as a table, and over its patients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nfcl_jax.config import constants_of
from nfcl_jax.records import Fit, Score
from nfcl_jax.report.statistics import mean_interval

NOT_MEASURED = "not measured"  # any more: the file is gone
KEY = ["scenario", "field", "strategy", "trained_task", "evaluated_task", "metric"]


def as_frame(
    config: Mapping[str, Any], strategy: str, scores: Sequence[Score], fits: Sequence[Fit]
) -> pd.DataFrame:
    """The scores of one run.

    Columns: scenario, field, strategy, weight, seed, patient, image, trained_task, evaluated_task,
    metric, value; and `failed`, whether that field collapsed or diverged in a task up to
    `trained_task`.
    """
    frame = pd.DataFrame(scores)
    first_failure: dict[tuple[str, str], int] = {}
    for fit in fits:
        if fit.collapsed or fit.diverged:
            name = (fit.patient, fit.image)
            first_failure[name] = min(fit.task, first_failure.get(name, fit.task))
    names = zip(frame["patient"], frame["image"], strict=True)
    frame["failed"] = frame["trained_task"] >= [first_failure.get(n, np.inf) for n in names]
    weight = constants_of(config).get("weight")
    run = {
        "scenario": config["scenario"],
        "field": config["field"]["name"],
        "strategy": strategy,
        "weight": weight if isinstance(weight, int | float) else None,
        "seed": config["seed"],
    }
    return frame.assign(**run)[[*run, *frame.columns]].astype({"weight": float})


def per_patient(results: pd.DataFrame) -> pd.DataFrame:
    """One row per score and patient: the mean over the patient's images and seeds.

    Columns: KEY, patient, `value`, `worst` of them (0 for one without a score: a diverged fit has
    nothing to show), `failed` (any of its fits did) and `value_without_failed`, the mean over fits
    that did not. A patient one of whose scores is NaN has none, but for `value_without_failed`.
    """
    frame = results.assign(
        value_without_failed=results["value"].where(~results["failed"]),
        worst=results["value"].fillna(0.0),
    )
    return (
        frame.groupby([*KEY, "patient"], sort=False)
        .agg(
            value=("value", lambda scores: scores.mean(skipna=False)),
            worst=("worst", "min"),
            failed=("failed", "any"),
            value_without_failed=("value_without_failed", "mean"),
        )
        .reset_index()
    )


def score_table(patients: pd.DataFrame) -> pd.DataFrame:
    """Each score over patients: mean, sample standard deviation (NaN for fewer than two), 95%
    interval of the mean; how many patients there are, have the score (a diverged fit has
    none, nor has the Dice coefficient of a class that is in neither mask), had a failed fit in a
    task up to the trained one; mean and deviation without the failed fits."""
    rows = []
    for key, group in patients.groupby(KEY, sort=False):
        without = over_patients(group["value_without_failed"])
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {"patients": len(group)}
            | over_patients(group["value"])
            | {
                "failed": int(group["failed"].sum()),
                "mean_without_failed": without["mean"],
                "std_without_failed": without["std"],
            }
        )
    return pd.DataFrame(rows)


def summary_of_run(patients: pd.DataFrame) -> pd.DataFrame:
    """The `score_table` of one run, of every task right after it was learned, and of the first and
    the last task after the last one."""
    learned, scored = patients["trained_task"], patients["evaluated_task"]
    chosen = (learned == scored) | ((learned == learned.max()) & (scored == 1))
    return score_table(patients[chosen]).sort_values(KEY[-3:], ignore_index=True)


def over_patients(values: pd.Series) -> dict[str, float | int]:
    present = values.dropna().to_numpy()
    low, high = mean_interval(present)
    spread = len(present) > 1 and np.isfinite(present).all()  # a perfect PSNR is infinite
    return {
        "scored": len(present),
        "mean": float(np.mean(present)) if len(present) else np.nan,
        "std": float(np.std(present, ddof=1)) if spread else np.nan,
        "low": low,
        "high": high,
    }
