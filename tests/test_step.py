"""One step, by hand; and what a strategy adds to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import (
    FRAMES,
    IMAGE_AND_MASK,
    SMALL,
    apart,
    assert_same_results,
    cohort,
    distilled,
    make_scan,
    params_of,
    recipe,
    scans_for,
    train,
)

from nfcl_jax import batching, step
from nfcl_jax.arguments import ScanAndMemory, Steps, TrainState
from nfcl_jax.batch_task import BatchTask, task_arguments
from nfcl_jax.batching import device_mesh
from nfcl_jax.errors import InactivePenaltyError
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.fitting import start_batch
from nfcl_jax.loop import Start
from nfcl_jax.padded import stream
from nfcl_jax.params import evaluate, separate_classes
from nfcl_jax.points import VoxelGrid, index_to_coords
from nfcl_jax.scenarios import MASK, Task, teach
from nfcl_jax.strategies.base import Strategy
from nfcl_jax.strategies.distillation import Teacher, distillation
from nfcl_jax.strategies.ewc import ewc
from nfcl_jax.strategies.replay import joint, replay


def test_the_first_step_is_adams_on_the_mean_huber_loss_of_the_volume():
    """One full-volume step against the loss written out here: Adam's first step moves each
    parameter by the learning rate against the gradient's sign."""
    scan = make_scan("patient0", (7, 8, 2))
    after = train([scan], FRAMES[:1], recipe(batch_size=0, num_steps=1))[0]
    field = create_field({"name": "siren", **SMALL}, 1, 0)
    key = jax.random.fold_in(stream(jax.random.key(0), scan.name), 1)
    before = init_params(field, stream(key, "init"), axes=4)
    coords = index_to_coords(jnp.arange(7 * 8 * 2), VoxelGrid(jnp.array(scan.shape)))
    target = jnp.asarray(scan.intensities[0].ravel())

    def loss(params):
        return jnp.mean(jnp.square(field.apply(params, coords)[:, 0] - target)) / 2

    assert jnp.abs(field.apply(before, coords)[:, 0] - target).max() < 1
    np.testing.assert_allclose(after.fits[0].final_loss, loss(before), rtol=1e-4)
    moved = jax.tree.map(lambda a, b: a - b, params_of(after)[scan.name], before)
    for change, gradient in zip(
        jax.tree.leaves(moved), jax.tree.leaves(jax.grad(loss)(before)), strict=True
    ):
        clear = np.abs(gradient) > 1e-5
        np.testing.assert_allclose(
            np.asarray(change)[clear], -1e-3 * np.sign(gradient)[clear], rtol=2e-2
        )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "pe_relu")) for n in FIELDS]
)
def test_distillation_keeps_the_first_frame_nearer_to_the_teacher(name):
    """After full-volume steps on a second frame, what the field says of the first has moved less
    than by fine-tuning: the penalty works for every field, not only where the scores show it."""
    scan, tasks = make_scan("patient0", (8, 9, 2)), FRAMES[:2]
    field = create_field({"name": name, **SMALL}, 1, rows=scan.intensities.size)
    first_frame, moved = jnp.arange(scan.num_voxels), []
    for how in (recipe(name), recipe(name, distillation(weight=10.0))):
        before, after = (
            evaluate(
                field, params_of(result)[scan.name], first_frame, VoxelGrid(jnp.array(scan.shape))
            )
            for result in train([scan], tasks, how._replace(batch_size=0, num_steps=100))
        )
        moved.append(float(jnp.sqrt(jnp.mean(jnp.square(after - before)))))
    assert moved[1] < 0.6 * moved[0]


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("siren", IMAGE_AND_MASK), ("diner", FRAMES[:3])],
    ids=["siren-signal", "diner-domain"],
)
def test_a_task_too_short_to_render_its_teacher_asks_it_and_learns_the_same(name, tasks):
    scans, strategy = scans_for(tasks)[:1], distillation(weight=1.0)
    short = recipe(name, strategy, num_steps=2)
    assert short.num_steps * short.batch_size < scans[0].num_voxels
    rendering = strategy._replace(
        begin=lambda view, params, state: strategy.begin(
            view._replace(points_evaluated=view.num_indices), params, state
        )
    )
    runs = [train(scans, tasks, short._replace(strategy=s)) for s in (strategy, rendering)]
    assert_same_results(*runs, {scans[0].patient})


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("siren", marks=pytest.mark.slow), "diner"])
def test_a_step_on_every_voxel_asks_none_twice(name):
    """The image that is distilled has the voxels of the mask that is learned: its points are
    shared. So they are not where only some are drawn, nor on another frame."""
    scans, how = cohort(1, "ED")[:2], distilled(name, batch_size=0)
    shared = how._replace(strategy=distillation(weight=1.0, points="shared"))
    for a, b in zip(*(train(scans, IMAGE_AND_MASK, h) for h in (how, shared)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.learned, b.learned)
    mesh = device_mesh(jax.devices()[:1])
    for tasks, recipe_ in ((IMAGE_AND_MASK, distilled(name)), (FRAMES[:2], how)):
        task = BatchTask(scans_for(tasks)[:1], 1, tasks, recipe_, mesh)
        assert not task_arguments(task)[0].revisits


@pytest.mark.parametrize("strategy", [distillation(), joint(), replay(fraction=1.0)])
def test_a_pass_of_one_step_is_a_step_on_every_voxel(strategy):
    """Of the new frame and, by what a strategy draws there, of the earlier one."""
    scan = make_scan("patient0", (7, 8, 2))
    how = recipe("siren", strategy, num_steps=6, batch_size=7 * 8 * 2, learning_rate=1e-4)
    every, passes, drawn = (
        params_of(train([scan], FRAMES[:2], how._replace(**own))[1])
        for own in ({"batch_size": 0}, {"in_passes": True}, {})
    )
    for a, b, c in zip(*map(jax.tree.leaves, (every, passes, drawn)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
        assert not np.allclose(a, c, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["siren", pytest.param("diner", marks=pytest.mark.slow)])
def test_with_its_moments_kept_adam_goes_on_as_if_two_tasks_were_one(name):
    """Twice the same frame, every voxel of it in each step, is once for twice as many steps."""
    scans, (first, *_) = cohort()[:2], FRAMES
    how = recipe(name, batch_size=0, num_steps=6, keep_optimiser=True)
    (once,) = train(scans, [first], how._replace(num_steps=12))
    for keep in (True, False):
        _, twice = train(scans, [first, first], how._replace(keep_optimiser=keep))
        for a, b in zip(
            jax.tree.leaves(params_of(once)), jax.tree.leaves(params_of(twice)), strict=True
        ):
            assert np.allclose(a, b, rtol=0, atol=1e-6) == keep


@pytest.mark.parametrize("batch_size", [64, 0])
def test_leaving_out_rows_that_a_task_cannot_touch_changes_nothing(monkeypatch, batch_size):
    scans, tasks = cohort()[:2], FRAMES[:3]
    num_steps = 12 if batch_size else 1  # where Adam has not blown up the rounding of a curve
    how = recipe("diner", batch_size=batch_size, scans_per_batch=0, num_steps=num_steps)
    left_out = train(scans, tasks, how)
    monkeypatch.setattr(
        step, "learning_part", lambda static, params, start: (static.field, params, None)
    )
    batching.compile_for.cache_clear()
    try:
        whole = train(scans, tasks, how)
    finally:
        batching.compile_for.cache_clear()
    for a, b in zip(left_out, whole, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a.learned, b.learned)


def nothing(view, state, params, sample, outputs):
    return jnp.zeros(())


def detached(view, state, params, sample, outputs):
    return jnp.mean(jax.lax.stop_gradient(outputs - sample.targets) ** 2)


@pytest.mark.parametrize("loss", [nothing, detached])
def test_a_penalty_that_does_nothing_is_refused(loss):
    strategy = distillation(weight=1.0)._replace(loss=loss)
    with pytest.raises(InactivePenaltyError, match=r"patient0/cine, task 2: .* 0 times the fit"):
        train(cohort()[:1], FRAMES, recipe(strategy=strategy))


@pytest.mark.parametrize("strategy", [distillation(weight=1.0), ewc()], ids=["distilled", "ewc"])
def test_a_dead_field_is_named_and_the_others_go_on(strategy):
    """Its ReLUs answer 0 everywhere: nothing that it could learn or lose is left to penalise."""
    scans, how = cohort(1, "ED")[:2], recipe("pe_relu", strategy)
    (image,) = train(scans, IMAGE_AND_MASK[:1], how)
    dead, alive = (scan.name for scan in scans)
    image.learned[dead].params["params"]["hidden_1"]["bias"][:] = -1e3
    _, expected = train(scans, IMAGE_AND_MASK, how)
    (mask,) = train(scans, IMAGE_AND_MASK, how, start=Start(1, image.learned))
    fits = {f"{fit.patient}/{fit.image}": fit for fit in mask.fits}
    assert fits[dead].collapsed and fits[dead].penalty_gradient_share == 0
    assert not fits[alive].collapsed and fits[alive] in expected.fits
    jax.tree.map(np.testing.assert_array_equal, mask.learned[alive], expected.learned[alive])


def test_the_share_of_the_penalty_is_proportional_to_its_weight():
    scan, shares = cohort()[0], []
    mesh = device_mesh(jax.devices()[:1])
    for weight in (1.0, 3.0):
        how = recipe(strategy=distillation(weight))
        static, scans, arrays = task_arguments(BatchTask([scan], 1, FRAMES[:2], how, mesh))
        teacher, student = (
            init_params(static.field, jax.random.key(seed), axes=4) for seed in (0, 1)
        )
        own = ScanAndMemory(jax.tree.map(lambda x: x[0], scans), Teacher(teacher, None))
        steps = Steps(arrays, jnp.int32(0), jnp.int32(7))
        share = jax.jit(step.penalty_share, static_argnums=0)
        shares.append(share(static, TrainState(student, (), {}), own, steps))
    assert shares[0][2] and shares[1][2]  # both are alive
    np.testing.assert_allclose(3 * np.array(shares[0][:2]), shares[1][:2], rtol=1e-5)
    assert min(shares[0]) > 0


def test_a_strategy_sees_how_far_the_task_is():
    def begin(view, params, state):
        return None, {"seen": jnp.zeros(5), "number": jnp.int32(0)}

    def loss(view, state, params, sample, outputs):
        moved = optax.tree.norm(params)  # or there would be no gradient, which is refused
        return view.progress + moved - jax.lax.stop_gradient(moved)

    def on_update(view, state, params, update, losses):
        both = jnp.array([view.progress, losses.penalty])
        seen = state["seen"].at[state["number"]].set(both.sum())
        return update, {"seen": seen, "number": state["number"] + 1}

    strategy = Strategy(begin=begin, loss=loss, on_update=on_update)
    scans = cohort()[:1]
    end = train(scans, FRAMES[:2], recipe(strategy=strategy, num_steps=5))[-1]
    np.testing.assert_allclose(
        end.learned[scans[0].name].state["seen"], [0, 0.5, 1, 1.5, 2], rtol=1e-6
    )


def counting(on):
    """A strategy that counts its steps, in the first two of which nothing may move."""

    def begin(view, params, state):
        return None, state or {"steps": jnp.int32(0)}

    def hold(view, state, params, change, losses):
        still = state["steps"] < 2
        return jax.tree.map(lambda x: jnp.where(still, 0, -x), change), {
            "steps": state["steps"] + 1
        }

    return Strategy(begin=begin, **{on: hold})


@pytest.mark.parametrize("on", ["on_gradient", "on_update"])
def test_a_strategy_changes_the_gradient_or_the_update_and_its_state_goes_on(on):
    scan, tasks = cohort()[0], FRAMES[:3]
    held = train([scan], tasks, recipe(strategy=counting(on), num_steps=2))
    jax.tree.map(np.testing.assert_array_equal, *map(params_of, held[:2]))
    assert "steps" not in held[0].learned[scan.name].state
    assert held[1].learned[scan.name].state["steps"] == 2
    assert held[2].learned[scan.name].state["steps"] == 4
    with pytest.raises(AssertionError):  # in the third task it moves
        jax.tree.map(np.testing.assert_array_equal, *map(params_of, held[1:]))


def test_classes_begin_apart_and_the_teacher_answers_from_where_it_was():
    scans, how = cohort(1, "ED")[:2], apart(distilled("diner", batch_size=0))
    (first,) = train(scans, IMAGE_AND_MASK[:1], how)
    mesh = device_mesh(jax.devices()[:1])
    task = BatchTask(scans, 2, IMAGE_AND_MASK, how, mesh)
    state, teacher = start_batch(
        task, first.learned, batching.compile_for(mesh), task_arguments(task)
    )
    for i, scan in enumerate(scans):
        before = first.learned[scan.name].params
        moved = separate_classes(before, [0], scan.values["mask"])["params"]["table"]
        rows = scan.num_voxels
        np.testing.assert_array_equal(state.params["params"]["table"][i, :rows], moved)
        assert np.abs(moved - before["params"]["table"]).max() > 1e-4
        field = task_arguments(task)[0].field.clone(channels=1, rows=rows)
        answers = field.apply(before, jnp.arange(rows))
        np.testing.assert_allclose(teacher.outputs[i, :rows], answers, rtol=1e-6)


def test_classes_are_moved_apart_on_frames_that_are_known_alone():
    (scan, *_), how, mesh = cohort(), recipe("diner"), device_mesh(jax.devices()[:1])
    field = create_field(how.field, 1, 4 * scan.num_voxels)
    before = init_params(field, jax.random.key(0), axes=4)

    def begun(how, task):
        return BatchTask([scan], 1, (*FRAMES[:2], task), how, mesh).as_begun(scan, before)

    on = {frames: teach("mask", MASK, frames) for frames in ((0,), (0, 1), (1, 2), (3,))}
    for frames in ((1, 2), (3,)):
        assert begun(apart(how), on[frames]) is before
    with_image = Task("both", (*on[0,].lessons, *FRAMES[1].lessons))
    for task in (FRAMES[2], with_image):
        assert begun(apart(how), task) is begun(how, on[0,]) is before
    one, two = (begun(apart(how), on[frames])["params"]["table"] for frames in ((0,), (0, 1)))
    changed = [(table != before["params"]["table"]).reshape(4, -1).any(1) for table in (one, two)]
    np.testing.assert_array_equal(changed, [[1, 0, 0, 0], [1, 1, 0, 0]])
