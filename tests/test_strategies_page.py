"""docs/strategies.md: its numbers are those of the runs that are kept beside it."""

import json
import runpy
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from experiments.launch.grid import make_cells
from nfcl_jax.config import read_config
from nfcl_jax.fields import FIELDS
from nfcl_jax.report.tables import markdown
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import STRATEGIES

PATIENTS = ["patient001", "patient061"]
OTHERS = ["patient002", "patient003", "patient022", "patient042", "patient090"]
WHOLE = ["patient001", "patient002", "patient003"]
RUNS = {"paper": "paper's", "whole": "paper's"}
RUNS |= dict.fromkeys(("recommended", "unseen", "whole_recommended"), "recommended")


# The rows of the table of strategies: in which folder of runs, and the rest of a cell's name.
ROWS = {
    "`finetune`": ("paper", "finetune"),
    "`distillation`, weight 1": ("paper", "distillation"),
    "`replay`, a tenth of the voxels": ("strategies", "replay"),
    "`joint`, all voxels": ("strategies", "joint"),
    "`ogd`": ("strategies", "ogd"),
    "`mas`, weight 1": ("strategies", "mas"),
    "`ewc`, weight 0.01": ("strategies", "ewc_weight0.01"),
    "`ewc`, weight 1": ("strategies", "ewc"),
    "`ewc`, weight 100": ("strategies", "ewc_weight100"),
    "`ewc`, weight 10,000": ("strategies", "ewc_weight10000"),
}


def matrix(run, scenario, field, metric, strategy="distillation", patients=PATIENTS):
    """Each patient's scores, by the learned and the scored task."""
    name = f"{scenario}-{field}-{strategy}-seed0"
    rows = pd.read_csv(REPOSITORY / f"docs/reproduction/{run}/cells/{name}/metrics.csv")
    rows = rows[rows["patient"].isin(patients) & (rows["metric"] == metric)]
    place = ["trained_task", "evaluated_task"]
    table = rows.pivot_table(index="patient", columns=place, values="value")
    assert list(table.index) == patients
    return table


def largest_drop(psnr):
    """From when an earlier task was learned to the end, of any patient."""
    last = max(task for task, _ in psnr.columns)
    return max((psnr[task, task] - psnr[last, task]).max() for task in range(1, last))


def row_of(run, scenario, field, patients=PATIENTS):
    psnr = matrix(run, scenario, field, "psnr", patients=patients)
    last = max(task for task, _ in psnr.columns)
    kept = f"{psnr[1, 1].mean():.1f} → {psnr[last, 1].mean():.1f}"
    if scenario == "domain_expansion":
        new = {"last frame": f"{psnr[last, last].mean():.1f}"}
    else:
        dice = matrix(run, scenario, field, "dsc", patients=patients)
        new = {"DSC": f"{dice[last, last].mean():.2f}"}
    first = "first frame" if scenario == "domain_expansion" else "image"
    row = {"field": FIELDS[field].title, "recipe": RUNS[run]}
    return row | {first: kept} | new | {"largest drop": f"{largest_drop(psnr):.1f}"}


def tables(recommended="recommended", patients=PATIENTS):
    found = []
    for scenario in ("domain_expansion", "signal_expansion"):
        there = REPOSITORY / f"docs/reproduction/{recommended}/cells"
        fields = [f for f in FIELDS if (there / f"{scenario}-{f}-distillation-seed0").exists()]
        runs = [(field, run) for field in fields for run in ("paper", recommended)]
        rows = [row_of(run, scenario, field, patients) for field, run in runs]
        found.append(markdown(pd.DataFrame(rows)))
    return "\n\n".join(found)


def test_the_tables_of_the_recipe_are_those_of_its_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    for table in tables().split("\n\n"):
        assert table in page


def test_the_tables_of_other_patients_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    for table in tables("unseen", OTHERS).split("\n\n"):
        assert table in page
    image = matrix("unseen", "signal_expansion", "diner", "psnr", patients=OTHERS)[2, 1]
    frames = matrix("unseen", "domain_expansion", "diner", "psnr", patients=OTHERS)
    assert "DINER ends above 40 dB." in page
    assert (image > 40).all() and (frames[4] > 40).all().all()
    assert "coordinates loses more than half a decibel" in page
    for field in ("pe_relu", "siren", "finer"):
        for scenario, last in (("domain_expansion", 4), ("signal_expansion", 2)):
            psnr = matrix("unseen", scenario, field, "psnr", patients=OTHERS)
            for task in range(1, last):
                assert (psnr[task, task] - psnr[last, task] <= 0.5).all(), (scenario, field, task)


def table_of_whole_frames():
    runs = ("whole", "whole_recommended")
    rows = [row_of(run, "signal_expansion", field, WHOLE) for field in FIELDS for run in runs]
    return markdown(pd.DataFrame(rows))


def test_the_table_of_whole_frames_is_that_of_its_runs():
    assert table_of_whole_frames() in (REPOSITORY / "docs/strategies.md").read_text()


def table_of_twelve_frames():
    rows = []
    for field in ("siren", "diner"):
        for strategy in STRATEGIES:
            where = "long", "domain_expansion_12", field, "psnr", strategy, ["patient001"]
            psnr = matrix(*where).iloc[0]
            row = {"field": FIELDS[field].title, "strategy": f"`{strategy}`"}
            row |= {f"after {n}": f"{psnr[n, 1]:.1f}" for n in (1, 2, 4, 8, 12)}
            rows.append(row | {"frame 12": f"{psnr[12, 12]:.1f}"})
    return markdown(pd.DataFrame(rows))


def test_the_table_of_twelve_frames_is_that_of_its_runs():
    assert table_of_twelve_frames() in (REPOSITORY / "docs/strategies.md").read_text()


