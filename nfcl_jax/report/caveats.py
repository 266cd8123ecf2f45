"""What a reader must know before believing the numbers of a report."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nfcl_jax.config import INDIFFERENT, make_config
from nfcl_jax.fields import FIELDS, field_title
from nfcl_jax.report.results import FinishedRun
from nfcl_jax.run_folder import LATER, read_records

PAPER_STEPS = 500  # per task
FEW_PATIENTS = 7  # of fewer the mean's interval reaches a standard deviation to either side


def caveats(
    runs: Sequence[FinishedRun], results: pd.DataFrame, unfinished: Sequence[str]
) -> list[str]:
    """Sentences on runs that are cut down, few, missing, failed, or not to be compared."""
    found = []
    steps = min(run.config["num_steps"] for run in runs)
    if steps < PAPER_STEPS:
        found.append(
            f"Cut down: {steps} steps per task instead of the paper's {PAPER_STEPS}. The verdicts "
            "are on fields that have not learned their tasks to the end."
        )
    if unfinished:
        found.append(f"Not finished, and not in this report: {', '.join(unfinished)}.")
    everyone = set(results["patient"])
    keys = ["scenario", "field", "strategy", "seed"]
    for key, group in results.groupby(keys, sort=False):
        missing = sorted(everyone - set(group["patient"]))
        if missing:
            found.append(f"{', '.join(map(str, key))}: without {', '.join(missing)}.")
    patients = len(everyone)
    if patients < FEW_PATIENTS:
        found.append(f"Few patients: {patients}. Little can be decided on so few.")
    seeds = results.groupby(["scenario", "field", "strategy"])["seed"].agg(lambda s: tuple(set(s)))
    if seeds.nunique() > 1:
        found.append("Not every field and strategy has the same seeds.")
    found += _not_as_shipped(runs)
    found += _differing_settings(runs)
    found += _differing_scans(runs)
    failed = results[results["failed"]]
    for key, group in failed.groupby(keys, sort=False):
        names = sorted(set(group["patient"] + "/" + group["image"]))
        found.append(
            f"Collapsed or diverged: {', '.join(map(str, key))}: {', '.join(names)}. What diverged "
            "has no score; what collapsed counts in the means, and the tables have rows without."
        )
    return found


def _not_as_shipped(runs: Sequence[FinishedRun]) -> list[str]:
    """A sentence for each field, or fields that have the same, with every setting that changes
    results and is not its default, and the scenarios where it is not so in all that the field has;
    but not the constants that a strategy's name has."""
    found: dict[str, dict[str, set[str]]] = {}  # scenarios, by the field and the words
    known: dict[str, set[str]] = {}  # scenarios, by the field
    for run in [run for run in runs if run.field in FIELDS]:
        title, name = field_title(run.field), run.config["strategy"]
        shipped = make_config(run.config["scenario"], run.field, name)
        if run.strategy != name:
            shipped[name] = run.config[name]
        scenario = run.config["scenario"].replace("_", " ")
        known.setdefault(title, set()).add(scenario)
        for words in _changes(run.config, shipped):
            found.setdefault(title, {}).setdefault(words, set()).add(scenario)
    fields: dict[str, list[str]] = {}
    for title, changes in found.items():
        by_place: dict[str, list[str]] = {}
        for words, where in changes.items():
            place = f"; in {' and '.join(sorted(where))} " if where != known[title] else ""
            by_place.setdefault(place, []).append(words)
        text = "".join(place + ", ".join(words) for place, words in sorted(by_place.items()))
        fields.setdefault(text.removeprefix("; "), []).append(title)
    return [f"Not as shipped ({', '.join(own)}): {text}." for text, own in fields.items()]


def _changes(config: Mapping[str, Any], shipped: Mapping[str, Any], section: str = ""):
    """Such as "field.width 64 instead of 256"."""
    same = (*INDIFFERENT, "seed", "root", "patients", "dataset", "skip_invalid")
    for name, default in shipped.items():
        value = config.get(name, default)  # early runs lack some
        if isinstance(default, Mapping):
            yield from _changes(value, default, f"{name}.")
        elif name not in same and value != default:
            yield f"{section}{name} {value} instead of {default}"


def _differing_settings(runs: Sequence[FinishedRun]) -> list[str]:
    """Settings that ought to be the same in all runs, or in those of a field and scenario."""
    found = []
    for name in ("num_steps", "huber_delta", "matmul_precision", "data"):
        values = dict.fromkeys(json.dumps(run.config.get(name)) for run in runs)
        if len(values) > 1:
            found.append(f"Runs differ in {name}: {', '.join(values)}.")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run.config["scenario"], run.field), []).append(run.config)
    for (scenario, field), own in groups.items():
        for name in (
            "keep_optimiser",
            "batch_size",
            "in_passes",
            "learning_rate",
            "muon_rate",
            "later_factor",
            "mask_later_factor",
            "warmup_steps",
            "schedule",
            "field",
        ):
            if len({json.dumps(config.get(name), sort_keys=True) for config in own}) > 1:
                where = scenario.replace("_", " ")
                found.append(f"Runs of {field_title(field)} in {where} differ in {name}.")
    return found


def _differing_scans(runs: Sequence[FinishedRun]) -> list[str]:
    """Patients that were left out, scans that are counted twice or are not the same in all runs."""
    found = []
    scans: dict[tuple[str, str, str], set[str]] = {}
    twice: dict[tuple[str, ...], None] = {}
    left_out: set[str] = set()
    for run in runs:
        owners: dict[str, dict[str, str]] = {}
        for record in read_records(run.path / "patients.json"):
            if "left_out" in record:
                left_out.add(record["patient"])
                continue
            name = f"{record['patient']}/{record['image']}"
            if "sha256" in record:
                owners.setdefault(record["sha256"], {})[record["patient"]] = name
            for key in ("shape", "frame_numbers", "spacing", "affine", *LATER):
                if key in record:
                    values = scans.setdefault((run.config["scenario"], name, key), set())
                    values.add(json.dumps(record[key]))
        twice |= {tuple(own.values()): None for own in owners.values() if len(own) > 1}
    if left_out:
        found.append(
            f"Patients were left out for faults of their files: {', '.join(sorted(left_out))}."
        )
    for names in twice:
        found.append(f"The same scan is counted once for each of its names: {', '.join(names)}.")
    different = sorted({name for (_, name, _), values in scans.items() if len(values) > 1})
    if different:
        found.append(f"Runs were made on different scans of {', '.join(different)}.")
    return found
