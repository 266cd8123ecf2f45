"""The files of a run's folder are what the run left there, or they are refused."""

import shutil

import pytest
from made_up import write_run
from rich.console import Console
from test_train import make_config

from experiments import train
from nfcl_jax.config import read_config, read_records
from nfcl_jax.errors import RunError
from nfcl_jax.report.report import write_report
from nfcl_jax.run_folder import names_of, read_rows


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
