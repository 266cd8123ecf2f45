"""Several grids, and their verdicts side by side."""

import json
import re

import pandas as pd
import pytest
from commands import typed
from made_up import COHORT, write_grid

from configs import paper, study
from experiments.launch.study import choices_of
from nfcl_jax.config import make_config
from nfcl_jax.errors import ConfigError
from nfcl_jax.records import Fit, Score
from nfcl_jax.report.report import write_report
from nfcl_jax.report.scores import as_frame
from nfcl_jax.report.study import failed_fits, write_study
from nfcl_jax.report.tables import markdown

pytestmark = pytest.mark.usefixtures("without_figures")


def test_every_choice_is_a_grid_that_differs_in_what_it_says(tmp_path):
    config = study.get_config()
    config.data.root, config.overrides = "/data", "siren:field.w0=20"
    choices = choices_of(config.to_dict(), tmp_path)
    assert set(choices) == set(config.choices) and next(iter(choices)) == "as_shipped"
    shipped = choices["as_shipped"]
    own = ("choices", "only")
    assert shipped == {k: v for k, v in config.to_dict().items() if k not in own}
    assert choices["frames_range"]["data"] == shipped["data"] | {"intensity_range": "frames"}
    few = f"siren:field.w0=20,diner:batch_size=4096,{study.DRAWN_APART}"
    assert choices["diner_4096_points"]["overrides"] == few
    assert choices["diner_no_warmup"]["overrides"] == "siren:field.w0=20,diner:warmup_steps=0"
    for name, grid in choices.items():
        changed = {key for key in grid if grid[key] != shipped[key]}
        assert changed == set(config.choices[name]), name


def test_what_no_grid_has_is_refused_before_the_first_is_run(tmp_path):
    config = study.get_config()
    config.data.root = "/data"
    for changes, message in (
        ({"batchsize": 3}, "config.choices.mine: a grid has no batchsize"),
        ({"data": {"range": "x"}}, "config.choices.mine: a grid has no range"),
        ({"overrides": "dinner:batch_size=0"}, "config.overrides: 'dinner:batch_size=0'"),
    ):
        with pytest.raises(ConfigError, match=message):
            choices_of(config.to_dict() | {"choices": {"mine": changes}}, tmp_path)
    config.only = "diner_lecun*, diner_optimiser_kept"
    chosen = {"diner_lecun", "diner_lecun_warmup", "diner_optimiser_kept"}
    assert set(choices_of(config.to_dict(), tmp_path)) == chosen
    config.only = "diner_lecun, dinner_*"
    with pytest.raises(ConfigError, match=r"only: no choice 'dinner_\*'; there are as_shipped, "):
        choices_of(config.to_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"configs/study\.py would be right"):
        choices_of(paper.get_config().to_dict(), tmp_path)


def test_the_scans_of_every_choice_are_read_before_the_first_is_run(tmp_path, phantom_root):
    (tmp_path / "mine.py").write_text(
        "from configs import study\n"
        "def get_config():\n"
        "    config = study.get_config()\n"
        "    config.choices = {'as_shipped': {}, 'other': {'data': {'root': '/nowhere'}},\n"
        "                      'third': {'data': {'root': '/nor/here'}}}\n"
        "    return config\n"
    )
    command = "python -m experiments.study --config=mine.py --workdir=w"
    done = typed(f"{command} --config.data.root={phantom_root}", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: config.choices.other: /nowhere: no such folder" in done.stderr
    assert "config.choices.third: /nor/here: no such folder" in done.stderr
    assert "Traceback" not in done.stderr and not list((tmp_path / "w").glob("*/cells"))


def test_the_table_has_the_verdict_of_each_claim_and_what_decides_it(tmp_path):
    def worse(*key):
        mask = key[:3] == ("signal_expansion", "finer", "distillation") and key[-1] == "dsc"
        return 0.7 + 0.001 * COHORT.index(key[3]) if mask else None

    for name, change in (("as_shipped", {}), ("worse", {"change": worse})):
        write_report(write_grid(tmp_path / name, patients=COHORT, **change))
    write_study(tmp_path, ["as_shipped", "worse", "not_run"])
    text = (tmp_path / "study.md").read_text()
    head, shipped, other = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.split("## Fits")[0].splitlines()[4:]
        if line and not line.startswith("| ---")
    )
    assert head == ["choice", *(f"C{i}" for i in range(1, 11))]
    words = [cell.split(":")[0] for cell in shipped]
    assert words == ["as_shipped", *["holds"] * 9, "not tested"]
    assert shipped[10] == "not tested" and re.fullmatch(r"holds: 0\.9\d \(> 0\.835\)", shipped[7])
    assert [i for i in range(1, 11) if other[i] != shipped[i]] == [7]
    assert re.fullmatch(r"does not hold: 0\.7\d \(> 0\.835\)", other[7])
    # 40 patients, once or twice each, 4 fields, 2 strategies, 2 choices.
    assert f"None of {(40 + 80) * 4 * 2 * 2}." in text
    assert "| worse | does not hold | FINER: DSC, distilled | 0.7" in text
    assert set(json.loads((tmp_path / "study.json").read_text())) == {"as_shipped", "worse"}


def test_fits_that_failed_are_counted_after_the_first_and_the_last_task(tmp_path):
    """Of three seeds one fails at once and one in the last task; a failed fit stays failed."""
    first_failure, frames = {0: 1, 1: 4, 2: None}, []
    for seed, failing in first_failure.items():
        config = make_config("domain_expansion", "diner", "finetune") | {"seed": seed}
        scores = [Score("p", "cine", t, 1, m, 1.0) for t in range(1, 5) for m in ("psnr", "ssim")]
        fits = [Fit("p", "cine", t, 0.1, 0.0, t == failing, False, 0) for t in range(1, 5)]
        frames.append(as_frame(config, "finetune", scores, fits))
    (row,) = failed_fits(pd.concat(frames)).to_dict("records")
    assert row == {"field": "diner", "strategy": "finetune", "first": 1, "last": 2, "fits": 3}
    write_report(write_grid(tmp_path / "one", patients=COHORT[:2]))
    results = pd.concat(frames).to_csv(index=False)
    (tmp_path / "one/results.csv").write_text(results)
    write_study(tmp_path, ["one"])
    assert "| one | DINER | finetune | 1 of 3 | 2 of 3 |" in (tmp_path / "study.md").read_text()


def test_a_bar_in_a_name_makes_no_column():
    text = markdown(pd.DataFrame({"strategy": ["a|b"]}))
    assert text.splitlines() == ["| strategy |", "| --- |", r"| a\|b |"]
