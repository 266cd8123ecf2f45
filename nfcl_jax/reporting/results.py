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
BASELINE = "finetune"


class FinishedRun(NamedTuple):
    """A run that learned all its tasks. `strategy` names the weight too, such as "distillation,
    weight 10", where the runs have several."""

    path: Path
    config: dict[str, Any]
    strategy: str


def finished_runs(folders: Iterable[Path]) -> list[FinishedRun]:
    """The finished ones among the folders of runs, in the order of tables.

    Raises:
      ValueError: if two of them have the same scenario, field, strategy, weight and seed.
    """
    configs = {
        folder: json.loads((folder / "config.json").read_text())
        for folder in folders
        if (folder / "summary.csv").is_file()
    }
    weights: dict[tuple[str, str, str], set[float]] = {}
    for config in configs.values():
        if (weight := _weight(config)) is not None:
            weights.setdefault(_kind(config), set()).add(weight)
    runs: dict[tuple, FinishedRun] = {}
    for folder, config in configs.items():
        name, weight = config["strategy"], _weight(config)
        if len(weights.get(_kind(config), ())) > 1:
            name = f"{name}, weight {weight:g}"
        key = (
            config["scenario"],
            list(FIELD_TITLES).index(config["field"]["name"]),
            config["strategy"] != BASELINE,
            config["strategy"],
            weight or 0.0,
            config["seed"],
        )
        if key in runs:
            raise ValueError(f"{folder} and {runs[key].path} are runs of the same; remove one.")
        runs[key] = FinishedRun(folder, config, name)
    return [run for _, run in sorted(runs.items())]


def _kind(config: dict[str, Any]) -> tuple[str, str, str]:
    return config["scenario"], config["field"]["name"], config["strategy"]


def _weight(config: dict[str, Any]) -> float | None:
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
        "weight": _weight(config),
        "seed": config["seed"],
    }
    return frame.assign(**run)[[*run, *frame.columns]].astype({"weight": float})


KEY = ["scenario", "field", "strategy", "trained_task", "evaluated_task", "metric"]


def per_patient(results: pd.DataFrame) -> pd.DataFrame:
    """One row per score and patient: the mean over the patient's images and seeds.

    Columns: KEY, patient, `value`, `failed` (any of its fits did) and `value_without_failed`, the
    mean over fits that did not. Scores that are NaN are left out of each mean.
    """
    frame = results.assign(
        value_without_failed=results["value"].where(~results["failed"]),
    )
    return (
        frame.groupby([*KEY, "patient"], sort=False)
        .agg(
            value=("value", "mean"),
            failed=("failed", "any"),
            value_without_failed=("value_without_failed", "mean"),
        )
        .reset_index()
    )


class Scores:
    """Looks up what patients scored; the table is that of `per_patient`."""

    def __init__(self, patients: pd.DataFrame):
        self._groups = {
            key: group.set_index("patient")["value"].dropna()
            for key, group in patients.groupby(KEY, sort=False)
        }
        self.num_tasks = patients.groupby("scenario")["trained_task"].max().to_dict()
        self.present = list(dict.fromkeys(zip(*(patients[c] for c in KEY[:3]), strict=True)))

    def get(
        self, scenario: str, field: str, strategy: str, trained: int, evaluated: int, metric: str
    ) -> pd.Series:
        """Each patient's score on task `evaluated` after task `trained`; tasks below 1 count from
        the last, which is 0. Empty where there is none."""
        last = self.num_tasks.get(scenario, 0)
        trained, evaluated = (t if t > 0 else last + t for t in (trained, evaluated))
        key = (scenario, field, strategy, trained, evaluated, metric)
        return self._groups.get(key, pd.Series(dtype=float))
