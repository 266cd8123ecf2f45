import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from scipy.special import softmax

from nfcl_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype("f4") * 3
ONE_HOT = np.eye(4, dtype="f4")[[0, 1, 2, 3, 1, 0]]


@pytest.mark.parametrize("delta", [1.0, 0.25])
def test_huber_is_its_equation(delta):
    error = np.float32([[-2.0], [-0.3], [0.0], [0.1], [5.0]])
    expected = np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))[:, 0]
    actual = losses.huber(jnp.asarray(error + 1), jnp.ones_like(error), delta)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_binary_cross_entropy_of_the_softmax_is_its_equation():
    p = softmax(LOGITS.astype("f8"), axis=1)
    expected = -(ONE_HOT * np.log(p) + (1 - ONE_HOT) * np.log(1 - p)).mean(axis=1)
    actual = losses.binary_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(ONE_HOT))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("certain", [200.0, 1e4])
def test_certain_logits_give_finite_losses_and_gradients(certain):
    logits = jnp.array([[certain, 0.0, 0.0, 0.0]])
    for target in np.eye(4, dtype="f4")[:2]:
        loss, gradient = jax.value_and_grad(
            lambda z, t=target: losses.binary_cross_entropy(z, jnp.asarray(t)[None]).sum()
        )(logits)
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    # Of the four classes two are wrong: -log p = certain and -log(1 - p) = certain - log 3.
    np.testing.assert_allclose(loss, (2 * certain - np.log(3)) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (losses.huber, LOGITS[:, :1], LOGITS[:, :1]),
        (losses.binary_cross_entropy, LOGITS, jax.nn.softmax(LOGITS)),
    ],
    ids=["huber", "binary_cross_entropy"],
)
def test_no_loss_and_no_gradient_at_the_target(loss, outputs, targets):
    value, gradient = jax.value_and_grad(lambda x: loss(x, jnp.asarray(targets)).sum())(
        jnp.asarray(outputs)
    )
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    targets = jnp.asarray(softmax(RNG.normal(size=(6, 4)), axis=1))
    with jax.enable_x64(True):
        z, t = jnp.asarray(LOGITS, "f8"), jnp.asarray(targets, "f8")
        jax.test_util.check_grads(
            lambda x: losses.binary_cross_entropy(x + 0 * t, t).sum(), (z,), 1
        )
        jax.test_util.check_grads(lambda x: losses.huber(x + 0 * t, t).sum(), (z,), 1)


def test_shapes_that_differ_are_refused_with_both():
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(6, 1\)"):
        losses._check_shapes(LOGITS, LOGITS[:, :1])


def test_weighted_mean_ignores_padding_and_survives_none():
    values = jnp.array([1.0, 2.0, 100.0])
    assert losses.weighted_mean(values, jnp.array([1.0, 1.0, 0.0])) == 1.5
    assert losses.weighted_mean(values, jnp.zeros(3)) == 0


def test_a_padded_mean_and_its_gradient_are_the_mean_s():
    """Over several blocks, whatever follows the points of weight 1."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=9000).astype(np.float32))
    weights = (jnp.arange(9000) < 7000).astype(jnp.float32)
    mean, gradient = jax.value_and_grad(losses.weighted_mean)(values, weights, padded=True)
    np.testing.assert_allclose(mean, np.asarray(values, np.float64)[:7000].mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, weights / 7000, rtol=1e-6)
    longer = (jnp.pad(own, (0, 5000)) for own in (values, weights))
    assert losses.weighted_mean(*longer, padded=True) == mean
