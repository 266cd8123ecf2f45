import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax.fields import FIELDS, checks, constants, create_field, init_params
from nfcl_jax.params import evaluate, num_parameters
from nfcl_jax.points import VoxelGrid

SHAPE = (4, 5, 6, 3)
GRID = VoxelGrid(jnp.array(SHAPE))
ROWS = 4 * 5 * 6 * 3
CONSTANTS = {
    "pe_relu": {"num_frequencies": 10},
    "siren": {"w0": 15.0},
    "finer": {"w0": 5.0},
    "diner": {},
}
all_fields = pytest.mark.parametrize("name", FIELDS)


def make(name, channels=1, seed=0, **constants):
    field = create_field({"name": name, **CONSTANTS[name], **constants}, channels, ROWS)
    return field, init_params(field, jax.random.key(seed), axes=4)


def numpy_layers(params, x, activation):
    layers = {name: (np.float64(p["kernel"]), np.float64(p["bias"])) for name, p in params.items()}
    for i in range(len(layers) - 1):
        kernel, bias = layers[f"hidden_{i}"]
        x = activation(x @ kernel + bias)
    kernel, bias = layers["output"]
    return x @ kernel + bias


def numpy_field(name, params, index):
    """Each field's equation, independently, in float64."""
    params = dict(params["params"])
    axes = np.stack(np.unravel_index(index, SHAPE), axis=-1)[:, [1, 2, 3, 0]]
    coords = 2 * axes / (np.array(SHAPE)[[1, 2, 3, 0]] - 1) - 1
    if name == "siren":
        return numpy_layers(params, coords, lambda z: np.sin(15 * z))
    if name == "finer":
        return numpy_layers(params, coords, lambda z: np.sin(5 * (abs(z) + 1) * z))
    if name == "diner":
        entries = np.float64(params.pop("table"))[index]
        return numpy_layers(params, entries, lambda z: np.maximum(z, 0))
    # All sines first, then all cosines; within each, coordinate by coordinate.
    angles = (coords[:, :, None] * np.pi * 2.0 ** np.arange(10)).reshape(len(index), -1)
    encoded = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return numpy_layers(params, encoded, lambda z: np.maximum(z, 0))


@all_fields
@pytest.mark.parametrize("channels", [1, 5])
def test_output_is_the_fields_equation(name, channels):
    field, params = make(name, channels)
    if name == "diner":  # as after training: entries of a size that the layers can tell apart
        params = {"params": params["params"] | {"table": params["params"]["table"] * 1e4}}
    index = np.arange(0, ROWS, 7)
    actual = evaluate(field, params, jnp.asarray(index), GRID)
    np.testing.assert_allclose(actual, numpy_field(name, params, index), rtol=1e-4, atol=2e-4)


@all_fields
def test_gradient_agrees_with_finite_differences(name):
    field, params = make(name, 2, **({"detach_scale": False} if name == "finer" else {}))
    params["params"]["output"]["bias"] = jnp.array([0.3, -0.2])
    if name == "diner":  # entries as after training: a step across a kink would spoil the quotient
        params["params"]["table"] *= 1e4
    index = jnp.arange(0, ROWS, 50)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

        def loss(params):
            return jnp.sum(evaluate(field, params, index, GRID).astype(jnp.float64) ** 2)

        gradient = jax.grad(loss)(params)
        rng = np.random.default_rng(1)
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        step = 1e-6

        def moved(sign):
            return loss(jax.tree.map(lambda p, d: p + sign * step * d, params, direction))

        numeric = (moved(1) - moved(-1)) / (2 * step)
        analytic = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(analytic, numeric, rtol=1e-3)


def test_the_positional_encoding_cannot_tell_the_two_ends_of_an_axis_apart():
    """sin(2^k pi x) is 0 and cos(2^k pi x) the same at x = -1 and 1: to PE-ReLU, as the paper has
    it, the first and the last frame are one, and so are the first and the last slice, unless its
    scale is below 1 (docs/reproduction.md)."""
    inside, axes = jnp.tile(jnp.array([0.3, -0.2, 0.6, 0.1]), (4, 1)), jnp.arange(4)
    first, last = (inside.at[axes, axes].set(end) for end in (-1.0, 1.0))
    for name, own, expected in (
        ("pe_relu", {}, True),
        ("pe_relu", {"scale": 0.95}, False),
        ("siren", {}, False),
    ):
        field, params = make(name, **own)
        change = jnp.abs(field.apply(params, first) - field.apply(params, last)).max(axis=1)
        assert ((change < 1e-4) == expected).all()


def test_finers_scale_is_detached_by_default_and_only_the_gradient_knows():
    params = make("finer")[1]
    index = jnp.arange(0, ROWS, 11)
    fields = [make("finer", detach_scale=detach)[0] for detach in (True, False)]
    outputs = [evaluate(field, params, index, GRID) for field in fields]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    norms = []
    for field in fields:
        gradient = jax.grad(lambda p, f=field: jnp.sum(evaluate(f, p, index, GRID) ** 2))(params)
        norms.append(np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))))
    assert make("finer")[0].detach_scale
    assert 0.5 < norms[0] / norms[1] < 0.95


