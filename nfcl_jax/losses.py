"""One loss per kind of output, between a field's raw outputs and targets of the same shape.

Each returns a value per point and is zero, with zero gradient, where output and target agree, so
that the same functions serve for fitting and for distillation.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

BLOCK = 4096  # points whose sum is a step of a longer one


def huber(
    outputs: Float[Array, "points channels"],
    targets: Float[Array, "points channels"],
    delta: float = 1.0,
) -> Float[Array, " points"]:
    """Huber's loss of e = outputs - targets, mean over channels: e^2 / 2 where |e| <= delta, else
    delta (|e| - delta / 2)."""
    _check_shapes(outputs, targets)
    return jnp.mean(optax.losses.huber_loss(outputs, targets, delta=delta), axis=-1)


def log_softmax_and_complement(
    logits: Float[Array, "points classes"],
) -> tuple[Float[Array, "points classes"], Float[Array, "points classes"]]:
    """log p and log(1 - p) of p = softmax(logits), finite however certain the softmax is.

    1 - p_c is the softmax mass of the other classes, so its logarithm is their logsumexp less
    that of all: no subtraction from 1.
    """
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    others = ~jnp.eye(logits.shape[-1], dtype=bool)
    complement = jax.nn.logsumexp(logits[..., None, :], axis=-1, where=others)
    return logits - total, complement - total


def binary_cross_entropy(
    outputs: Float[Array, "points classes"],
    targets: Float[Array, "points classes"],
) -> Float[Array, " points"]:
    """Binary cross-entropy of the softmax, mean over classes:

        -mean_c [ y_c log p_c + (1 - y_c) log(1 - p_c) ] - (the same with p = y),   p = softmax.

    The second term is the targets' own entropy. It is zero for one-hot targets, and a constant
    for a teacher's probabilities; without it the loss would not be zero at the teacher.
    `outputs` are logits, `targets` probabilities.
    """
    _check_shapes(outputs, targets)
    log_p, log_rest = log_softmax_and_complement(outputs)
    cross_entropy = -(targets * log_p + (1 - targets) * log_rest)
    entropy = jax.scipy.special.entr(targets) + jax.scipy.special.entr(1 - targets)
    return jnp.mean(cross_entropy - jax.lax.stop_gradient(entropy), axis=-1)


def weighted_mean(
    values: Float[Array, " points"], weights: Float[Array, " points"], padded: bool = False
) -> Float[Array, ""]:
    """Mean of `values` over the points of weight 1; 0 where all have weight 0. Where points of
    weight 0 may follow, they are `padded`: on a CPU how many follow changes no bit."""
    weighted = values * weights
    total = _sum_of_padded(weighted) if padded else jnp.sum(weighted)
    return total / jnp.maximum(jnp.sum(weights), 1.0)


@jax.custom_jvp
def _sum_of_padded(values: Float[Array, " points"]) -> Float[Array, ""]:
    """The sum, of blocks in turn on a CPU. An accelerator, where no sum has an order, is spared the
    loop, whose turns would take longer than all else in a step of one scan."""

    def of_blocks(values):
        blocks = jnp.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK).sum(axis=1)
        return jax.lax.fori_loop(0, len(blocks), lambda i, sum: sum + blocks[i], jnp.zeros(()))

    return jax.lax.platform_dependent(values, cpu=of_blocks, default=jnp.sum)


@_sum_of_padded.defjvp
def _sum_of_padded_jvp(primals, tangents):
    return _sum_of_padded(*primals), jnp.sum(*tangents)  # so that no loop goes back


def _check_shapes(outputs, targets):
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs and targets must have the same shape, got {outputs.shape} and "
            f"{targets.shape}."
        )
