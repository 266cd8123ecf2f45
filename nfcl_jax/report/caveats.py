"""What a reader must know before believing the numbers of a report."""

import json
from collections.abc import Sequence

import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.report.results import FinishedRun

PAPER_STEPS = 500  # per task
FEW_PATIENTS = 6  # fewer cannot reach p < 0.05 in a two-sided signed-rank test


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
        found.append(
            f"Few patients: {patients}. Intervals over so few are too narrow, and p cannot be "
            f"below {2.0 ** (1 - patients):g}."
        )
    seeds = results.groupby(["scenario", "field", "strategy"])["seed"].agg(lambda s: tuple(set(s)))
    if seeds.nunique() > 1:
        found.append("Not every field and strategy has the same seeds.")
    found += _differing_settings(runs)
    failed = results[results["failed"]]
    for key, group in failed.groupby(keys, sort=False):
        names = sorted(set(group["patient"] + "/" + group["image"]))
        found.append(
            f"Collapsed or diverged: {', '.join(map(str, key))}: {', '.join(names)}. What diverged "
            "has no score; what collapsed counts in the means, and the tables have rows without."
        )
    return found


def _differing_settings(runs: Sequence[FinishedRun]) -> list[str]:
    """Settings that ought to be the same in all runs, and scans that are not the same scan."""
    found = []
    for name in ("num_steps", "batch_size", "huber_delta", "data"):
        values = dict.fromkeys(json.dumps(run.config.get(name)) for run in runs)
        if len(values) > 1:
            found.append(f"Runs differ in {name}: {', '.join(values)}.")
    for field in dict.fromkeys(run.field for run in runs):
        own = [run.config for run in runs if run.field == field]
        for name in ("learning_rate", "field"):
            if len({json.dumps(config.get(name), sort_keys=True) for config in own}) > 1:
                found.append(f"Runs of {field_title(field)} differ in {name}.")
    scans: dict[str, set[str]] = {}
    left_out: set[str] = set()
    for run in runs:
        for record in json.loads((run.path / "patients.json").read_text()):
            if "left_out" in record:
                left_out.add(record["patient"])
                continue
            same = {k: record[k] for k in ("shape", "frame_numbers", "spacing", "affine")}
            name = f"{record['patient']}/{record['image']}"
            scans.setdefault(name, set()).add(json.dumps(same))
    if left_out:
        found.append(
            f"Patients were left out for faults of their files: {', '.join(sorted(left_out))}."
        )
    different = sorted(name for name, records in scans.items() if len(records) > 1)
    if different:
        found.append(f"Runs were made on different scans of {', '.join(different)}.")
    return found
