"""DINER asked at knots: the same function, and the same learning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import (
    FRAMES,
    IMAGE_AND_MASK,
    SMALL,
    cohort,
    distilled,
    params_of,
    recipe,
    scans_for,
    train,
)

from nfcl_jax import curve
from nfcl_jax.fields import create_field, init_params
from nfcl_jax.points import all_points
from nfcl_jax.run_log import log_task
from nfcl_jax.scenarios import MASK, image_head

ROWS = 60


def make(knots, channels=5, **constants):
    """A field whose entries are spread over many kinks of its layers."""
    kinked = {"name": "diner", **SMALL, "initialisation": "lecun", "knots": knots}
    field = create_field(kinked | constants, channels, ROWS)
    params = init_params(field, jax.random.key(0), axes=3)["params"]
    features = params["table"].shape[1]
    params["table"] = jax.random.normal(jax.random.key(1), (ROWS, features))
    for layer in ("hidden_0", "hidden_1"):
        params[layer]["bias"] = jax.random.normal(jax.random.key(2), params[layer]["bias"].shape)
    return field, {"params": params}


def everywhere(start=0, stop=ROWS):
    return all_points(ROWS - start, jnp.array([[start, stop]]))


def test_it_is_linear_interpolation_between_knots():
    """As numpy has it, channel by channel."""
    field, params = make(9)
    entries = np.asarray(params["params"]["table"][:, 0])
    knots = np.linspace(entries.min(), entries.max(), 9)
    table = {"table": jnp.asarray(knots, jnp.float32)[:, None]}
    at_knots = field.clone(rows=9).apply({"params": params["params"] | table}, jnp.arange(9))
    expected = np.stack([np.interp(entries, knots, column) for column in at_knots.T], axis=1)
    found = curve.interpolate(field, params, [everywhere()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_where_every_entry_is_a_knot_it_is_the_field_with_its_gradients():
    field, params = make(ROWS)
    order = jax.random.permutation(jax.random.key(3), ROWS)
    params["params"]["table"] = jnp.linspace(-2, 3, ROWS)[order][:, None]
    weights = jax.random.normal(jax.random.key(4), (ROWS, 5))

    def loss(ask):
        return lambda params: jnp.sum(jnp.sin(ask(params)) * weights)

    exact = loss(lambda p: field.apply(p, jnp.arange(ROWS)))
    found = loss(lambda p: curve.interpolate(field, p, [everywhere()]))
    np.testing.assert_allclose(found(params), exact(params), rtol=1e-4)
    gradients = [jax.grad(f)(params)["params"] for f in (exact, found)]
    for gradient in gradients:  # of the entries it is a chord's, tested below
        del gradient["table"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), *gradients)


def test_an_entrys_gradient_is_the_slope_of_its_chord():
    field, params = make(9)
    table = params["params"]["table"]

    def of_channel(table, channel):
        moved = {"params": params["params"] | {"table": table}}
        return curve.interpolate(field, moved, [everywhere()])[:, channel].sum()

    entries = np.asarray(table[:, 0])
    knots = np.linspace(entries.min(), entries.max(), 9)
    outputs = field.clone(rows=9).apply(
        {"params": params["params"] | {"table": jnp.asarray(knots, jnp.float32)[:, None]}},
        jnp.arange(9),
    )
    left = np.clip(np.searchsorted(knots, entries, side="right") - 1, 0, 7)
    inner = (entries > knots[0]) & (entries < knots[-1])
    for channel in range(5):
        slopes = np.diff(outputs[:, channel]) / np.diff(knots)
        gradient = jax.grad(of_channel)(table, channel)[:, 0]
        np.testing.assert_allclose(gradient[inner], slopes[left][inner], rtol=1e-3, atol=1e-4)


def mask_losses(field, params, asked):
    """By class, of voxels whose classes are drawn; and, beside them, the loss of what is said."""
    classes = jax.random.randint(jax.random.key(5), (ROWS,), 0, MASK.num_channels)
    return (
        curve.class_losses(field, params, asked, None, MASK, classes)[0],
        MASK.loss(
            curve.interpolate(field, params, asked)[:ROWS, MASK.channels],
            jax.nn.one_hot(classes, MASK.num_channels),
        ),
    )


def distances(found, expected):
    """Between two trees of gradients, layer by layer, in parts of the expected ones' size."""
    differences = jax.tree.map(jnp.subtract, found, expected)
    return {n: optax.tree.norm(differences[n]) / optax.tree.norm(expected[n]) for n in expected}


