"""docs/examples.md: its code runs as it stands, and reaches what its table says."""

import re

import pytest
from conftest import REPOSITORY

import nfcl_jax

pytest.importorskip("nilearn", reason="nilearn has the brain: pip install nilearn")
PAGE = (REPOSITORY / "docs/examples.md").read_text()
EXAMPLES = dict(
    zip(("brain", "frames", "photographs"), re.findall(r"```python\n(.*?)```", PAGE, re.S),
        strict=True)
)  # fmt: skip
FEW = {"num_steps": 2, "batch_size": 64, "field.width": 16}


def run(name, folder, monkeypatch, settings):
    """What an example leaves, with these settings."""
    monkeypatch.chdir(folder)
    learn = nfcl_jax.learn
    monkeypatch.setattr(
        nfcl_jax, "learn", lambda *args, **more: learn(*args, **more, settings=settings)
    )
    names: dict = {}
    exec(EXAMPLES[name], names)
    return names["run"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "brain")) for n in EXAMPLES]
)
def test_the_examples_run(name, tmp_path, monkeypatch):
    found = run(name, tmp_path, monkeypatch, FEW)
    assert found.tasks == tuple(range(1, 1 + EXAMPLES[name].count("learn(")))
    written = re.findall(r'"(runs/\S+\.nii\.gz)"', EXAMPLES[name])
    assert all((tmp_path / path).is_file() for path in written)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_reach_what_the_page_says(name, tmp_path, monkeypatch):
    """Within half a decibel: another machine rounds otherwise."""
    (row,) = run(name, tmp_path, monkeypatch, {}).table().to_dict("records")
    found = [list(map(float, v.split(" → "))) for k, v in row.items() if re.match(r"\d: ", k)]
    (line,) = re.findall(rf"^\| {name} \| \w+ \| (.*) \|$", PAGE, re.M)
    said = [list(map(float, cell.split(" → "))) for cell in line.split(" | ") if cell.strip(" |")]
    assert len(found) == len(said)
    for a, b in zip(found, said, strict=True):
        assert a == pytest.approx(b, abs=0.5)
