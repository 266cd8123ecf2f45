"""What makes an update of a gradient, and at which rate in each step."""

from typing import Any

import jax
import optax
import optax.contrib

from nfcl_jax.arguments import Static
from nfcl_jax.fields import Params


def optimiser(static: Static) -> optax.GradientTransformation:
    """Adam; with a `muon_rate`, Muon for the matrices of the layers (Jordan et al., 2024), and Adam
    for the rest, with Nesterov's momentum in both. Muon's step is about the nearest orthogonal
    matrix to the gradient's running mean, times its rate and, for a layer of n inputs and more
    outputs m, the root of m / n.

    During the warm-up of w steps a rate is r (i + 1) / w in step i. Then, with the part
    p = (i - w) / (num_steps - w) of the other steps done, it is r; if it falls as a cosine
    (Loshchilov and Hutter, ICLR 2017), r (1 + cos(pi p)) / 2; as an exponential, r 0.1^p.
    """

    def scheduled(rate):
        parts, ends = [], []
        steps = static.warmup_steps if static.warmup_steps > 1 else 0  # of one it would be none
        if steps:
            parts.append(optax.linear_schedule(rate / steps, rate, steps - 1))
        left = max(static.num_steps - steps, 1)
        falls = {
            "cosine": optax.cosine_decay_schedule(rate, left),
            "exponential": optax.exponential_decay(rate, left, 0.1),
        }
        if static.schedule in falls:
            ends = [steps] * len(parts)
            parts.append(falls[static.schedule])
        # A schedule is state too, which runs at a constant rate have never had.
        return optax.join_schedules(parts, ends) if parts else rate

    if not static.muon_rate:
        return optax.adam(scheduled(static.learning_rate))
    return optax.contrib.muon(
        scheduled(static.muon_rate),
        adam_learning_rate=scheduled(static.learning_rate),
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Params) -> Any:
    """What Muon takes: the layers' kernels, but not a table, whose rows have nothing in common."""

    def of_leaf(path, leaf):
        return optax.contrib.MuonDimensionNumbers() if path[-1].key == "kernel" else None

    return jax.tree.map_with_path(of_leaf, params)
