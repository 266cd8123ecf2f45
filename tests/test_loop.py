"""What a scan gets depends on its data, its name and the seed alone."""

import dataclasses

import jax
import numpy as np
import pytest
from small import (
    FRAMES,
    IMAGE_AND_MASK,
    assert_same_results,
    cohort,
    distilled,
    make_scan,
    params_of,
    recipe,
    scans_for,
    train,
)

from nfcl_jax import batch_task, fields
from nfcl_jax.loop import Hooks
from nfcl_jax.strategies.ewc import ewc


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("siren", FRAMES[:2]),
        pytest.param("diner", FRAMES[:2], marks=pytest.mark.slow),
        pytest.param("siren", IMAGE_AND_MASK, marks=pytest.mark.slow),
        pytest.param("pe_relu", FRAMES[:2], marks=pytest.mark.slow),
        pytest.param("finer", FRAMES[:2], marks=pytest.mark.slow),
    ],
    ids=["siren", "diner", "siren-signal", "pe_relu", "finer"],
)
def test_a_scan_does_not_depend_on_batch_order_or_company(name, tasks):
    scans = scans_for(tasks)
    together = train(scans, tasks, distilled(name, scans_per_batch=0))
    shuffled = [scans[i] for i in (3, 1, 0)]
    in_twos = train(shuffled, tasks, distilled(name, scans_per_batch=2))
    assert_same_results(together, in_twos, {scan.patient for scan in shuffled}, rtol=0)
    if name == "siren":
        alone = train(scans[1:2], tasks, distilled(name))
        assert_same_results(together, alone, {"patient1"}, rtol=0)
        other_seed = train(scans[1:2], tasks, distilled(name, seed=1))
        with pytest.raises(AssertionError):  # the comparison can fail
            assert_same_results(together, other_seed, {"patient1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks",
    [FRAMES[:3], pytest.param(IMAGE_AND_MASK, marks=pytest.mark.slow)],
    ids=["domain", "signal"],
)
def test_a_strategys_state_does_not_depend_on_company_either(tasks):
    """DINER's importances lie in a padded table while it learns, and without padding after."""
    scans = scans_for(tasks)[:3]
    together = train(scans, tasks, recipe("diner", ewc(), scans_per_batch=0))
    alone = train(scans[:1], tasks, recipe("diner", ewc()))
    for a, b in zip(together, alone, strict=True):
        own, other = (r.learned[scans[0].name] for r in (a, b))
        jax.tree.map(np.testing.assert_array_equal, own, other)
    assert own.state["importance"]["params"]["table"].shape == (scans[0].intensities.size, 1)


@pytest.mark.parametrize("name", [pytest.param("siren", marks=pytest.mark.slow), "diner"])
def test_full_volume_steps_do_not_depend_on_padding_or_company_either(name):
    """To the bit, though the scan that is looked at is padded to twice its size."""
    scans = [make_scan(f"patient{i}", s) for i, s in enumerate([(20, 20, 5), (17, 13, 5)])]
    how = distilled(name, batch_size=0, scans_per_batch=0)
    together, alone = train(scans, FRAMES[:2], how), train(scans[1:], FRAMES[:2], how)
    for a, b in zip(together, alone, strict=True):
        own, other = (result.learned["patient1/cine"] for result in (a, b))
        jax.tree.map(np.testing.assert_array_equal, own, other)
        (fit,), (same,) = ([f for f in r.fits if f.patient == "patient1"] for r in (a, b))
        assert (fit.final_loss, fit.final_penalty) == (same.final_loss, same.final_penalty)


def test_the_strategies_share_the_first_task_and_part_at_the_second():
    scans, tasks = cohort()[:1], FRAMES[:2]
    runs = [train(scans, tasks, how) for how in (recipe(), distilled(), recipe(strategy=ewc()))]
    for other in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, runs[0][0].learned, other[0].learned)
        assert runs[0][1].fits[0].final_penalty == 0
        assert other[1].fits[0].final_penalty > 0


