"""The tables of a report, as data frames, CSV and Markdown."""

import numpy as np
import pandas as pd

from nfcl_jax.reporting.records import METRIC_TITLES
from nfcl_jax.reporting.results import BASELINE, FIELD_TITLES, KEY, Scores
from nfcl_jax.reporting.statistics import SUMMARIES, bootstrap_interval, paired_test

# Of each scenario: title, learned task and scored task (0 is the last), metrics.
HEADLINES = {
    "domain_expansion": [
        ("first frame when learned", 1, 1, ("psnr", "ssim")),
        ("first frame at the end", 0, 1, ("psnr", "ssim")),
        ("last frame at the end", 0, 0, ("psnr", "ssim")),
    ],
    "signal_expansion": [
        ("image before the mask", 1, 1, ("psnr", "ssim")),
        ("image after it", 0, 1, ("psnr", "ssim")),
        ("mask", 0, 0, ("dsc", "dsc_rv", "dsc_myo", "dsc_lv")),
    ],
}
SUMMARY_TITLES = {
    "forgetting": "average forgetting",
    "backward_transfer": "backward transfer",
    "stability": "stability",
    "plasticity": "plasticity",
}


def score_table(patients: pd.DataFrame) -> pd.DataFrame:
    """Each score over patients: mean, sample standard deviation (NaN for fewer than two), 95%
    bootstrap interval of the mean; how many patients there are, have the score (a diverged fit has
    none, nor has the Dice coefficient of a class that is in neither mask), had a failed fit in a
    task up to the trained one; mean and deviation without the failed fits."""
    rows = []
    for key, group in patients.groupby(KEY, sort=False):
        without = _over_patients(group["value_without_failed"])
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {"patients": len(group)}
            | _over_patients(group["value"])
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


def _over_patients(values: pd.Series) -> dict[str, float | int]:
    present = values.dropna().to_numpy()
    low, high = bootstrap_interval(present)
    spread = len(present) > 1 and np.isfinite(present).all()  # a perfect PSNR is infinite
    return {
        "scored": len(present),
        "mean": float(np.mean(present)) if len(present) else np.nan,
        "std": float(np.std(present, ddof=1)) if spread else np.nan,
        "low": low,
        "high": high,
    }


def paired_table(patients: pd.DataFrame) -> pd.DataFrame:
    """Every strategy against fine-tuning, paired by patient, on each task after the last one: mean
    difference with its 95% bootstrap interval, Wilcoxon's p, and the rank-biserial effect."""
    scores = Scores(patients)
    last = patients["scenario"].map(scores.num_tasks)
    ends = patients[(patients["trained_task"] == last) & (patients["strategy"] != BASELINE)]
    rows = []
    for key in dict.fromkeys(zip(*(ends[column] for column in KEY), strict=True)):
        scenario, field, _, *what = key
        both = pd.concat(
            [scores.get(*key), scores.get(scenario, field, BASELINE, *what)], axis=1, join="inner"
        )
        if both.empty:
            continue
        differences = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
        low, high = bootstrap_interval(differences)
        p, effect = paired_test(differences)
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {
                "patients": len(both),
                "baseline": both.iloc[:, 1].mean(),
                "mean": both.iloc[:, 0].mean(),
                "difference": float(np.mean(differences)),
                "low": low,
                "high": high,
                "p": p,
                "effect": effect,
            }
        )
    return pd.DataFrame(rows)


def continual_table(patients: pd.DataFrame) -> pd.DataFrame:
    """Average forgetting, backward transfer, stability and plasticity (see `statistics`) of every
    metric, over patients."""
    rows = []
    where = ["scenario", "field", "strategy", "metric"]
    for key, group in patients.groupby(where, sort=False):
        size = int(group["trained_task"].max())
        matrices = []
        for _, own in group.groupby("patient"):
            matrix = np.full((size, size), np.nan)
            matrix[own["trained_task"] - 1, own["evaluated_task"] - 1] = own["value"]
            matrices.append(matrix)
        for name, summary in SUMMARIES.items():
            values = pd.Series([summary(matrix) for matrix in matrices])
            if values.notna().any():
                rows.append(
                    dict(zip(where, key, strict=True))
                    | {"summary": name, "patients": len(values)}
                    | _over_patients(values)
                )
    return pd.DataFrame(rows)


def format_mean(metric: str, mean: float, low: float, high: float, std: float = np.nan) -> str:
    """Such as "31.2 ± 1.4 [30.1, 32.4]" for a PSNR, "0.81 ± 0.02 [0.79, 0.83]" for others; what is
    NaN is left out."""
    digits = 1 if metric == "psnr" else 2
    if np.isnan(mean):
        return "-"
    deviation = "" if np.isnan(std) else f" ± {std:.{digits}f}"
    interval = "" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{deviation}{interval}"


def headline_table(scores: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """What the paper looks at, a row per field and strategy, as strings: mean, deviation and
    interval; where fits failed, a second row has means and deviations without them."""
    chosen = scores[scores["scenario"] == scenario]
    last = chosen["trained_task"].max()
    cells = chosen.set_index(KEY[1:]).sort_index()
    rows = []
    for field, strategy in dict.fromkeys(zip(chosen["field"], chosen["strategy"], strict=True)):
        own = cells.loc[field, strategy]
        row = {"field": FIELD_TITLES[field], "strategy": strategy}
        without = row | {"strategy": f"{strategy}, without failed"}
        for title, trained, evaluated, metrics in HEADLINES[scenario]:
            for metric in metrics:
                found = own.loc[trained or last, evaluated or last, metric]
                name = f"{title}, {METRIC_TITLES[metric]}"
                row[name] = format_mean(
                    metric, found["mean"], found["low"], found["high"], found["std"]
                )
                rest = (found["mean_without_failed"], np.nan, np.nan, found["std_without_failed"])
                without[name] = format_mean(metric, *rest)
        row["failed"] = f"{own['failed'].max()} of {own['patients'].max()}"
        rows += [row, without | {"failed": ""}] if own["failed"].any() else [row]
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame) -> str:
    """A data frame of strings as a Markdown table."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
