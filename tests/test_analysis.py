"""Tangent kernels against explicit Jacobians, overlaps that are known, and bands of frequency."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from commands import command

from nfcl_jax.analysis import spectrum, tangent
from nfcl_jax.analysis.forgetting import IN_ITS_PLACE, _as_task_begins, analyse
from nfcl_jax.analysis.summary import rank_correlation, write_analysis
from nfcl_jax.analysis.tangent import Tangent
from nfcl_jax.batch_task import BatchTask, task_arguments
from nfcl_jax.batching import compile_for, device_mesh
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.errors import ReportError
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.fitting import start_batch
from nfcl_jax.params import evaluate
from nfcl_jax.points import VoxelGrid
from nfcl_jax.records import Learned
from nfcl_jax.report.results import finished_runs
from nfcl_jax.runner import recipe_of
from nfcl_jax.scenarios import tasks_of

SHAPE = (2, 5, 4, 3)
SIZE = 120


def small(name, channels=3):
    field = create_field({"name": name, "width": 8, "depth": 2}, channels, rows=SIZE)
    params = init_params(field, jax.random.key(0), axes=4)
    if name == "diner":  # as after training: rows that differ
        params["params"]["table"] *= 1e4
    return field, params


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("pe_relu", "finer"))) for n in FIELDS],
)
def test_the_kernel_is_that_of_explicit_jacobians(name):
    field, params = small(name)
    some, others = np.array([3, 50, 7]), np.array([50, 90])

    def jacobian(index, channels):
        def outputs(p):
            return evaluate(field, p, jnp.array(index), VoxelGrid(jnp.array(SHAPE)))[:, channels]

        leaves = jax.tree.leaves(jax.jacrev(outputs)(params))
        rows = len(index) * (channels.stop - channels.start)
        return np.concatenate([np.reshape(leaf, (rows, -1)) for leaf in leaves], axis=1)

    for a, b in ((slice(0, 1), slice(1, 3)), (slice(1, 3), slice(1, 3))):
        found = tangent.kernel(
            tangent.tangent(field, params, some, a, SHAPE),
            tangent.tangent(field, params, others, b, SHAPE),
        )
        expected = jacobian(some, a).astype(float) @ jacobian(others, b).T
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def features(*vectors):
    rows = np.array(vectors, np.float32)
    return Tangent(rows, np.zeros((len(rows), 1), np.float32), np.arange(len(rows)))


def test_the_overlap_of_known_spaces():
    plane = features([2, 0, 0, 0], [0, 1, 0, 0])
    same = tangent.overlap(plane, features([1, 1, 0, 0], [1, -1, 0, 0]))
    np.testing.assert_allclose(same.cosines, [1, 1], atol=1e-6)
    assert same.share == pytest.approx(1)
    apart = tangent.overlap(plane, features([0, 0, 1, 0], [0, 0, 0, 3]))
    assert np.abs(apart.matrix).max() == apart.share == 0
    # One axis in common, at 60 degrees; of the squares 4 and 1, a quarter of the 4.
    tilted = tangent.overlap(plane, features([0.5, 0, 0.75**0.5, 0]))
    np.testing.assert_allclose(tilted.cosines, [0.5], atol=1e-6)
    assert tilted.share == pytest.approx(4 * 0.25 / 5)


def test_the_overlap_is_that_of_singular_vectors():
    old, new = (np.random.default_rng(n).normal(size=(n, 9)) for n in (5, 4))
    found = tangent.overlap(features(*old), features(*new))
    v_old, v_new = (np.linalg.svd(a, full_matrices=False)[2] for a in (old, new))
    expected = v_old @ v_new.T
    np.testing.assert_allclose(np.abs(found.matrix), np.abs(expected), atol=1e-5)
    eigenvalues = np.linalg.eigvalsh(expected @ expected.T)[::-1][:4]
    np.testing.assert_allclose(found.cosines**2, eigenvalues, atol=1e-5)
    # The share is what a projection onto the new task's rows keeps.
    kept = old @ np.linalg.pinv(new) @ new
    assert found.share == pytest.approx(np.sum(kept**2) / np.sum(old**2), abs=1e-5)


def test_rows_of_a_table_overlap_in_the_same_voxel_alone():
    def row(index):
        return Tangent(np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32), np.array([index]))

    assert tangent.kernel(row(3), row(3)) == 1
    assert tangent.kernel(row(3), row(4)) == 0


def test_bands_add_up_and_a_wave_is_in_its_own():
    volume = np.random.default_rng(0).uniform(size=(32, 24, 3))
    np.testing.assert_allclose(spectrum.band_power(volume).sum(), np.mean(volume**2))
    assert len(spectrum.band_names()) == len(spectrum.band_power(volume)) == 5
    x = (np.arange(32) + 0.5) / 32
    for waves, band in ((0, 0), (1, 0), (3, 1), (5, 2), (12, 3), (31, 4)):
        wave = np.broadcast_to(np.cos(np.pi * waves * x)[:, None, None], (32, 24, 3))
        power = spectrum.band_power(wave)
        assert power[band] == pytest.approx(np.mean(wave**2)), (waves, spectrum.band_names())


def test_what_has_diverged_has_no_overlap():
    found = tangent.overlap(features([1, np.nan]), features([1, 0]))
    assert np.isnan(found.share) and not found.cosines.size


@pytest.fixture(scope="module")
def analysed(runs):
    """A task that starts with new outputs too, and the field that has a table."""
    runs("signal_expansion", "diner", "distillation")
    workdir = runs("domain_expansion", "siren", "distillation").parents[1]
    return workdir, *analyse(workdir)


def test_finished_runs_are_analysed(analysed, tmp_path):
    _, overlaps, bands = analysed
    text = write_analysis(tmp_path, overlaps, bands)
    assert overlaps.share.between(0, 1).all() and set(overlaps.strategy) == {"finetune"}
    siren = overlaps[(overlaps.scenario == "domain_expansion") & (overlaps.field == "siren")]
    assert list(siren.task) == [2, 3, 4]
    diner = overlaps[(overlaps.scenario == "signal_expansion") & (overlaps.field == "diner")]
    assert sorted(diner.image) == ["ED", "ES"]
    kept = bands.groupby(["field", "scenario", "strategy"]).kept.mean()
    for field, scenario in (("siren", "domain_expansion"), ("diner", "signal_expansion")):
        assert kept[field, scenario, "distillation"] > kept[field, scenario, "finetune"] + 3
    assert {s for _, s, k in kept.index if k == IN_ITS_PLACE} == {"domain_expansion"}
    assert "| SIREN | frame 2 |" in text and text == (tmp_path / "analysis.md").read_text()
    files = {f"{name}.{kind}" for name in ("overlap", "bands") for kind in ("csv", "png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == files | {"analysis.md"}


def test_the_new_outputs_are_those_that_the_run_began_with(analysed, phantom_root):
    """Which is where the outputs of a mask would be after no step."""
    workdir, *_ = analysed
    (run,) = finished_runs([workdir / "cells/signal_expansion-diner-finetune-seed0"])
    record = run.opened.scans[0]
    params = _as_task_begins(run, record, 2).params
    scan = read_scans(phantom_root, "signal_expansion", ["patient001"])[0]
    task = BatchTask(
        [scan], 1, tasks_of(run.config), recipe_of(run.config), device_mesh(jax.devices()[:1])
    )
    before = Learned(run.opened.params("patient001", 1, record["image"]), {})
    programs, arguments = compile_for(task.mesh), task_arguments(task)
    state, _ = start_batch(task, {scan.name: before}, programs, arguments)
    expected = jax.tree.map(lambda leaf: leaf[0], state.params)["params"]["output"]
    jax.tree.map(np.testing.assert_array_equal, params["params"]["output"], expected)


def test_one_run_and_one_that_was_not_fine_tuned_and_one_without_checkpoints(analysed, tmp_path):
    workdir, *_ = analysed
    cell = workdir / "cells/domain_expansion-siren-distillation-seed0"
    overlaps, bands = analyse(cell)
    assert len(overlaps) == 0 and set(bands.strategy) == {"distillation"}
    assert "By frequency" in write_analysis(tmp_path / "one", overlaps, bands)
    assert not (tmp_path / "one/overlap.csv").exists()
    shutil.copytree(cell, tmp_path / "two", ignore=shutil.ignore_patterns("task_3"))
    with pytest.raises(ReportError, match=r"two: lacks checkpoints"):
        analyse(tmp_path / "two")
    with pytest.raises(ReportError, match=r"no finished run here"):
        analyse(tmp_path)


def test_the_correlation_is_of_the_second_task():
    rows = {"field": list("abc") * 2, "patient": ["p"] * 6, "task": [2] * 3 + [3] * 3}
    frame = pd.DataFrame(rows | {"share": [1, 2, 3, 9, 8, 7], "lost": [2, 4, 9, 0, 1, 2]})
    assert rank_correlation(frame, ["field"]) == pytest.approx(1)
    assert np.isnan(rank_correlation(frame[frame.field != "a"], ["field"]))


def test_the_command_says_what_is_missing(tmp_path):
    done = command("experiments.analyse", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "no finished run here" in done.stderr