def test_a_masks_losses_are_those_of_what_is_said_between_the_knots():
    field, params = make(9)
    params["params"]["output"]["kernel"] *= 2  # some voxels are certain
    asked = [everywhere(), everywhere(0, 40)]
    found, expected = mask_losses(field, params, asked)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=2e-3)
    assert expected.max() > 10 * expected.min() > 0
    of_class = [jax.grad(lambda p, i=i: mask_losses(field, p, asked)[i].mean()) for i in (0, 1)]
    assert max(distances(*(f(params)["params"] for f in of_class)).values()) < 0.02


def test_padding_moves_no_loss_of_a_mask():
    field, params = make(16)
    classes = jax.random.randint(jax.random.key(5), (ROWS,), 0, MASK.num_channels)

    def losses(table, points, offset):
        moved = {"params": params["params"] | {"table": table}}
        own = jax.lax.dynamic_slice_in_dim(classes, points.first, len(points.index))
        return curve.class_losses(field, moved, [points], offset, MASK, own)[0][:30]

    table = params["params"]["table"]
    whole = losses(table, everywhere(10, 40), None)
    far = table.at[40:].set(1e6).at[:10].set(-1e6)
    np.testing.assert_array_equal(whole, losses(far, everywhere(10, 40), None))
    window = all_points(ROWS - 10, jnp.array([[10, 40]]))
    np.testing.assert_array_equal(whole, losses(table[10:], window, jnp.int32(10)))


def test_a_masks_losses_come_with_what_is_said():
    field, params = make(9)
    asked = [everywhere(), everywhere(0, 40)]
    classes = jnp.zeros(ROWS, jnp.int32)
    _, answers = curve.class_losses(field, params, asked, None, MASK, classes)
    np.testing.assert_array_equal(jnp.concatenate(answers), curve.interpolate(field, params, asked))


@pytest.mark.parametrize("initialisation", ["torch", "lecun"])
def test_a_fresh_tables_gradient_is_not_one_of_rounding(initialisation):
    """Its entries are as close to each other as float32 has outputs."""
    constants = {"name": "diner", "initialisation": initialisation, "knots": 1024}
    field = create_field(constants, 5, ROWS)
    params = init_params(field, jax.random.key(3), axes=3)
    targets = jax.random.uniform(jax.random.key(4), (ROWS, 5))
    classes = jax.random.randint(jax.random.key(5), (ROWS,), 0, 4)

    def square(answers):
        return jnp.mean((answers - targets) ** 2)

    def cross_entropy(answers):
        return MASK.loss(answers[:, MASK.channels], jax.nn.one_hot(classes, 4)).mean()

    def on_curve(params):
        return curve.interpolate(field, params, [everywhere()])

    def class_losses(params):
        return curve.class_losses(field, params, [everywhere()], None, MASK, classes)[0].mean()

    for found, expected in (
        (lambda p: square(on_curve(p)), square),
        (class_losses, cross_entropy),
    ):
        exact = jax.grad(lambda p, e=expected: e(field.apply(p, jnp.arange(ROWS))))(params)
        far = distances(jax.grad(found)(params)["params"], exact["params"])
        assert max(far.values()) < 0.02, far


def test_the_error_is_that_of_the_worst_head_and_falls_with_the_knots():
    errors = []
    for knots in (2, 16, 128, 1024):
        field, params = make(knots)
        exact = field.apply(params, jnp.arange(ROWS))
        between = curve.interpolate(field, params, [everywhere()])
        domains = [(head, jnp.array([[0, ROWS]])) for head in (image_head(1.0), MASK)]
        by_hand = [
            np.sqrt(np.mean(np.square(between[:, :1] - exact[:, :1]))),
            np.sqrt(
                np.mean(np.square(jax.nn.softmax(between[:, 1:]) - jax.nn.softmax(exact[:, 1:])))
            ),
        ]
        errors.append(float(curve.error(field, params, exact, domains)))
        np.testing.assert_allclose(errors[-1], max(by_hand), rtol=1e-3, atol=1e-7)
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 1000 * errors[3]


