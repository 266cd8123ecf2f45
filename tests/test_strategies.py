import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax import points as grid
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.padded import PaddedScan
from nfcl_jax.params import evaluate
from nfcl_jax.scenarios import MASK, SCENARIOS, image_head
from nfcl_jax.strategies import FINETUNE, STRATEGIES, constants, create_strategy
from nfcl_jax.strategies.base import Domain, TaskView, Taught
from nfcl_jax.strategies.distillation import density, detail, distillation

GRID = grid.VoxelGrid(jnp.array((4, 6, 5, 3)))
VOXELS = 90
IMAGE = image_head(1.0)
NEW = grid.Points(jnp.arange(10), jnp.ones(10))


def make(name, channels=5, seed=0):
    field = create_field({"name": name}, channels, rows=4 * VOXELS)
    return field, init_params(field, jax.random.key(seed), axes=4)


def make_view(field, heads=(IMAGE,), frames=((0, 2),), points_evaluated=10**6):
    frames = [jnp.array([own]) for own in frames]
    of_all = jnp.array([(min(f[0, 0] for f in frames), max(f[0, 1] for f in frames))])
    domains, ranges = tuple(map(Domain, heads, frames)), grid.index_ranges(of_all, GRID)
    noise = jax.random.uniform(jax.random.key(9), (4 * VOXELS,))
    labels = (noise * 4).astype(jnp.int32)
    return TaskView(
        field=field,
        scan=PaddedScan({"image": noise, "mask": labels}, GRID, jax.random.key(8)),
        key=jax.random.key(7),
        new=Taught((Domain(IMAGE, jnp.array([[2, 3]])),), jnp.array([[2, 3]])),
        previous=Taught(domains[-1:], frames[-1]),
        earlier=Taught(domains, of_all),
        draw=lambda ranges=ranges: grid.sample_points(jax.random.key(6), 64, ranges),
        revisits=False,
        num_indices=4 * VOXELS,
        stop_index=ranges[0, 1],
        points_evaluated=points_evaluated,
    )


def begin(strategy, view, params, state=None):
    """The view with the strategy's memory, and its state."""
    memory, state = strategy.begin(view, params, state or {})
    return view._replace(memory=memory), state


def loss_of(strategy, view, params, key):
    sample = strategy.sample(view, {}, NEW, key)
    return strategy.loss(view, {}, params, sample, view.field.apply(params, sample.inputs))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("heads", [(IMAGE,), (IMAGE, MASK)], ids=["image", "image+mask"])
def test_no_loss_and_no_gradient_at_the_teacher(name, heads):
    field, params = make(name)
    strategy = distillation(weight=10.0)
    view, _ = begin(strategy, make_view(field, heads, frames=((0, 2),) * len(heads)), params)
    value, gradient = jax.value_and_grad(lambda p: loss_of(strategy, view, p, jax.random.key(1)))(
        params
    )
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-4)


