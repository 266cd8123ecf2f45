"""Runs, opened: what is there, and what goes out of it."""

import json
import shutil
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from commands import typed as command
from test_train import read_csv, value

import nfcl_jax
from nfcl_jax import sizes
from nfcl_jax.config import make_config, read_config
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.errors import CheckpointError, ConfigError, RunError
from nfcl_jax.report.report import write_report
from nfcl_jax.run_folder import refuse_another_run, write_description


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_at_the_original_grid_a_file_scores_what_the_run_scored(runs, phantom_root, tmp_path, name):
    workdir = runs("domain_expansion", name, "distillation")
    run = nfcl_jax.open_run(workdir)
    scan = read_scans(phantom_root, "domain_expansion", ["patient001"])[0]
    source = nib.load(phantom_root / "patient001/patient001_4d.nii.gz")
    for task in (2, 4):
        image = nib.load(run.to_nifti("patient001", task, tmp_path / "p.nii.gz"))
        assert image.shape == (*source.shape[:3], task)
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
        np.testing.assert_allclose(image.header.get_zooms()[:3], source.header.get_zooms()[:3])
        for frame in range(task):
            error = np.mean((image.get_fdata()[..., frame] - scan.intensities[frame]) ** 2)
            expected = value(read_csv(workdir / "metrics.csv"), "psnr", task, frame + 1)
            assert -10 * np.log10(error) == pytest.approx(expected, abs=1e-3)


def test_files_of_other_grids_times_and_outputs(runs, phantom_root, tmp_path):
    run = nfcl_jax.open_run(runs("domain_expansion", "siren", "distillation"))
    frames = nib.load(run.to_nifti("patient001", 4, tmp_path / "a.nii"))
    many = nib.load(
        run.to_nifti("patient001", 4, tmp_path / "b.nii", spacing=(2.8, 2.8, 5), times=7)
    )
    assert many.shape == (48, 42, 9, 7)
    # Every second of the seven time points is a frame; every second slice one of the scan's.
    np.testing.assert_allclose(many.get_fdata()[:, :, ::2, ::2], frames.get_fdata(), atol=1e-4)
    # Frames 1, 6, 11 and 16 of 16.
    np.testing.assert_allclose(frames.header.get_zooms()[3], 5 / 16)
    np.testing.assert_allclose(many.header.get_zooms()[3], 2.5 / 16)

    one = nib.load(run.to_nifti("patient001", 1, tmp_path / "c.nii"))
    assert one.shape == (48, 42, 5, 1) and one.header.get_zooms()[3] == 5 / 16
    with pytest.raises(ValueError, match="one frame was learned by then"):
        run.to_nifti("patient001", 1, tmp_path / "c.nii", times=10)
    for task in (0, -1, 5):
        with pytest.raises(KeyError, match=f"no checkpoint of task {task}"):
            run.to_nifti("patient001", task, tmp_path / "c.nii")

    workdir = runs("signal_expansion", "siren", "distillation")
    run = nfcl_jax.open_run(workdir)
    where = {"patient": "patient001", "image": "ED", "path": tmp_path / "m.nii.gz"}
    mask = nib.load(run.to_nifti(task=2, output="mask", **where)).get_fdata()
    scans = {scan.name: scan for scan in read_scans(phantom_root, "signal_expansion")}
    truth = scans["patient001/ED"].labels[0]
    for label, metric in enumerate(("dsc_rv", "dsc_myo", "dsc_lv"), start=1):
        both = 2 * ((mask == label) & (truth == label)).sum()
        dice = both / ((mask == label).sum() + (truth == label).sum())
        (expected,) = [
            float(row["value"])
            for row in read_csv(workdir / "metrics.csv")
            if (row["image"], row["metric"]) == ("ED", metric)
        ]
        assert dice == pytest.approx(expected, abs=2e-3)
    chances = nib.load(run.to_nifti(task=2, output="probabilities", **where)).get_fdata()
    assert chances.shape == (*mask.shape, 4)
    np.testing.assert_allclose(chances.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(chances.argmax(axis=-1), mask)
    with pytest.raises(ValueError, match="output must be one of image after task 1, got 'mask'"):
        run.to_nifti(task=1, output="mask", **where)
    with pytest.raises(ValueError, match="times must be 1 to 32767, and the scan a cine"):
        run.to_nifti(task=2, times=3, **where)
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        run.to_nifti("patient001", 2, tmp_path / "m.mha", "ED")
    with pytest.raises(KeyError, match="say which scan"):
        run.to_nifti("patient001", 2, tmp_path / "m.nii")
    with pytest.raises(KeyError, match="not in this run"):
        run.field("patient009", task=2, image="ED")
    with pytest.raises(KeyError, match="no checkpoint of task 3"):
        run.field("patient001", task=3, image="ED")


def test_the_command_writes_the_file_or_says_why_not(runs, tmp_path):
    workdir = runs("domain_expansion", "diner", "distillation")
    start = f"python -m experiments.export --run={workdir} --patient=patient001 --task=4"
    done = command(f"{start} --out=p.nii.gz --times=9", tmp_path)
    assert done.returncode == 2 and "nothing between them" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "p.nii.gz").exists()
    done = command(f"{start} --out=p.nii.gz --spacing=4,four,10", tmp_path)
    assert done.returncode == 2 and "--spacing=4,four,10: three numbers would" in done.stderr
    done = command(f"{start} --out=p.nii.gz --spacing=4,4,10 --interpolate", tmp_path)
    assert done.returncode == 0, done.stderr
    assert nib.load(tmp_path / "p.nii.gz").shape == (33, 29, 5, 4)


