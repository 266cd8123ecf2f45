import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax import continual, programs, training
from nfcl_jax.continual import InactivePenaltyError, Settings, device_mesh, learn, make_batches
from nfcl_jax.coordinates import index_to_coords
from nfcl_jax.fields import FIELDS, create_field, evaluate, init_params
from nfcl_jax.scenarios import Scan, domain_expansion, signal_expansion
from nfcl_jax.strategies import Teacher, distillation, finetune
from nfcl_jax.training import padded_size, stable_hash, stream

SETTINGS = Settings(
    learning_rate=1e-3, num_steps=12, batch_size=64, patients_per_batch=None, seed=0
)
SMALL = {"width": 16, "depth": 2}


def make_scan(patient, shape, num_frames=4, image="cine", seed=0):
    rng = np.random.default_rng([seed, stable_hash(patient)])
    return Scan(
        patient=patient,
        image=image,
        intensities=rng.uniform(size=(num_frames, *shape)).astype("f4"),
        labels=rng.integers(0, 4, (num_frames, *shape)).astype("u1"),
        frame_numbers=tuple(range(1, num_frames + 1)),
        spacing=(1.0, 1.0, 10.0),
        affine=np.eye(4),
    )


def cohort(num_frames=4, image="cine"):
    shapes = [(8, 9, 2), (12, 7, 3), (7, 7, 1), (10, 11, 4), (9, 8, 2)]
    return [make_scan(f"patient{i}", s, num_frames, image) for i, s in enumerate(shapes)]


def train(scans, tasks, name, strategy, settings=SETTINGS):
    mesh = device_mesh(jax.devices()[:1])
    return list(learn(scans, tasks, {"name": name, **SMALL}, strategy, settings, mesh))


def assert_same_results(a, b, patients, rtol=5e-3):
    """What `patients` got in two runs agrees; only rounding may differ between programs."""
    for x, y in zip(a, b, strict=True):
        values = [
            [m.value for m in r.metrics if m.patient in patients]
            + [f.final_loss + f.final_penalty for f in r.fits if f.patient in patients]
            for r in (x, y)
        ]
        assert len(values[0]) == len(values[1]) > 0
        np.testing.assert_allclose(*values, rtol=rtol)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("siren", domain_expansion()[:2]),
        ("diner", domain_expansion()[:2]),
        ("siren", signal_expansion()),
        pytest.param("pe_relu", domain_expansion()[:2], marks=pytest.mark.slow),
        pytest.param("finer", domain_expansion()[:2], marks=pytest.mark.slow),
    ],
    ids=["siren", "diner", "siren-signal", "pe_relu", "finer"],
)
def test_a_patient_does_not_depend_on_batch_order_or_company(name, tasks):
    scans = cohort() if tasks[1].output.name == "image" else cohort(1, "ED")
    strategy = distillation(weight=1.0)
    together = train(scans, tasks, name, strategy, SETTINGS._replace(patients_per_batch=0))
    shuffled = [scans[i] for i in (3, 1, 0)]
    in_twos = train(shuffled, tasks, name, strategy, SETTINGS._replace(patients_per_batch=2))
    assert_same_results(together, in_twos, {scan.patient for scan in shuffled}, rtol=0)
    if name == "siren":
        alone = train(scans[1:2], tasks, name, strategy)
        assert_same_results(together, alone, {"patient1"}, rtol=0)
        other_seed = train(scans[1:2], tasks, name, strategy, SETTINGS._replace(seed=1))
        with pytest.raises(AssertionError):  # the comparison can fail
            assert_same_results(together, other_seed, {"patient1"})


def test_patients_fitted_at_once_as_on_accelerators_get_the_same_up_to_rounding(monkeypatch):
    scans, tasks, strategy = cohort()[:3], domain_expansion()[:2], distillation(weight=1.0)
    settings = SETTINGS._replace(patients_per_batch=0)
    in_turn = train(scans, tasks, "siren", strategy, settings)
    map_patients = programs._map_patients
    monkeypatch.setattr(
        programs, "_map_patients", lambda f, mapped, _: map_patients(f, mapped, "gpu")
    )
    programs.compile_for.cache_clear()
    try:
        at_once = train(scans, tasks, "siren", strategy, settings)
    finally:
        programs.compile_for.cache_clear()
    assert_same_results(in_turn, at_once, {scan.patient for scan in scans})


