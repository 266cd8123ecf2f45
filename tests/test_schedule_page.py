"""What docs/strategies.md says of the schedule is that of the runs that are kept beside it."""

import json

import pandas as pd
from conftest import REPOSITORY
from test_strategies_page import ROWS, largest_drop, matrix

from configs import sequence
from nfcl_jax.config import read_config
from nfcl_jax.fields import FIELDS
from nfcl_jax.report.tables import markdown

STORED = REPOSITORY / "docs/reproduction"
COORDINATES = ("pe_relu", "siren", "finer")


def arrows(*both, digits=1):
    return " → ".join(f"{value:.{digits}f}" for value in both)


def table_of_schedules(scenario, what):
    """What patient001's first task has lost at the end, or its last has, at a constant rate -> at
    one that falls."""
    rows = []
    for title, (run, strategy) in ROWS.items():
        if strategy in ("ewc_weight0.01", "ewc_weight10000"):
            continue
        row = {"strategy": title if strategy.startswith("ewc") else title.split(",")[0]}
        for field in FIELDS:
            shared = run if scenario == "domain_expansion" else "strategies"
            constant = shared if field in ("siren", "diner") else "schedule/constant"
            both = []
            for own in (constant, "schedule/cosine"):
                psnr = matrix(own, scenario, field, "psnr", strategy, ["patient001"]).iloc[0]
                last = max(task for task, _ in psnr.index)
                both.append(psnr[last, last] if what == "last" else psnr[1, 1] - psnr[last, 1])
            row[FIELDS[field].title] = arrows(*both)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def table_of_passes_by_adam():
    """What patient001's frames and images have, distilled, drawn with replacement -> in passes."""
    rows = []
    for field in COORDINATES:
        row = {"field": FIELDS[field].title}
        frames, image = (
            [
                matrix(own, scenario, field, "psnr", patients=["patient001"]).iloc[0]
                for own in ("schedule/cosine", "passes/cosine")
            ]
            for scenario in ("domain_expansion", "signal_expansion")
        )
        row["first frame when learned"] = arrows(*(psnr[1, 1] for psnr in frames))
        row["at the end"] = arrows(*(psnr[4, 1] for psnr in frames))
        row["last frame"] = arrows(*(psnr[4, 4] for psnr in frames))
        row["image at the end"] = arrows(*(psnr[2, 1] for psnr in image))
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def table_of_images():
    """What SIREN's first image has by the recipe's steps, drawn with replacement -> in passes."""
    scores = pd.read_csv(STORED / "passes/images.csv")
    both = [arrows(*own) for own in zip(scores["drawn"], scores["passes"], strict=True)]
    return markdown(pd.DataFrame({"image": scores["image"], "PSNR, dB": both}))


def by_muon(field):
    """Each patient's PSNR by the recipe's steps, by the learned and the scored task: drawn with
    replacement, and in passes."""
    scores = pd.read_csv(STORED / f"passes/drawn/{field}/metrics.csv")
    chosen, place = scores[scores["metric"] == "psnr"], ["trained_task", "evaluated_task"]
    drawn = chosen.pivot_table(index="patient", columns=place, values="value")
    drawn.index = [name.removesuffix("/cine") for name in drawn.index]
    passes = matrix("recommended", "domain_expansion", field, "psnr")
    assert list(drawn.index) == list(passes.index)
    return drawn, passes


def table_of_passes_by_muon():
    """The same of the recipe's steps, means over two patients."""
    rows = []
    for field in COORDINATES:
        both = by_muon(field)
        row = {"field": FIELDS[field].title}
        for name, place in (
            ("first frame when learned", (1, 1)),
            ("at the end", (4, 1)),
            ("last frame", (4, 4)),
        ):
            row[name] = arrows(*(psnr[place].mean() for psnr in both))
        rows.append(row | {"largest drop": arrows(*map(largest_drop, both), digits=2)})
    return markdown(pd.DataFrame(rows))


def test_the_tables_of_passes_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    assert table_of_passes_by_adam() in page
    assert table_of_passes_by_muon() in page
    assert table_of_images() in page
    assert "Every frame of these fields ends higher in passes than drawn with replacement" in page
    for field in COORDINATES:
        drawn, passes = by_muon(field)
        assert (passes[4] > drawn[4]).all(axis=None), field
        assert largest_drop(passes) <= 0.5, field


def test_the_runs_without_passes_are_the_recipes_but_for_that():
    for field in COORDINATES:
        config = sequence.get_config(f"{field},distillation").to_dict() | {"in_passes": False}
        stored = json.loads((STORED / f"passes/drawn/{field}/config.json").read_text())
        assert {k: v for k, v in stored.items() if k != "tasks"} | {
            "data": config["data"]
        } == config


def test_the_tables_of_schedules_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    for scenario, what in (
        ("domain_expansion", "lost"),
        ("domain_expansion", "last"),
        ("signal_expansion", "lost"),
    ):
        assert table_of_schedules(scenario, what) in page


def test_the_runs_in_passes_differ_from_others_in_that_alone():
    folders = sorted((STORED / "passes/cosine/cells").iterdir())
    assert len(folders) == 2 * 3
    for folder in folders:
        other = read_config(STORED / "schedule/cosine/cells" / folder.name / "config.json")
        assert read_config(folder / "config.json") == other | {"in_passes": True}


def test_the_runs_of_the_schedules_differ_in_the_schedule_alone():
    stored = STORED / "schedule"
    falls = {"schedule": "cosine", "warmup_steps": 50}
    folders = sorted((stored / "constant/cells").iterdir())
    assert len(folders) == 2 * 2 * 8
    for folder in folders:
        own, other = (
            read_config(stored / k / "cells" / folder.name / "config.json")
            for k in ("constant", "cosine")
        )
        twice = {"learning_rate": 2 * own["learning_rate"]}
        assert own | falls | twice | {"data": other["data"]} == other
