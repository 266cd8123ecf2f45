"""The four neural fields as Flax Linen modules.

    pe_relu   positional encoding and ReLU (Mildenhall et al., NeRF, ECCV 2020)
    siren     sin(w0 z)                    (Sitzmann et al., NeurIPS 2020)
    finer     sin(w0 (|z| + 1) z)          (Liu et al., CVPR 2024)
    diner     a learned table and ReLU     (Xie et al., CVPR 2023)

with z = W x + b. All have `depth` nonlinear layers of `width` units and a linear output layer. A
field is added by an entry in FIELDS; whatever is said of it stands in its class.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nfcl_jax.checks import AT_LEAST_1, FRACTION, NOT_NEGATIVE, POSITIVE, Check, one_of
from nfcl_jax.errors import look_up
from nfcl_jax.initialisers import inverse_root, symmetric_uniform
from nfcl_jax.sine import sine

Params = Any


class Field(nn.Module):
    """What every field has. A field takes coordinates in [-1, 1], (points, axes), or, if `on_grid`,
    flat indices of voxels; it then has `rows` too, voxels times frames of the grid, and a parameter
    "table" of so many rows. Its last layer is called "output" and has a kernel and a bias, as
    `layers` makes it, so that it can grow.

    Its other attributes are constants of the config, with their defaults. Its class says:
      on_grid: see above.
      title, colour, marker: in tables and figures. The paper's four have colours by Okabe and Ito
        (2008), which colour-blind readers tell apart.
      learning_rate: of Adam, by default.
      batch_size: points per step, by default; 0 is every voxel.
      warmup_steps: of each task, by default, in which Adam's rate grows to its value.
      checks: what a constant may be, by its name.
    """

    channels: int
    width: int = 256
    depth: int = 3
    on_grid: ClassVar[bool] = False
    title: ClassVar[str] = ""
    colour: ClassVar[str] = "#555555"
    marker: ClassVar[str] = "o"
    learning_rate: ClassVar[float] = 1e-3
    batch_size: ClassVar[int] = 4096
    warmup_steps: ClassVar[int] = 0
    checks: ClassVar[Mapping[str, Check]] = {}


class CoordinateField(Field):
    """What the paper's fields of coordinates share.

    `time_scale` multiplies the time before the first layer. Below 1 the frames share more of the
    field: a new frame begins nearer to those that it knows. A field that is `signed` answers
    (1 + f) / 2 where its layers answer f, which so learn intensities scaled to [-1, 1], as in
    SIREN's and FINER's own code. At small rates that saves the steps to their mean.
    """

    time_scale: float = 1.0
    signed: bool = False
    space: int = 3  # the coordinates before the time

    def scaled(self, coords: Float[Array, "points axes"]) -> Float[Array, "points axes"]:
        """Coordinates (x, y, z), or (x, y, z, t) with the time scaled."""
        if self.time_scale == 1 or coords.shape[-1] == self.space:
            return coords
        return coords * jnp.array([1] * self.space + [self.time_scale], coords.dtype)


def layers(
    field: Field,
    x: Float[Array, "points inputs"],
    activation: Callable,
    kernel_init: Callable[[int, int], Callable],
    bias_init: Callable[[int, int], Callable],
) -> Float[Array, "points channels"]:
    """`field.depth` layers under `activation` and a linear output, within `field`; the initialisers
    are given the number of the layer, from 0, and that of its inputs."""
    for layer in range(field.depth + 1):
        hidden, inputs = layer < field.depth, x.shape[-1]
        init = kernel_init(layer, inputs), bias_init(layer, inputs)
        dense = nn.Dense(
            field.width if hidden else field.channels,
            kernel_init=init[0],
            bias_init=init[1],
            # Full float32 for the first layer, whatever the others compute in: bfloat16 tells no
            # more than a few hundred coordinates, or entries of a table, from one another.
            precision=jax.lax.Precision.HIGHEST if layer == 0 else None,
            name=f"hidden_{layer}" if hidden else "output",
        )
        x = activation(dense(x)) if hidden else dense(x)
    return (1 + x) / 2 if getattr(field, "signed", False) else x


def sine_layers(field: CoordinateField, coords, activation: Callable, first_bias: float):
    """Layers initialised by SIREN's rule: first weights U(-1/n, 1/n), later ones (the output's too)
    U(-sqrt(6/n)/w0, sqrt(6/n)/w0), biases U(-1/sqrt(n), 1/sqrt(n)) for n inputs; the first bias
    U(-first_bias, first_bias) where that is not 0."""

    def kernel_init(layer, inputs):
        return symmetric_uniform(1 / inputs if layer == 0 else (6 / inputs) ** 0.5 / field.w0)

    def bias_init(layer, inputs):
        wide = layer == 0 and first_bias
        return symmetric_uniform(first_bias) if wide else inverse_root(inputs)

    return layers(field, field.scaled(coords), activation, kernel_init, bias_init)


class PEReLU(CoordinateField):
    """ReLU layers over gamma(s x) = (sin(2^k pi s x), cos(2^k pi s x)), k = 0..num_frequencies-1,
    per coordinate, without the raw coordinate.

    The scale s is 1 in the paper. -1 and 1, the two ends of each axis, then have the same encoding:
    the field answers the same in the first slice and in the last, and in the first frame and the
    last. Below 1 they are apart.
    """

    num_frequencies: int = 10
    scale: float = 1.0
    title: ClassVar[str] = "PE-ReLU"
    colour: ClassVar[str] = "#0072B2"
    checks: ClassVar[Mapping[str, Check]] = {"num_frequencies": AT_LEAST_1, "scale": FRACTION}

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        # One column per axis and frequency, in half turns: for the sines, then for the cosines.
        coords, axes = self.scaled(coords), coords.shape[-1]
        coords = coords if self.scale == 1 else coords * self.scale
        scales = np.kron(np.eye(axes), 2.0 ** np.arange(self.num_frequencies)).astype(np.float32)
        scaled = sum(coords[:, axis, None] * np.tile(scales[axis], 2) for axis in range(axes))
        # Whole turns are taken off before pi rounds: exact, where 2^9 pi x would be off by 1e-4.
        phase = np.repeat(np.float32([0, 0.5]), scales.shape[1])
        encoded = sine(jnp.pi * (scaled - 2 * jnp.round(scaled / 2) + phase))

        # PyTorch's default for linear layers: He's, which keeps the variance, leaves the random
        # high-frequency output of a fresh encoding so large that 500 steps do not clear it away.
        def init(layer, inputs):
            return inverse_root(inputs)

        return layers(self, encoded, nn.relu, init, init)


class SIREN(CoordinateField):
    """Layers of sin(w0 z)."""

    w0: float = 15.0
    title: ClassVar[str] = "SIREN"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "s"
    checks: ClassVar[Mapping[str, Check]] = {"w0": POSITIVE}

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        return sine_layers(self, coords, lambda z: sine(self.w0 * z), 0.0)


class FINER(CoordinateField):
    """Layers of sin(w0 (|z| + 1) z).

    `detach_scale` keeps the gradient out of the factor (|z| + 1), as FINER's own code does by
    default. `first_bias` k > 0 draws the first layer's biases from U(-k, k), FINER's means to
    widen the range of frequencies; 0 leaves them to SIREN's rule.
    """

    w0: float = 5.0
    detach_scale: bool = True
    first_bias: float = 0.0
    title: ClassVar[str] = "FINER"
    colour: ClassVar[str] = "#009E73"
    marker: ClassVar[str] = "^"
    checks: ClassVar[Mapping[str, Check]] = {"w0": POSITIVE, "first_bias": NOT_NEGATIVE}

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        def activation(z):
            scale = jnp.abs(z) + 1
            if self.detach_scale:
                scale = jax.lax.stop_gradient(scale)
            return sine(self.w0 * scale * z)

        return sine_layers(self, coords, activation, self.first_bias)


class DINER(Field):
    """ReLU layers over a learned table with one entry per voxel and frame, looked up by index.

    An index outside the table gives NaN: there is nothing to look up between or beyond voxels.
    Steps over every voxel ask it at `knots` entries and interpolate, see `curve`; 0 asks it at all.
    The layers' `initialisation` is "torch", what PyTorch gives linear layers, or "lecun" with zero
    biases. After "torch" all ReLUs die in some fits, unless the rate of Adam grows slowly at first.
    It can `separate_classes` before it learns masks alone of frames it knows, see `params`.
    """

    rows: int = 0
    table_features: int = 1
    table_range: float = 1e-4
    knots: int = 1024
    initialisation: str = "torch"
    separate_classes: bool = False
    on_grid: ClassVar[bool] = True
    title: ClassVar[str] = "DINER"
    colour: ClassVar[str] = "#CC3311"
    marker: ClassVar[str] = "D"
    learning_rate: ClassVar[float] = 1e-2
    batch_size: ClassVar[int] = 0  # as its authors' code does; of 4,096 a row sees too few
    warmup_steps: ClassVar[int] = 50
    checks: ClassVar[Mapping[str, Check]] = {
        "table_features": AT_LEAST_1,
        "table_range": POSITIVE,
        "knots": Check(lambda x: x == 0 or x >= 2, "at least 2, or 0 to ask at every voxel"),
        "initialisation": one_of(["torch", "lecun"]),
    }

    @nn.compact
    def __call__(self, index: Int[Array, " points"]) -> Float[Array, "points channels"]:
        table = self.param(
            "table", symmetric_uniform(self.table_range), (self.rows, self.table_features)
        )
        index = jnp.where(index < 0, self.rows, index)  # would count from the end
        entries = jnp.asarray(table).at[index].get(mode="fill", fill_value=jnp.nan)

        def initialiser(lecun):
            return lambda layer, inputs: (
                inverse_root(inputs) if self.initialisation == "torch" else lecun
            )

        weights, biases = nn.initializers.lecun_normal(), nn.initializers.zeros
        return layers(self, entries, nn.relu, initialiser(weights), initialiser(biases))


FIELDS: dict[str, type[Field]] = {
    "pe_relu": PEReLU,
    "siren": SIREN,
    "finer": FINER,
    "diner": DINER,
}


def field_title(name: str) -> str:
    """What tables call the field: its class's title or, if it has none here, its name."""
    return (name in FIELDS and FIELDS[name].title) or name