def bounds(params, layer, kind):
    return np.abs(params["params"][layer][kind]).max()


@pytest.mark.parametrize(("name", "w0"), [("siren", 15.0), ("finer", 5.0)])
def test_sine_fields_are_initialised_by_sirens_rule(name, w0):
    _, params = make(name, channels=64)
    assert 0.95 * 0.25 < bounds(params, "hidden_0", "kernel") <= 0.25
    assert 0.95 * 0.5 < bounds(params, "hidden_0", "bias") <= 0.5
    for layer in ("hidden_1", "hidden_2", "output"):
        bound = np.sqrt(6 / 256) / w0
        assert 0.99 * bound < bounds(params, layer, "kernel") <= bound
        assert 0.9 / 16 < bounds(params, layer, "bias") <= 1 / 16


@pytest.mark.parametrize("name", ["pe_relu", "siren", "finer"])
def test_a_scaled_time_is_that_of_the_unscaled_field(name):
    coords = jax.random.uniform(jax.random.key(1), (50, 4), minval=-1, maxval=1)
    field, params = make(name)
    scaled = field.clone(time_scale=0.25)
    nearer = coords.at[:, 3].multiply(0.25)
    np.testing.assert_array_equal(scaled.apply(params, coords), field.apply(params, nearer))
    assert (scaled.apply(params, coords) != field.apply(params, coords)).any()
    space, of_space = coords[:, :3], init_params(field, jax.random.key(0), axes=3)
    np.testing.assert_array_equal(scaled.apply(of_space, space), field.apply(of_space, space))


def test_finers_first_bias_can_be_widened():
    _, params = make("finer", first_bias=5.0)
    assert 4.5 < bounds(params, "hidden_0", "bias") <= 5.0
    assert bounds(params, "hidden_1", "bias") <= 1 / 16


def test_diners_table_is_uniform_and_tiny():
    table = make("diner")[1]["params"]["table"]
    assert table.shape == (ROWS, 1)
    assert 0.95e-4 < np.abs(table).max() <= 1e-4
    np.testing.assert_allclose(np.mean(table), 0, atol=1e-5)


@pytest.mark.parametrize("features", [1, 3])
def test_a_longer_table_starts_with_the_same_rows(features):
    config = {"name": "diner", "table_features": features}
    tables = [
        init_params(create_field(config, 1, rows), jax.random.key(3), 4)["params"]["table"]
        for rows in (100, 123)
    ]
    np.testing.assert_array_equal(tables[0], tables[1][:100])


def test_off_the_grid_there_is_nothing_to_look_up():
    field, params = make("diner")
    outputs = field.apply(params, jnp.array([0, ROWS - 1, ROWS, -1]))
    np.testing.assert_array_equal(np.isnan(outputs[:, 0]), [False, False, True, True])


def test_parameter_counts():
    assert num_parameters(init_params(make("siren")[0], jax.random.key(0), axes=3)) == 132_865
    assert num_parameters(make("siren")[1]) == 133_121  # 4 -> 256 -> 256 -> 256 -> 1
    assert num_parameters(make("finer")[1]) == 133_121
    # 4 * 2 * 10 encoded inputs instead of 4; one table entry and the table.
    assert num_parameters(make("pe_relu")[1]) == 133_121 + 76 * 256
    assert num_parameters(make("diner")[1]) == 133_121 - 3 * 256 + ROWS


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'wire'.*pe_relu, siren, finer, diner"):
        create_field({"name": "wire"}, 1, ROWS)


def test_a_fields_constants_and_checks_are_those_of_its_class():
    assert constants("finer") == {
        "width": 256, "depth": 3, "time_scale": 1.0, "signed": False, "w0": 5.0,
        "detach_scale": True, "first_bias": 0.0,
    }  # fmt: skip
    own = {"table_features", "table_range", "knots", "initialisation", "separate_classes"}
    assert constants("diner").keys() == {"width", "depth"} | own
    assert checks("finer")["first_bias"].good(0.0) and not checks("finer")["w0"].good(0.0)
    for name, field in FIELDS.items():
        assert set(field.checks) <= set(constants(name))
        assert field.title and field.learning_rate > 0


@pytest.mark.parametrize("name", ["pe_relu", "siren", "finer"])
def test_a_signed_fields_layers_answer_for_intensities_in_minus_1_to_1(name):
    plain, signed = (
        create_field({"name": name, "width": 16, "signed": signed}, 2, 1)
        for signed in (False, True)
    )
    key = jax.random.key(0)
    coords = jax.random.uniform(key, (50, 3), minval=-1)
    f, own = (field.apply(init_params(plain, key, 3), coords) for field in (plain, signed))
    np.testing.assert_allclose(own, (1 + f) / 2, atol=1e-6)
