"""The scores of many runs in one table, and what each patient has of them."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nfcl_jax.config import constants_of, read_config
from nfcl_jax.errors import ReportError
from nfcl_jax.fields import FIELDS
from nfcl_jax.report.scores import KEY, as_frame
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import names_of, read_records
from nfcl_jax.runs import Run, open_run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, SEQUENCE, Scenario
from nfcl_jax.strategies import STRATEGIES, constants

BASELINE = "finetune"
# A PSNR beyond is an error of less than a thousandth of the range, which no screen shows.
NOTHING_TO_SEE = 60.0  # dB


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that learned all its tasks. `strategy` names its constants too, such as "distillation,
    weight 10", where they are not the defaults and a field of the scenario has that strategy at
    several; so if each field has it once, though at constants of its own, it has one name."""

    path: Path
    config: dict[str, Any]
    strategy: str

    @functools.cached_property
    def opened(self) -> Run:
        return open_run(self.path)

    @property
    def field(self) -> str:
        return self.config["field"]["name"]

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.config["scenario"]]


def finished_runs(folders: Iterable[Path]) -> list[FinishedRun]:
    """The finished ones among the folders of runs, in the order of tables; without those of own
    scans, which have reports of their own.

    Raises:
      ReportError: if two of them have the same scenario, field, strategy, constants and seed, or
        one has a scenario or strategy that is not known here.
    """
    configs = {
        folder: read_config(folder / "config.json")
        for folder in folders
        if (folder / "summary.csv").is_file()
    }
    configs = {folder: own for folder, own in configs.items() if own["scenario"] != SEQUENCE}
    variants: dict[tuple[str, str], dict[str, set[str]]] = {}
    for folder, config in configs.items():
        _refuse_unknown(folder, config)
        of_fields = variants.setdefault((config["scenario"], config["strategy"]), {})
        own = json.dumps(constants_of(config), sort_keys=True)
        of_fields.setdefault(config["field"]["name"], set()).add(own)
    runs: dict[tuple, FinishedRun] = {}
    for folder, config in configs.items():
        scenario, name, given = config["scenario"], config["strategy"], constants_of(config)
        defaults = constants(name, SCENARIOS[scenario])
        several = any(len(own) > 1 for own in variants[scenario, name].values())
        changed = {k: v for k, v in given.items() if several and defaults.get(k) != v}
        label = ", ".join([name, *(f"{k} {_short(v)}" for k, v in sorted(changed.items()))])
        field = config["field"]["name"]
        place = [*FIELDS, field].index(field), field, [*STRATEGIES].index(name)
        key = (scenario, *place, tuple(map(_sortable, given.values())), config["seed"])
        if key in runs:
            raise ReportError(f"{folder} and {runs[key].path} are runs of the same; remove one.")
        runs[key] = FinishedRun(folder, config, label)
    return [run for _, run in sorted(runs.items())]


def is_of_own_scans(folder: Path) -> bool:
    """Whether a run's tasks are its own, not those of a scenario."""
    return read_config(folder / "config.json")["scenario"] == SEQUENCE


def _refuse_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    for kind, known in (("scenario", SCENARIOS), ("strategy", STRATEGIES)):
        if config[kind] not in known:
            raise ReportError(
                f"{folder}: unknown {kind} {config[kind]!r}; there are {', '.join(known)}. "
                "--extend=FILE.py loads the file that defines another."
            )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers before words."""
    number = isinstance(value, (int, float))
    return not number, value if number else str(value)


def of_first_seed(runs: Iterable[FinishedRun], scenario: str) -> list[FinishedRun]:
    """One run of each field and strategy of a scenario."""
    first: dict[tuple[str, str], FinishedRun] = {}
    for run in runs:
        if run.config["scenario"] == scenario:
            first.setdefault((run.field, run.strategy), run)
    return list(first.values())


def load_results(runs: Iterable[FinishedRun]) -> pd.DataFrame:
    """Every score of the runs, see `as_frame`.

    Raises:
      RunError: if a run's files are not what it leaves.
    """
    frames = []
    for run in runs:
        names = names_of(read_records(run.path / "patients.json"))
        rows = read_rows(run.path, run.config, names, len(run.scenario.tasks(1.0)))
        frames.append(as_frame(run.config, run.strategy, *rows))
    return pd.concat(frames, ignore_index=True)


class Scores:
    """Looks up what patients scored; the table is that of `per_patient`."""

    def __init__(self, patients: pd.DataFrame):
        self._groups = {
            key: group.set_index("patient") for key, group in patients.groupby(KEY, sort=False)
        }
        self.num_tasks = patients.groupby("scenario")["trained_task"].max().to_dict()
        self.present = list(dict.fromkeys(zip(*(patients[c] for c in KEY[:3]), strict=True)))

    def of(self, scenario: str) -> list[tuple[str, str]]:
        """Fields and strategies that there are of a scenario."""
        return [(field, strategy) for name, field, strategy in self.present if name == scenario]

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
        where there is none; NaN for a patient without the score."""
        last = self.num_tasks.get(scenario, 0)
        key = (scenario, field, strategy, trained or last, evaluated or last, metric)
        group = self._groups.get(key)
        return pd.Series(dtype=float) if group is None else group[column]

    def seen(self, *key: Any) -> pd.Series:
        """As `get`, a PSNR counting up to NOTHING_TO_SEE."""
        values = self.get(*key)
        return values.clip(upper=NOTHING_TO_SEE) if "psnr" in key else values


def scores_of_scan(
    results: pd.DataFrame, run: FinishedRun, scan: Scan, trained: int, evaluated: int
) -> dict[str, float]:
    """What one run scored on one scan, by metric."""
    wanted: dict[str, Any] = {
        "scenario": run.config["scenario"],
        "field": run.field,
        "strategy": run.strategy,
        "seed": run.config["seed"],
        "patient": scan.patient,
        "image": scan.image,
        "trained_task": trained,
        "evaluated_task": evaluated,
    }
    chosen = np.logical_and.reduce([results[name] == value for name, value in wanted.items()])
    found = results.loc[chosen]
    return dict(zip(found["metric"], found["value"], strict=True))
