"""Joint training and replay: what they look at, and what they ask of the field there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FRAMES, IMAGE_AND_MASK, recipe, scans_for, train
from test_strategies import GRID, IMAGE, NEW, VOXELS, loss_of, make, make_view

from nfcl_jax import points as grid
from nfcl_jax.params import evaluate
from nfcl_jax.scenarios import MASK
from nfcl_jax.strategies.distillation import Teacher, distillation
from nfcl_jax.strategies.replay import joint, replay


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_joint_training_asks_for_the_true_values(name):
    """Image and mask against the scan, by the losses of `scenarios` written out in numpy."""
    field, params = make(name)
    view = make_view(field, (IMAGE, MASK), frames=((0, 2), (0, 2)))
    strategy, key = joint(weight=3.0), jax.random.key(1)
    index = strategy.sample(view, {}, NEW, key).points.index
    assert index.max() < 2 * VOXELS
    outputs = np.asarray(evaluate(field, params, index, GRID), float)
    image = np.mean((outputs[:, 0] - view.scan.values["image"][index]) ** 2) / 2
    p = np.exp(outputs[:, 1:]) / np.exp(outputs[:, 1:]).sum(axis=1, keepdims=True)
    true = np.eye(4)[view.scan.values["mask"][index]]
    mask = -np.mean(true * np.log(p) + (1 - true) * np.log(1 - p))
    np.testing.assert_allclose(loss_of(strategy, view, params, key), 3 * (image + mask), rtol=1e-4)


def kept_of(strategy, view):
    memory, _ = strategy.begin(view, None, {})
    return np.asarray(memory.index)[np.asarray(memory.weights) > 0]


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.3, 0.7, 0.9, 1.0])
def test_a_buffer_has_one_voxel_of_each_group_and_goes_on_from_task_to_task(fraction):
    field, _ = make("siren")
    two, three = (make_view(field, frames=((0, n),)) for n in (2, 3))
    kept = [kept_of(replay(fraction=fraction), view) for view in (two, three)]
    first = np.floor(np.arange(len(kept[1]) + 1) / fraction + 1e-6)
    assert (first[:-1] <= kept[1]).all() and (kept[1] < first[1:]).all()
    assert abs(len(kept[1]) - 3 * VOXELS * fraction) <= 1
    np.testing.assert_array_equal(kept[0], kept[1][kept[1] < 2 * VOXELS])


def test_a_large_buffer_of_everything_has_everything():
    view = make_view(make("siren")[0])._replace(num_indices=2_200_000)
    memory, _ = replay(fraction=1.0).begin(view, None, {})
    np.testing.assert_array_equal(memory.index, np.arange(2_200_000))


@pytest.mark.parametrize("fraction", [0.1, 0.7])
def test_no_voxel_is_asked_that_the_scans_do_not_have(fraction):
    """Where the last group is not whole; a table answers NaN beyond its end."""
    for seed in range(6):
        view = make_view(make("diner")[0])
        own = view.scan._replace(key=jax.random.key(seed))
        view = view._replace(num_indices=92, scan=own)
        memory, _ = replay(fraction=fraction).begin(view, None, {})
        assert memory.index.max() < 92


@pytest.mark.parametrize("whole", [False, True], ids=["drawn", "every voxel"])
def test_replay_looks_at_nothing_that_is_not_kept(whole):
    field, params = make("siren")
    view, strategy = make_view(field), replay(fraction=0.1)
    memory, _ = strategy.begin(view, params, {})
    new = grid.all_points(VOXELS, jnp.array([[2 * VOXELS, 3 * VOXELS]])) if whole else NEW
    own = kept_of(strategy, view)

    def loss(values):
        changed = view._replace(memory=memory, scan=view.scan._replace(values={"image": values}))
        sample = strategy.sample(changed, {}, new, jax.random.key(3))
        return strategy.loss(changed, {}, params, sample, field.apply(params, sample.inputs))

    slopes = np.asarray(jax.grad(loss)(view.scan.values["image"]))
    assert set(np.flatnonzero(slopes)) <= set(own)
    if whole:
        assert set(np.flatnonzero(slopes)) == set(own)


@pytest.mark.parametrize(
    ("name", "tasks", "batch_size"),
    [pytest.param("diner", IMAGE_AND_MASK, 0, marks=pytest.mark.slow), ("siren", FRAMES[:2], 64)],
    ids=["diner", "siren"],
)
def test_more_of_the_earlier_data_keeps_more_of_the_image(name, tasks, batch_size):
    scan, kept = scans_for(tasks)[0], []
    for strategy in (recipe().strategy, replay(10.0, 0.5), joint(10.0)):
        how = recipe(name, strategy, num_steps=200, batch_size=batch_size)
        scores = train([scan], tasks, how)[-1].scores
        kept += [s.value for s in scores if s.evaluated_task == 1 and s.metric == "psnr"]
    assert kept[0] < kept[1] < kept[2]


def test_joint_training_is_distillation_from_a_teacher_that_is_right():
    """The gradient is the same where the teacher's answers are the data."""
    field, params = make("siren", channels=1)
    view = make_view(field)
    exact = Teacher(None, view.scan.values["image"][:, None])
    key, gradients = jax.random.key(4), []
    for strategy, memory in ((joint(2.0), None), (distillation(2.0), exact)):
        own = view._replace(memory=memory)
        gradients.append(jax.grad(lambda p, s=strategy, v=own: loss_of(s, v, p, key))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *gradients)
    assert jnp.abs(gradients[0]["params"]["output"]["bias"]).max() > 0
