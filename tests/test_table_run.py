"""Runs of a table of scans: rows that come later, files that go, and the paper's as tables."""

import functools
import re
import shutil
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from commands import command
from conftest import REPOSITORY
from test_readme import run as run_page
from test_sequence import HEADER, SHAPE, folder  # noqa: F401

from nfcl_jax import table_run
from nfcl_jax.checkpoints import load_all, num_learned
from nfcl_jax.config import make_config
from nfcl_jax.errors import ConfigError, DataError, RunError
from nfcl_jax.run_folder import refuse_another_run
from nfcl_jax.runner import Caller, run
from nfcl_jax.runs import open_run

ROWS = [
    "p1,1,t1.nii.gz,,0,T1,",
    "p1,2,t2.nii.gz,,0,T2,",
    "p1,3,later.nii.gz,mask.nii.gz,365,T1,",
    "p1,4,,mask.nii.gz,0,rater B,",
]
SMALL = {"num_steps": 12, "batch_size": 64}


def config_of(files, rows, field="siren", strategy="distillation"):
    table = files / "scans.csv"
    table.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    config = make_config("sequence", field, strategy) | (SMALL if field == "siren" else {})
    config |= {"num_steps": SMALL["num_steps"]}
    config["field"] |= {"width": 16, "depth": 2}
    config["data"] |= {"table": str(table), "time_range": "0,730"}
    return config


def learn(files, workdir, rows, *names):
    """Every run of a table."""
    config = config_of(files, rows, *names)
    runs = table_run.plan(config, table_run.read_data(config, workdir), workdir)
    for own in runs:
        run(own.config, [own.scan], own.workdir, Caller())
    return runs


def learned(workdir, task):
    return load_all(workdir / "patients/p1/scan", task)["p1/scan"]


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_a_row_that_is_added_is_learned_from_the_last_checkpoint(folder, tmp_path):  # noqa: F811
    """And DINER's new rows begin as if they had been there from the start."""
    for field in ("siren", "diner"):
        whole, grown = tmp_path / f"{field}_whole", tmp_path / f"{field}_grown"
        learn(folder, whole, ROWS, field, "finetune")
        learn(folder, grown, ROWS[:2], field, "finetune")
        before = learned(grown, 2)
        learn(folder, grown, ROWS, field, "finetune")
        assert same(learned(grown, 2), before)
        assert num_learned(grown / "patients/p1/scan") == 4
        both = learned(grown, 4), learned(whole, 4)
        # New rows are scaled in a program of another size, which may round otherwise.
        close = functools.partial(np.testing.assert_allclose, atol=1e-6)
        jax.tree.map(close if field == "diner" else np.testing.assert_array_equal, *both)
    table = learned(grown, 4).params["params"]["table"]
    assert len(table) == 2 * np.prod(SHAPE)
    assert len(before.params["params"]["table"]) == np.prod(SHAPE)


