"""Parameters: rendering, growing, tables of a scan's own size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from test_fields import GRID, ROWS, all_fields, make

from nfcl_jax.params import (
    evaluate,
    field_of,
    grow_output,
    looked_up,
    num_output_channels,
    pad_output,
    render,
    resize_tables,
    separate_classes,
)


@all_fields
def test_growing_the_output_leaves_the_image_as_it_was(name):
    field, params = make(name, channels=1)
    larger, fresh = make(name, channels=5, seed=1)
    grown = grow_output(params, fresh)
    index = jnp.arange(0, ROWS, 3)
    before, after = evaluate(field, params, index, GRID), evaluate(larger, grown, index, GRID)
    np.testing.assert_allclose(after[:, :1], before, rtol=1e-5, atol=1e-6)
    new = grown["params"]["output"]["kernel"][:, 1:]
    np.testing.assert_array_equal(new, fresh["params"]["output"]["kernel"][:, 1:])
    assert np.std(new) > 0


@all_fields
def test_rendering_in_blocks_is_asking_everywhere(name):
    field, params = make(name, channels=2)
    whole = evaluate(field, params, jnp.arange(ROWS), GRID)
    rendered = render(field, params, GRID, ROWS, jnp.int32(250), block=64)
    np.testing.assert_allclose(rendered[:250], whole[:250], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rendered[256:], 0)


def test_resizing_tables_keeps_their_rows_and_nothing_else_changes():
    _, params = make("diner")
    basis = {"table": jnp.ones((3, ROWS, 1)), "weight": jnp.float32(2)}
    longer, wider = resize_tables((params, basis), ROWS + 10)
    np.testing.assert_array_equal(longer["params"]["table"][ROWS:], 0)
    assert wider["table"].shape == (3, ROWS + 10, 1)
    again = resize_tables((longer, wider), ROWS)
    jax.tree.map(np.testing.assert_array_equal, again, (params, basis))
    siren = make("siren")[1]
    jax.tree.map(np.testing.assert_array_equal, resize_tables(siren, 7), siren)


def table_of(*entries):
    table = np.array(entries, np.float32).reshape(-1, 1)
    return {"params": {"table": table, "output": {"bias": np.zeros(5, np.float32)}}}


def test_each_class_but_the_largest_has_entries_beyond_all_others_in_the_same_order():
    rng = np.random.default_rng(0)
    before = rng.uniform(-0.4, 0.5, 3 * 200).astype(np.float32)
    params, classes = table_of(*before), rng.choice(4, (3, 10, 10, 2), p=[0.2, 0.5, 0.2, 0.1])
    classes[[0, 2]] = 3  # as if a mask of frames that are not taught said something
    moved = separate_classes(params, [1], classes.astype(np.uint8))
    np.testing.assert_array_equal(params["params"]["table"][:, 0], before)
    assert moved["params"]["output"] is params["params"]["output"]
    frames = moved["params"]["table"].reshape(3, -1)
    np.testing.assert_array_equal(frames[[0, 2]], before.reshape(3, -1)[[0, 2]])
    own, old, classes = frames[1], before.reshape(3, -1)[1], classes[1].ravel()
    np.testing.assert_array_equal(own[classes == 1], old[classes == 1])
    for label in (0, 2, 3):
        same = own[classes == label] - old[classes == label]
        np.testing.assert_allclose(same, same[0], atol=1e-6)
    spans = {
        label: (own[classes == label].min(), own[classes == label].max()) for label in (0, 2, 3)
    }
    others = before.min(), before.max()
    in_order = [spans[2], others, spans[0], spans[3]]
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(in_order)]
    np.testing.assert_allclose(gaps, 0.1 * np.ptp(old), rtol=1e-5)


def test_entries_that_would_lie_too_far_from_the_kinks_stay():
    entries = np.tile(np.linspace(-0.5, 0.5, 30), 20)
    classes = np.repeat(np.arange(20), 30)
    for number, stays in ((8, False), (20, True)):
        own = np.where(classes < number, classes, 0).reshape(1, 60, 10, 1)
        params = table_of(*entries)
        moved = separate_classes(params, [0], own)
        assert (moved is params) == stays


@all_fields
def test_padding_the_output_adds_zeros_alone(name):
    field, params = make(name, channels=2)
    padded = pad_output(params, 5)
    assert num_output_channels(padded) == field_of(field, padded).channels == 5
    index = jnp.arange(0, ROWS, 7)
    outputs = evaluate(field_of(field, padded), padded, index, GRID)
    np.testing.assert_array_equal(outputs[:, 2:], 0)
    np.testing.assert_allclose(
        outputs[:, :2], evaluate(field, params, index, GRID), rtol=1e-5, atol=1e-6
    )


@all_fields
def test_a_field_of_some_voxels_answers_there_as_the_whole_one(name):
    field, params = make(name)
    index = jnp.array([3, 300, 3, 77])
    small, own, inputs = looked_up(field, params, index, GRID)
    answers = small.apply(own, inputs)
    np.testing.assert_allclose(answers, evaluate(field, params, index, GRID), rtol=1e-6)
    if name == "diner":
        assert own["params"]["table"].shape == (4, 1)
