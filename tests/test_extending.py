"""docs/extending.md, run as it stands: a field, a strategy, a scenario of five tasks, a metric and
a data set from a user's own file."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from commands import typed
from conftest import REPOSITORY
from made_up import read_csv
from test_readme import run

from nfcl_jax import checkpoints

PAGE = (REPOSITORY / "docs/extending.md").read_text()
*DEFINITIONS, OPENING = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TRAIN, PAPER, REPORT = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
SMALL = " --config.num_steps=55 --config.batch_size=64"
WIDTH = " --config.field.width=32"


@pytest.fixture(scope="module")
def folder(phantom_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending")
    (folder / "mine.py").write_text("\n\n".join(DEFINITIONS))
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "cines").mkdir()
    for number in (1, 2):
        path = phantom_root / f"patient00{number}/patient00{number}_4d.nii.gz"
        shutil.copy(path, folder / "cines")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    done = typed(TRAIN + SMALL + WIDTH, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/mine"


def test_it_trains_with_all_five(trained):
    rows = read_csv(trained / "metrics.csv")
    assert {r["metric"] for r in rows} == {"psnr", "ssim", "correlation"}
    assert {(r["field"], r["strategy"], r["scenario"]) for r in rows} == {
        ("gauss", "samples", "five_frames")
    }
    assert {r["patient"] for r in rows} == {"patient001_4d", "patient002_4d"}
    assert {int(r["trained_task"]) for r in rows} == {1, 2, 3, 4, 5}
    config = json.loads((trained / "config.json").read_text())
    assert config["field"]["scale"] == 3.0 and config["samples"] == {"weight": 1.0, "keep": 512}


def test_its_state_grows_and_is_saved(trained):
    for task in range(1, 6):
        own = checkpoints.load_all(trained, task)["patient001_4d/cine"].state
        assert (own == {}) if task == 1 else own["index"].shape == (512 * (task - 1),)
    voxels = 48 * 42 * 5
    frames = own["index"] // voxels
    np.testing.assert_array_equal(np.unique(frames), [0, 1, 2, 3])


def test_it_goes_on_to_the_same_end(trained, folder):
    shutil.copytree(trained, folder / "runs/stopped")
    for task in (4, 5):
        shutil.rmtree(folder / f"runs/stopped/checkpoints/task_{task}")
    (folder / "runs/stopped/summary.csv").unlink()
    done = typed(TRAIN.replace("runs/mine", "runs/stopped") + SMALL + WIDTH, folder)
    assert done.returncode == 0, done.stderr
    assert "3 of 5 tasks were learned before" in done.stdout
    for name in ("metrics.csv", "fits.csv", "summary.csv"):
        assert (folder / "runs/stopped" / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow
def test_a_grid_and_its_report_have_them_by_their_titles(folder):
    less = " --config.cells=*gauss*" + SMALL.replace("55", "2")
    done = typed(PAPER + less, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    done = typed(REPORT, folder)
    assert done.returncode == 0, done.stderr
    html = (folder / "runs/grid/report.html").read_text()
    text = (folder / "runs/grid/tables.md").read_text()
    assert "## Five frames, one after the other" in text
    for words in ("frame 5 at the end, correlation", "| Gauss | samples, keep 64 |"):
        assert words in text
    assert "Learning five frames in turn, " in html
    claims = json.loads((folder / "runs/grid/claims.json").read_text())
    assert {claim["verdict"] for claim in claims} == {"not tested"}
    # Without the file it is said what is missing.
    done = typed(REPORT.replace("--extend=mine.py", ""), folder)
    assert done.returncode == 2
    assert "unknown scenario 'five_frames'" in done.stderr and "--extend=FILE.py" in done.stderr


def test_its_run_opens(trained, folder):
    done = run(f"python -c {shlex.quote(OPENING)}", folder)
    assert done.returncode == 0, done.stderr
    assert "five_frames, gauss, samples of weight 1" in done.stdout
    assert "Gauss: (x, y, z, t) in grid to 1 outputs" in done.stdout
    done = run(f"python -c {shlex.quote(OPENING.replace('import mine', ''))}", folder)
    assert "unknown scenario 'five_frames'" in done.stderr
    assert "Import the file that defines it first" in done.stderr