def test_what_was_learned_may_be_deleted_and_is_then_not_measured(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    for name in ("t1.nii.gz", "t2.nii.gz"):
        (folder / name).unlink()
    (own,) = learn(folder, tmp_path / "run", ROWS)
    assert own.scan.missing == {("T1", 0), ("T2", 0)}
    scores = pd.DataFrame(table_run.scores_in(own))
    there = set(map(tuple, scores[["image", "trained_task", "evaluated_task"]].to_numpy()))
    assert {("T1", 2, 1), ("T2", 2, 2), ("T1", 3, 3), ("mask", 4, 3), ("rater B", 4, 4)} <= there
    assert not {("T1", 3, 1), ("T2", 3, 2), ("T1", 4, 1)} & there
    by_label = {f"{metric}_{n}" for metric in ("dsc", "hd95", "nsd") for n in (-4, 17)}
    assert {"dsc"} | by_label == set(scores[scores["image"] == "mask"]["metric"])
    learn(folder, tmp_path / "run", ROWS)  # nothing is left to do
    (below,) = table_run.scores_below(tmp_path / "run").values()
    assert pd.DataFrame(below).equals(scores)


def test_a_damaged_task_is_not_learned_without_its_files(folder, tmp_path):  # noqa: F811
    (own,) = learn(folder, tmp_path / "run", ROWS[:2])
    (folder / "t2.nii.gz").unlink()
    for path in (own.workdir / "checkpoints/task_2").rglob("*"):
        if path.is_file() and "metadata" not in path.name.lower():
            path.write_bytes(b"damaged")
    with pytest.raises(RunError, match="p1/scan: task 2 must be learned, again maybe, but files"):
        learn(folder, tmp_path / "run", ROWS[:3])


def test_a_row_that_was_not_learned_may_change(folder, tmp_path):  # noqa: F811
    config = config_of(folder, ROWS[:2])
    (own,) = table_run.plan(config, table_run.read_data(config, tmp_path), tmp_path)

    def stop_in_task_2(progress):
        if progress.task == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(own.config, [own.scan], own.workdir, Caller(stop_in_task_2))
    rows = [ROWS[0], ROWS[1].replace("t2", "later"), ROWS[1].replace(",0,", ",9,")]
    learn(folder, tmp_path, rows)
    assert num_learned(own.workdir) == 2
    fresh = tmp_path / "fresh"
    learn(folder, fresh, rows)
    assert same(learned(tmp_path, 2), learned(fresh, 2))


def test_a_row_that_would_be_learned_with_a_learned_task_is_refused(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, ROWS[:2])
    with pytest.raises(ConfigError, match="T2 at 9 in task 2 is new; a task after 2 would be ri"):
        learn(folder, tmp_path, [*ROWS[:2], ROWS[1].replace(",0,", ",9,")])


def test_the_runs_of_a_table_and_others_have_folders_of_their_own(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, ROWS[:1])
    ordinary = make_config("domain_expansion", "siren", "finetune")
    with pytest.raises(ConfigError, match="scans of a table"):
        refuse_another_run(ordinary, None, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds other runs; another --workdir would be right"):
        learn(folder, tmp_path, ROWS[:1])


def test_files_that_were_not_learned_yet_must_be_there(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:1])
    (folder / "t2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"line 3: .*t2\.nii\.gz: missing"):
        learn(folder, tmp_path / "run", ROWS)


@pytest.mark.parametrize("strategy", ["joint", "replay"])
def test_a_strategy_that_needs_earlier_data_says_that_they_are_gone(
    folder,  # noqa: F811
    tmp_path,
    strategy,
):
    learn(folder, tmp_path / "run", ROWS[:1], "siren", strategy)
    (folder / "t1.nii.gz").unlink()
    with pytest.raises(ConfigError, match=rf"{strategy} needs earlier data, which are gone"):
        learn(folder, tmp_path / "run", ROWS, "siren", strategy)


@pytest.mark.parametrize("field", ["siren", pytest.param("diner", marks=pytest.mark.slow)])
def test_a_field_of_a_table_is_asked_and_exported_in_the_tables_own_terms(
    folder,  # noqa: F811
    tmp_path,
    field,
):
    (own,) = learn(folder, tmp_path / "run", ROWS, field)
    opened = open_run(own.workdir)
    assert "p1/scan" in repr(opened) and "3: mask" in opened.table().columns
    grid, mm = (opened.field("p1", task=4, units=units) for units in ("grid", "mm"))
    voxel, place = np.array([3, 5, 2]), np.array([4.5, 7.5, 6.0])
    for frame, time in enumerate((0.0, 365.0)):
        at = np.append(2 * voxel / (np.array(SHAPE) - 1) - 1, time / 365 - 1)[None]
        there = np.append(place, time)[None]
        index = np.ravel_multi_index((frame, *voxel), (2, *SHAPE))
        expected = grid.at_voxels(np.array([index]))
        np.testing.assert_allclose(grid(at), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mm(there), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mm.to_mm(at), there, atol=1e-6)
    for output in ("T1", "T2", "mask", "rater B", "probabilities"):
        path = opened.to_nifti("p1", 4, tmp_path / "out.nii.gz", output=output)
        image = nib.load(path)
        assert image.shape[:4] == (*SHAPE, 2) and image.header["pixdim"][4] == 365
        if output in ("mask", "rater B"):
            assert set(np.unique(image.dataobj)) <= {-4, 0, 17}
    first = opened.field("p1", task=1)
    assert first.shape == (2, *SHAPE) and first.channels == 1
    with pytest.raises(ValueError, match="output must be one of T1 after task 1, got 'mask'"):
        opened.to_nifti("p1", 1, tmp_path / "out.nii.gz", output="mask")
    with pytest.raises(ValueError, match="no sizes of a table's fields"):
        opened.size("p1", 4)


def test_an_earlier_field_of_a_scan_that_grew_is_that_of_its_time(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, ROWS[:2], "diner", "finetune")
    run_folder = tmp_path / "patients/p1/scan"
    before = open_run(run_folder).field("p1", task=2)
    learn(folder, tmp_path, ROWS, "diner", "finetune")
    after = open_run(run_folder).field("p1", task=2)
    assert before.shape == after.shape == (1, *SHAPE)
    answers = [field.at_voxels(np.arange(np.prod(SHAPE))) for field in (before, after)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("scenario", "field", "flags"),
    [
        ("domain_expansion", "siren", {"weight": 1.0}),
        pytest.param("signal_expansion", "siren", {"points": "shared"}, marks=pytest.mark.slow),
        pytest.param("signal_expansion", "diner", {"points": "shared"}, marks=pytest.mark.slow),
    ],
)
def test_the_papers_experiments_as_tables_are_the_same_to_the_bit(
    phantom_root, tmp_path, scenario, field, flags
):
    steps = 12 if field == "siren" else 60  # fewer, and DINER is a constant yet
    train, few = ["experiments.train"], [f"--config.num_steps={steps}", "--config.field.width=16"]
    few += ["--config.batch_size=64"] if field == "siren" else []
    out, own = tmp_path / "scans.csv", f"--config=configs/{scenario}.py:{field},distillation"
    data = [f"--config.data.root={phantom_root}", "--config.data.patients=patient002"]
    assert command(*train, own, *few, *data, f"--workdir={tmp_path / 'own'}").returncode == 0
    make = ["experiments.make_table", f"--acdc={phantom_root}", f"--scenario={scenario}"]
    assert command(*make, "--patients=patient002", f"--out={out}").returncode == 0
    table = [
        f"--config=configs/sequence.py:{field},distillation,paper",
        f"--config.data.table={out}",
    ]
    table += [f"--config.distillation.{k}={v}" for k, v in flags.items()]
    table += ["--config.data.time_range=0,3"] if scenario == "domain_expansion" else []
    done = command(*train, *table, *few, f"--workdir={tmp_path / 'table'}")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "table/patients/patient002").iterdir())
    assert len(folders) == (1 if scenario == "domain_expansion" else 2)
    for run_folder in folders:
        name = f"patient002/{run_folder.name}"
        for task in range(1, num_learned(run_folder) + 1):
            theirs = load_all(tmp_path / "own", task)[name]
            assert same(theirs, load_all(run_folder, task)[name])
    scores = [pd.read_csv(tmp_path / f"{name}/metrics.csv") for name in ("own", "table")]
    psnr = [frame[frame["metric"] == "psnr"].sort_values(["value"])["value"] for frame in scores]
    np.testing.assert_array_equal(*psnr)


