"""Elastic weight consolidation against explicit Jacobians, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FRAMES, IMAGE_AND_MASK, SMALL, params_of, recipe, scans_for, train
from test_strategies import GRID, IMAGE, VOXELS, begin, make, make_view

from nfcl_jax import points as grid
from nfcl_jax.fields import create_field
from nfcl_jax.padded import stream
from nfcl_jax.params import evaluate, looked_up, num_output_channels
from nfcl_jax.points import VoxelGrid
from nfcl_jax.scenarios import MASK
from nfcl_jax.strategies import ewc, importance, mas


def explicit(view, field, params, head, index):
    """F by Jacobians of all answers at once: for an image the mean of J^2; for a mask the mean over
    voxels and classes k of p_k (d log p_k)^2."""

    def log_answers(p):
        small, own, inputs = looked_up(field, params, index, GRID)
        if "table" in own["params"]:
            p = {"params": p["params"] | {"table": p["params"]["table"][index]}}
        outputs = small.apply(p, inputs)[:, head.channels]
        return outputs if head == IMAGE else jax.nn.log_softmax(outputs)

    jacobian = jax.jacrev(log_answers)(params)
    weights = jnp.ones((len(index), 1)) if head == IMAGE else jnp.exp(log_answers(params))

    def reduce(j):
        shaped = weights.reshape(*weights.shape, *[1] * (j.ndim - 2))
        return jnp.sum(shaped * j**2, axis=(0, 1)) / len(index)

    return jax.tree.map(reduce, jacobian)


@pytest.mark.parametrize("name", ["siren", "diner"])
@pytest.mark.parametrize("head", [IMAGE, MASK], ids=["image", "mask"])
def test_importance_is_the_fisher_information_by_explicit_jacobians(name, head, monkeypatch):
    monkeypatch.setattr(importance, "NUM_POINTS", 64)
    monkeypatch.setattr(importance, "BLOCK", 32)  # so that the last block is not full
    field = create_field({"name": name, "width": 8, "depth": 2}, 5, rows=4 * VOXELS)
    params = field.init(jax.random.key(0), jnp.zeros((1, 4)) if name == "siren" else jnp.array([0]))
    if name == "diner":  # as after training: rows that differ
        params["params"]["table"] *= 1e4
    view = make_view(field, (IMAGE, head), ((0, 2), (1, 2)))
    own = importance.importance(view, params, ewc.likelihood_gradients, jnp.square)
    ranges = jnp.array([[VOXELS, 2 * VOXELS]])
    drawn = grid.sample_points(stream(view.key, "importance"), 64, ranges).index
    expected = explicit(view, field, params, head, drawn)
    if name == "diner":  # the rows' is of every voxel of the last task
        every = explicit(view, field, params, head, jnp.arange(VOXELS, 2 * VOXELS))
        expected["params"]["table"] = every["params"]["table"]
        assert (own["params"]["table"][:VOXELS] == 0).all()
        assert (own["params"]["table"][VOXELS : 2 * VOXELS] > 0).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), own, expected)


def test_the_loss_is_its_equation_and_importances_add_up_while_the_output_grows(monkeypatch):
    monkeypatch.setattr(importance, "NUM_POINTS", 64)
    field, first = make("siren", channels=1)
    grown, second = make("siren", channels=5, seed=1)
    strategy = ewc.ewc(weight=3.0)
    view, state = begin(strategy, make_view(field), first)
    once = importance.importance(make_view(field), first, ewc.likelihood_gradients, jnp.square)
    jax.tree.map(np.testing.assert_array_equal, state["importance"], once)
    moved = jax.tree.map(lambda p: p + 0.1, first)
    expected = 1.5 * 0.01 * sum(float(jnp.sum(f)) for f in jax.tree.leaves(once))
    assert strategy.loss(view, state, first, None, None) == 0
    loss = strategy.loss(view, state, moved, None, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)

    view, state = begin(strategy, make_view(grown), first, state)
    kernel = state["importance"]["params"]["output"]["kernel"]
    assert kernel.shape == (256, 5)
    np.testing.assert_array_equal(kernel[:, 1:], 0)
    np.testing.assert_allclose(kernel[:, :1], 2 * once["params"]["output"]["kernel"], rtol=1e-5)
    # What the new channels do costs nothing.
    old = jax.tree.map(jnp.copy, second)
    old["params"]["output"]["kernel"] = old["params"]["output"]["kernel"].at[:, 1:].add(5.0)
    costs = [strategy.loss(view, state, params, None, None) for params in (second, old)]
    assert costs[0] == costs[1] > 0


@pytest.mark.parametrize("head", [IMAGE, MASK], ids=["image", "mask"])
def test_mas_is_the_mean_size_of_the_derivatives_of_the_answers_length(head, monkeypatch):
    """By an explicit Jacobian of ||a(x)||^2, with the softmax's probabilities for a mask."""
    monkeypatch.setattr(importance, "NUM_POINTS", 64)
    field = create_field({"name": "siren", "width": 8, "depth": 2}, 5, rows=4 * VOXELS)
    params = field.init(jax.random.key(0), jnp.zeros((1, 4)))
    view = make_view(field, (IMAGE, head), ((0, 2), (1, 2)))
    own = importance.importance(view, params, mas.length_gradient, jnp.abs)
    ranges = jnp.array([[VOXELS, 2 * VOXELS]])
    drawn = grid.sample_points(stream(view.key, "importance"), 64, ranges).index

    def lengths(p):
        outputs = evaluate(field, p, drawn, GRID)[:, head.channels]
        said = outputs if head == IMAGE else jax.nn.softmax(outputs)
        return jnp.sum(said**2, axis=-1)

    expected = jax.tree.map(lambda j: jnp.mean(jnp.abs(j), axis=0), jax.jacrev(lengths)(params))
    assert jnp.abs(expected["params"]["hidden_0"]["kernel"]).max() > 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), own, expected)


