"""The files of a run's folder are what the run left there, or they are refused."""

import json
import shutil

import numpy as np
import pytest
from made_up import write_run
from rich.console import Console
from test_data import rewrite
from test_runs import STORED
from test_train import make_config

import nfcl_jax
from configs import paper
from experiments import train
from experiments.launch import grid
from nfcl_jax.config import check_config, read_config
from nfcl_jax.config import make_config as make
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.errors import ConfigError, DataError, ReportError, RunError
from nfcl_jax.report.report import write_report
from nfcl_jax.rows import read_rows
from nfcl_jax.run_folder import describe_scans, names_of, read_records, refuse_another_run

pytestmark = pytest.mark.usefixtures("without_figures")


def lines(change):
    """Changes the lines of a file, the first of which is its header."""

    def damage(path):
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return damage


def without(word):
    return lines(lambda rows: [row for row in rows if word not in row])


def replaced(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


ROWS = {
    "a patient is missing": ("metrics.csv", without("patient003"), "missing: patient003, cine, 1"),
    "a score is missing": ("metrics.csv", without("patient002,cine,3,2,ssim"), "patient002, cine"),
    "a metric is missing": (
        "metrics.csv",
        without("psnr"),
        "missing: patient001, cine, 1, 1, psnr",
    ),
    "a row is there twice": ("metrics.csv", lines(lambda x: x + x[-1:]), "too many: patient005"),
    "somebody else's row": (
        "metrics.csv",
        lines(lambda x: [*x, x[-1].replace("patient005", "patient9")]),
        "101 rows instead of 100",
    ),
    "a header alone": ("metrics.csv", lines(lambda x: x[:1]), "0 rows instead of"),
    "fits without a patient": ("fits.csv", without("patient003"), "missing: patient003, cine, 1"),
    "fits: a header alone": ("fits.csv", lines(lambda x: x[:1]), "0 rows instead of 20"),
    "no scores": ("metrics.csv", lambda path: path.unlink(), r"missing\."),
    "no fits": ("fits.csv", lambda path: path.unlink(), r"missing\."),
    "another run's": ("metrics.csv", replaced("finetune", "ewc"), "ewc, 0, the run is .*finetune"),
    "cut in a row": ("metrics.csv", lambda path: path.write_text(path.read_text()[:-20]), "rows"),
    "bytes": ("fits.csv", lambda path: path.write_bytes(b"\x00\xff" * 99), "not the rows of a run"),
    "no number": ("metrics.csv", replaced(",1,1,psnr,", ",1,1,psnr,x"), "not the rows of a run"),
}


@pytest.mark.parametrize("damage", ROWS)
def test_other_rows_than_the_run_left_are_refused(tmp_path, damage):
    """By the run that is to go on, and by a report, which would show other means."""
    name, change, message = ROWS[damage]
    folder = tmp_path / "siren"
    write_run(folder, "domain_expansion", "siren", "finetune")
    config = read_config(folder / "config.json")
    names = names_of(read_records(folder / "patients.json"))
    scores, fits = read_rows(folder, config, names, 4)
    assert (len(scores), len(fits)) == (5 * 10 * 2, 5 * 4)
    change(folder / name)
    with pytest.raises(RunError, match=rf"{name}: .*{message}.* would be right"):
        read_rows(folder, config, names, 4)
    with pytest.raises(RunError, match=name):
        write_report(tmp_path)


def test_rows_of_a_task_that_was_not_saved_are_none_of_the_run(tmp_path):
    write_run(tmp_path / "run", "domain_expansion", "siren", "finetune")
    config = read_config(tmp_path / "run/config.json")
    names = names_of(read_records(tmp_path / "run/patients.json"))
    scores, fits = read_rows(tmp_path / "run", config, names, 2)
    assert {row.trained_task for row in scores} == {row.task for row in fits} == {1, 2}


def test_the_remedy_for_lost_rows_leads_to_the_same_end(runs, phantom_root, tmp_path):
    finished = runs("domain_expansion", "siren", "distillation")
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    without("patient001,cine,3,")(workdir / "fits.csv")
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    with pytest.raises(RunError, match=r"Without checkpoints/task_3 and those after it"):
        train.train(made, workdir, Console(quiet=True))
    for task in (3, 4):
        shutil.rmtree(workdir / f"checkpoints/task_{task}")
    train.train(made, workdir, Console(quiet=True))
    for name in ("metrics.csv", "fits.csv", "summary.csv"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name


def edited(folder, name, change):
    """A copy of the stored run, whose file says something else."""
    shutil.copytree(STORED, folder)
    contents = json.loads((folder / name).read_text())
    change(contents)
    (folder / name).write_text(json.dumps(contents))
    return nfcl_jax.open_run(folder)


EDITS = {
    "a shape": ("patients.json", lambda c: c[0].update(shape=[4, 9, 9, 9]), "cine.shape = "),
    "a huge shape": ("patients.json", lambda c: c[0].update(shape=[4, *[10**6] * 3]), "cine.shape"),
    "voxels": ("patients.json", lambda c: c[0].update(spacing=[1, 1, 1]), "cine.spacing = "),
    "a place": ("patients.json", lambda c: c[0]["affine"][0].__setitem__(3, 9), "cine.affine = "),
    "frames": ("patients.json", lambda c: c[0].update(frame_numbers=[1, 2, 3, 4]), "frame_numbers"),
    "w0": ("config.json", lambda c: c["field"].update(w0=30.0), "field.w0 = 15.0 instead of 30.0"),
    "a width": ("config.json", lambda c: c["field"].update(width=9), "width = 8 instead of 9"),
    "a seed": ("config.json", lambda c: c.update(seed=3), "config.seed = 0 instead of 3"),
    "another": ("config.json", lambda c: c.update(scenario="signal_expansion"), "config.scenario"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_edited_is_told_by_the_checkpoint(tmp_path, edit):
    name, change, message = EDITS[edit]
    run = edited(tmp_path / "run", name, change)
    for use in (run.params, run.field, lambda *key: run.to_nifti(*key, tmp_path / "p.nii")):
        with pytest.raises(RunError, match=rf"task_1: left by a run with\n  .*{message}"):
            use("patient001", 1)
    assert not (tmp_path / "p.nii").exists()


def test_data_that_were_moved_are_no_edit(tmp_path):
    run = edited(tmp_path / "run", "config.json", lambda c: c["data"].update(root="/elsewhere"))
    assert run.params("patient001", 4)


OTHER_TYPES = {
    "shape": ("x", [], [1, 2], [4, 9, 9, "9"], [4, 9, 9, -9], [3, 9, 9, 9], [4, 9, 9, True]),
    "spacing": ([1, 2], ["a", 1, 1], [0, 1, 1], [float("nan"), 1, 1]),
    "affine": ([], [[1]], [1, 2], [[0.0] * 4] * 4, [["a"] * 4] * 4),
    "frame_numbers": ([], [1, 2, 3, "x"], [4, 3, 2, 1], {}),
    "parameters": ("x", None),
    "image": (3, "../cine"),
    "num_steps": ("x", 1.5, 0),
    "seed": ([], None, -1),
    "huber_delta": ("1", 0),
    "field": ({"name": "siren", "width": "w"}, {"name": "siren", "wigth": 3}),
    "data": ({"root": 3}, {"patients": ["patient001"]}),
    "distillation": ({"weight": {}}, 3),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, own in OTHER_TYPES.items() for v in own])
def test_values_of_other_types_are_named(tmp_path, key, value):
    of_scan = key in ("shape", "spacing", "affine", "frame_numbers", "parameters", "image")

    def edit(contents):
        (contents[0] if of_scan else contents).update({key: value})

    file, message = ("patients", "(not the|.* no name)") if of_scan else ("config", f".*{key}")
    with pytest.raises(RunError, match=rf"run/{file}\.json: {message}"):
        edited(tmp_path / "run", f"{file}.json", edit)


def test_a_config_in_python_is_checked_as_one_by_flags():
    made = make("domain_expansion", "siren", "distillation")
    check_config(made)
    for change in ({"seed": "0"}, {"strict": 1}, {"num_steps": 1.5}, {"scenario": []}, {"data": 3}):
        with pytest.raises(ConfigError, match=rf"config\.{next(iter(change))} must be"):
            check_config(made | change)
    with pytest.raises(ConfigError, match=r"config\.seed is missing"):
        check_config({k: v for k, v in made.items() if k != "seed"})
    with pytest.raises(ConfigError, match="not the config of a run"):
        check_config(made | {"field": 3})


def test_a_run_does_not_go_on_from_another_ones_checkpoint(runs, phantom_root, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs("domain_expansion", "siren", "distillation"), workdir)
    for task in (3, 4):
        shutil.rmtree(workdir / f"checkpoints/task_{task}")
    other = runs("domain_expansion", "siren", "finetune") / "checkpoints/task_3"
    shutil.copytree(other, workdir / "checkpoints/task_3")
    made = make_config("domain_expansion", "siren", "distillation", phantom_root)
    with pytest.raises(RunError, match=r"config\.strategy = 'finetune' instead of 'distillation'"):
        train.train(made, workdir, Console(quiet=True))
    assert (workdir / "checkpoints/task_3").is_dir()


def test_a_size_is_told_of_the_scan_that_was_fitted_alone(runs, phantom_root, tmp_path):
    """Here frames in another order, of the same shape, range and place."""
    run = nfcl_jax.open_run(runs("domain_expansion", "siren", "distillation"))
    shutil.copytree(phantom_root, tmp_path / "data")
    rewrite(tmp_path / "data/patient001/patient001_4d.nii.gz", lambda cine: cine[..., ::-1])
    assert len(run.size("patient001", 1, root=phantom_root)) == 3
    with pytest.raises(
        DataError, match=r"other scans than .*\n  patients\.patient001/cine\.sha256"
    ):
        run.size("patient001", 1, root=tmp_path / "data")
    scans = read_scans(tmp_path / "data", "domain_expansion", ["patient001"])
    with pytest.raises(ConfigError, match=r"patients\.patient001/cine\.sha256 = "):
        refuse_another_run(run.config, describe_scans(scans, run.config, {}), run.workdir)


def test_a_file_too_large_to_be_is_refused_before_it_is_made(tmp_path):
    run = nfcl_jax.open_run(STORED)
    for sampling, message in (
        (
            {"spacing": (1e-9, 1, 1)},
            "makes .* voxels along an axis; a NIfTI file has at most 32767",
        ),
        ({"spacing": (0.01, 0.01, 0.01)}, r"points need about .* GB, this machine has"),
        ({"times": 10**9}, "times must be 1 to 32767"),
    ):
        with pytest.raises(ValueError, match=message):
            run.to_nifti("patient001", 4, tmp_path / "p.nii", **sampling)


@pytest.mark.parametrize("contents", ['{"compilerOptions": {}}', '{"scenario": "dom', "[" * 10**5])
def test_a_folder_of_something_else_is_refused_before_anything_is_written(tmp_path, contents):
    """Here no data are named: the phantom would be written beside it."""
    (tmp_path / "config.json").write_text(contents)
    made = make("domain_expansion", "siren", "finetune")
    with pytest.raises(RunError, match=r"config\.json: (not the config of a run|damaged)"):
        train.train(made, tmp_path, Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    grid_config = paper.get_config().to_dict() | {"cells": "domain_expansion-siren-finetune*"}
    cell = tmp_path / "grid/cells/domain_expansion-siren-finetune-seed0"
    cell.mkdir(parents=True)
    (tmp_path / "config.json").rename(cell / "config.json")
    with pytest.raises(RunError, match=r"config\.json: (not the config of a run|damaged)"):
        grid.run_grid(grid_config, tmp_path / "grid", Console(quiet=True))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]


def test_what_a_report_shows_is_what_a_grid_kept(tmp_path):
    write_run(tmp_path / "cells/siren", "domain_expansion", "siren", "finetune")
    (tmp_path / "shown").mkdir()
    path = tmp_path / "shown/patient001_cine_4.npz"
    for damage in (
        lambda: path.write_bytes(b"no zip"),
        lambda: np.savez(path, intensities=np.zeros(3)),
        lambda: np.savez_compressed(path, intensities=np.zeros((4, 99, 99, 99, 9))),
    ):
        damage()
        with pytest.raises(ReportError, match=r"patient001_cine_4\.npz: damaged .*writes it again"):
            write_report(tmp_path)
