"""A finished run of the paper's experiments goes on as a table of scans."""

import shutil

import pandas as pd
import pytest
from commands import command
from test_table_run import same

from nfcl_jax.checkpoints import load_all, num_learned


def take_over(phantom_root, run, out, workdir, scenario="domain_expansion", patients="patient001"):
    return command(
        "experiments.make_table",
        *(f"--acdc={phantom_root}", f"--scenario={scenario}", f"--patients={patients}"),
        *(f"--out={out}", f"--run={run}", f"--workdir={workdir}"),
    )


@pytest.mark.parametrize(
    ("scenario", "field", "image", "row"),
    [
        ("domain_expansion", "siren", "cine", "{image},1.5,between"),
        ("domain_expansion", "diner", "cine", "{image},1.5,"),
        pytest.param(
            *("signal_expansion", "siren", "ED", "{image},,again"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_is_gone_on_with(phantom_root, runs, tmp_path, scenario, field, image, row):
    theirs, out = runs(scenario, field, "distillation"), tmp_path / "scans.csv"
    done = take_over(phantom_root, theirs, out, tmp_path / "w", scenario)
    assert done.returncode == 0, done.stderr
    own, name = tmp_path / f"w/patients/patient001/{image}", f"patient001/{image}"
    learned = num_learned(theirs)
    for task in range(1, learned + 1):
        assert same(load_all(own, task)[name], load_all(theirs, task)[name])
    scores = [pd.read_csv(folder / "metrics.csv") for folder in (theirs, own)]
    there = scores[0][scores[0]["image"] == image]
    assert sorted(there["value"].dropna()) == sorted(scores[1]["value"].dropna())
    frame = phantom_root / "patient001/patient001_frame01.nii.gz"
    new = row.format(image=frame).split(",")
    cells = [name, str(learned + 1), new[0], "", new[1], new[2], ""]
    out.write_text(out.read_text() + ",".join(cells) + "\n")
    (line,) = [own for own in done.stdout.splitlines() if "experiments.train" in own]
    words = line.split()[2:]
    # The steps of what comes must be those of what was.
    trained = command(*words)
    assert trained.returncode == 0, trained.stderr
    assert num_learned(own) == learned + 1
    after = pd.read_csv(own / "metrics.csv")
    assert set(after[after["trained_task"] == learned + 1]["evaluated_task"]) == set(
        range(1, learned + 2)
    )


def test_what_cannot_be_taken_over_is_refused(phantom_root, runs, tmp_path):
    theirs, out = runs("domain_expansion", "siren", "finetune"), tmp_path / "scans.csv"
    other = take_over(phantom_root, theirs, out, tmp_path / "a", patients="patient002")
    assert other.returncode and "none of which is in the table" in other.stderr
    wrong = take_over(phantom_root, theirs, out, tmp_path / "b", "signal_expansion")
    assert wrong.returncode and "none of which is in the table" in wrong.stderr
    assert take_over(phantom_root, theirs, out, tmp_path / "c").returncode == 0
    again = take_over(phantom_root, theirs, out, tmp_path / "c")
    assert again.returncode and "is there already" in again.stderr
    shutil.copytree(theirs, tmp_path / "half")
    shutil.rmtree(tmp_path / "half/checkpoints/task_4")
    half = take_over(phantom_root, tmp_path / "half", out, tmp_path / "d")
    assert half.returncode and "not finished" in half.stderr
    nowhere = take_over(phantom_root, tmp_path / "no", tmp_path / "no.csv", tmp_path / "e")
    assert nowhere.returncode and "is not the folder of a run" in nowhere.stderr
    assert not (tmp_path / "no.csv").exists()
    alone = command("experiments.make_table", f"--acdc={phantom_root}", f"--run={theirs}",
                    "--scenario=domain_expansion", f"--out={out}")  # fmt: skip
    assert alone.returncode and "--run and --workdir go together" in alone.stderr
    out = tmp_path / "no/scans.csv"
    lost = command("experiments.make_table", f"--acdc={phantom_root}",
                   "--scenario=domain_expansion", f"--out={out}")  # fmt: skip
    assert lost.returncode == 2 and f"{out}: there is no folder {out.parent}." in lost.stderr


def test_a_patient_without_a_cine_has_a_table_too(phantom_root, tmp_path):
    shutil.copytree(phantom_root / "patient001", tmp_path / "patient001")
    (tmp_path / "patient001/patient001_4d.nii.gz").unlink()
    make = ["experiments.make_table", f"--acdc={tmp_path}", "--scenario=signal_expansion"]
    assert command(*make, f"--out={tmp_path / 'scans.csv'}").returncode == 0
    assert set(pd.read_csv(tmp_path / "scans.csv")["range"].isna()) == {True}
