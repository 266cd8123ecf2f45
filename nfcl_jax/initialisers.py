"""How parameters begin."""

import jax
import jax.numpy as jnp


def symmetric_uniform(bound: float):
    """An initialiser that draws from U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def inverse_root(inputs: int):
    """U(-1/sqrt(inputs), 1/sqrt(inputs)): PyTorch's default for linear layers."""
    return symmetric_uniform(inputs**-0.5)
