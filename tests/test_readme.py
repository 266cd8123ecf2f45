"""The README's commands and code, run as they stand but for their folders."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import nibabel as nib
import pandas as pd
import pytest
from conftest import REPOSITORY

from nfcl_jax.analysis.summary import write_analysis
from nfcl_jax.report.report import write_report
from nfcl_jax.report.study import write_study

REPRODUCTION = REPOSITORY / "docs/reproduction"
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]


def run(command, cwd, compiled_well=False):
    """A command of this project, without its installation, from another folder than the root.
    `compiled_well` is for those that ask a field on millions of voxels."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    if compiled_well:
        environment["XLA_FLAGS"] = ""
    words = [sys.executable if w == "python" else w for w in shlex.split(command)]
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=500,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    return folder


def first_command():
    install, _, command = COMMANDS[0].partition(" && ")
    assert install == "pip install -e ."
    return command


@pytest.fixture(scope="module")
def first_run(folder):
    less = " --config.num_steps=3 --config.fields=siren --config.data.patients=patient001"
    return run(first_command() + less, folder)


def test_the_first_command_ends_in_a_report(first_run, folder):
    assert first_run.returncode == 0, first_run.stderr
    assert "built-in phantom" in first_run.stdout
    assert "4 of 4 cells are done" in first_run.stdout
    assert (folder / "runs/quickstart/report.html").exists()


@pytest.mark.slow
def test_the_first_command_as_it_stands(tmp_path):
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    done = run(first_command(), tmp_path, compiled_well=True)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 cells are done" in done.stdout
    claims = json.loads((tmp_path / "runs/quickstart/claims.json").read_text())
    assert [c["id"] for c in claims if c["verdict"] == "not tested"] == ["C10"]


def test_the_test_command_is_the_one_that_ci_runs():
    install, _, command = COMMANDS[1].partition(" && ")
    assert (install, command) == ("pip install -e '.[test]'", "pytest")
    assert "\npip install -q -e '.[test]'\npytest\n" in (REPOSITORY / ".ci/run").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "/data/ACDC" in c])
def test_the_commands_on_acdc_run(command, phantom_root, folder):
    command = command.replace("/data/ACDC/training", str(phantom_root))
    command = command.replace("patient022", "patient003") + " --config.num_steps=2"
    if "experiments.paper" in command:
        command += " --config.cells=domain_expansion-siren-[df]*"
    done = run(command + " --config.batch_size=64", folder)
    assert done.returncode == 0, done.stderr


def test_the_code_opens_the_first_run(first_run, folder):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    done = run(f"python -c {shlex.quote(code)}", folder, compiled_well=True)
    assert done.returncode == 0, done.stderr
    assert "domain_expansion, siren, distillation of weight 1" in done.stdout
    assert 0 <= float(done.stdout.splitlines()[-1].strip(" []")) <= 1
    assert nib.load(folder / "p1.nii.gz").shape == (132, 115, 21, 20)


def test_the_command_that_exports_runs(first_run, folder):
    page = (REPOSITORY / "docs/opening.md").read_text()
    (command,) = re.findall(r"```bash\n(.*?)\n```", page)
    cell = "runs/quickstart/cells/domain_expansion-siren-distillation-seed0"
    command = command.replace("runs/siren", cell).replace("p1.nii", "p2.nii")
    done = run(command, folder, compiled_well=True)
    assert done.returncode == 0, done.stderr
    assert nib.load(folder / "p2.nii.gz").shape == (132, 115, 21, 20)


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_repository_leads_somewhere(page):
    path = REPOSITORY / page
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:  # of a title, as GitHub makes it: small letters, no punctuation
            titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_the_scores_of_the_reproduction_are_those_of_its_tables():
    """Every number with a decimal point stands in a table that the program wrote."""
    tables = "".join(path.read_text() for path in REPRODUCTION.glob("*.md"))
    scores = re.findall(r"\b\d+\.\d+\b", REPRODUCTION.with_suffix(".md").read_text())
    known = set(re.findall(r"\b\d+\.\d+\b", tables))
    assert len(scores) > 10 and set(scores) <= known, set(scores) - known


@pytest.mark.parametrize(
    "name", ["paper", "whole", "recommended", "whole_recommended", "unseen", "strategies"]
)
def test_the_tables_of_the_reproduction_are_those_of_its_runs(tmp_path, name, without_figures):
    """Of what runs left but for their checkpoints."""
    shutil.copytree(REPRODUCTION / name / "cells", tmp_path / "cells")
    write_report(tmp_path)
    assert (tmp_path / "tables.md").read_text() == (REPRODUCTION / f"{name}.md").read_text()


