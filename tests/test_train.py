"""Runs as a user launches them, on small phantoms."""

import csv
import itertools
import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_checkpoints import alter

import nfcl_jax
from experiments import train
from nfcl_jax import checkpoints, config
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS
from nfcl_jax.report.results import BASELINE
from nfcl_jax.run_folder import describe_scans, refuse_another_run
from nfcl_jax.runner import Outcome
from nfcl_jax.scenarios import SCENARIOS

STRATEGIES = (BASELINE, "distillation")
# About 2 dB, and 0.05 of DSC, below what a run reached; further for DINER, which varies more, and
# ends elsewhere with each version of XLA. PSNR
# in dB of the first frame or image and of the last when learned, of the first at the end with
# distillation, and the mean DSC of the mask.
FIRST_TASK_PSNR = {"pe_relu": 18, "siren": 25, "finer": 19, "diner": 26}
KEPT_PSNR = {
    "domain_expansion": {"pe_relu": 20, "siren": 22, "finer": 18, "diner": 26},
    "signal_expansion": {"pe_relu": 18, "siren": 24, "finer": 20, "diner": 24},
}
# With --slow.
LATER = [(s, f) for s in SCENARIOS for f in ("pe_relu", "finer")] + [("signal_expansion", "diner")]
MASK_DSC = {"pe_relu": 0.2, "siren": 0.85, "finer": 0.8, "diner": 0.89}


def make_config(scenario, field, strategy, phantom_root, patients="patient001"):
    made = config.make_config(scenario, field, strategy)
    made |= {"num_steps": 150, "batch_size": 1024, "scans_per_batch": 0}
    made["data"] |= {"root": str(phantom_root), "patients": patients}
    made["field"]["width"] = 64
    return made


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def value(rows, metric, trained, evaluated):
    found = [
        float(row["value"])
        for row in rows
        if (row["metric"], row["trained_task"], row["evaluated_task"])
        == (metric, str(trained), str(evaluated))
    ]
    return np.mean(found)


@pytest.mark.parametrize(
    ("scenario", "field"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case in LATER))
        for case in itertools.product(SCENARIOS, FIELDS)
    ],
)
def test_every_field_learns_forgets_and_is_saved_by_distillation(runs, scenario, field):
    last = {"domain_expansion": 4, "signal_expansion": 2}[scenario]
    rows = {s: read_csv(runs(scenario, field, s) / "metrics.csv") for s in STRATEGIES}
    for strategy in STRATEGIES:
        assert value(rows[strategy], "psnr", 1, 1) > FIRST_TASK_PSNR[field]
        if scenario == "signal_expansion":
            assert MASK_DSC[field] < value(rows[strategy], "dsc", 2, 2) <= 1
        else:
            assert value(rows[strategy], "psnr", 4, 4) > FIRST_TASK_PSNR[field]
        fits = read_csv(runs(scenario, field, strategy) / "fits.csv")
        assert {(fit["collapsed"], fit["diverged"]) for fit in fits} == {("False", "False")}
    forgot, kept = (value(rows[s], "psnr", last, 1) for s in ("finetune", "distillation"))
    assert kept > KEPT_PSNR[scenario][field]
    # PE-ReLU cannot tell the first frame from the last (test_fields.py).
    if scenario == "signal_expansion" or field != "pe_relu":
        assert kept > forgot + 4


