"""A fast float32 sine and cosine for fields that evaluate millions of them per step.

XLA's float32 sine on a CPU costs several times as much as the matrix product that feeds it. Here
the argument is reduced by multiples of pi (Cody and Waite, "Software Manual for the Elementary
Functions", 1980) and the rest, |r| <= pi/2, goes through a short polynomial:

    x = q pi + r,    sin(x) = (-1)^q sin(r),    cos(x) = (-1)^q cos(r).

pi is split into three float32 parts; the first has 8 significant bits and the second 11, so that
their products with q lose next to nothing: the absolute error stays below 2e-7 up to |x| = 2e5.
Further out accuracy fades, but the result stays within [-1.03, 1.03]; infinities and NaN give NaN,
as in numpy.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


def _round_to_bits(value: float, bits: int) -> float:
    """`value` rounded to `bits` significant binary digits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


_PI_HIGH = _round_to_bits(math.pi, 8)
_PI_MIDDLE = _round_to_bits(math.pi - _PI_HIGH, 11)
_PI_LOW = math.pi - _PI_HIGH - _PI_MIDDLE

# |r| may exceed pi/2 a little, where the rounding of x / pi picks the neighbouring multiple.
_LIMIT = 1.6


def _near_minimax(function, degree: int) -> list[float]:
    """Coefficients, lowest first, of the polynomial that interpolates `function` on
    [0, _LIMIT^2] at Chebyshev nodes: within a small factor of the best one of its degree."""
    domain = (0.0, _LIMIT**2)
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain)
    return [float(c) for c in series.convert(kind=np.polynomial.Polynomial).coef]


def _sin_remainder(square):
    """(sin(r) / r - 1) / r^2 as a function of r^2, continued to its limit -1/6 at 0."""
    r = np.sqrt(np.maximum(square, 1e-4))
    series = -1 / 6 + square / 120 - square**2 / 5040
    return np.where(square < 1e-3, series, (np.sin(r) / r - 1) / r**2)


def _cos_remainder(square):
    """(cos(r) - 1) / r^2 as a function of r^2, continued to its limit -1/2 at 0."""
    r = np.sqrt(np.maximum(square, 1e-4))
    series = -1 / 2 + square / 24 - square**2 / 720
    return np.where(square < 1e-3, series, -2 * np.sin(r / 2) ** 2 / r**2)


# Their errors, 3.3e-8 and 1.1e-9 at most, stay below the rounding of float32.
_SIN = _near_minimax(_sin_remainder, 3)
_COS = _near_minimax(_cos_remainder, 4)

# A whole number below 2^22 that is added to this lies in the last bits of the sum.
_SHIFT = np.float32(1.5 * 2**23)


def _reduce(x):
    """`r`, within about pi/2 of 0, of x = q pi + r, and the sign bit of (-1)^q."""
    q = jnp.round(x * np.float32(1 / math.pi))
    r = x - q * np.float32(_PI_HIGH)
    r = r - q * np.float32(_PI_MIDDLE)
    r = r - q * np.float32(_PI_LOW)
    # Far outside the exact range r is no longer small; the clip keeps the polynomial bounded.
    r = jnp.clip(r, -_LIMIT, _LIMIT)
    sign_bit = jax.lax.bitcast_convert_type(q + _SHIFT, jnp.uint32) << 31
    return r, sign_bit


def _with_sign(x, sign_bit):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) ^ sign_bit
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _horner(coefficients, x):
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + np.float32(coefficient)
    return total


def _polynomial_sine(x):
    r, sign_bit = _reduce(x)
    square = r * r
    return _with_sign(r + r * square * _horner(_SIN, square), sign_bit)


def _polynomial_cosine(x):
    r, sign_bit = _reduce(x)
    square = r * r
    return _with_sign(1 + square * _horner(_COS, square), sign_bit)


def _dispatch(polynomial, reference, x):
    """The polynomial for float32 on a CPU, where it was measured to be faster; XLA's elsewhere.

    float64 always takes XLA's function; narrower types are computed in float32 and rounded.
    """
    x = jnp.asarray(x)
    if x.dtype == jnp.float64:
        return reference(x)
    wide = x.astype(jnp.float32)
    # The branch is chosen when the program is lowered for its platform, not at run time.
    result = jax.lax.platform_dependent(wide, cpu=polynomial, default=reference)
    return result.astype(x.dtype)


@jax.custom_jvp
def sine(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """sin(x), elementwise, with d sin(x)/dx = `cosine(x)`; any order of derivative.

    float32 on a CPU: absolute error below 2e-7 for |x| <= 2e5 (see the module's docstring for
    what happens beyond). Other types and platforms: XLA's accuracy in that type.
    """
    return _dispatch(_polynomial_sine, jnp.sin, x)


@jax.custom_jvp
def cosine(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """cos(x), elementwise, with d cos(x)/dx = -`sine(x)`; as accurate as `sine`."""
    return _dispatch(_polynomial_cosine, jnp.cos, x)


# The derivative needs the other function at the same argument: both share one reduction, which
# the compiler finds when it merges equal expressions.
@sine.defjvp
def _sine_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return sine(x), cosine(x) * dx


@cosine.defjvp
def _cosine_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return cosine(x), -sine(x) * dx
