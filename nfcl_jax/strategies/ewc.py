"""Elastic weight consolidation (Kirkpatrick et al., PNAS 114(13), 2017)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nfcl_jax.checks import FRACTION, POSITIVE
from nfcl_jax.scenarios import Head
from nfcl_jax.strategies.base import Strategy, StrategyKind
from nfcl_jax.strategies.importance import quadratic_penalty


@functools.lru_cache
def ewc(weight: float = 1.0, decay: float = 1.0) -> Strategy:
    """`importance.quadratic_penalty` with the diagonal of the Fisher information,

        F_i = mean over voxels x, and answers y ~ p(y | f_theta(x)), of (d log p(y) / d theta_i)^2,

    that of the field's own answers, so that it does not vanish where the field fits its data: for
    one earlier image the penalty with weight 1 is distillation's loss to the second order, except
    for the terms off the diagonal.
    """
    return quadratic_penalty(weight, decay, likelihood_gradients, jnp.square)


def likelihood_gradients(
    head: Head, outputs: Float[Array, " channels"]
) -> Float[Array, "answers channels"]:
    """The gradients of log p(answer | outputs) for each answer that a head could give, times the
    square root of that answer's probability: the sum of their squares is a mean over answers.

    An image's answer is Gaussian with variance 1, whose mean squared gradient is 1 in each channel;
    a mask's is a class with the softmax's probability, with the gradient one-hot minus softmax.
    """
    if head.kind == "image":
        return jnp.eye(len(outputs))
    probabilities = jax.nn.softmax(outputs)
    return jnp.sqrt(probabilities)[:, None] * (jnp.eye(len(outputs)) - probabilities)


KIND = StrategyKind("EWC", ewc, {"weight": POSITIVE, "decay": FRACTION})
