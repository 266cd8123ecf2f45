"""Orthogonal gradient descent: its basis, and what its updates leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from small import FRAMES, SMALL, recipe, scans_for, train
from test_strategies import GRID, IMAGE, VOXELS, make_view

from nfcl_jax.errors import InactivePenaltyError
from nfcl_jax.fields import create_field
from nfcl_jax.padded import stream
from nfcl_jax.params import evaluate
from nfcl_jax.points import sample_points
from nfcl_jax.scenarios import MASK
from nfcl_jax.strategies import ogd
from nfcl_jax.strategies.base import Strategy


def small(name, channels=5):
    field = create_field({"name": name, "width": 8, "depth": 2}, channels, rows=4 * VOXELS)
    params = field.init(jax.random.key(0), jnp.zeros((1, 4)) if name == "siren" else jnp.array([0]))
    if name == "diner":  # as after training: rows that differ
        params["params"]["table"] *= 1e4
    return field, params


def as_matrix(tree):
    return np.stack(
        [
            ravel_pytree(jax.tree.map(lambda x, i=i: x[i], tree))[0]
            for i in range(len(jax.tree.leaves(tree)[0]))
        ]
    )


def noise_like(params):
    flat, back = ravel_pytree(params)
    return back(jax.random.normal(jax.random.key(5), flat.shape))


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_a_projected_update_changes_no_output_that_the_basis_knows(name):
    """To the first order, by the Jacobian of the answers at the voxels that were drawn."""
    field, params = small(name, channels=1)
    view = make_view(field)
    _, state = ogd.ogd(directions=32, gradients=32).begin(view, params, {})
    ranges = jnp.array([[0, 2 * VOXELS]])
    index = sample_points(stream(view.key, "gradients"), 32, ranges).index
    update = noise_like(params)
    changed, _ = ogd.ogd(32, 32).on_update(view, state, params, update, None)

    def answers(p):
        return evaluate(field, p, index, GRID)[:, 0]

    before, after = (jax.jvp(answers, (params,), (u,))[1] for u in (update, changed))
    assert jnp.abs(after).max() < 1e-3 * jnp.abs(before).max()


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_the_basis_is_orthonormal_and_spans_the_principal_directions(name):
    """Against numpy's singular value decomposition of all gradients, of a mask's channels too."""
    field, params = small(name)
    view = make_view(field, (IMAGE, MASK), ((0, 2), (0, 2)))
    gradients = ogd.sampled_gradients(view, params, 40)
    basis, size = ogd.principal_directions(gradients, 10)
    own, all_gradients = as_matrix(basis).astype(float), as_matrix(gradients).astype(float)
    np.testing.assert_allclose(own @ own.T, np.eye(10), atol=1e-4)
    _, expected, directions = np.linalg.svd(all_gradients, full_matrices=False)
    np.testing.assert_allclose(size, expected[:10], rtol=1e-3)
    overlap = np.linalg.svd(own @ directions[:10].T, compute_uv=False)
    np.testing.assert_allclose(overlap, 1, atol=1e-2)


def test_what_is_beyond_the_rank_is_nothing():
    vectors = {"a": jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 2.0]])}
    basis, size = ogd.principal_directions(vectors, 5)
    np.testing.assert_allclose(np.linalg.norm(basis["a"], axis=1), [1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(size[2:], 0)
    left = ogd.without(basis, {"a": jnp.array([1.0, 5.0, 7.0])})["a"]
    np.testing.assert_allclose(left, [0, 5, 0], atol=1e-5)


def test_a_second_task_joins_the_first_in_a_basis_of_the_same_size():
    """Where there is room for all, nothing of the first is lost; the mask's channels are new."""
    _, first = small("siren", channels=1)
    field, params = small("siren")
    strategy = ogd.ogd(directions=24, gradients=12)
    _, state = strategy.begin(make_view(field), first, {})
    once = as_matrix(state["basis"])
    assert once.shape == (24, sum(x.size for x in jax.tree.leaves(params)))
    _, both = strategy.begin(make_view(field), params, state)
    twice = as_matrix(both["basis"]).astype(float)
    there = np.asarray(state["size"]) > 0
    assert 0 < there.sum() <= 12
    left = once[there] - once[there] @ twice.T @ twice
    assert np.abs(left).max() < 1e-3
    kernel = state["basis"]["params"]["output"]["kernel"]
    assert (kernel[..., 1:] == 0).all() and (kernel[..., 0] != 0).any()


def test_training_keeps_the_projection_and_is_not_fine_tuning():
    scan = scans_for(FRAMES)[0]
    runs = [
        train([scan], FRAMES[:2], recipe("siren", strategy))[-1]
        for strategy in (recipe().strategy, ogd.ogd(16, 16))
    ]
    assert runs[1].fits[0].penalty_gradient_share > 0 == runs[0].fits[0].penalty_gradient_share
    own = runs[1].learned[scan.name]
    assert own.state["basis"]["params"]["hidden_0"]["kernel"].shape == (16, 4, SMALL["width"])
    kernels = [r.learned[scan.name].params["params"]["hidden_0"]["kernel"] for r in runs]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.parametrize("hook", ["on_gradient", "on_update"])
def test_a_strategy_that_changes_no_update_is_an_error(hook):
    idle = Strategy(**{hook: lambda view, state, params, tree, losses: (tree, state)})
    with pytest.raises(InactivePenaltyError, match="patient0/cine, task 2"):
        train(scans_for(FRAMES)[:1], FRAMES[:2], recipe("siren", idle))