def test_the_tables_of_longer_sequences_are_those_of_their_runs(tmp_path):
    shutil.copytree(REPRODUCTION / "long/cells", tmp_path / "cells")
    report = f"python -m experiments.report --extend=configs/long.py --workdir={tmp_path}"
    done = run(report, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tables.md").read_text() == (REPRODUCTION / "long.md").read_text()


@pytest.mark.parametrize("name", ["others", "schedule"])
def test_the_tables_of_several_grids_are_those_of_their_runs(tmp_path, without_figures, name):
    parts = []
    for folder in sorted((REPRODUCTION / name).iterdir()):
        shutil.copytree(folder / "cells", tmp_path / folder.name / "cells")
        write_report(tmp_path / folder.name)
        parts.append(f"# {folder.name}\n\n" + (tmp_path / folder.name / "tables.md").read_text())
    assert "\n".join(parts) == (REPRODUCTION / f"{name}.md").read_text()


def test_the_tables_of_the_analysis_are_those_of_its_values(tmp_path):
    frames = [pd.read_csv(REPRODUCTION / f"analysis/{name}.csv") for name in ("overlap", "bands")]
    tables = (REPRODUCTION / "analysis.md").read_text()
    assert write_analysis(tmp_path, *frames) == tables
    page = (REPOSITORY / "docs/analysis.md").read_text()
    said = set(re.findall(r"-?\b\d+\.\d+\b", page))
    known = set(re.findall(r"-?\b\d+\.\d+\b", tables))
    # A gain is a loss below zero.
    assert len(said) > 15 and said <= known | {number.lstrip("-") for number in known}


@pytest.mark.slow
def test_the_table_of_the_choices_is_that_of_their_runs(tmp_path, without_figures):
    """Of which docs keep DINER's alone; the other fields' are those of the paper's grid."""
    names = ["as_shipped", *sorted(path.name for path in (REPRODUCTION / "study").iterdir())]
    for name in names:
        shutil.copytree(REPRODUCTION / "paper/cells", tmp_path / name / "cells")
        if name != "as_shipped":
            own = REPRODUCTION / "study" / name / "cells"
            shutil.copytree(own, tmp_path / name / "cells", dirs_exist_ok=True)
        write_report(tmp_path / name)
    write_study(tmp_path, names)
    assert (tmp_path / "study.md").read_text() == (REPRODUCTION / "study.md").read_text()


def psnrs(name, what):
    """Of each field, from a page's table: when learned, at the end fine-tuned, and distilled."""
    text, found = (REPRODUCTION / f"{name}.md").read_text(), {}
    titles = [f"{what} {when}, PSNR, dB" for when in ("when learned", "at the end")]
    head = next(line for line in text.splitlines() if f"| {titles[0]}" in line)
    columns = [cell.strip() for cell in head.split("|")]
    for row in text.split(head)[1].splitlines()[2:10]:
        cells = [cell.strip() for cell in row.split("|")]
        first, last = (cells[columns.index(title)].split(" ")[0] for title in titles)
        both = found.setdefault(cells[1], [])
        both += [first, last] if cells[2] == "finetune" else [last]
    return found


def test_the_scores_of_the_readme_are_those_of_the_grid():
    shown = README.split("## Results")[1].split("##")[0]
    images = psnrs("paper", "image")
    for field, numbers in psnrs("paper", "frame 1").items():
        assert f"| {field} | {' | '.join(numbers + images[field])} |" in shown
    sentence = " ".join(shown.split("three patients")[1].split())
    for field, (*_, distilled) in psnrs("whole", "image").items():
        assert re.search(rf"{re.escape(distilled)}( dB)? with {field}\b", sentence), field


def test_every_config_field_of_the_decisions_exists():
    from nfcl_jax.config import make_config
    from nfcl_jax.fields import FIELDS
    from nfcl_jax.strategies import STRATEGIES

    decided = README.split("## Decided here")[1].split("##")[0]
    configs = [
        make_config("domain_expansion", field, strategy)
        for field in FIELDS
        for strategy in STRATEGIES
    ]
    for name in re.findall(r"`([a-z_.]+)`", decided):
        parts = name.split(".")
        assert any(parts[-1] in (c if len(parts) == 1 else c.get(parts[0], {})) for c in configs), (
            name
        )


def test_the_stated_weights_are_the_configs():
    from nfcl_jax.scenarios import SCENARIOS
    from nfcl_jax.strategies import constants

    domain, signal = (constants("distillation", s)["weight"] for s in SCENARIOS.values())
    stated = f"| weight of distillation | {domain:g} in domain, {signal:g} in signal expansion |"
    assert stated in README


def test_the_strategies_and_scenarios_of_the_readme_are_those_that_there_are():
    from nfcl_jax.scenarios import SCENARIOS
    from nfcl_jax.strategies import STRATEGIES

    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", README.split("## What comes out")[0], re.M)
    assert re.findall("[a-z_]+", " ".join(rows)) == [*SCENARIOS, *STRATEGIES]