def test_every_voxel_of_every_patient_is_used_when_the_batch_is_the_whole_volume():
    """The losses of full-volume steps do not depend on padding or company either."""
    scans, tasks, strategy = cohort(), domain_expansion()[:2], distillation(weight=1.0)
    settings = SETTINGS._replace(batch_size=0, patients_per_batch=0)
    together = train(scans, tasks, "siren", strategy, settings)
    alone = train(scans[2:3], tasks, "siren", strategy, settings)
    assert_same_results(together, alone, {"patient2"})


def test_the_first_step_is_adams_on_the_mean_huber_loss_of_the_volume():
    """One full-volume step against the loss written out here: Adam's first step moves each
    parameter by the learning rate against the gradient's sign."""
    scan = make_scan("patient0", (7, 8, 2))
    settings = SETTINGS._replace(batch_size=0, num_steps=1)
    after = train([scan], domain_expansion()[:1], "siren", finetune(), settings)[0]
    field = create_field({"name": "siren", **SMALL}, 1, 0)
    key = jax.random.fold_in(stream(jax.random.key(0), scan.name), 1)
    before = init_params(field, stream(key, "init"), axes=4)
    coords = index_to_coords(jnp.arange(7 * 8 * 2), jnp.array(scan.shape))
    target = jnp.asarray(scan.intensities[0].ravel())

    def loss(params):
        return jnp.mean(jnp.square(field.apply(params, coords)[:, 0] - target)) / 2

    assert jnp.abs(field.apply(before, coords)[:, 0] - target).max() < 1
    np.testing.assert_allclose(after.fits[0].final_loss, loss(before), rtol=1e-4)
    moved = jax.tree.map(lambda a, b: a - b, after.params[scan.name], before)
    for step, gradient in zip(
        jax.tree.leaves(moved), jax.tree.leaves(jax.grad(loss)(before)), strict=True
    ):
        clear = np.abs(gradient) > 1e-5
        np.testing.assert_allclose(
            np.asarray(step)[clear], -1e-3 * np.sign(gradient)[clear], rtol=2e-2
        )


