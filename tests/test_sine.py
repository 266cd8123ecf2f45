import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax.sine import cosine, sine

REFERENCE = {sine: np.sin, cosine: np.cos}
both = pytest.mark.parametrize("function", [sine, cosine], ids=["sine", "cosine"])


def arguments(bound, count=200_001):
    spread = np.linspace(-bound, bound, count)
    near_multiples = np.arange(-200, 201) * np.pi / 2
    return np.concatenate([spread, near_multiples[np.abs(near_multiples) <= bound]]).astype("f4")


@both
@pytest.mark.parametrize("bound", [0.01, 2.0, 100.0, 30_000.0, 200_000.0])
def test_float32_is_accurate_on_the_range_of_the_fields(function, bound):
    x = arguments(bound)
    exact = REFERENCE[function](x.astype(np.float64))
    np.testing.assert_allclose(jax.jit(function)(x), exact, rtol=0, atol=2e-7)


@both
def test_far_outside_the_range_it_stays_bounded(function):
    x = np.geomspace(2e5, 3e38, 10_001, dtype=np.float32)
    assert np.abs(function(x)).max() <= 1.03


@both
def test_what_is_not_finite_gives_nan(function):
    assert np.isnan(function(jnp.array([np.inf, -np.inf, np.nan]))).all()


def test_sine_keeps_the_sign_of_small_arguments():
    x = np.float32([1e-30, -1e-30, 1e-5, -1e-5, 0.0])
    np.testing.assert_allclose(sine(x), x, rtol=1e-7)


@both
def test_other_types_have_their_own_accuracy(function):
    x = np.linspace(-50, 50, 1001)
    half = function(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    exact = REFERENCE[function](np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64))
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=2**-8)
    with jax.enable_x64(True):
        double = function(jnp.asarray(x))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, REFERENCE[function](x), atol=1e-14)


def test_derivatives_of_every_order_under_jit_and_vmap():
    x = arguments(30.0, 999)
    derivative = sine
    for reference in (np.sin, np.cos, lambda v: -np.sin(v), lambda v: -np.cos(v)):
        values = jax.jit(jax.vmap(derivative))(x)
        np.testing.assert_allclose(values, reference(x.astype(np.float64)), rtol=0, atol=3e-7)
        derivative = jax.grad(derivative)
