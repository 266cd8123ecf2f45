"""What docs/strategies.md says of the gap to joint training is that of the runs beside it."""

import numpy as np
import pandas as pd
from conftest import REPOSITORY
from test_strategies_page import matrix

from nfcl_jax.fields import FIELDS
from nfcl_jax.report.statistics import gap_closed
from nfcl_jax.report.tables import markdown


def gaps(scenario, last):
    """What the earlier tasks have when distillation has just learned them, and at the end, on
    average; and where distillation stands between fine-tuning and those."""
    found = {}
    for field in FIELDS:
        kept = {}
        for strategy in ("finetune", "distillation", "joint"):
            psnr = matrix("recommended", scenario, field, "psnr", strategy)
            kept[strategy] = np.mean([psnr[last, task] for task in range(1, last)], axis=0)
        psnr = matrix("recommended", scenario, field, "psnr")
        learned = np.mean([psnr[task, task] for task in range(1, last)], axis=0)
        row = {"when learned": learned.mean()}
        row |= {f"`{name}`": values.mean() for name, values in kept.items()}
        for title, end, mark in (
            ("kept", kept["distillation"], learned),
            ("gap closed", kept["distillation"], kept["joint"]),
            ("if nothing were lost", learned, kept["joint"]),
        ):
            row[f"{title}, %"] = gap_closed(end, kept["finetune"], mark)
        found[field] = row
    return found


def table_of_gaps(scenario, last):
    rows = []
    for field, own in gaps(scenario, last).items():
        row = {"field": FIELDS[field].title}
        for name, value in own.items():
            row[name] = "-" if np.isnan(value) else f"{value:.{0 if name.endswith('%') else 1}f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def test_the_tables_of_gaps_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    assert table_of_gaps("domain_expansion", 4) in page
    assert table_of_gaps("signal_expansion", 2) in page


def test_what_is_said_of_the_gaps_is_that_of_their_runs():
    frames, image = gaps("domain_expansion", 4), gaps("signal_expansion", 2)
    closed, at_most = (
        {field: [own[field][f"{title}, %"] for own in (frames, image)] for field in FIELDS}
        for title in ("gap closed", "if nothing were lost")
    )
    low, high = (
        " to ".join(f"{end(own['siren'] + own['finer']):.0f}" for end in (min, max))
        for own in (closed, at_most)
    )
    said = (
        f"SIREN and FINER close {low}% of the gap to it, PE-ReLU {closed['pe_relu'][0]:.0f}% in "
        f"frames and {closed['pe_relu'][1]:.0f}% in the image. If nothing were lost, these would "
        f"be {high}%, {at_most['pe_relu'][0]:.0f}% and {at_most['pe_relu'][1]:.0f}%"
    )
    assert said in " ".join((REPOSITORY / "docs/strategies.md").read_text().split())