def test_the_strategies_share_the_first_task_and_part_at_the_second():
    scans, tasks = cohort()[:1], domain_expansion()[:2]
    runs = [train(scans, tasks, "siren", s) for s in (finetune(), distillation(weight=1.0))]
    for a, b in zip(*(jax.tree.leaves(run[0].params[scans[0].name]) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs[0][1].fits[0].final_penalty == 0
    assert runs[1][1].fits[0].final_penalty > 0


@pytest.mark.parametrize(
    ("make", "tasks"),
    [(cohort, domain_expansion()[:3]), (lambda: cohort(1, "ED"), signal_expansion())],
    ids=["domain", "signal"],
)
@pytest.mark.parametrize("name", ["siren", "diner"])
def test_a_task_too_short_to_render_its_teacher_asks_it_and_learns_the_same(make, tasks, name):
    scans, strategy = make()[:1], distillation(weight=1.0)
    short = SETTINGS._replace(num_steps=2)
    assert short.num_steps * short.batch_size < scans[0].intensities[0].size
    rendering = strategy._replace(
        remember=lambda earlier, params: strategy.remember(
            earlier._replace(points_evaluated=earlier.num_voxels), params
        )
    )
    runs = [train(scans, tasks, name, s, short) for s in (strategy, rendering)]
    assert_same_results(*runs, {scans[0].patient})


@pytest.mark.parametrize("name", FIELDS)
def test_distillation_keeps_the_first_frame_nearer_to_the_teacher(name):
    """After full-volume steps on a second frame, what the field says of the first has moved less
    than by fine-tuning: the penalty works for every field, not only where the scores show it."""
    scan, tasks = make_scan("patient0", (8, 9, 2)), domain_expansion()[:2]
    settings = SETTINGS._replace(batch_size=0, num_steps=100)
    field = create_field({"name": name, **SMALL}, 1, rows=scan.intensities.size)
    first_frame = jnp.arange(scan.intensities[0].size)
    moved = {}
    for key, strategy in {
        "finetune": finetune(),
        "distillation": distillation(weight=10.0),
    }.items():
        before, after = (
            evaluate(field, result.params[scan.name], first_frame, jnp.array(scan.shape))
            for result in train([scan], tasks, name, strategy, settings)
        )
        moved[key] = float(jnp.sqrt(jnp.mean(jnp.square(after - before))))
    assert moved["distillation"] < 0.6 * moved["finetune"]


def test_the_seed_and_the_patients_name_make_the_difference():
    scan, tasks = make_scan("patient0", (7, 8, 2)), domain_expansion()[:1]
    renamed = dataclasses.replace(scan, patient="other")
    runs = [
        train([scan], tasks, "siren", finetune())[0].params[scan.name],
        train([scan], tasks, "siren", finetune())[0].params[scan.name],
        train([scan], tasks, "siren", finetune(), SETTINGS._replace(seed=1))[0].params[scan.name],
        train([renamed], tasks, "siren", finetune())[0].params[renamed.name],
    ]
    biases = [run["params"]["hidden_0"]["bias"] for run in runs]
    np.testing.assert_array_equal(biases[0], biases[1])
    assert not np.array_equal(biases[0], biases[2])
    assert not np.array_equal(biases[0], biases[3])


def test_the_output_layer_grows_when_the_mask_is_learned():
    scans = cohort(1, "ED")[:1]
    image, mask = train(scans, signal_expansion(), "siren", finetune())
    shapes = [r.params[scans[0].name]["params"]["output"]["kernel"].shape for r in (image, mask)]
    assert shapes == [(16, 1), (16, 5)]
    assert {m.metric for m in mask.metrics} == {
        "psnr",
        "ssim",
        "dsc_rv",
        "dsc_myo",
        "dsc_lv",
        "dsc",
    }


@pytest.mark.parametrize("batch_size", [64, 0])
def test_leaving_out_rows_that_a_task_cannot_touch_changes_nothing(monkeypatch, batch_size):
    scans, tasks = cohort()[:2], domain_expansion()[:3]
    settings = SETTINGS._replace(batch_size=batch_size, patients_per_batch=0)
    left_out = train(scans, tasks, "diner", finetune(), settings)
    monkeypatch.setattr(
        training,
        "learning_part",
        lambda config, outputs, params, start: (config.field, params, None),
    )
    programs.compile_for.cache_clear()
    try:
        whole = train(scans, tasks, "diner", finetune(), settings)
    finally:
        programs.compile_for.cache_clear()
    for a, b in zip(left_out, whole, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a.params, b.params)


def test_only_rows_of_the_frames_at_hand_change_in_diners_table():
    scans, tasks = cohort()[:1], domain_expansion()[:2]
    voxels = scans[0].intensities[0].size
    first, second = train(scans, tasks, "diner", finetune(), SETTINGS._replace(num_steps=60))
    a, b = (r.params[scans[0].name]["params"]["table"] for r in (first, second))
    assert len(a) == 4 * voxels
    assert (a[:voxels] == b[:voxels]).all()
    assert (np.abs(a[:voxels]) > 1e-4).mean() > 0.9
    assert np.abs(a[voxels:]).max() <= 1e-4
    assert (a[voxels : 2 * voxels] != b[voxels : 2 * voxels]).mean() > 0.9
    assert (a[2 * voxels :] == b[2 * voxels :]).all()


def test_a_patient_that_diverges_is_named_and_harms_nobody():
    scans, tasks = cohort()[:3], domain_expansion()[:2]
    settings = SETTINGS._replace(patients_per_batch=0)
    healthy = train(scans, tasks, "siren", finetune(), settings)
    scans[1].intensities[0, 2:6] = np.nan
    sick = train(scans, tasks, "siren", finetune(), settings)
    diverged = {fit.patient for fit in sick[-1].fits if fit.diverged}
    assert diverged == {"patient1"}
    for name in (scans[0].name, scans[2].name):
        for a, b in zip(
            *(jax.tree.leaves(run[-1].params[name]) for run in (healthy, sick)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_progress_tells_every_chunk_and_ends_at_the_last_step(monkeypatch):
    monkeypatch.setattr(continual, "STEPS_PER_CHUNK", 5)
    seen = []
    scans = cohort()[:2]
    settings = SETTINGS._replace(patients_per_batch=1)
    list(
        learn(
            scans,
            domain_expansion()[:2],
            {"name": "siren", **SMALL},
            finetune(),
            settings,
            device_mesh(jax.devices()[:1]),
            seen.append,
        )
    )
    assert [(p.task, p.step) for p in seen] == [(t, s) for t in (1, 1, 2, 2) for s in (5, 10, 12)]
    assert all(np.isfinite(p.loss) for p in seen)


@pytest.mark.parametrize(("wanted", "sizes"), [(0, [5]), (2, [2, 2, 1]), (9, [5]), (None, [1] * 5)])
def test_batches_hold_patients_of_similar_size(wanted, sizes):
    scans = cohort()
    _, batches = make_batches(scans, wanted, 64, device_mesh(jax.devices()[:1]))
    assert [len(batch) for batch in batches] == sizes
    voxels = [scan.intensities[0].size for batch in batches for scan in batch]
    assert voxels == sorted(voxels)


@pytest.mark.parametrize(
    ("platform", "points", "count"),
    [("cpu", 16, 1), ("gpu", 2**15, 4), ("gpu", 2**15 + 1, 3), ("gpu", 2**20, 1)],
)
def test_a_cpu_takes_one_patient_and_an_accelerator_so_many_points(platform, points, count):
    assert continual.patients_at_once(platform, points) == count


def test_padding_costs_at_most_an_eighth_and_few_sizes():
    sizes = np.arange(1, 100_000)
    padded = np.array([padded_size(int(n)) for n in sizes])
    assert (padded >= sizes).all() and (padded[8:] <= sizes[8:] * 1.125).all()
    assert len(np.unique(padded[50_000:])) <= 9


def test_devices_share_the_patients_and_change_nothing():
    """Four CPU devices in a process of their own, against one device in this one."""
    script = """
import sys; sys.path.insert(0, "tests")
import jax, numpy as np
from test_training import *
assert jax.device_count() == 4
scans, tasks = cohort(), domain_expansion()[:2]
results = list(learn(scans, tasks, {"name": "siren", **SMALL}, distillation(weight=1.0),
                     SETTINGS._replace(patients_per_batch=0), device_mesh()))
print(json.dumps([m.value for m in results[1].metrics]))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    on_four = json.loads(done.stdout.splitlines()[-1])
    here = train(cohort(), domain_expansion()[:2], "siren", distillation(weight=1.0))[1]
    np.testing.assert_allclose(on_four, [m.value for m in here.metrics], rtol=2e-4)


def test_later_tasks_and_batches_run_in_the_programs_of_the_first_ones():
    scans = [make_scan(f"patient{i}", (8, 9, 2)) for i in range(3)]
    settings = SETTINGS._replace(patients_per_batch=2)
    programs.compile_for.cache_clear()
    train(scans, domain_expansion(), "siren", distillation(weight=1.0), settings)
    compiled = programs.compile_for(device_mesh(jax.devices()[:1]))
    # The first task has no teacher.
    assert compiled.start_task._cache_size() == compiled.fit_steps._cache_size() == 2
    assert compiled.render._cache_size() == 1
    # Fine-tuning's tasks are all like the first.
    train(scans, domain_expansion(), "siren", finetune(), settings)
    assert compiled.fit_steps._cache_size() == 2


def nothing(earlier, rehearsal, outputs):
    return jnp.zeros(())


def detached(earlier, rehearsal, outputs):
    return jnp.mean(jax.lax.stop_gradient(outputs - rehearsal.targets) ** 2)


@pytest.mark.parametrize("penalty", [nothing, detached])
def test_a_penalty_that_does_nothing_is_refused(penalty):
    strategy = distillation(weight=1.0)._replace(penalty=penalty)
    with pytest.raises(InactivePenaltyError, match=r"patient0/cine, task 2: .* 0 times the fit"):
        train(cohort()[:1], domain_expansion(), "siren", strategy)


def test_the_share_of_the_penalty_is_proportional_to_its_weight():
    scan, tasks = cohort()[0], domain_expansion()[:2]
    field = {"name": "siren", **SMALL}
    shares = []
    for weight in (1.0, 3.0):
        arguments = continual.task_arguments(
            [scan], 1, tasks, field, distillation(weight), SETTINGS
        )
        config, outputs, patients, task_arrays, _, _ = arguments
        patient = jax.tree.map(lambda x: x[0], patients)
        teacher, student = (
            init_params(config.field, jax.random.key(seed), axes=4) for seed in (0, 1)
        )
        memory = Teacher(teacher, None)
        share = jax.jit(training.penalty_share, static_argnums=(0, 1))(
            config, outputs, student, memory, patient, task_arrays, jnp.int32(7)
        )
        shares.append(share)
    np.testing.assert_allclose(3 * np.array(shares[0]), shares[1], rtol=1e-5)
    assert min(shares[0]) > 0
