"""Memory aware synapses (Aljundi et al., ECCV 2018)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nfcl_jax.checks import FRACTION, POSITIVE
from nfcl_jax.scenarios import Head
from nfcl_jax.strategies.base import Strategy, StrategyKind
from nfcl_jax.strategies.importance import quadratic_penalty


@functools.lru_cache
def mas(weight: float = 1.0, decay: float = 1.0) -> Strategy:
    """`importance.quadratic_penalty` with the sensitivity of the output's length,

        F_i = mean over voxels x of | d ||a(x)||^2 / d theta_i |,

    where a(x) is what the head says: intensities, or probabilities. Dark voxels count little.
    """
    return quadratic_penalty(weight, decay, length_gradient, jnp.abs)


def length_gradient(head: Head, outputs: Float[Array, " channels"]) -> Float[Array, "1 channels"]:
    """The gradient of the squared length of what a head says."""
    return jax.grad(lambda o: jnp.sum(head.as_targets(o) ** 2))(outputs)[None]


KIND = StrategyKind("MAS", mas, {"weight": POSITIVE, "decay": FRACTION})
