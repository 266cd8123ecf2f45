"""DINER at many entries of its table by asking it at a few: a curve, interpolated between knots.

With one number per entry DINER is a function h -> f(h) of one variable, a curve in the space of its
outputs. It is asked at K knots u_1 < ... < u_K, equidistant from the smallest entry to the largest;
an entry h between u_j and u_(j+1) gets

    (1 - s) f(u_j) + s f(u_(j+1)),   s = (h - u_j) / (u_(j+1) - u_j).

The derivative by h is the slope of the chord, that by the layers a sum over the K knots alone. ReLU
layers are linear between their kinks, so the interpolation is exact wherever there is none between
two knots. docs/performance.md has the error against K.

A fresh table is so narrow, 2e-4 in all, that with PyTorch's biases f(u_j) and f(u_(j+1)) are the
same number in float32, and the slopes of chords nothing but rounding. As long as the whole curve is
as flat as that, the derivatives at the knots stand for them.

The loss of a mask that is learned is a curve too, one for each class that a voxel may have. It is
asked at PARTS points between every two knots, on the chord, and interpolated likewise: a
cross-entropy at every voxel would take more time than all else in a step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nfcl_jax.fields import Field, Params
from nfcl_jax.losses import weighted_mean
from nfcl_jax.points import Points, inside, take
from nfcl_jax.scenarios import Head

MAX_ERROR = 3e-3  # of `error`, above which a run warns: a PSNR of 50 dB
FLAT = 1e-4  # of the largest output, the largest step between knots: rounding is 1e-3 of it
PARTS = 8  # of what lies between two knots, for a loss
ROWS_PER_POINT = 400  # that a step interpolates while it asks one point more; measured on a CPU


def is_curve(field: Field) -> bool:
    """Whether the field can be asked at knots, and is to be."""
    return field.on_grid and getattr(field, "table_features", 0) == 1 and field.knots > 0


def points_asked(field: Field, batch_size: int, voxels: int) -> int:
    """How many points the network is asked in a step on a domain of so many voxels, or could be in
    the time that it takes; a `batch_size` of 0 is every voxel."""
    if batch_size:
        return batch_size
    return field.knots + voxels // ROWS_PER_POINT if is_curve(field) else voxels


class Knots(NamedTuple):
    """A curve, as it is known at its knots.

    Attributes:
      low: the first knot.
      per_unit: how many knots there are in an interval of length 1.
      answers: of the field at the knots.
      slopes: from each knot to the next.
    """

    low: Float[Array, ""]
    per_unit: Float[Array, ""]
    answers: Float[Array, "knots channels"]
    slopes: Float[Array, "intervals channels"]


def interpolate(
    field: Field, params: Params, asked: Sequence[Points], offset: Int[Array, ""] | None = None
) -> Float[Array, "points channels"]:
    """What the field answers at voxels, one sequence after the other, by interpolation.

    Args:
      field: a curve, see `is_curve`.
      params: of the field.
      asked: the voxels. The knots span those whose weights are not 0, whatever padding there is.
      offset: of the table's first row, if that is not index 0.
    """
    entries = jnp.concatenate(_entries(params, asked, offset))
    return _between(_ask(field, params, entries, _inside(asked)), entries)


def class_losses(
    field: Field,
    params: Params,
    asked: Sequence[Points],
    offset: Int[Array, ""] | None,
    head: Head,
    classes: Int[Array, " points"],
) -> tuple[Float[Array, " points"], list[Float[Array, "_ channels"]]]:
    """The losses of a mask's head, and what `interpolate` says.

    Args:
      field: a curve, see `is_curve`.
      params: of the field.
      asked: the voxels, as `interpolate` takes them.
      offset: of the table's first row, if that is not index 0.
      head: of the mask.
      classes: of the first sequence of voxels.

    Returns:
      The loss at each voxel of the first sequence, and the answers for each of the sequences.
    """
    entries = _entries(params, asked, offset)
    knots = _ask(field, params, jnp.concatenate(entries), _inside(asked))
    losses = _losses_between(knots, entries[0], head, classes)
    # Channel by channel, so that those that nobody looks at cost nothing.
    columns = [
        knots._replace(answers=knots.answers[:, c : c + 1], slopes=knots.slopes[:, c : c + 1])
        for c in range(knots.answers.shape[1])
    ]
    return losses, [jnp.concatenate([_between(c, own) for c in columns], 1) for own in entries]


def _entries(
    params: Params, asked: Sequence[Points], offset: Int[Array, ""] | None
) -> list[Float[Array, " points"]]:
    shifted = [points.counted_from(offset) for points in asked]
    return [take(params["params"]["table"], points)[:, 0] for points in shifted]


def _inside(asked: Sequence[Points]) -> Bool[Array, " points"]:
    return jnp.concatenate([points.weights for points in asked]) > 0


def _ask(
    field: Field, params: Params, entries: Float[Array, " rows"], inside: Bool[Array, " rows"]
) -> Knots:
    fixed = jax.lax.stop_gradient(entries)
    low = jnp.min(fixed, where=inside, initial=jnp.inf)
    high = jnp.max(fixed, where=inside, initial=-jnp.inf)
    # Where all entries are the same, any interval around them will do.
    high = jnp.maximum(high, low + 1e-6 * jnp.maximum(jnp.abs(low), 1e-6))
    knots, per_unit = jnp.linspace(low, high, field.knots), (field.knots - 1) / (high - low)
    answers = _along(field, params)(knots)
    curve = _along(field, jax.lax.stop_gradient(params))
    return Knots(low, per_unit, answers, _slopes(curve, knots, answers, per_unit))


def _place(
    entries: Float[Array, " rows"], low: Array, per_unit: Array, count: int
) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
    """Which of `count` equal intervals an entry is in, and where in it, from 0 to 1."""
    position = (entries - low) * per_unit
    left = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, count - 1)
    return left, position - left


def _between(knots: Knots, entries: Float[Array, " rows"]) -> Float[Array, "rows channels"]:
    fixed = jax.lax.stop_gradient(entries)
    left, share = _place(fixed, knots.low, knots.per_unit, len(knots.slopes))
    share, values = share[:, None], knots.answers
    between = values[left] * (1 - share) + values[left + 1] * share
    return between + knots.slopes[left] * (entries - fixed)[:, None]


def _losses_between(
    knots: Knots, entries: Float[Array, " rows"], head: Head, classes: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """Losses at points on the chords, interpolated. An entry gets the derivative in the middle of
    its part of the chord, which is no rounding where the curve is flat."""
    values, slopes = knots.answers[:, head.channels], knots.slopes[:, head.channels]

    def of_classes(outputs):
        one_hot = jnp.eye(head.num_channels)
        targets = jnp.broadcast_to(one_hot[:, None], (len(one_hot), *outputs.shape))
        return jax.vmap(head.loss, in_axes=(None, 0), out_axes=-1)(outputs, targets)

    def on_chords(values, shares):
        shares = shares[None, :, None] / PARTS
        points = values[:-1, None] * (1 - shares) + values[1:, None] * shares
        return points.reshape(-1, head.num_channels)

    at_parts = on_chords(values, jnp.arange(PARTS))
    losses = of_classes(jnp.concatenate([at_parts, values[-1:]])).reshape(-1)
    middles = on_chords(jax.lax.stop_gradient(values), jnp.arange(PARTS) + 0.5)
    _, slopes = jax.jvp(of_classes, (middles,), (jnp.repeat(slopes, PARTS, axis=0),))

    fixed = jax.lax.stop_gradient(entries)
    left, share = _place(fixed, knots.low, knots.per_unit * PARTS, len(slopes))
    index = left * head.num_channels + classes
    between = losses[index] * (1 - share) + losses[index + head.num_channels] * share
    return between + slopes.reshape(-1)[index] * (entries - fixed)


def _along(field: Field, params: Params) -> Callable:
    """The curve: what the field answers where its table has these entries."""

    def curve(entries):
        table = {"table": entries[:, None]}
        own = field.clone(rows=len(entries))
        return own.apply({"params": params["params"] | table}, jnp.arange(len(entries)))

    return curve


def _slopes(
    curve: Callable,
    knots: Float[Array, " knots"],
    at_knots: Float[Array, "knots channels"],
    per_unit: Float[Array, ""],
) -> Float[Array, "intervals channels"]:
    """The slope of the curve between each two knots, of which there are so many `per_unit`."""
    values = jax.lax.stop_gradient(at_knots)
    steps = jnp.diff(values, axis=0)

    def of_tangents():
        _, tangents = jax.jvp(curve, (knots,), (jnp.ones_like(knots),))
        return (tangents[1:] + tangents[:-1]) / 2

    flat = jnp.max(jnp.abs(steps)) <= FLAT * jnp.max(jnp.abs(values))
    return jax.lax.cond(flat, of_tangents, lambda: steps * per_unit)


def error(
    field: Field,
    params: Params,
    exact: Float[Array, "rows channels"],
    domains: Sequence[tuple[Head, Int[Array, "ranges 2"]]],
) -> Float[Array, ""]:
    """How far the interpolation is from the field: the root mean square, over the voxels on which a
    head was asked and over its channels, of the difference in what the head says (intensities, or
    probabilities), for the head where it is largest.

    Args:
      field: a curve.
      params: of the field.
      exact: what the field itself answers, by flat index.
      domains: heads, each with the ranges of flat indices that it was asked at.
    """
    index = jnp.arange(len(exact))
    known = [inside(index, ranges) for _, ranges in domains]
    entries = params["params"]["table"][:, 0]
    knots = _ask(field, params, entries, functools.reduce(jnp.logical_or, known))
    between = _between(knots, entries)
    errors = []
    for (head, _), rows in zip(domains, known, strict=True):
        said = [head.as_targets(outputs[:, head.channels]) for outputs in (between, exact)]
        squares = jnp.mean((said[0] - said[1]) ** 2, axis=-1)
        errors.append(jnp.sqrt(weighted_mean(squares, rows.astype(jnp.float32), padded=True)))
    return jnp.max(jnp.stack(errors))
