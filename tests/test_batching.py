"""Scans in batches, on one device or several, one after the other or at once."""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    FRAMES,
    IMAGE_AND_MASK,
    assert_same_results,
    cohort,
    distilled,
    make_scan,
    recipe,
    scans_for,
    train,
)

from nfcl_jax import batching
from nfcl_jax.arguments import Steps
from nfcl_jax.batching import compile_for, device_mesh, make_batches
from nfcl_jax.fields import FIELDS
from nfcl_jax.padded import padded_size
from nfcl_jax.plan import call_of
from nfcl_jax.strategies.distillation import distillation
from nfcl_jax.strategies.ewc import ewc
from nfcl_jax.strategies.mas import mas
from nfcl_jax.strategies.ogd import ogd
from nfcl_jax.strategies.replay import joint, replay


@pytest.fixture
def at_once(monkeypatch):
    """Programs as accelerators have them: vmap over the scans of a batch."""
    monkeypatch.setattr(batching, "fits_at_once", lambda device: True)
    compile_for.cache_clear()
    yield
    compile_for.cache_clear()


STRATEGIES = {
    "distillation": distillation(),
    "joint": joint(),
    "replay": replay(),
    "ewc": ewc(),
    "mas": mas(),
    "ogd": ogd(8, 8),
}
TASKS = {"domain": FRAMES[:2], "signal": IMAGE_AND_MASK}
# One case with a table and a teacher; every field, strategy and scenario with --slow.
QUICK = [("diner", "distillation", "domain")]


@pytest.mark.parametrize(
    ("name", "strategy", "scenario"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(FIELDS, STRATEGIES, TASKS)
    ],
)
def test_one_step_at_once_as_on_accelerators_is_one_in_turn_up_to_rounding(
    name, strategy, scenario, request
):
    """One step of each task, with teachers, masks, importances and tables of padded scans."""
    tasks, strategy = TASKS[scenario], STRATEGIES[strategy]
    scans = scans_for(tasks)[:3]
    how = recipe(name, strategy, num_steps=1, scans_per_batch=0, learning_rate=1e-4)
    if strategy.begin and strategy.sample is None:  # in its first step nothing has moved
        how = how._replace(num_steps=2)
    in_turn = train(scans, tasks, how)
    request.getfixturevalue("at_once")
    together = train(scans, tasks, how)
    for a, b in zip(in_turn, together, strict=True):
        assert a.learned.keys() == b.learned.keys()
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6),
            {name: own.state for name, own in a.learned.items()},
            {name: own.state for name, own in b.learned.items()},
        )
        # Adam's first steps move by the gradient's sign: where it is rounding alone, by up to
        # twice the learning rate in another direction.
        for x, y in zip(jax.tree.leaves(a.learned), jax.tree.leaves(b.learned), strict=True):
            assert np.mean(np.abs(np.asarray(x) - y) > 2e-6) < 0.02
    assert_same_results(in_turn, together, {scan.patient for scan in scans}, rtol=1e-3)


@pytest.mark.parametrize("scenario", TASKS)
def test_a_step_on_a_gpu_has_no_loop_in_it(scenario):
    """Each of its turns would be several kernels that take longer to launch than to run."""
    tasks, mesh = TASKS[scenario], device_mesh(jax.devices()[:1])
    call = call_of(scans_for(tasks)[0], 2, tasks, distilled("diner", batch_size=0), mesh)
    steps = Steps(call.arrays, jnp.int32(0), jnp.int32(1))
    traced = compile_for(mesh, True).fit_steps.trace(call.static, call.state, call.own, steps)
    assert call.static.asks_curve
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.while") == 1


@pytest.mark.slow
def test_scans_fitted_at_once_as_on_accelerators_end_alike(at_once):
    scans, tasks, how = cohort()[:3], FRAMES[:2], distilled(scans_per_batch=0)
    together = train(scans, tasks, how)
    alone = [train([scan], tasks, how) for scan in scans]
    for scan, own in zip(scans, alone, strict=True):
        assert_same_results(together, own, {scan.patient})


