import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax import coordinates
from nfcl_jax.fields import FIELDS, create_field, evaluate, init_params
from nfcl_jax.scenarios import MASK, image_output
from nfcl_jax.strategies import EarlierTasks, distillation

SHAPE = jnp.array((4, 6, 5, 3))
VOXELS = 90
IMAGE = image_output(1.0)
NEW = coordinates.Points(jnp.arange(10), jnp.ones(10))


def make(name, channels=5, seed=0):
    field = create_field({"name": name}, channels, rows=4 * VOXELS)
    return field, init_params(field, jax.random.key(seed), axes=4)


def make_past(field, outputs=(IMAGE,), frames=((0, 2),), points_evaluated=10**6):
    frames = jnp.array(frames)
    start, stop = coordinates.frame_range(
        jnp.stack([frames[:, 0].min(), frames[:, 1].max()]), SHAPE
    )
    return EarlierTasks(
        field=field,
        shape=SHAPE,
        outputs=outputs,
        frames=frames,
        draw=lambda key: coordinates.sample_points(key, 64, start, stop),
        num_voxels=4 * VOXELS,
        stop_voxel=stop,
        points_evaluated=points_evaluated,
    )


def penalty_of(strategy, earlier, memory, params, key):
    rehearsal = strategy.rehearse(earlier, memory, NEW, key)
    return strategy.penalty(earlier, rehearsal, earlier.field.apply(params, rehearsal.inputs))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("outputs", [(IMAGE,), (IMAGE, MASK)], ids=["image", "image+mask"])
def test_no_penalty_and_no_gradient_at_the_teacher(name, outputs):
    field, params = make(name)
    earlier = make_past(field, outputs, frames=((0, 2),) * len(outputs))
    strategy = distillation(weight=10.0)
    memory = strategy.remember(earlier, params)
    value, gradient = jax.value_and_grad(
        lambda p: penalty_of(strategy, earlier, memory, p, jax.random.key(1))
    )(params)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-4)


@pytest.mark.parametrize("name", FIELDS)
def test_away_from_the_teacher_the_penalty_is_the_weighted_mean_loss(name):
    field, teacher = make(name)
    student = make(name, seed=7)[1]
    earlier, strategy, key = make_past(field), distillation(weight=3.0), jax.random.key(2)
    memory = strategy.remember(earlier, teacher)
    index = strategy.rehearse(earlier, memory, NEW, key).points.index
    difference = (evaluate(field, student, index, SHAPE) - evaluate(field, teacher, index, SHAPE))[
        :, 0
    ]
    expected = 3.0 * np.mean(np.square(difference)) / 2  # Huber's below 1
    assert np.abs(difference).max() < 1
    actual = penalty_of(strategy, earlier, memory, student, key)
    assert actual > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("name", FIELDS)
def test_a_teacher_rendered_once_says_what_one_asked_each_step_says(name):
    field, teacher = make(name)
    student = make(name, seed=7)[1]
    strategy, key = distillation(weight=1.0), jax.random.key(3)
    rendered, asked = (make_past(field, points_evaluated=n) for n in (10**6, 10))
    memories = [strategy.remember(earlier, teacher) for earlier in (rendered, asked)]
    assert memories[0].outputs is not None and memories[0].params is None
    assert memories[1].outputs is None
    values = [
        penalty_of(strategy, earlier, memory, student, key)
        for earlier, memory in zip((rendered, asked), memories, strict=True)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_an_output_is_distilled_only_where_it_was_learned():
    """With the mask learned on frame 1 alone, the mask's logits on frame 2 are nobody's concern."""
    field, teacher = make("diner")
    index = jnp.arange(VOXELS, 2 * VOXELS)
    student = jax.tree.map(jnp.copy, teacher)
    student["params"]["table"] = student["params"]["table"].at[index].add(1.0)
    image, strategy = (IMAGE,), distillation(weight=1.0)

    def penalty(outputs, frames):
        earlier = make_past(field, outputs, frames)
        memory = strategy.remember(earlier, teacher)
        return penalty_of(strategy, earlier, memory, student, jax.random.key(4))

    image_alone = penalty(image, ((0, 2),))
    assert image_alone > 0
    first_frame_mask = penalty((IMAGE, MASK), ((0, 2), (0, 1)))
    np.testing.assert_allclose(first_frame_mask, image_alone, rtol=1e-4)
    assert penalty((IMAGE, MASK), ((0, 2), (0, 2))) > image_alone


def test_continuous_points_lie_between_voxels_and_ask_the_teacher_there():
    field, teacher = make("siren")
    earlier, strategy = make_past(field), distillation(weight=1.0, points="continuous")
    memory = strategy.remember(earlier, teacher)
    rehearsal = strategy.rehearse(earlier, memory, NEW, jax.random.key(5))
    grid = coordinates.index_to_coords(rehearsal.points.index, SHAPE)
    assert np.abs(rehearsal.inputs[:, :3] - grid[:, :3]).max() > 0.1
    np.testing.assert_array_equal(rehearsal.inputs[:, 3], grid[:, 3])
    np.testing.assert_allclose(rehearsal.targets, field.apply(teacher, rehearsal.inputs), rtol=1e-6)


def test_shared_points_are_the_new_tasks():
    field, teacher = make("siren")
    earlier, strategy = make_past(field), distillation(weight=1.0, points="shared")
    memory = strategy.remember(earlier, teacher)
    rehearsal = strategy.rehearse(earlier, memory, NEW, jax.random.key(5))
    assert rehearsal.inputs is None
    np.testing.assert_array_equal(rehearsal.points.index, NEW.index)
    answers = evaluate(field, teacher, NEW.index, SHAPE)
    np.testing.assert_allclose(rehearsal.targets, answers, atol=1e-6)
    assert strategy.penalty(earlier, rehearsal, answers) == pytest.approx(0, abs=1e-9)
    assert strategy.penalty(earlier, rehearsal, answers + 0.1) == pytest.approx(
        0.1**2 / 2, rel=1e-4
    )
