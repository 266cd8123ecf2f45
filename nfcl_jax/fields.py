"""The four neural fields as Flax Linen modules.

    pe_relu   positional encoding and ReLU (Mildenhall et al., NeRF, ECCV 2020)
    siren     sin(w0 z)                    (Sitzmann et al., NeurIPS 2020)
    finer     sin(w0 (|z| + 1) z)          (Liu et al., CVPR 2024)
    diner     a learned table and ReLU     (Xie et al., CVPR 2023)

with z = W x + b. All have `depth` nonlinear layers of `width` units and a linear output layer.
The first three take coordinates in [-1, 1]; DINER takes the flat index of a voxel (`on_grid`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nfcl_jax.coordinates import index_to_coords
from nfcl_jax.sine import sine

Params = Any


def symmetric_uniform(bound: float):
    """An initialiser that draws from U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def _inverse_root(inputs: int):
    """U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    return symmetric_uniform(inputs**-0.5)


def _lecun_normal(inputs: int):
    """Normal weights of variance 1/inputs, cut off at two standard deviations."""
    return nn.initializers.lecun_normal()


def _zeros(inputs: int):
    return nn.initializers.zeros


def _precision(layer: int) -> jax.lax.Precision | None:
    """Full float32 for the first layer, whatever the others compute in: bfloat16 tells no more than
    a few hundred coordinates, or entries of a table, from one another."""
    return jax.lax.Precision.HIGHEST if layer == 0 else None


def _relu_layers(x, width: int, depth: int, channels: int, kernel_init, bias_init):
    """ReLU layers and a linear output; the initialisers are given the number of inputs."""
    for layer in range(depth + 1):
        inputs = x.shape[-1]
        dense = nn.Dense(
            width if layer < depth else channels,
            kernel_init=kernel_init(inputs),
            bias_init=bias_init(inputs),
            precision=_precision(layer),
            name=f"hidden_{layer}" if layer < depth else "output",
        )
        x = nn.relu(dense(x)) if layer < depth else dense(x)
    return x


def _sine_layers(x, width: int, depth: int, channels: int, w0: float, activation, first_bias):
    """Layers under `activation`, initialised by SIREN's rule: first weights U(-1/n, 1/n), later
    ones (the output's too) U(-sqrt(6/n)/w0, sqrt(6/n)/w0), biases U(-1/sqrt(n), 1/sqrt(n)) for n
    inputs; the first bias U(-first_bias, first_bias) where that is not 0."""
    for layer in range(depth + 1):
        inputs = x.shape[-1]
        weight_bound = 1 / inputs if layer == 0 else (6 / inputs) ** 0.5 / w0
        bias_bound = first_bias if layer == 0 and first_bias else inputs**-0.5
        dense = nn.Dense(
            width if layer < depth else channels,
            kernel_init=symmetric_uniform(weight_bound),
            bias_init=symmetric_uniform(bias_bound),
            precision=_precision(layer),
            name=f"hidden_{layer}" if layer < depth else "output",
        )
        x = activation(dense(x)) if layer < depth else dense(x)
    return x


class PEReLU(nn.Module):
    """ReLU layers over gamma(x) = (sin(2^k pi x), cos(2^k pi x)), k = 0..num_frequencies-1, per
    coordinate, without the raw coordinate."""

    channels: int
    width: int = 256
    depth: int = 3
    num_frequencies: int = 10
    on_grid: ClassVar[bool] = False

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        # One column per axis and frequency, in half turns: for the sines, then for the cosines.
        axes = coords.shape[-1]
        scales = np.kron(np.eye(axes), 2.0 ** np.arange(self.num_frequencies)).astype(np.float32)
        scaled = sum(coords[:, axis, None] * np.tile(scales[axis], 2) for axis in range(axes))
        # Whole turns are taken off before pi rounds: exact, where 2^9 pi x would be off by 1e-4.
        phase = np.repeat(np.float32([0, 0.5]), scales.shape[1])
        encoded = sine(jnp.pi * (scaled - 2 * jnp.round(scaled / 2) + phase))
        # PyTorch's default for linear layers: He's, which keeps the variance, leaves the random
        # high-frequency output of a fresh encoding so large that 500 steps do not clear it away.
        return _relu_layers(
            encoded, self.width, self.depth, self.channels, _inverse_root, _inverse_root
        )


class SIREN(nn.Module):
    """Layers of sin(w0 z)."""

    channels: int
    width: int = 256
    depth: int = 3
    w0: float = 15.0
    on_grid: ClassVar[bool] = False

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        def activation(z):
            return sine(self.w0 * z)

        return _sine_layers(coords, self.width, self.depth, self.channels, self.w0, activation, 0.0)


class FINER(nn.Module):
    """Layers of sin(w0 (|z| + 1) z).

    `detach_scale` keeps the gradient out of the factor (|z| + 1), as FINER's own code does by
    default. `first_bias` k > 0 draws the first layer's biases from U(-k, k), FINER's means to
    widen the range of frequencies; 0 leaves them to SIREN's rule.
    """

    channels: int
    width: int = 256
    depth: int = 3
    w0: float = 5.0
    detach_scale: bool = True
    first_bias: float = 0.0
    on_grid: ClassVar[bool] = False

    @nn.compact
    def __call__(self, coords: Float[Array, "points axes"]) -> Float[Array, "points channels"]:
        def activation(z):
            scale = jnp.abs(z) + 1
            if self.detach_scale:
                scale = jax.lax.stop_gradient(scale)
            return sine(self.w0 * scale * z)

        return _sine_layers(
            coords, self.width, self.depth, self.channels, self.w0, activation, self.first_bias
        )


class DINER(nn.Module):
    """ReLU layers over a learned table with one entry per voxel and frame, looked up by index.

    An index outside the table gives NaN: there is nothing to look up between or beyond voxels.
    """

    channels: int
    rows: int
    width: int = 256
    depth: int = 3
    table_features: int = 1
    table_range: float = 1e-4
    on_grid: ClassVar[bool] = True

    @nn.compact
    def __call__(self, index: Int[Array, " points"]) -> Float[Array, "points channels"]:
        table = self.param(
            "table", symmetric_uniform(self.table_range), (self.rows, self.table_features)
        )
        index = jnp.where(index < 0, self.rows, index)  # would count from the end
        entries = jnp.asarray(table).at[index].get(mode="fill", fill_value=jnp.nan)
        # Zero biases: with PyTorch's default ones most fits of whole scans died in a later task,
        # where the entries of a new frame all start near 0 and one bad bias kills every ReLU.
        return _relu_layers(entries, self.width, self.depth, self.channels, _lecun_normal, _zeros)


FIELDS: dict[str, type[nn.Module]] = {
    "pe_relu": PEReLU,
    "siren": SIREN,
    "finer": FINER,
    "diner": DINER,
}


def create_field(config: Mapping[str, Any], channels: int, rows: int) -> nn.Module:
    """The field that `config` names and sets the constants of.

    Args:
      config: `name`, one of FIELDS, and that module's constants.
      channels: outputs of the field.
      rows: voxels times frames of the grid; only DINER's table depends on it.

    Raises:
      ValueError: for a name that is not in FIELDS.
    """
    constants = dict(config)
    name = constants.pop("name")
    if name not in FIELDS:
        raise ValueError(f"unknown field {name!r}; there are {', '.join(FIELDS)}.")
    module = FIELDS[name]
    if module.on_grid:
        constants["rows"] = rows
    return module(channels=channels, **constants)


def init_params(field: nn.Module, key: Key[Array, ""], axes: int) -> Params:
    """Fresh parameters of a field over `axes` coordinates. A longer DINER table starts with the
    same rows: padding a patient's grid does not change its initial values."""
    inputs = jnp.zeros(1, jnp.int32) if field.on_grid else jnp.zeros((1, axes))
    return field.init(key, inputs)


def evaluate(
    field: nn.Module, params: Params, index: Int[Array, " points"], shape: Int[Array, " axes"]
) -> Float[Array, "points channels"]:
    """The field's raw outputs at voxels of a grid of `shape`."""
    return field.apply(params, field_inputs(field, index, shape))


def field_inputs(field: nn.Module, index: Int[Array, " points"], shape: Int[Array, " axes"]):
    """What the field takes for a voxel: its flat index (DINER) or its coordinates."""
    return index if field.on_grid else index_to_coords(index, shape)


def render(
    field: nn.Module,
    params: Params,
    shape: Int[Array, " axes"],
    num_points: int,
    stop: Int[Array, ""],
    block: int = 8192,
) -> Float[Array, "num_points channels"]:
    """Raw outputs at the flat indices below `stop`, asked in blocks; 0 or padding beyond.

    `num_points` is the length of the result and static; `stop` is not, so that one program
    serves any number of frames.
    """

    def fill(i, outputs):
        index = i * block + jnp.arange(block)
        return jax.lax.dynamic_update_slice(
            outputs, evaluate(field, params, index, shape), (i * block, 0)
        )

    padded = -(-num_points // block) * block
    outputs = jnp.zeros((padded, field.channels))
    return jax.lax.fori_loop(0, -(-stop // block), fill, outputs)[:num_points]


def grow_output(params: Params, fresh: Params) -> Params:
    """`params` with the output layer of `fresh` beyond the channels that it has.

    Args:
      params: parameters of a field with fewer output channels.
      fresh: newly initialised parameters of the same field with more.

    Returns:
      The parameters of the larger field: every hidden layer, the table and the old channels as in
      `params`, so the old outputs do not change; the new channels as in `fresh`.
    """

    def widen(old, new):
        return jnp.concatenate([old, new[..., old.shape[-1] :]], axis=-1)

    old, new = params["params"], fresh["params"]
    return {"params": old | {"output": jax.tree.map(widen, old["output"], new["output"])}}


def num_output_channels(params: Params) -> int:
    """Output channels of the field that has these parameters."""
    return params["params"]["output"]["bias"].shape[-1]


def field_of(field: nn.Module, params: Params) -> nn.Module:
    """`field` with as many output channels as `params` have: what it was before it grew."""
    return field.clone(channels=num_output_channels(params))


def resize_table(params: Params, rows: int) -> Params:
    """DINER's parameters with the table cut, or padded with zeros, to `rows`; others unchanged."""
    if "table" not in params["params"]:
        return params
    table = params["params"]["table"][:rows]
    padded = jnp.pad(table, ((0, rows - table.shape[0]), (0, 0)))
    return {"params": params["params"] | {"table": padded}}


def table_window(
    field: nn.Module, params: Params, start: Int[Array, ""], rows: int
) -> tuple[nn.Module, Params]:
    """DINER with `rows` of its table alone, from `start` on, which its indices then count from."""
    table = jax.lax.dynamic_slice_in_dim(params["params"]["table"], start, rows)
    return field.clone(rows=rows), {"params": params["params"] | {"table": table}}


def replace_window(params: Params, window: Params, start: Int[Array, ""]) -> Params:
    """`params` with what became of a `table_window` in its place."""
    table = params["params"]["table"]
    table = jax.lax.dynamic_update_slice_in_dim(table, window["params"]["table"], start, axis=0)
    return {"params": window["params"] | {"table": table}}


def num_parameters(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