@pytest.mark.parametrize(("wanted", "sizes"), [(0, [5]), (2, [2, 2, 1]), (9, [5])])
def test_batches_hold_scans_of_similar_size(wanted, sizes):
    shapes = [(9, 8, 3), (7, 8, 2), (9, 9, 2), (8, 8, 4), (7, 7, 2)]
    scans = [make_scan(f"patient{i}", shape) for i, shape in enumerate(shapes)]
    _, batches = make_batches(scans, wanted, device_mesh(jax.devices()[:1]))
    assert [len(batch) for batch in batches] == sizes
    voxels = [scan.num_voxels for batch in batches for scan in batch]
    assert voxels == sorted(voxels)


def test_single_slices_are_in_batches_of_their_own():
    """Their fields take other coordinates."""
    scans = [make_scan(f"p{i}", shape) for i, shape in enumerate([(7, 8, 1), (7, 7, 2), (9, 9, 1)])]
    count, batches = make_batches(scans, 0, device_mesh(jax.devices()[:1]))
    assert count == 3 and [[s.patient for s in own] for own in batches] == [["p0", "p2"], ["p1"]]


def test_padding_costs_at_most_an_eighth_and_few_sizes():
    sizes = np.arange(1, 100_000)
    padded = np.array([padded_size(int(n)) for n in sizes])
    assert (padded >= sizes).all() and (padded[8:] <= sizes[8:] * 1.125).all()
    assert len(np.unique(padded[50_000:])) <= 9


def test_devices_share_the_scans_and_change_nothing():
    """Four CPU devices in a process of their own, against one device in this one. Their programs
    pass nothing from one device to another."""
    script = """
import sys; sys.path.insert(0, "tests")
import json, jax
from small import *
assert jax.device_count() == 4
results = list(learn(cohort(), FRAMES[:2], distilled(scans_per_batch=0), device_mesh()))
from nfcl_jax.plan import call_of
from nfcl_jax.arguments import Steps
from nfcl_jax.batching import compile_for
mesh, one = device_mesh(), jax.numpy.int32(1)
call = call_of(cohort()[0], 8, FRAMES[:2], distilled(), mesh)
static, state, own, arrays = call.static, call.state, call.own, call.arrays
programs = compile_for(mesh)
for lowered in (
    programs.fit_steps.lower(static, state, own, Steps(arrays, one, one)),
    programs.render.lower((static.field, call.rows), state.params, own.scan, arrays.stop_seen),
):
    text = lowered.compile().as_text()
    assert "num_partitions=4" in text
    talk = ("all-reduce", "all-gather", "all-to-all", "collective", "send", "recv")
    assert not [word for word in talk if word + "(" in text or word + "-start(" in text]
print(json.dumps([s.value for s in results[1].scores]))
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    on_four = json.loads(done.stdout.splitlines()[-1])
    here = train(cohort(), FRAMES[:2], distilled())[1]
    np.testing.assert_allclose(on_four, [s.value for s in here.scores], rtol=2e-4)


def test_later_tasks_and_batches_run_in_the_programs_of_the_first_ones():
    scans = [make_scan(f"patient{i}", (8, 9, 2)) for i in range(3)]
    compile_for.cache_clear()
    train(scans, FRAMES, distilled(scans_per_batch=2))
    compiled = compile_for(device_mesh(jax.devices()[:1]))
    # The first task has no teacher.
    assert compiled.start_task._cache_size() == compiled.fit_steps._cache_size() == 2
    assert compiled.begin_task._cache_size() == compiled.render._cache_size() == 1
    # Fine-tuning's tasks are all like the first.
    train(scans, FRAMES, recipe(scans_per_batch=2))
    assert compiled.fit_steps._cache_size() == 2
