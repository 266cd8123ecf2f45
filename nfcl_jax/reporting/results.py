"""The scores of many runs in one table, and what each patient has of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nfcl_jax.continual import Fit, Metric
from nfcl_jax.reporting.records import read_csv

# In the order of the paper.
FIELD_TITLES = {"pe_relu": "PE-ReLU", "siren": "SIREN", "finer": "FINER", "diner": "DINER"}
BASELINE, DISTILLATION = "finetune", "distillation"


class ReportError(ValueError):
    """The runs cannot be reported on as they are."""


class FinishedRun(NamedTuple):
    """A run that learned all its tasks. `strategy` names the weight too, such as "distillation,
    weight 10", where it is one of several and not the default."""

    path: Path
    config: dict[str, Any]
    strategy: str

    @property
    def field(self) -> str:
        return self.config["field"]["name"]


def finished_runs(
    folders: Iterable[Path], default_weights: Mapping[str, float]
) -> list[FinishedRun]:
    """The finished ones among the folders of runs, in the order of tables.

    Args:
      folders: of runs, finished or not.
      default_weights: of each scenario.

    Raises:
      ReportError: if two of them have the same scenario, field, strategy, weight and seed.
    """
    configs = {
        folder: json.loads((folder / "config.json").read_text())
        for folder in folders
        if (folder / "summary.csv").is_file()
    }
    weights: dict[tuple[str, str], set[float]] = {}
    for config in configs.values():
        if (weight := weight_of(config)) is not None:
            weights.setdefault((config["scenario"], config["strategy"]), set()).add(weight)
    runs: dict[tuple, FinishedRun] = {}
    for folder, config in configs.items():
        scenario, name, weight = config["scenario"], config["strategy"], weight_of(config)
        several = len(weights.get((scenario, name), ())) > 1
        if several and weight != default_weights.get(scenario):
            name = f"{name}, weight {weight:g}"
        key = (
            scenario,
            list(FIELD_TITLES).index(config["field"]["name"]),
            config["strategy"] != BASELINE,
            config["strategy"],
            weight or 0.0,
            config["seed"],
        )
        if key in runs:
            raise ReportError(f"{folder} and {runs[key].path} are runs of the same; remove one.")
        runs[key] = FinishedRun(folder, config, name)
    return [run for _, run in sorted(runs.items())]


def of_first_seed(runs: Iterable[FinishedRun], scenario: str) -> list[FinishedRun]:
    """One run of each field and strategy of a scenario."""
    first: dict[tuple[str, str], FinishedRun] = {}
    for run in runs:
        if run.config["scenario"] == scenario:
            first.setdefault((run.field, run.strategy), run)
    return list(first.values())


def weight_of(config: Mapping[str, Any]) -> float | None:
    """The weight of a run's strategy, if it has one."""
    return config.get(config["strategy"], {}).get("weight")


def load_results(runs: Iterable[FinishedRun]) -> pd.DataFrame:
    """Every score of the runs, see `as_frame`."""
    return pd.concat(
        [
            as_frame(
                run.config,
                run.strategy,
                read_csv(run.path / "metrics.csv", Metric),
                read_csv(run.path / "fits.csv", Fit),
            )
            for run in runs
        ],
        ignore_index=True,
    )


def as_frame(
    config: Mapping[str, Any], strategy: str, metrics: Sequence[Metric], fits: Sequence[Fit]
) -> pd.DataFrame:
    """The scores of one run.

    Columns: scenario, field, strategy, weight, seed, patient, image, trained_task, evaluated_task,
    metric, value; and `failed`, whether that field collapsed or diverged in a task up to
    `trained_task`.
    """
    frame = pd.DataFrame(metrics)
    first_failure: dict[tuple[str, str], int] = {}
    for fit in fits:
        if fit.collapsed or fit.diverged:
            name = (fit.patient, fit.image)
            first_failure[name] = min(fit.task, first_failure.get(name, fit.task))
    names = zip(frame["patient"], frame["image"], strict=True)
    frame["failed"] = frame["trained_task"] >= [first_failure.get(n, np.inf) for n in names]
    run = {
        "scenario": config["scenario"],
        "field": config["field"]["name"],
        "strategy": strategy,
        "weight": weight_of(config),
        "seed": config["seed"],
    }
    return frame.assign(**run)[[*run, *frame.columns]].astype({"weight": float})


KEY = ["scenario", "field", "strategy", "trained_task", "evaluated_task", "metric"]


def per_patient(results: pd.DataFrame) -> pd.DataFrame:
    """One row per score and patient: the mean over the patient's images and seeds.

    Columns: KEY, patient, `value`, `worst` of them (0 for one without a score: a diverged fit has
    nothing to show), `failed` (any of its fits did) and `value_without_failed`, the mean over fits
    that did not. Scores that are NaN are left out of each mean.
    """
    frame = results.assign(
        value_without_failed=results["value"].where(~results["failed"]),
        worst=results["value"].fillna(0.0),
    )
    return (
        frame.groupby([*KEY, "patient"], sort=False)
        .agg(
            value=("value", "mean"),
            worst=("worst", "min"),
            failed=("failed", "any"),
            value_without_failed=("value_without_failed", "mean"),
        )
        .reset_index()
    )


class Scores:
    """Looks up what patients scored; the table is that of `per_patient`."""

    def __init__(self, patients: pd.DataFrame):
        self._groups = {
            key: group.set_index("patient") for key, group in patients.groupby(KEY, sort=False)
        }
        self.num_tasks = patients.groupby("scenario")["trained_task"].max().to_dict()
        self.present = list(dict.fromkeys(zip(*(patients[c] for c in KEY[:3]), strict=True)))

    def get(
        self,
        scenario: str,
        field: str,
        strategy: str,
        trained: int,
        evaluated: int,
        metric: str,
        column: str = "value",
    ) -> pd.Series:
        """Each patient's score on task `evaluated` after task `trained`; 0 is the last task. Empty
        where there is none; patients without the score are left out."""
        last = self.num_tasks.get(scenario, 0)
        key = (scenario, field, strategy, trained or last, evaluated or last, metric)
        group = self._groups.get(key)
        return pd.Series(dtype=float) if group is None else group[column].dropna()


def scores_of_scan(
    results: pd.DataFrame, run: FinishedRun, patient: str, image: str, trained: int, evaluated: int
) -> dict[str, float]:
    """What one run scored on one scan, by metric."""
    wanted: dict[str, Any] = {
        "scenario": run.config["scenario"],
        "field": run.field,
        "strategy": run.strategy,
        "seed": run.config["seed"],
        "patient": patient,
        "image": image,
        "trained_task": trained,
        "evaluated_task": evaluated,
    }
    chosen = np.logical_and.reduce([results[name] == value for name, value in wanted.items()])
    found = results.loc[chosen]
    return dict(zip(found["metric"], found["value"], strict=True))
