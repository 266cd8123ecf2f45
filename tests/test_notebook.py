"""The notebook runs from top to bottom, and is kept without what it shows."""

import os

import nbclient
import nbformat
import pytest
from conftest import REPOSITORY

PATH = REPOSITORY / "experiments/inspect_checkpoint.ipynb"


def execute(folder, **environment):
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | environment)
    return notebook


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(PATH, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
def test_it_makes_a_run_if_none_is_named(tmp_path):
    """Beside a checkout, where it writes."""
    for name in ("nfcl_jax", "experiments", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    notebook = execute(tmp_path, NFCL_RUN="", PYTHONPATH=str(REPOSITORY))
    assert pictures(notebook) == 6
    assert list((tmp_path / "runs/notebook").glob("patient001_cine_task4.nii.gz"))


def test_it_shows_the_run_that_is_named(runs, tmp_path):
    workdir = runs("domain_expansion", "diner", "distillation")
    notebook = execute(tmp_path, NFCL_RUN=str(workdir), PYTHONPATH=str(REPOSITORY))
    assert pictures(notebook) == 6
    (workdir / "patient001_cine_task4.nii.gz").unlink()


@pytest.mark.slow
def test_it_shows_an_image_and_its_mask(runs, tmp_path):
    workdir = runs("signal_expansion", "diner", "distillation")
    notebook = execute(tmp_path, NFCL_RUN=str(workdir), PYTHONPATH=str(REPOSITORY))
    assert pictures(notebook) == 6
    (workdir / "patient001_ED_task2.nii.gz").unlink()