def test_a_decay_takes_from_the_older_importances(monkeypatch):
    monkeypatch.setattr(importance, "NUM_POINTS", 64)
    field, params = make("siren", channels=1)
    bias = {}
    for decay in (1.0, 0.25):
        strategy = mas.mas(decay=decay)
        _, once = begin(strategy, make_view(field), params)
        _, twice = begin(strategy, make_view(field), params, once)
        pair = (state["importance"]["params"]["output"]["bias"] for state in (once, twice))
        bias[decay] = [float(b[0]) for b in pair]
    assert bias[1.0][0] == bias[0.25][0] > 0
    assert bias[1.0][1] == pytest.approx(2 * bias[1.0][0])
    assert bias[0.25][1] == pytest.approx(1.25 * bias[1.0][0])


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("siren", IMAGE_AND_MASK),
        pytest.param("diner", FRAMES[:2], marks=pytest.mark.slow),
        pytest.param("siren", FRAMES[:2], marks=pytest.mark.slow),
        pytest.param("diner", IMAGE_AND_MASK, marks=pytest.mark.slow),
    ],
    ids=["siren-signal", "diner-domain", "siren-domain", "diner-signal"],
)
def test_it_keeps_the_field_nearer_to_what_it_was(name, tasks):
    scan = scans_for(tasks)[0]
    index, moved = jnp.arange(scan.num_voxels), []
    for strategy in (recipe().strategy, ewc.ewc(1.0), ewc.ewc(1e4)):
        images = []
        for result in train([scan], tasks, recipe(name, strategy, num_steps=100)):
            params = params_of(result)[scan.name]
            config = {"name": name, **SMALL}
            field = create_field(config, num_output_channels(params), scan.intensities.size)
            images.append(evaluate(field, params, index, VoxelGrid(jnp.array(scan.shape)))[:, 0])
        moved.append(float(jnp.sqrt(jnp.mean(jnp.square(images[1] - images[0])))))
    assert moved[2] < 0.5 * moved[0]
    assert moved[2] < moved[1] < 1.2 * moved[0]
