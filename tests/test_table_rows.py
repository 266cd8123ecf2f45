"""Rows of a table that were learned before: what may change, and what may not."""

import nibabel as nib
import numpy as np
import pytest
from commands import command
from test_sequence import PLACES, folder, save, unplaced  # noqa: F401
from test_table_run import ROWS, config_of, learn, learned, same

from nfcl_jax import table_run
from nfcl_jax.data.compared import differing_rows
from nfcl_jax.errors import ConfigError, DataError
from nfcl_jax.run_folder import read_records
from nfcl_jax.runner import Caller, run
from nfcl_jax.runs import open_run

CHANGES = {
    "another file": (0, "p1,1,t2.nii.gz,,0,T1,", "T1 at 0 in task 1; the table has another file"),
    "another range": (0, "p1,1,t1.nii.gz,,0,T1,0:9", "the table has the range 0 to 9 instead of"),
    "another time": (0, "p1,1,t1.nii.gz,,9,T1,", "T1 at 0 in task 1; the table has T1 at 9 in"),
    "another name": (1, "p1,2,t2.nii.gz,,0,PD,", "T2 at 0 in task 2; the table has PD at 0 in"),
    "a row less": (1, "", "T2 at 0 in task 2; the table has no such row"),
    "a row more": (
        0,
        f"{ROWS[0]}\np1,1,t2.nii.gz,,1,T1,",
        "T1 at 1 in task 1 is new; a task after 2",
    ),
}


def test_a_row_that_was_learned_may_not_be_split():
    """And it is not said that a part of it is new."""
    both = {"task": 1, "time": None, "image": {"name": "T1"}, "mask": {"name": "lesions"}}
    parts = [{k: v for k, v in both.items() if k != kind} for kind in ("mask", "image")]
    record = {"patient": "p", "image": "scan", "shape": [9, 9, 9]}
    (line,) = differing_rows(record | {"rows": [both]}, record | {"rows": parts}, 1)
    words = "learned T1 and lesions in task 1; the table has T1 in task 1 and lesions in task 1"
    assert line == f"patients.p/scan: {words}"


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_was_learned_may_not_change(folder, tmp_path, change):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    number, row, message = CHANGES[change]
    changed = [row if n == number else old for n, old in enumerate(ROWS[:2])]
    with pytest.raises(ConfigError, match=message):
        learn(folder, tmp_path / "run", [row for row in changed if row])


def test_a_row_whose_file_is_gone_may_not_change_either(folder, tmp_path):  # noqa: F811
    rows = ["p1,1,t1.nii.gz,,0,T1,", "p1,2,t2.nii.gz,,0,T2,"]
    learn(folder, tmp_path / "run", rows)
    (folder / "t1.nii.gz").unlink()
    learn(folder, tmp_path / "run", rows)
    with pytest.raises(ConfigError, match="the table has the range 0 to 77 instead of"):
        learn(folder, tmp_path / "run", ["p1,1,t1.nii.gz,,0,T1,0:77", rows[1]])


