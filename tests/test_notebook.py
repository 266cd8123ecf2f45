"""The notebook runs from top to bottom, and is kept without what it shows."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PATH = REPOSITORY / "experiments/inspect_checkpoint.ipynb"

# As in Jupyter, but in one process: no messages to a kernel that can be waited for in vain.
RUN_CELLS = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
with open(sys.argv[1]) as file:
    cells = json.load(file)["cells"]


def pictures(run):
    with capture_output() as captured:
        run()
    return sum("image/png" in output.data for output in captured.outputs)


shown = [
    pictures(lambda: shell.run_cell("".join(cell["source"])).raise_error())
    for cell in cells
    if cell["cell_type"] == "code"
]
slider = shell.user_ns["show"].widget.children[0]
moved = pictures(lambda: slider.set_trait("value", 0.5))
print(sum(shown), moved)
"""


def code_cells():
    return [c for c in json.loads(PATH.read_text())["cells"] if c["cell_type"] == "code"]


def pictures(folder, run=""):
    """How many the cells show, and how many more once the slider is moved."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, str(PATH)],
        cwd=folder,
        env=os.environ
        | {
            "NFCL_RUN": str(run),
            "PYTHONPATH": str(REPOSITORY),
            "IPYTHONDIR": str(folder),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "XLA_FLAGS": "",  # a few programs, on many points: compiled well
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(number) for number in done.stdout.splitlines()[-1].split()]


def test_it_is_kept_without_outputs():
    for cell in code_cells():
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_it_makes_a_run_if_none_is_named(tmp_path):
    """Beside a checkout, where it writes."""
    for name in ("nfcl_jax", "experiments", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    assert pictures(tmp_path) == [7, 1]
    assert list((tmp_path / "runs/notebook").glob("patient001_cine_task4.nii.gz"))


def test_it_shows_the_run_that_is_named(runs, tmp_path):
    shutil.copytree(runs("domain_expansion", "diner", "distillation"), tmp_path / "run")
    assert pictures(tmp_path, tmp_path / "run") == [7, 1]
    assert (tmp_path / "run/patient001_cine_task4.nii.gz").exists()


@pytest.mark.slow
def test_it_shows_an_image_and_its_mask(runs, tmp_path):
    shutil.copytree(runs("signal_expansion", "diner", "distillation"), tmp_path / "run")
    assert pictures(tmp_path, tmp_path / "run") == [7, 1]
    assert (tmp_path / "run/patient001_ED_task2.nii.gz").exists()
