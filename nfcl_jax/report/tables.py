"""The tables of a report, as data frames, CSV and Markdown."""

from typing import Any

import numpy as np
import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.metrics import METRICS, format_number, format_score, metric_title, metrics_of
from nfcl_jax.report.results import BASELINE, Scores
from nfcl_jax.report.scores import KEY, over_patients
from nfcl_jax.report.statistics import SUMMARIES, gap_closed, mean_interval
from nfcl_jax.scenarios import SCENARIOS, Scenario

SUMMARY_TITLES = {
    "forgetting": "average forgetting",
    "backward_transfer": "backward transfer",
    "largest_drop": "largest drop",
    "stability": "stability",
    "plasticity": "plasticity",
    "gap_closed": "gap closed, %",
}


def paired_table(patients: pd.DataFrame) -> pd.DataFrame:
    """Every strategy against fine-tuning, paired by patient, on each task after the last one: mean
    difference with its 95% interval."""
    scores = Scores(patients)
    last = patients["scenario"].map(scores.num_tasks)
    ends = patients[(patients["trained_task"] == last) & (patients["strategy"] != BASELINE)]
    rows = []
    for key in dict.fromkeys(zip(*(ends[column] for column in KEY), strict=True)):
        scenario, field, _, *what = key
        both = pd.concat(
            [scores.get(*key), scores.get(scenario, field, BASELINE, *what)], axis=1, join="inner"
        ).dropna()
        if both.empty:
            continue
        differences = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy()
        low, high = mean_interval(differences)
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {
                "patients": len(both),
                "baseline": both.iloc[:, 1].mean(),
                "mean": both.iloc[:, 0].mean(),
                "difference": float(np.mean(differences)),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def continual_table(patients: pd.DataFrame) -> pd.DataFrame:
    """The summaries of `statistics` of every metric, over patients; and the gap that a strategy
    closes in stability, where there are runs of fine-tuning and joint training too."""
    rows: list[dict[str, Any]] = []
    where = ["scenario", "field", "strategy", "metric"]
    stable: dict[tuple, pd.Series] = {}
    for key, group in patients.groupby(where, sort=False):
        size = int(group["trained_task"].max())
        matrices = {}
        for patient, own in group.groupby("patient"):
            matrix = np.full((size, size), np.nan)
            matrix[own["trained_task"] - 1, own["evaluated_task"] - 1] = own["value"]
            matrices[patient] = matrix
        for name, summary in SUMMARIES.items():
            values = pd.Series({p: summary(matrix) for p, matrix in matrices.items()})
            rows.append(_row_of_summary(dict(zip(where, key, strict=True)), name, values))
            if name == "stability":
                stable[key] = values
    for (scenario, field, strategy, metric), kept in stable.items():
        ends = [stable.get((scenario, field, name, metric)) for name in (BASELINE, "joint")]
        if strategy not in (BASELINE, "joint") and all(end is not None for end in ends):
            three = pd.concat([kept, *ends], axis=1, join="inner")
            closed = gap_closed(*three.to_numpy().T)
            key = dict(zip(where, (scenario, field, strategy, metric), strict=True))
            scored = int(np.isfinite(three).all(axis=1).sum()) if np.isfinite(closed) else 0
            same = {"summary": "gap_closed", "patients": len(kept), "scored": scored}
            rows.append(key | same | {"mean": closed})
    return pd.DataFrame([row for row in rows if row["scored"]])


def _row_of_summary(key: dict[str, str], name: str, values: pd.Series) -> dict[str, Any]:
    return key | {"summary": name, "patients": len(values)} | over_patients(values)


def format_mean(metric: str, mean: float, low: float, high: float, std: float = np.nan) -> str:
    """Such as "31.2 ± 1.4 [30.1, 32.4]" for a PSNR, "0.81 ± 0.02 [0.79, 0.83]" for others; what is
    NaN is left out."""
    ends = f" [{format_number(metric, low)}, {format_number(metric, high)}]"
    return format_score(metric, mean, std) + ("" if np.isnan(low) else ends)


def headlines(scenario: Scenario) -> list[tuple[str, int, int, list[str]]]:
    """What the paper looks at: title, learned task and scored task (0 is the last), metrics."""
    first, last = scenario.ends
    kept = metrics_of(first.head.kind, detail=False)
    return [
        (f"{first.name} when learned", 1, 1, kept),
        (f"{first.name} at the end", 0, 1, kept),
        (f"{last.name} at the end", 0, 0, metrics_of(last.head.kind)),
    ]


def headline_table(scores: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """The headlines of a scenario, a row per field and strategy, as strings: mean, deviation and
    interval; where fits failed, a second row has means and deviations without them."""
    chosen = scores[scores["scenario"] == scenario]
    last = chosen["trained_task"].max()
    cells = chosen.set_index(KEY[1:]).sort_index()
    rows = []
    for field, strategy in dict.fromkeys(zip(chosen["field"], chosen["strategy"], strict=True)):
        own = cells.loc[field, strategy]
        row = {"field": field_title(field), "strategy": strategy}
        without = row | {"strategy": f"{strategy}, without failed"}
        for title, trained, evaluated, metrics in headlines(SCENARIOS[scenario]):
            for metric in metrics:
                where = (trained or last, evaluated or last, metric)
                if where not in own.index:  # a metric that was added after the run
                    continue
                found = own.loc[where]
                name = f"{title}, {metric_title(metric)}"
                row[name] = format_mean(
                    metric, found["mean"], found["low"], found["high"], found["std"]
                )
                rest = (found["mean_without_failed"], np.nan, np.nan, found["std_without_failed"])
                without[name] = format_mean(metric, *rest)
        row["failed"] = f"{own['failed'].max()} of {own['patients'].max()}"
        rows += [row, without | {"failed": ""}] if own["failed"].any() else [row]
    return pd.DataFrame(rows).fillna("-")


def readable_tables(
    scores: pd.DataFrame, paired: pd.DataFrame, continual: pd.DataFrame
) -> list[dict[str, Any]]:
    """The tables for people: for each its title, a note on it, and a data frame of strings."""
    found = []
    for name in [name for name in SCENARIOS if (scores["scenario"] == name).any()]:
        note = "Mean ± standard deviation over patients [95% interval of the mean]; failed: "
        note += "patients with a collapsed or diverged fit."
        frame = headline_table(scores, name)
        found.append({"title": SCENARIOS[name].title, "note": note, "frame": frame})
    if len(paired):
        found.append(
            {
                "title": "Against fine-tuning, at the end, paired by patient",
                "note": "Mean difference [95% interval]. Each interval stands alone: of 20, one is "
                "expected to miss its true mean.",
                "frame": _readable_paired(paired),
            }
        )
    found.append(
        {
            "title": "Continual learning over all tasks",
            "note": "Forgetting: best score so far less the last one. Backward transfer: last "
            "score less that when learned. Both and stability (the last score) are means over the "
            "earlier tasks; plasticity, the score when learned, over all. Largest drop: of the "
            "earlier task whose score dropped most since it was learned. Gap closed, where there "
            "is joint training: how far stability is on its way from fine-tuning's (0) to its "
            "(100).",
            "frame": _readable_continual(continual),
        }
    )
    return found


def _is_detail(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].detail


def _readable_paired(paired: pd.DataFrame) -> pd.DataFrame:
    tasks = {name: scenario.tasks(1.0) for name, scenario in SCENARIOS.items()}
    shown = paired[~paired["metric"].map(_is_detail)]
    return pd.DataFrame(
        [
            {
                "field": field_title(row.field),
                "strategy": row.strategy,
                "score": f"{tasks[row.scenario][row.evaluated_task - 1].name}: "
                f"{metric_title(row.metric)}",
                "difference": format_mean(row.metric, row.difference, row.low, row.high),
                "patients": str(row.patients),
            }
            for row in shown.itertuples()
        ]
    )


def _readable_continual(continual: pd.DataFrame) -> pd.DataFrame:
    rows: dict[tuple, dict[str, str]] = {}
    for row in continual.itertuples():
        if _is_detail(row.metric):
            continue
        key = (row.scenario, row.field, row.strategy, row.metric)
        cells = rows.setdefault(
            key,
            {
                "scenario": row.scenario.replace("_", " "),
                "field": field_title(row.field),
                "strategy": row.strategy,
                "score": metric_title(row.metric),
            }
            | dict.fromkeys(SUMMARY_TITLES.values(), "-")
            | {"patients": f"{row.scored} of {row.patients}"},
        )
        cell = format_mean(row.metric, row.mean, row.low, row.high)
        if row.summary == "gap_closed":
            some = f" ({row.scored} of {row.patients})" if row.scored < row.patients else ""
            cell = f"{row.mean:.0f}{some}"
        cells[SUMMARY_TITLES[row.summary]] = cell
    table = pd.DataFrame(rows.values())
    closed = SUMMARY_TITLES["gap_closed"]
    idle = closed in table and (table[closed] == "-").all()
    return table.drop(columns=closed) if idle else table


def markdown(frame: pd.DataFrame) -> str:
    """A data frame of strings as a Markdown table."""
    rows = frame.astype(str).values.tolist()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
