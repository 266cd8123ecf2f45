"""What docs/strategies.md says of the schedule is that of the runs that are kept beside it."""

import pandas as pd
from conftest import REPOSITORY
from test_strategies_page import ROWS, matrix

from nfcl_jax.config import read_config
from nfcl_jax.fields import FIELDS
from nfcl_jax.report.tables import markdown


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
            row[FIELDS[field].title] = " → ".join(f"{value:.1f}" for value in both)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def test_the_tables_of_schedules_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    for scenario, what in (
        ("domain_expansion", "lost"),
        ("domain_expansion", "last"),
        ("signal_expansion", "lost"),
    ):
        assert table_of_schedules(scenario, what) in page


def test_the_runs_of_the_schedules_differ_in_the_schedule_alone():
    stored = REPOSITORY / "docs/reproduction/schedule"
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
