"""The README's commands and code, run as they stand but for their folders."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]


def run(command, cwd):
    """A command of this project, without its installation, from another folder than the root."""
    words = [sys.executable if w == "python" else w for w in shlex.split(command)]
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    return folder


@pytest.fixture(scope="module")
def first_run(folder):
    install, _, command = COMMANDS[0].partition(" && ")
    assert install == "pip install -e ."
    return run(command, folder)


def test_the_first_command_ends_in_a_table(first_run):
    assert first_run.returncode == 0, first_run.stderr
    assert "built-in phantom" in first_run.stdout
    rows = [line for line in first_run.stdout.splitlines() if "PSNR" in line or "SSIM" in line]
    assert [row.count("±") for row in rows] == [5, 5]


def test_the_test_command_is_the_one_that_ci_runs():
    install, _, command = COMMANDS[1].partition(" && ")
    assert (install, command) == ("pip install -e '.[test]'", "pytest")
    assert "\npip install -q -e '.[test]'\npytest\n" in (REPOSITORY / ".ci/run").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "/data/ACDC" in c])
def test_the_commands_on_acdc_run(command, phantom_root, folder):
    command = command.replace("/data/ACDC/training", str(phantom_root))
    command = command.replace("patient022", "patient003")
    done = run(command + " --config.num_steps=2 --config.batch_size=64", folder)
    assert done.returncode == 0, done.stderr


def test_the_code_opens_the_first_run(first_run, folder):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    done = run(f"python -c {shlex.quote(code)}", folder)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.strip(" []\n")) <= 1


def test_the_picture_is_drawn(first_run, folder):
    command = next(c for c in COMMANDS if "experiments.plot" in c)
    done = run(command.replace("runs/finetune,", ""), folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "forgetting.png").stat().st_size > 10_000


def test_every_link_into_the_repository_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target


def test_every_config_field_of_the_decisions_exists():
    from configs.base import FIELDS, make_config

    decided = README.split("## Decided here")[1].split("##")[0]
    configs = [make_config("x", f"{field},distillation", 1.0) for field in FIELDS]
    for name in re.findall(r"`([a-z_.]+)`", decided):
        parts = name.split(".")
        assert any(parts[-1] in (c if len(parts) == 1 else c[parts[0]]) for c in configs), name
