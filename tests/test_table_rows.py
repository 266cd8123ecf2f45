"""Rows of a table that were learned before: what may change, and what may not."""

import pytest
from commands import command
from test_sequence import folder  # noqa: F401
from test_table_run import ROWS, config_of, learn, learned, same

from nfcl_jax.errors import ConfigError
from nfcl_jax.run_folder import read_records

CHANGES = {
    "another file": (0, "p1,1,t2.nii.gz,,0,T1,", "T1 at 0 in task 1; the table has another file"),
    "another range": (0, "p1,1,t1.nii.gz,,0,T1,0:9", "T1 at 0 in task 1; the table has another"),
    "another time": (0, "p1,1,t1.nii.gz,,9,T1,", "T1 at 0 in task 1; the table has T1 at 9 in"),
    "another name": (1, "p1,2,t2.nii.gz,,0,PD,", "T2 at 0 in task 2; the table has PD at 0 in"),
    "a row less": (1, "", "T2 at 0 in task 2; the table has no such row"),
    "a row more": (0, f"{ROWS[0]}\np1,1,t2.nii.gz,,1,T1,", "T2 at 0 in task 2; the table has T1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_was_learned_may_not_change(folder, tmp_path, change):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    number, row, message = CHANGES[change]
    changed = [row if n == number else old for n, old in enumerate(ROWS[:2])]
    with pytest.raises(ConfigError, match=message):
        learn(folder, tmp_path / "run", [row for row in changed if row])


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