@pytest.mark.parametrize("name", FIELDS)
def test_away_from_the_teacher_the_loss_is_the_weighted_mean(name):
    field, teacher = make(name)
    student = make(name, seed=7)[1]
    strategy, key = distillation(weight=3.0), jax.random.key(2)
    view, _ = begin(strategy, make_view(field), teacher)
    index = strategy.sample(view, {}, NEW, key).points.index
    answers = [evaluate(field, params, index, GRID)[:, 0] for params in (student, teacher)]
    difference = answers[0] - answers[1]
    assert np.abs(difference).max() < 1
    expected = 3.0 * np.mean(np.square(difference)) / 2  # Huber's below 1
    actual = loss_of(strategy, view, student, key)
    assert actual > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_the_weight_is_ramped_from_the_first_step_to_the_last():
    field, teacher = make("siren")
    student, key = make("siren", seed=7)[1], jax.random.key(2)
    view, _ = begin(distillation(weight=3.0), make_view(field), teacher)

    def at(progress, ramp):
        strategy = distillation(weight=3.0, ramp=ramp)
        return float(loss_of(strategy, view._replace(progress=progress), student, key))

    factors = [at(progress, 16.0) / at(progress, 1.0) for progress in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(factors, [1, 4, 16], rtol=1e-5)


@pytest.mark.parametrize("name", FIELDS)
def test_a_teacher_rendered_once_says_what_one_asked_each_step_says(name):
    field, teacher = make(name)
    student = make(name, seed=7)[1]
    strategy = distillation(weight=1.0)
    views = [begin(strategy, make_view(field, points_evaluated=n), teacher)[0] for n in (10**6, 10)]
    assert views[0].memory.outputs is not None and views[0].memory.params is None
    assert views[1].memory.outputs is None
    values = [loss_of(strategy, view, student, jax.random.key(3)) for view in views]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_a_head_is_distilled_only_where_it_was_learned():
    """With the mask learned on frame 1 alone, the mask's logits on frame 2 are nobody's concern."""
    field, teacher = make("diner")
    index = jnp.arange(VOXELS, 2 * VOXELS)
    student = jax.tree.map(jnp.copy, teacher)
    student["params"]["table"] = student["params"]["table"].at[index].add(30.0)
    strategy = distillation(weight=1.0)

    def loss(heads, frames):
        view, _ = begin(strategy, make_view(field, heads, frames), teacher)
        return loss_of(strategy, view, student, jax.random.key(4))

    image_alone = loss((IMAGE,), ((0, 2),))
    assert image_alone > 0
    first_frame_mask = loss((IMAGE, MASK), ((0, 2), (0, 1)))
    np.testing.assert_allclose(first_frame_mask, image_alone, rtol=1e-4)
    assert loss((IMAGE, MASK), ((0, 2), (0, 2))) > image_alone


def test_continuous_points_lie_between_voxels_and_ask_the_teacher_there():
    field, teacher = make("siren")
    strategy = distillation(weight=1.0, points="continuous")
    view, _ = begin(strategy, make_view(field), teacher)
    sample = strategy.sample(view, {}, NEW, jax.random.key(5))
    coords = grid.index_to_coords(sample.points.index, GRID)
    assert np.abs(sample.inputs[:, :3] - coords[:, :3]).max() > 0.1
    np.testing.assert_array_equal(sample.inputs[:, 3], coords[:, 3])
    np.testing.assert_allclose(sample.targets, field.apply(teacher, sample.inputs), rtol=1e-6)


def test_shared_points_are_the_new_tasks():
    field, teacher = make("siren")
    strategy = distillation(weight=1.0, points="shared")
    view, _ = begin(strategy, make_view(field), teacher)
    sample = strategy.sample(view, {}, NEW, jax.random.key(5))
    assert sample.inputs is None
    np.testing.assert_array_equal(sample.points.index, NEW.index)
    answers = evaluate(field, teacher, NEW.index, GRID)
    np.testing.assert_allclose(sample.targets, answers, atol=1e-6)
    assert strategy.loss(view, {}, teacher, sample, answers) == pytest.approx(0, abs=1e-9)
    moved = strategy.loss(view, {}, teacher, sample, answers + 0.1)
    assert moved == pytest.approx(0.1**2 / 2, rel=1e-4)


def test_detail_is_the_length_of_the_differences_to_the_next_voxels():
    values = np.random.default_rng(0).uniform(size=(4, 6, 5, 3, 2)).astype(np.float32)
    square = np.zeros(values.shape[:4])
    for axis in (1, 2, 3):
        padded = np.append(values, np.take(values, [-1], axis), axis)
        square += np.sum(np.diff(padded, axis=axis) ** 2, axis=-1)
    found = detail(jnp.array(values.reshape(-1, 2)), GRID.shape)
    np.testing.assert_allclose(found, np.sqrt(square).ravel(), rtol=1e-5)


def test_detailed_points_are_drawn_by_what_varies_in_the_earlier_domain_alone():
    """One voxel that differs in a flat image; half of the points are drawn anywhere."""
    field, teacher = make("diner", channels=1)
    outputs = jnp.zeros((4 * VOXELS, 1)).at[VOXELS + 49].set(1.0)
    chance = density(make_view(field, frames=((1, 3),)), outputs)
    assert chance.sum() == pytest.approx(1, abs=1e-5)
    assert (chance[:VOXELS] == 0).all() and (chance[3 * VOXELS :] == 0).all()
    # Beside the voxel that differs are those before it along each axis, and itself.
    edge = np.flatnonzero(chance)
    assert set(edge) == {VOXELS + 49 - stride for stride in (0, 1, 3, 15)}
    flat = density(make_view(field, frames=((1, 3),)), jnp.zeros((4 * VOXELS, 1)))
    np.testing.assert_allclose(flat[VOXELS : 3 * VOXELS], 1 / (2 * VOXELS), rtol=1e-5)

    strategy = distillation(points="detailed")
    view, _ = begin(strategy, make_view(field, frames=((1, 3),)), teacher)
    many = grid.Points(jnp.arange(20_000), jnp.ones(20_000))
    sample = strategy.sample(view, {}, many, jax.random.key(3))
    drawn = np.bincount(sample.points.index, minlength=4 * VOXELS) / 20_000
    inside = (np.arange(4 * VOXELS) // VOXELS >= 1) & (np.arange(4 * VOXELS) // VOXELS < 3)
    expected = (density(view, view.memory.outputs) + inside / (2 * VOXELS)) / 2
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected / 20_000)).all()
    answers = evaluate(field, teacher, sample.points.index, GRID)
    np.testing.assert_allclose(sample.targets, answers, atol=1e-6)


def test_fine_tuning_is_the_empty_strategy():
    assert create_strategy("finetune", {}) is FINETUNE
    assert not FINETUNE.acts and distillation().acts and create_strategy("ewc", {}).acts


def test_equal_constants_give_one_object_so_that_programs_are_found_again():
    for name in STRATEGIES:
        own = constants(name, SCENARIOS["signal_expansion"])
        assert create_strategy(name, own) is create_strategy(name, dict(own))
        assert set(STRATEGIES[name].checks) <= set(own)


def test_a_scenario_has_its_own_weight_of_distillation():
    weights = [constants("distillation", scenario)["weight"] for scenario in SCENARIOS.values()]
    assert weights == [1.0, 10.0]
    with pytest.raises(
        ValueError, match=r"'replays'.*finetune, distillation, joint, replay, ewc, mas, ogd"
    ):
        constants("replays", SCENARIOS["domain_expansion"])