def test_what_is_said_of_the_mix_is_that_of_its_runs():
    ends = {}
    for strategy in ("distillation", "joint", "finetune"):
        where = "long", "mixed_expansion", "siren", "psnr", strategy, ["patient001"]
        ends[strategy] = matrix(*where)[3, 1].iloc[0]
    words = (
        f"SIREN's first frame ends at {ends['distillation']:.1f} dB (joint: {ends['joint']:.1f}, "
        f"fine-tuning: {ends['finetune']:.1f})"
    )
    assert words in " ".join((REPOSITORY / "docs/strategies.md").read_text().split())


def table_of_strategies():
    rows = []
    for field in ("siren", "diner"):
        for title, (run, strategy) in ROWS.items():
            psnr = matrix(run, "domain_expansion", field, "psnr", strategy)
            row = {"field": FIELDS[field].title, "strategy": title}
            for name, (after, task) in {
                "first frame when learned": (1, 1),
                "first frame at the end": (4, 1),
                "last frame": (4, 4),
            }.items():
                row[name] = f"{psnr[after, task].mean():.1f}"
            rows.append(row | {"largest drop": f"{largest_drop(psnr):.1f}"})
    return markdown(pd.DataFrame(rows))


def test_what_is_said_of_ewc_and_finer_is_that_of_its_runs():
    ewc = matrix("strategies", "domain_expansion", "finer", "psnr", "ewc_weight100").mean()
    tuned = matrix("paper", "domain_expansion", "finer", "psnr", "finetune").mean()
    words = (
        f"at 100 its first frame ends at {ewc[4, 1]:.1f} dB and its last at {ewc[4, 4]:.1f} "
        f"(fine-tuning: {tuned[4, 4]:.1f})"
    )
    assert words in " ".join((REPOSITORY / "docs/strategies.md").read_text().split())


def table_of_masks():
    """The same of an image, then its mask: the means over the end-diastolic and end-systolic frame
    of patient001."""
    rows = []
    for field in ("siren", "diner"):
        for title, (_, strategy) in ROWS.items():
            where = "strategies", "signal_expansion", field
            psnr, dsc = (
                matrix(*where, m, strategy, ["patient001"]).iloc[0] for m in ("psnr", "dsc")
            )
            title = title.replace("`distillation`, weight 1", "`distillation`, weight 10")
            row = {"field": FIELDS[field].title, "strategy": title}
            row |= {
                "image when learned": f"{psnr[1, 1]:.1f}",
                "image at the end": f"{psnr[2, 1]:.1f}",
            }
            rows.append(row | {"DSC": f"{dsc[2, 2]:.2f}"})
    return markdown(pd.DataFrame(rows))


def test_the_tables_of_strategies_are_those_of_their_runs():
    page = (REPOSITORY / "docs/strategies.md").read_text()
    assert table_of_strategies() in page
    assert table_of_masks() in page


def test_the_readme_says_what_the_recipe_reaches():
    both = ("recommended", "paper")
    psnr = {run: matrix(run, "domain_expansion", "siren", "psnr") for run in both}
    drops, of_images = [], []
    for field in ("pe_relu", "siren", "finer"):
        for own, scenario in ((drops, "domain_expansion"), (of_images, "signal_expansion")):
            own.append(largest_drop(matrix("recommended", scenario, field, "psnr")))

    def most(values, digits):
        """A bound: rounded up."""
        return np.ceil(10**digits * max(values)) / 10**digits

    ends = [psnr[run][4, 1].mean() for run in both]
    words = (
        f"no earlier frame of a field that takes coordinates then drops by more than "
        f"{most(drops, 1)} dB, no image by more than {most(of_images, 2)} dB when its mask is "
        f"learned, and SIREN's first frame ends at {ends[0]:.1f} dB instead of "
        f"{ends[1]:.1f}"
    )
    assert words in " ".join((REPOSITORY / "README.md").read_text().split())


def table_of_costs():
    records = json.loads((REPOSITORY / "docs/performance/strategies.json").read_text())
    steps = {record["strategy"]: record for record in records if record["task"] == 2}
    tuned = steps["finetune"]["ms_per_step_per_patient"]
    rows = []
    for strategy, record in steps.items():
        time = record["ms_per_step_per_patient"]
        rows.append(
            {
                "strategy": f"`{strategy}`",
                "a step, ms": f"{time:.0f}",
                "times fine-tuning's": f"{time / tuned:.1f}",
                "memory, MB": f"{record['megabytes']:.0f}",
            }
        )
    return markdown(pd.DataFrame(rows))


def test_the_table_of_costs_is_that_of_the_benchmark():
    assert table_of_costs() in (REPOSITORY / "docs/strategies.md").read_text()


@pytest.mark.parametrize(
    ("run", "recipe"),
    [
        ("paper", "paper"),
        ("recommended", "recommended"),
        ("unseen", "recommended"),
        ("whole_recommended", "recommended"),
        ("long", "long"),
    ],
)
@patch.dict(SCENARIOS)  # configs/long.py has more
def test_the_runs_behind_the_page_are_those_of_its_commands_today(run, recipe, tmp_path):
    config = runpy.run_path(str(REPOSITORY / f"configs/{recipe}.py"))["get_config"]().to_dict()
    config["strategies"] = ",".join(STRATEGIES)
    today = {cell.name: cell.config for cell in make_cells(config, tmp_path)}
    folders = sorted((REPOSITORY / f"docs/reproduction/{run}/cells").iterdir())
    assert folders
    for folder in folders:
        stored, own = read_config(folder / "config.json"), today[folder.name]
        assert stored | {"data": own["data"]} == own, folder.name