def test_the_seed_and_the_scans_name_make_the_difference():
    scan, tasks = make_scan("patient0", (7, 8, 2)), FRAMES[:1]
    renamed = dataclasses.replace(scan, patient="other")
    biases = [
        params_of(train([own], tasks, recipe(seed=seed))[0])[own.name]["params"]["hidden_0"]["bias"]
        for own, seed in ((scan, 0), (scan, 0), (scan, 1), (renamed, 0))
    ]
    np.testing.assert_array_equal(biases[0], biases[1])
    assert not np.array_equal(biases[0], biases[2])
    assert not np.array_equal(biases[0], biases[3])


def test_the_output_layer_grows_when_the_mask_is_learned():
    scan = cohort(1, "ED")[0]
    image, mask = train([scan], IMAGE_AND_MASK, recipe())
    kernels = [params_of(r)[scan.name]["params"]["output"]["kernel"] for r in (image, mask)]
    assert [kernel.shape for kernel in kernels] == [(16, 1), (16, 5)]
    assert {s.metric for s in mask.scores} == {"psnr", "ssim", "dsc_rv", "dsc_myo", "dsc_lv", "dsc"}


@pytest.mark.slow
def test_a_table_that_is_not_of_the_grid_keeps_its_size(monkeypatch):
    class Lattice(fields.Field):
        @fields.nn.compact
        def __call__(self, coords):
            table = self.param("table", fields.symmetric_uniform(1.0), (16, coords.shape[-1]))
            init = fields.inverse_root
            return fields.layers(
                self, coords @ table.T, jax.nn.relu, lambda _, n: init(n), lambda _, n: init(n)
            )

    monkeypatch.setitem(fields.FIELDS, "lattice", Lattice)
    for result in train(cohort()[:2], FRAMES[:2], distilled("lattice")):
        for params in params_of(result).values():
            assert params["params"]["table"].shape == (16, 4)


def test_only_rows_of_the_frames_at_hand_change_in_diners_table():
    scan, tasks = cohort()[0], FRAMES[:2]
    first, second = train([scan], tasks, recipe("diner", num_steps=60))
    a, b = (params_of(r)[scan.name]["params"]["table"] for r in (first, second))
    voxels = scan.num_voxels
    assert len(a) == 4 * voxels
    assert (a[:voxels] == b[:voxels]).all()
    assert (np.abs(a[:voxels]) > 1e-4).mean() > 0.9
    assert np.abs(a[voxels:]).max() <= 1e-4
    assert (a[voxels : 2 * voxels] != b[voxels : 2 * voxels]).mean() > 0.9
    assert (a[2 * voxels :] == b[2 * voxels :]).all()


def test_a_scan_that_diverges_is_named_and_harms_nobody():
    scans, tasks = cohort()[:3], FRAMES[:2]
    healthy = train(scans, tasks, recipe(scans_per_batch=0))
    scans[1].intensities[0, 2:6] = np.nan
    sick = train(scans, tasks, recipe(scans_per_batch=0))
    diverged = {fit.patient for fit in sick[-1].fits if fit.diverged}
    assert diverged == {"patient1"}
    for name in (scans[0].name, scans[2].name):
        own = [params_of(run[-1])[name] for run in (healthy, sick)]
        jax.tree.map(np.testing.assert_array_equal, *own)


def test_progress_tells_every_chunk_and_ends_at_the_last_step(monkeypatch):
    monkeypatch.setattr(batch_task, "STEPS_PER_CHUNK", 5)
    seen = []
    train(cohort()[:2], FRAMES[:2], recipe(scans_per_batch=1), hooks=Hooks(seen.append))
    assert [(p.task, p.step) for p in seen] == [(t, s) for t in (1, 1, 2, 2) for s in (5, 10, 12)]
    assert all(np.isfinite(p.loss) for p in seen)
