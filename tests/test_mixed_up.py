"""Files that are each in order and do not belong together; and what belongs together after all."""

import json
import os
import shutil

import numpy as np
import pytest
from made_up import write_grid, write_run
from rich.console import Console
from small import make_scan
from test_runs import STORED
from test_train import make_config

import nfcl_jax
from experiments import train
from nfcl_jax import checkpoints, partial
from nfcl_jax.config import read_config
from nfcl_jax.data.cohorts import read_cohort, read_scans
from nfcl_jax.errors import CheckpointError, DataError, RunError, Stopped
from nfcl_jax.locks import refuse_links_out
from nfcl_jax.records import Learned, Losses, Partial
from nfcl_jax.report.report import write_report
from nfcl_jax.report.shown import load_shown, save_shown
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import names_of
from nfcl_jax.runner import Caller, run
from nfcl_jax.storage import remove_parts

pytestmark = pytest.mark.usefixtures("without_figures")


def tiny(root, **data):
    made = make_config("domain_expansion", "siren", "distillation", root)
    made |= {"num_steps": 2, "batch_size": 64}
    made["field"]["width"] = 8
    made["data"] |= {"patients": "patient001,patient003"} | data
    return made


def test_a_run_without_a_patient_goes_on_wherever_the_files_are(phantom_root, tmp_path):
    for patient in ("patient001", "patient003"):
        shutil.copytree(phantom_root / patient, tmp_path / "here" / patient)
    cine = tmp_path / "here/patient003/patient003_4d.nii.gz"
    cine.write_bytes(cine.read_bytes()[:1000])
    config, workdir = tiny(tmp_path / "here", skip_invalid=True), tmp_path / "run"
    train.train(config, workdir, Console(quiet=True))
    scores = (workdir / "metrics.csv").read_bytes()
    shutil.rmtree(workdir / "checkpoints/task_4")
    (tmp_path / "here").rename(tmp_path / "there")
    config = tiny(tmp_path / "there", skip_invalid=True)
    train.train(config, workdir, Console(quiet=True))
    assert (workdir / "metrics.csv").read_bytes() == scores


def test_a_run_that_learns_again_is_not_finished(phantom_root, tmp_path):
    config, workdir = tiny(phantom_root, patients="patient001"), tmp_path / "run"
    scans = read_scans(phantom_root, "domain_expansion", ["patient001"], "acdc", "cine")
    run(config, scans, workdir, Caller())
    assert (workdir / "summary.csv").exists()
    for task in (3, 4):
        shutil.rmtree(workdir / f"checkpoints/task_{task}")
    with pytest.raises(Stopped):
        run(config, scans, workdir, Caller(asked_to_stop=lambda: 15))
    assert not (workdir / "summary.csv").exists()


