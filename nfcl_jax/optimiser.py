"""What makes an update of a gradient, and at which rate in each step."""

import functools
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

    With an `output_rate` the output layer is Adam's, and has that rate. So new classes are read
    from features that change little: Muon would move old outputs as much as new ones.

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

    own_output, parts = static.output_rate is not None, []
    if static.muon_rate:
        parts.append(
            optax.contrib.muon(
                scheduled(static.muon_rate),
                adam_learning_rate=scheduled(static.learning_rate),
                muon_weight_dimension_numbers=functools.partial(_matrices, output=not own_output),
            )
        )
    else:  # flat, as optax.adam is: moments are kept from task to task
        rate = scheduled(static.learning_rate)
        parts += [optax.scale_by_adam(), optax.scale_by_learning_rate(rate)]
    if own_output:
        parts.append(_scale_output(static.output_rate / static.learning_rate))
    return optax.chain(*parts)


def _matrices(params: Params, output: bool) -> Any:
    """What Muon takes: the layers' kernels, that of the output layer if so asked, but not a table,
    whose rows have nothing in common."""

    def of_leaf(path, leaf):
        taken = path[-1].key == "kernel" and (output or not _of_output(path))
        return optax.contrib.MuonDimensionNumbers() if taken else None

    return jax.tree.map_with_path(of_leaf, params)


def _scale_output(factor: float) -> optax.GradientTransformation:
    def scaled(updates, params):
        return jax.tree.map_with_path(
            lambda path, update: factor * update if _of_output(path) else update, updates
        )

    return optax.stateless(scaled)


def _of_output(path: tuple) -> bool:
    return any(key.key == "output" for key in path)