def test_a_run_tells_what_it_is(runs):
    run = nfcl_jax.open_run(runs("signal_expansion", "siren", "distillation"))
    assert run.tasks == (1, 2)
    words = "signal_expansion, siren, distillation of weight 10, seed 0, 150 steps of 1024 points"
    assert words in repr(run) and words in run._repr_html_()
    table = run.table()
    assert list(table["scan"]) == ["patient001/ED", "patient001/ES"]
    scores = read_csv(run.workdir / "metrics.csv")
    first, last = (
        float(row["value"])
        for row in scores
        if (row["image"], row["evaluated_task"], row["metric"]) == ("ED", "1", "psnr")
    )
    assert table["image"].iloc[0] == f"{first:.1f} → {last:.1f}"


def test_fewer_bits_take_less_and_keep_less(runs):
    run = nfcl_jax.open_run(runs("domain_expansion", "siren", "distillation"))
    table = run.size("patient001", task=4).set_index("weights")
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.params("patient001", 4)))
    assert table.bytes["float32"] == 4 * weights and table.bytes["bfloat16"] == 2 * weights
    assert weights < table.bytes["int8"] < 1.2 * weights
    expected = run.scores.query("trained_task == 4 and metric == 'psnr'").value.mean()
    assert table.psnr["float32"] == pytest.approx(expected, abs=1e-3)
    assert table.psnr["bfloat16"] > expected - 1
    params = {"layer": np.random.default_rng(0).normal(size=(50, 7)).astype("f4")}
    for storage, most in (("float32", 0), ("bfloat16", 2.0**-8), ("int8", 1 / 254)):
        back = sizes.stored(params, storage)[1]["layer"]
        reach = np.abs(params["layer"]).max(axis=0) * most
        assert (np.abs(back - params["layer"]) <= reach * 1.001).all()


def test_words_of_somebody_elses_run_are_neither_paths_nor_html(runs, tmp_path):
    shutil.copytree(runs("signal_expansion", "siren", "finetune"), tmp_path / "run")
    scans = json.loads((tmp_path / "run/patients.json").read_text())
    for name in ("../../elsewhere", "/etc/passwd", ".hidden", "..", "a\\b"):
        scans[0]["patient"] = name
        (tmp_path / "run/patients.json").write_text(json.dumps(scans))
        with pytest.raises(ValueError, match="is no name of a patient"):
            nfcl_jax.open_run(tmp_path / "run")
    scans[0]["patient"] = "<script>alert(1)<script>"
    (tmp_path / "run/patients.json").write_text(json.dumps(scans))
    (tmp_path / "run/metrics.csv").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    html = nfcl_jax.open_run(tmp_path / "run")._repr_html_()
    assert "&lt;script" in html and "<script" not in html


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: missing"):
        nfcl_jax.open_run(tmp_path)
    shutil.copytree(STORED, tmp_path / "cells/siren")
    with pytest.raises(FileNotFoundError, match=r"cells/siren would be one\."):
        nfcl_jax.open_run(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "patients.json"])
@pytest.mark.parametrize(
    "contents", ["", '{"scenario": "dom', "{}", "[]", "[3]", "null", '{"compilerOptions": {}}',
                 '[{"patient": "patient001"}]', '[{"patient": 1, "left_out": []}]'],
)  # fmt: skip
def test_files_that_are_no_runs_are_named(tmp_path, name, contents):
    """By whatever reads them: the run that is to go on, a report, and open_run."""
    shutil.copytree(STORED, tmp_path / "run")
    config = read_config(tmp_path / "run/config.json")
    (tmp_path / "run/summary.csv").write_text("")
    (tmp_path / "run" / name).write_text(contents)
    if (name, contents) == ("patients.json", "[]"):
        return  # a run of nobody
    message = rf"run/{name.replace('.', '[.]')}: (damaged|not the)"
    with pytest.raises(RunError, match=message):
        nfcl_jax.open_run(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        write_report(tmp_path)
    with pytest.raises(RunError, match=message):
        refuse_another_run(config, [], tmp_path / "run")


def test_patients_in_another_order_are_the_same_run(tmp_path):
    config = make_config("domain_expansion", "siren", "finetune")
    config["data"] |= {"patients": "patient002,patient001"}
    write_description(tmp_path, config, [])
    config["data"]["patients"] = "patient001, patient002"
    refuse_another_run(config, [], tmp_path)
    config["data"]["patients"] = "patient001"
    with pytest.raises(ConfigError, match=r"config\.data\.patients"):
        refuse_another_run(config, [], tmp_path)


STORED = Path(__file__).parent / "data/run_format_1"


def test_a_run_of_format_1_keeps_opening():
    """A small run, kept as it was written, and what its field answered then."""
    run = nfcl_jax.open_run(STORED)
    assert run.tasks == (1, 4) and "2 scans" in repr(run)
    expected = json.loads((STORED / "expected.json").read_text())
    for task, values in expected["patient002"].items():
        answers = run.field("patient002", int(task))(np.array(expected["coords"]))
        np.testing.assert_allclose(answers[:, 0], values, atol=1e-5)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    shutil.copytree(STORED, tmp_path / "run")
    path = tmp_path / "run/checkpoints/task_4/_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    run = nfcl_jax.open_run(tmp_path / "run")
    assert run.params("patient001", 1)
    with pytest.raises(CheckpointError, match="task_4: format 2 instead of 1"):
        run.params("patient001", 4)