def test_a_later_file_lies_where_an_earlier_one_did_even_if_that_is_gone(folder, tmp_path):  # noqa: F811
    """Where the first of all has no place in the scanner."""
    unplaced(folder / "nowhere.nii.gz", PLACES[..., 0].astype("f4"))
    nib.save(nib.load(folder / "later.nii.gz").slicer[::-1, ::-1], folder / "flipped.nii.gz")
    rows = ["p1,1,nowhere.nii.gz,,0,A,", "p1,2,t1.nii.gz,,0,B,"]
    learn(folder, tmp_path / "run", rows)
    (folder / "t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"what was learned has shape 12 x 10 x 4, affine \[\[1\.5"):
        learn(folder, tmp_path / "run", [*rows, "p1,3,flipped.nii.gz,,0,C,"])
    learn(folder, tmp_path / "run", [*rows, "p1,3,later.nii.gz,,0,C,"])
    learn(folder, tmp_path / "run", [*rows, "p1,3,later.nii.gz,,0,C,"])


def test_a_later_file_may_have_voxels_of_nearly_the_same_size(folder, tmp_path):  # noqa: F811
    """And is then where it was, when it comes again."""
    values = np.random.default_rng(0).random((200, 14, 2), np.float32)
    unplaced(folder / "nowhere.nii.gz", values)
    save(folder / "somewhere.nii.gz", values[::-1], np.diag([1.51, 1.5, 3.0, 1.0]))
    rows = ["p1,1,nowhere.nii.gz,,0,A,", "p1,2,somewhere.nii.gz,,0,B,"]
    for _ in range(2):
        learn(folder, tmp_path / "run", rows)


def test_a_changed_row_is_named_by_the_check_too(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    config_of(folder, [ROWS[0], "p1,2,t2.nii.gz,,0,PD,"])
    check = ["experiments.check_data", f"--table={folder / 'scans.csv'}", "--time_range=0,730"]
    assert command(*check).returncode == 0
    done = command(*check, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1 and "0 of 1 patients can be used." in done.stdout
    assert "learned T2 at 0 in task 2; the table has PD at 0" in done.stdout
    config_of(folder, ROWS[:2])
    check[-1] = "--time_range=0,365"
    assert "config.data.time_range" in command(*check, f"--workdir={tmp_path / 'run'}").stdout


def test_rows_of_a_learned_task_may_come_in_any_order(folder, tmp_path):  # noqa: F811
    rows = ["p1,1,cine.nii.gz#1,,0,,", "p1,1,cine.nii.gz#3,,10,,", "p1,2,cine.nii.gz#2,,5,,"]
    learn(folder, tmp_path, rows[:2])
    before = learned(tmp_path, 1)
    learn(folder, tmp_path, [rows[1], rows[2], rows[0]])
    assert same(learned(tmp_path, 1), before)
    record = read_records(tmp_path / "patients/p1/scan/patients.json")[0]
    assert [row["time"] for row in record["rows"]] == [0, 10, 5]


def test_the_table_is_found_from_elsewhere(folder, tmp_path, monkeypatch):  # noqa: F811
    """Such as by a report."""
    config = config_of(folder, ROWS[:1])
    config["data"]["table"] = "scans.csv"
    monkeypatch.chdir(folder)
    (own,) = table_run.plan(config, table_run.read_data(config, tmp_path / "r"), tmp_path / "r")
    assert own.config["data"]["table"] == str(folder / "scans.csv")


def test_a_field_is_found_by_the_tables_name_and_its_times_are_those_of_the_table(
    folder, tmp_path, caplog  # noqa: F811
):  # fmt: skip
    """Julian days, which six digits do not tell apart."""
    days, names = (2460010, 2460011, 2460730), ("t1", "t2", "later")
    rows = [f"p1/left,1,{name}.nii.gz,,{day},," for name, day in zip(names, days, strict=True)]
    config = config_of(folder, [*rows[:2], rows[2].replace(",1,", ",2,")])
    config["data"]["time_range"] = "2460000,2461000"
    for _ in range(2):  # of which the second finds everything learned
        (own,) = table_run.plan(config, table_run.read_data(config, tmp_path), tmp_path)
        run(own.config, [own.scan], own.workdir, Caller())
    with pytest.raises(FileNotFoundError, match="patients/p1/left would be one"):
        open_run(tmp_path)
    for task, step in ((2, 360), (1, 1)):
        path = open_run(own.workdir).to_nifti("p1/left", task, tmp_path / "x.nii")
        header = nib.load(path).header
        assert (header["pixdim"][4], header["toffset"]) == (step, 2460010)
        words = "the times 2460010, 2460011, 2460730 are not equidistant"
        assert (words in caplog.text) == (task == 2)
        caplog.clear()


def test_a_check_says_what_is_gone_and_how_rows_differ(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:3])
    (folder / "t2.nii.gz").unlink()
    check = ["experiments.check_data", f"--table={folder / 'scans.csv'}", "--time_range=0.0,730"]
    check.append(f"--workdir={tmp_path / 'run'}")
    done = command(*check)
    assert done.returncode == 0
    assert "p1: files of what was learned are gone: T2 at 0" in done.stdout.splitlines()
    config_of(folder, [ROWS[0], ROWS[1].replace(",0,", ",1,"), *ROWS[2:]])
    done = command(*check)
    missing = f"{folder}/t2.nii.gz: missing. The row was another one when it was learned: T2 at 0"
    assert done.returncode == 1 and f"line 3: {missing} in task 2." in done.stdout
    nib.save(nib.load(folder / "t1.nii.gz"), folder / "t2.nii.gz")
    config_of(folder, [ROWS[0].replace("T1", "PD"), *ROWS[1:3]])
    own = [line for line in command(*check).stdout.splitlines() if line.startswith("p1: ")]
    assert own == [
        "p1: learned T1 at 0 in task 1; the table has PD at 0 in task 1.",
        "p1: learned T2 at 0 in task 2; the table has another file of the image, or one that has "
        "changed.",
    ]