def test_a_checkpoint_is_that_of_its_task(tmp_path):
    shutil.copytree(STORED, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    shutil.rmtree(folder / "task_4")
    shutil.copytree(folder / "task_1", folder / "task_4")
    with pytest.raises(CheckpointError, match=r"task_4: of task 1\."):
        checkpoints.load_all(tmp_path / "run", 4)
    (folder / "task_2").write_text("no folder")
    assert nfcl_jax.open_run(tmp_path / "run").tasks == (1, 4)


def test_a_metric_may_come_in_the_middle_of_a_run(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, "domain_expansion", "siren", "finetune")
    path, config = folder / "metrics.csv", read_config(folder / "config.json")
    names = names_of(patients(folder))
    rows = path.read_text().splitlines()
    later = [row.replace(",psnr,", ",mae,") for row in rows if ",psnr," in row and trained(row) > 2]
    path.write_text("\n".join([*rows, *later, ""]))
    scores, _ = read_rows(folder, config, names, 4)
    assert {row.trained_task for row in scores if row.metric == "mae"} == {3, 4}
    path.write_text("\n".join([*rows, *later[1:], ""]))
    with pytest.raises(RunError, match=r"missing: .*, mae"):
        read_rows(folder, config, names, 4)


def trained(row):
    return int(row.split(",")[6])


def patients(folder):
    return json.loads((folder / "patients.json").read_text())


def test_runs_on_other_values_of_a_scan_are_told_of(tmp_path):
    write_grid(tmp_path)
    assert "Runs were made on different scans" not in report(tmp_path)
    for number, folder in enumerate(sorted(tmp_path.glob("cells/domain_expansion-siren-*"))):
        records = [r | {"sha256": f"{number} {r['patient']}"} for r in patients(folder)]
        (folder / "patients.json").write_text(json.dumps(records))
    assert "Runs were made on different scans of" in report(tmp_path)
    assert "The same scan" not in report(tmp_path)


def test_what_is_not_as_shipped_in_one_scenario_is_told_with_it(tmp_path):
    changed = [("domain", "siren"), ("domain", "diner"), ("signal", "diner")]
    for scenario, field in [*changed, ("signal", "siren")]:
        folder = tmp_path / f"{scenario}-{field}"
        write_run(folder, f"{scenario}_expansion", field, "finetune")
        config = json.loads((folder / "config.json").read_text())
        config["num_steps"] = 7 if (scenario, field) in changed else 500
        (folder / "config.json").write_text(json.dumps(config))
    text = report(tmp_path)
    siren, diner = (
        next(line for line in text.splitlines() if f"Not as shipped ({field}): " in line)
        for field in ("SIREN", "DINER")
    )
    assert siren.endswith("; in domain expansion num_steps 7 instead of 500.")
    assert diner.startswith("Not as shipped (DINER): num_steps 7 instead of 500, ")
    assert "expansion" not in diner


def test_fields_that_are_changed_alike_are_told_of_in_one_sentence(tmp_path):
    for field, steps in (("siren", 7), ("finer", 7), ("pe_relu", 8)):
        for scenario in ("domain", "signal"):
            folder = tmp_path / f"{field}-{scenario}"
            weight = {"weight": 9.0} if scenario == "signal" else {}
            write_run(folder, f"{scenario}_expansion", field, "distillation", **weight)
            config = json.loads((folder / "config.json").read_text())
            own = config | {"num_steps": steps, "huber_delta": 2.0}
            (folder / "config.json").write_text(json.dumps(own))
    lines = [line for line in report(tmp_path).splitlines() if "Not as shipped" in line]
    rest = (
        "huber_delta 2.0 instead of 1.0, data.intensity_range frames instead of cine; "
        "in signal expansion distillation.weight 9.0 instead of 10.0."
    )
    assert lines == [
        f"Not as shipped (PE-ReLU): num_steps 8 instead of 500, {rest}",
        f"Not as shipped (SIREN, FINER): num_steps 7 instead of 500, {rest}",
    ]


def test_a_scan_that_is_there_twice_is_told_of(tmp_path):
    write_run(tmp_path / "a", "domain_expansion", "siren", "finetune")
    records = patients(tmp_path / "a")
    for record, digest in zip(records, "abcbd", strict=True):
        record["sha256"] = digest
    (tmp_path / "a/patients.json").write_text(json.dumps(records))
    assert "once for each of its names: patient002/cine, patient004/cine." in report(tmp_path)


def report(folder):
    write_report(folder)
    return (folder / "tables.md").read_text()


def test_the_first_sentence_is_of_all_patients(tmp_path):
    def change(scenario, field, strategy, patient, trained, evaluated, metric):
        diverged = (scenario, strategy, trained) == ("domain_expansion", "finetune", 4)
        return np.nan if diverged and patient == "patient001" else None

    write_grid(tmp_path, change=change)
    text = report(tmp_path)
    assert "Learning four frames in turn" not in (tmp_path / "report.html").read_text()
    assert "Learning the mask" in (tmp_path / "report.html").read_text()
    assert "| 4 of 5 |" in text and "| 5 of 5 |" in text


def test_other_programs_files_stay(tmp_path):
    ours, theirs = tmp_path / ".metrics.csv.12-34.part", tmp_path / ".film.mkv.part"
    for path in (ours, theirs):
        path.touch()
    remove_parts(tmp_path)
    assert not ours.exists() and theirs.exists()


def test_a_link_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    refuse_links_out(tmp_path)


@pytest.mark.parametrize("strategy", ["seed", "scenario", "data"])
def test_a_strategy_is_no_other_value_of_a_config(tmp_path, strategy):
    shutil.copytree(STORED, tmp_path / "run")
    path = tmp_path / "run/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"strategy": strategy}))
    with pytest.raises(RunError, match=r"config\.json: not the config of a run"):
        read_config(path)


@pytest.mark.parametrize("name", [b"patient\xe91", b"patient\\1"])
def test_a_patients_name_can_be_written(phantom_root, tmp_path, name):
    shutil.copytree(phantom_root / "patient001", tmp_path / os.fsdecode(name))
    with pytest.raises(DataError, match="a name in UTF-8") as error:
        read_cohort(tmp_path, ["domain_expansion"])
    str(error.value).encode()


def test_a_scan_that_shrinks_well_can_be_shown(tmp_path):
    scan = make_scan("patient1", (128, 128, 8))
    scan.intensities[:] = scan.intensities > 2
    save_shown(tmp_path, [scan], ["patient1"])
    (shown,) = load_shown(tmp_path)
    np.testing.assert_array_equal(shown.intensities, scan.intensities)


def test_what_is_unfinished_is_of_one_scan_and_task(tmp_path):
    losses = Losses(np.ones(1), np.zeros(1))
    done = Partial(1, Learned({"params": {"x": np.ones(2)}}, {}), [], losses, None, [], [])
    partial.save(tmp_path, 1, {"a/cine": done}, "run")
    folder = tmp_path / "unfinished"
    shutil.copy(folder / "task_1/a-cine.npz", folder / "task_1/b-cine.npz")
    shutil.copytree(folder / "task_1", folder / "task_2")
    begun, (fault,) = partial.load(tmp_path, 1, ["a/cine", "b/cine"], "run")
    assert list(begun) == ["a/cine"] and "task 1 of a/cine" in fault
    begun, faults = partial.load(tmp_path, 2, ["a/cine"], "run")
    assert not begun and "task 1 of a/cine" in faults[0]