def test_a_table_is_checked_without_training(folder):  # noqa: F811
    config_of(folder, [*ROWS, "p2,1,no.nii.gz,,0,,", "p3,1,t1.nii.gz,,800,,"])
    check = ["experiments.check_data", f"--table={folder / 'scans.csv'}", "--time_range=0,730"]
    done = command(*check)
    assert done.returncode == 1 and "1 of 3 patients can be used." in done.stdout
    assert "line 6: " in done.stdout and "line 7: time 800 is beyond" in done.stdout
    assert command("experiments.check_data").returncode == 2


@pytest.mark.slow
def test_the_commands_of_the_page_run(folder, phantom_root, runs, tmp_path):  # noqa: F811
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/siren").symlink_to(runs("domain_expansion", "siren", "distillation"))
    page = (REPOSITORY / "docs/own_scans.md").read_text()
    (table,) = re.findall(r"```\n(patient,.*?)```", page, re.S)
    for name in re.findall(r"p\d/\w+\.nii\.gz", table):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        source = "mask" if "lesions" in name else "t2" if "flair" in name else "t1"
        shutil.copy(folder / f"{source}.nii.gz", tmp_path / name)
    (tmp_path / "scans.csv").write_text(table)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.S)).split("\n")
    done = []
    few = " --config.num_steps=2 --config.batch_size=64 --config.muon_rate=0"
    for line in filter(None, commands):
        line = line.replace("/data/ACDC/training", str(phantom_root))
        done.append(run_page(line + few * ("experiments.train" in line), tmp_path))
        assert done[-1].returncode == 0, (line, done[-1].stderr)
    assert "2 of 2 patients can be used." in done[0].stdout
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    few = 'workdir="runs/p1", settings={"num_steps": 2, "muon_rate": 0.0}'
    code = code.replace('workdir="runs/p1"', few)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert set(np.unique(nib.load(tmp_path / "lesions.nii.gz").dataobj)) <= {-4, 0, 17}
    assert re.search(r"p1 +4 +mask at 0 +DSC", done[1].stdout)
    assert len(list((tmp_path / "runs/frames/patients").glob("*/cine/checkpoints/task_4"))) == 3