def constants(name: str) -> dict[str, Any]:
    """The constants of a field, with their defaults, as a config holds them.

    Raises:
      ValueError: if there is no field of that name.
    """
    given = {"channels", "rows", "space", "parent", "name"}
    own = [f for f in dataclasses.fields(look_up(FIELDS, "field", name)) if f.name not in given]
    return {f.name: f.default for f in own}


def checks(name: str) -> dict[str, Check]:
    """What each constant of a field may be, where its class says so."""
    common = {"width": AT_LEAST_1, "depth": AT_LEAST_1, "time_scale": POSITIVE}
    known = common | dict(look_up(FIELDS, "field", name).checks)
    return {constant: known[constant] for constant in constants(name) if constant in known}


def create_field(config: Mapping[str, Any], channels: int, rows: int, space: int = 3) -> Field:
    """The field that `config` names and sets the constants of.

    Args:
      config: `name`, one of FIELDS, and that module's constants.
      channels: outputs of the field.
      rows: voxels times frames of the grid; only a table's size depends on it.
      space: the coordinates of a place, 2 or 3.

    Raises:
      ValueError: for a name that is not in FIELDS.
    """
    given = dict(config)
    module = look_up(FIELDS, "field", given.pop("name"))
    if module.on_grid:
        given["rows"] = rows
    elif issubclass(module, CoordinateField):
        given["space"] = space
    return module(channels=channels, **given)


def init_params(field: nn.Module, key: Key[Array, ""], axes: int) -> Params:
    """Fresh parameters of a field over `axes` coordinates. A longer DINER table starts with the
    same rows: padding a patient's grid does not change its initial values."""
    inputs = jnp.zeros(1, jnp.int32) if field.on_grid else jnp.zeros((1, axes))
    return field.init(key, inputs)