def test_padding_moves_no_knot():
    """Entries without weight may be anywhere, and the first may be any row."""
    field, params = make(16)
    whole = curve.interpolate(field, params, [everywhere(10, 40)])
    far = params["params"]["table"].at[40:].set(1e6).at[:10].set(-1e6)
    moved = {"params": params["params"] | {"table": far}}
    np.testing.assert_array_equal(
        whole[:30], curve.interpolate(field, moved, [everywhere(10, 40)])[:30]
    )
    window = {"params": params["params"] | {"table": params["params"]["table"][10:]}}
    points = all_points(ROWS - 10, jnp.array([[10, 40]]))
    np.testing.assert_array_equal(
        whole[:30], curve.interpolate(field, window, [points], jnp.int32(10))[:30]
    )


def test_entries_that_are_all_the_same_have_answers_and_finite_gradients():
    field, params = make(16)
    for value in (0.0, -3.0, 1e-4):
        params["params"]["table"] = jnp.full((ROWS, 1), value)
        expected = field.apply(params, jnp.zeros(1, jnp.int32))
        found = curve.interpolate(field, params, [everywhere()])
        np.testing.assert_allclose(found, jnp.tile(expected, (ROWS, 1)), rtol=1e-3, atol=1e-4)
        gradient = jax.grad(lambda p: curve.interpolate(field, p, [everywhere()]).sum())(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_table_of_several_features_and_a_field_without_one_are_no_curves():
    assert curve.is_curve(make(16)[0])
    assert not curve.is_curve(make(16, table_features=2)[0])
    assert not curve.is_curve(make(0)[0])
    assert not curve.is_curve(create_field({"name": "siren"}, 1, ROWS))


def test_a_step_is_planned_by_what_the_network_is_asked():
    assert curve.points_asked(make(512)[0], 64, 10**6) == 64
    assert curve.points_asked(make(0)[0], 0, 10**6) == 10**6
    assert 512 <= curve.points_asked(make(512)[0], 0, 10**6) < 10**4


def asked_at(knots, how):
    return how._replace(field=dict(how.field) | {"knots": knots})


@pytest.mark.parametrize(
    ("make_recipe", "tasks"),
    [
        (recipe, FRAMES[:3]),
        pytest.param(distilled, IMAGE_AND_MASK, marks=pytest.mark.slow),
        pytest.param(recipe, IMAGE_AND_MASK, marks=pytest.mark.slow),
        pytest.param(distilled, FRAMES[:3], marks=pytest.mark.slow),
    ],
    ids=["domain", "distilled-signal", "signal", "distilled-domain"],
)
def test_steps_on_a_curve_are_full_batch_steps(make_recipe, tasks):
    """As the ones that ask the network at every voxel; scores are the network's in both."""
    scans, how = scans_for(tasks)[:2], make_recipe("diner", batch_size=0, num_steps=6)
    exact, close = (train(scans, tasks, asked_at(knots, how)) for knots in (0, 20_000))
    for a, b in zip(exact, close, strict=True):
        scores = [[score.value for score in result.scores] for result in (a, b)]
        np.testing.assert_allclose(*scores, atol=0.02)
        losses = [[fit.final_loss + fit.final_penalty for fit in r.fits] for r in (a, b)]
        np.testing.assert_allclose(*losses, rtol=0.01)
        assert {fit.curve_error for fit in a.fits} == {0.0}
        assert 0 < max(fit.curve_error for fit in b.fits) < 1e-5


@pytest.mark.slow
def test_mini_batches_ask_the_network():
    scans, tasks = cohort()[:2], FRAMES[:2]
    one, other = (train(scans, tasks, asked_at(k, distilled("diner"))) for k in (0, 3))
    for a, b in zip(one, other, strict=True):
        assert (a.scores, a.fits) == (b.scores, b.fits)
        jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))


@pytest.mark.slow
def test_too_few_knots_are_told_of(caplog):
    scans, tasks = cohort()[:1], FRAMES[:1]
    how = recipe("diner", batch_size=0, num_steps=300, learning_rate=1e-2)
    (few,), (many,) = (train(scans, tasks, asked_at(knots, how)) for knots in (4, 4096))
    assert few.fits[0].curve_error > curve.MAX_ERROR > 10 * many.fits[0].curve_error
    log_task(few, "frame 1", 1)
    assert "more config.field.knots, or 0, would be right" in caplog.text
    caplog.clear()
    log_task(many, "frame 1", 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