def test_a_run_leaves_everything_it_promises(runs, phantom_root):
    workdir = runs("domain_expansion", "siren", "distillation")
    rows = read_csv(workdir / "metrics.csv")
    assert list(rows[0]) == [
        "scenario", "field", "strategy", "seed", "patient", "image", "trained_task",
        "evaluated_task", "metric", "value",
    ]  # fmt: skip
    pairs = {(int(r["trained_task"]), int(r["evaluated_task"])) for r in rows}
    assert pairs == {(t, e) for t in range(1, 5) for e in range(1, t + 1)}
    assert list(read_csv(workdir / "fits.csv")[0])[:4] == ["patient", "image", "task", "final_loss"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["field"]["w0"] == 15.0
    scan = json.loads((workdir / "patients.json").read_text())[0]
    assert scan["shape"] == [4, 48, 42, 5] and scan["frame_numbers"] == [1, 6, 11, 16]
    assert "learned and saved" in (workdir / "train.log").read_text()
    metadata = checkpoints.load_metadata(workdir, 3)
    assert metadata["config"] == config and metadata["scans"][0]["patient"] == "patient001"


def test_the_summary_is_the_mean_over_the_metrics(runs):
    workdir = runs("signal_expansion", "siren", "distillation")
    rows, summary = read_csv(workdir / "metrics.csv"), read_csv(workdir / "summary.csv")
    assert {(r["trained_task"], r["evaluated_task"]) for r in summary} == {
        ("1", "1"), ("2", "1"), ("2", "2"),
    }  # fmt: skip
    for row in summary:
        both = value(rows, row["metric"], row["trained_task"], row["evaluated_task"])
        assert float(row["mean"]) == pytest.approx(both)
        assert row["patients"] == "1" and row["failed"] == "0" and row["std"] == "nan"


def test_another_run_is_not_overwritten(runs, phantom_root):
    workdir = runs("domain_expansion", "siren", "distillation")
    made = make_config("domain_expansion", "siren", "distillation", phantom_root, "patient002")
    made["distillation"]["weight"] = 3.0
    with pytest.raises(ConfigError) as error:
        train.train(made, workdir, Console(quiet=True))
    assert "config.distillation.weight = 1.0 instead of 3.0" in str(error.value)
    assert "config.data.patients = 'patient001' instead of 'patient002'" in str(error.value)
    assert "num_steps" not in str(error.value)
    scans = read_scans(phantom_root, "domain_expansion", ["patient002"])
    with pytest.raises(ConfigError, match=r"patients = patient001/cine instead of patient002/cine"):
        refuse_another_run(made, describe_scans(scans, made, {}), workdir)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(runs, phantom_root, tmp_path, left):
    """The cell took its first task from its fine-tuned twin; the new run learns it, or goes on
    after `left` tasks, beside rows of a task whose checkpoint was not written any more."""
    finished = runs("domain_expansion", "siren", "distillation")
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    if left == 0:
        shutil.rmtree(workdir)
    for task in range(left + 1, 5):
        shutil.rmtree(workdir / f"checkpoints/task_{task}", ignore_errors=True)
    (workdir / "summary.csv").unlink(missing_ok=True)
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    train.train(made, workdir, Console(quiet=True))
    for name in ("metrics.csv", "fits.csv", "summary.csv", "config.json", "patients.json"):
        assert (workdir / name).read_text() == (finished / name).read_text(), name
    same = [nfcl_jax.open_run(w).params("patient001", task=4) for w in (workdir, finished)]
    jax.tree.map(np.testing.assert_array_equal, *same)


@pytest.mark.parametrize("damage", [alter, shutil.rmtree])
def test_a_run_goes_on_before_a_checkpoint_that_is_damaged_or_lost(
    runs, phantom_root, tmp_path, damage
):
    finished = runs("domain_expansion", "siren", "distillation")
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    damage(workdir / "checkpoints/task_3")
    if damage is alter:
        shutil.rmtree(workdir / "checkpoints/task_4")
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    train.train(made, workdir, Console(quiet=True))
    log = (workdir / "train.log").read_text()
    assert ("task_3: damaged (" if damage is alter else "no checkpoint of task 3") in log
    assert "is learned again; its checkpoint is now" in log
    for name in ("metrics.csv", "fits.csv", "summary.csv"):
        assert (workdir / name).read_text() == (finished / name).read_text(), name


def test_looking_at_a_finished_run_again_leaves_it_as_it_is(
    runs, phantom_root, tmp_path, monkeypatch
):
    """Even if its checkpoints cannot be read any more, and in batches of another size."""
    workdir = tmp_path / "run"
    shutil.copytree(runs("domain_expansion", "siren", "distillation"), workdir)
    before = {path: path.read_bytes() for path in workdir.glob("*.csv")}
    monkeypatch.setattr("nfcl_jax.runner.checkpoints.load_all", None)
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    made["scans_per_batch"] = 1
    train.train(made, workdir, Console(quiet=True))
    assert {path: path.read_bytes() for path in workdir.glob("*.csv")} == before


def test_a_run_of_an_earlier_version_goes_on(runs, phantom_root, tmp_path):
    """Its config has an old name for the scans of a batch, and no data set."""
    finished = runs("domain_expansion", "siren", "distillation")
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints/task_4")
    stored = json.loads((workdir / "config.json").read_text())
    del stored["scans_per_batch"]
    stored["patients_per_batch"] = 7
    del stored["data"]["dataset"]
    (workdir / "config.json").write_text(json.dumps(stored))
    assert nfcl_jax.open_run(workdir).config["scans_per_batch"] == 7
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    train.train(made, workdir, Console(quiet=True))
    assert "3 of 4 tasks were learned before" in (workdir / "train.log").read_text()
    for name in ("metrics.csv", "fits.csv", "summary.csv"):
        assert (workdir / name).read_text() == (finished / name).read_text(), name


@pytest.mark.parametrize(
    ("failed", "usable", "strict", "left_out", "fault"),
    [
        ([], True, True, [], ""),
        (["patient001/cine"], True, False, ["patient002"], ""),
        (["patient001/cine"], True, True, [], "in a strict run: patient001/cine"),
        ([], True, True, ["patient002"], "in a strict run: patient002"),
        (["patient001/cine"], False, False, [], "every fit diverged or collapsed"),
    ],
)
def test_what_makes_the_exit_code_1(failed, usable, strict, left_out, fault):
    found = Outcome(pd.DataFrame(), failed, usable).fault(strict, left_out)
    assert fault in found and bool(fault) == bool(found)


def test_what_ends_a_run_is_in_its_log(phantom_root, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nfcl_jax.runner.learn", stop)
    made = make_config("domain_expansion", "siren", "finetune", phantom_root)
    with pytest.raises(KeyboardInterrupt):
        train.train(made, tmp_path, Console(quiet=True))
    assert "ERROR ended early\nTraceback" in (tmp_path / "train.log").read_text()


def test_a_collapsed_patient_is_named_counted_and_left_out(phantom_root, tmp_path):
    """Learning rate 0 cannot be set; a DINER whose table cannot tell voxels apart stays flat."""
    made = make_config("domain_expansion", "diner", "finetune", phantom_root)
    made |= {"num_steps": 3, "learning_rate": 1e-12}
    with pytest.raises(SystemExit, match="error: every fit diverged or collapsed"):
        train.train(made, tmp_path / "flat", Console(quiet=True))
    fits = read_csv(tmp_path / "flat/fits.csv")
    assert {fit["collapsed"] for fit in fits} == {"True"}
    summary = read_csv(tmp_path / "flat/summary.csv")
    assert {row["failed"] for row in summary} == {"1"}
    assert {row["mean_without_failed"] for row in summary} == {"nan"}
    assert (
        "patient001/cine collapsed to a constant in task 1"
        in (tmp_path / "flat/train.log").read_text()
    )


def test_a_run_goes_on_without_a_patient_that_cannot_be_read(phantom_root, tmp_path, capsys):
    shutil.copytree(phantom_root, tmp_path / "data")
    cine = tmp_path / "data/patient002/patient002_4d.nii.gz"
    cine.write_bytes(cine.read_bytes()[:1000])
    made = make_config("domain_expansion", "siren", "finetune", tmp_path / "data", "")
    made["num_steps"], made["data"]["skip_invalid"] = 2, True
    train.train(made, tmp_path / "run", Console())
    assert "left out: patient002; why is in" in capsys.readouterr().out
    *scans, left_out = json.loads((tmp_path / "run/patients.json").read_text())
    assert [scan["patient"] for scan in scans] == ["patient001", "patient003"]
    assert left_out["patient"] == "patient002"
    (reason,) = left_out["left_out"]
    assert reason.startswith(f"{cine}: not a readable NIfTI")
    # The finished run is looked at again, strictly.
    made["strict"] = True
    with pytest.raises(SystemExit, match="error: not usable, in a strict run: patient002"):
        train.train(made, tmp_path / "run", Console(quiet=True))
    made["data"]["patients"] = "patient001,patient003"
    train.train(made, tmp_path / "healthy", Console(quiet=True))
    for name in ("metrics.csv", "fits.csv", "summary.csv"):
        left, right = (tmp_path / run / name for run in ("run", "healthy"))
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("link", ["checkpoints", "metrics.csv", "deep/er/train.log", ".lock"])
def test_a_folder_with_a_link_out_of_it_is_refused(phantom_root, tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere if link == "checkpoints" else elsewhere / "precious"
    path = tmp_path / "run" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    made = make_config("domain_expansion", "siren", "finetune", phantom_root)
    with pytest.raises(ConfigError, match=rf"{link}: a link to {target}, out of --workdir"):
        train.train(made, tmp_path / "run", Console(quiet=True))
    assert not list(elsewhere.iterdir())


def test_a_real_patient_end_to_end(acdc_root, tmp_path):
    made = make_config("domain_expansion", "siren", "distillation", acdc_root, "patient022")
    train.train(made, tmp_path / "run", Console(quiet=True))
    rows = read_csv(tmp_path / "run/metrics.csv")
    assert value(rows, "psnr", 4, 4) > 20
    assert jax.tree.leaves(nfcl_jax.open_run(tmp_path / "run").params("patient022", task=4))
