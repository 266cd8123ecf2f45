"""What the optimiser does in each step, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FRAMES, IMAGE_AND_MASK, make_scan, params_of, recipe, train

from nfcl_jax.batch_task import BatchTask, task_arguments
from nfcl_jax.config import SCHEDULES, check_config, make_config
from nfcl_jax.errors import ConfigError
from nfcl_jax.optimiser import optimiser
from nfcl_jax.scenarios import MASK, Task, image_head, mask_head, teach

OTHER = mask_head("other mask", 5, 2)
TWO_IMAGES = (*FRAMES[:1], teach("another image", image_head(1.0, "T2", channel=1), [0]))


def rates(**changes):
    """By a gradient that is always 1: Adam then moves by its rate."""
    task = BatchTask([make_scan("patient0", (7, 8, 2))], 1, FRAMES[:1], recipe(**changes), None)
    adam = optimiser(task_arguments(task)[0])

    def step(state, _):
        update, state = adam.update(jnp.ones(()), state)
        return state, -update

    return jax.lax.scan(step, adam.init(jnp.zeros(())), length=changes["num_steps"])[1]


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_grows_and_then_stays_or_falls(warmup, schedule):
    own = rates(learning_rate=0.5, warmup_steps=warmup, schedule=schedule, num_steps=40)
    i, warmup = np.arange(40), warmup if warmup > 1 else 0  # of one step it is none
    growing = (i + 1) / max(warmup, 1)
    part = (i - warmup) / (40 - warmup)
    later = {"constant": 1, "cosine": (1 + np.cos(np.pi * part)) / 2, "exponential": 0.1**part}
    expected = 0.5 * np.where(i < warmup, growing, later[schedule])
    np.testing.assert_allclose(own, expected, atol=1e-5)


def first_update(tasks, **changes):
    """Of the last of the tasks' first step, by a gradient of small and large numbers."""
    task = BatchTask([make_scan("patient0", (7, 8, 2))], 1, tasks, recipe(**changes), None)
    shapes = {"hidden_0": (4, 6), "output": (6, 5)}
    params = {
        "params": {
            name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
            for name, shape in shapes.items()
        }
    }
    gradient = jax.tree.map(lambda leaf: 0.1 + jnp.arange(leaf.size).reshape(leaf.shape), params)
    change = optimiser(task_arguments(task)[0])
    return change.update(gradient, change.init(params), params)[0]["params"]


@pytest.mark.parametrize(
    ("tasks", "hidden", "output"),
    [
        (FRAMES[:2], 0.25, 0.25),
        (IMAGE_AND_MASK, 0.5, 1),
        ((*IMAGE_AND_MASK, teach("its next frame", MASK, [1])), 0.25, 0.25),
        ((IMAGE_AND_MASK[1], teach("another mask", OTHER, [0])), 0.5, 1),
        ((FRAMES[0], Task("both", (*FRAMES[1].lessons, *IMAGE_AND_MASK[1].lessons))), 0.5, 1),
        (TWO_IMAGES, 1, 1),
        ((FRAMES[0], Task("both", (*TWO_IMAGES[1].lessons, *IMAGE_AND_MASK[1].lessons))), 1, 1),
    ],
)
@pytest.mark.parametrize("muon_rate", [0.0, 0.02])
def test_rates_of_later_tasks_but_a_new_images_and_the_outputs_of_a_mask_may_be_lower(
    tasks, hidden, output, muon_rate
):
    """Than those of the same task if they were not lower."""
    whole, own = (
        first_update(tasks, later_factor=frame, mask_later_factor=mask, muon_rate=muon_rate)
        for frame, mask in ((1.0, 1.0), (0.25, 0.5))
    )
    for layer, factor in (("hidden_0", hidden), ("output", output)):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(own[layer][name], factor * whole[layer][name], rtol=1e-4)


@pytest.mark.parametrize("tasks", [FRAMES[:1], FRAMES[:2], IMAGE_AND_MASK, TWO_IMAGES])
def test_the_outputs_of_a_new_mask_are_adams_beside_muon(tasks):
    """Adam's first step is as long for every number, with Nesterov's momentum (Dozat, 2016)
    1 + 0.9 * 0.1 / (1 - 0.9^2) times the rate; Muon's is not."""
    update = first_update(tasks, muon_rate=0.02)
    if tasks == IMAGE_AND_MASK:
        assert -update["output"]["kernel"][0, 0] == pytest.approx(
            1e-3 * (1 + 0.09 / 0.19), rel=1e-3
        )
    spread = {name: np.ptp(layer["kernel"]) for name, layer in update.items()}
    assert spread["hidden_0"] > 1e-3
    assert (spread["output"] < 1e-6) == (tasks == IMAGE_AND_MASK)


def test_every_task_has_the_schedule_anew():
    """The second task's last steps move nothing, its first do."""
    scan, moved = make_scan("patient0", (7, 8, 2)), []
    for steps in (1, 40):
        how = recipe(schedule="cosine", num_steps=steps)
        first, second = (params_of(r)[scan.name] for r in train([scan], FRAMES[:2], how))
        moved.append(
            max(
                jnp.abs(a - b).max()
                for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)
            )
        )
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] > 5e-3


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_muon_moves_a_matrix_by_an_orthogonal_one_and_leaves_the_rest_to_adam(name):
    """After one step: singular values near the rate, as five Newton-Schulz iterations leave them
    where the gradient has them; for biases, and DINER's table, Adam's first step with Nesterov's
    momentum (Dozat, 2016), (1 + 0.9 * 0.1 / (1 - 0.9^2)) times the rate."""
    scan, fresh = make_scan("patient0", (7, 8, 2)), {"muon_rate": 1e-12, "learning_rate": 1e-12}
    still, moved = (
        params_of(train([scan], FRAMES[:1], recipe(name, num_steps=1, **own))[0])[scan.name]
        for own in (fresh, {"muon_rate": 0.02, "learning_rate": 1e-3})
    )
    change = jax.tree.map(lambda a, b: np.asarray(a - b), moved, still)["params"]
    singular = np.linalg.svd(change["hidden_1"]["kernel"], compute_uv=False)
    assert 0.02 * 0.6 < singular.max() < 0.02 * 1.3
    if name == "siren":  # a fresh DINER's gradient has rank 1: its rows are all but the same
        assert (singular > 0.02 * 0.6).sum() >= 12
    others = [change["hidden_1"]["bias"], change["output"]["bias"]]
    if name == "diner":
        others.append(change["table"][: scan.num_voxels])
    for leaf in others:
        largest = np.abs(leaf).max()
        np.testing.assert_allclose(largest, 1e-3 * (1 + 0.09 / 0.19), rtol=0.02)


def test_moments_are_not_kept_where_there_are_others_than_adams():
    config = make_config("domain_expansion", "siren", "finetune")
    check_config(config | {"keep_optimiser": True})
    with pytest.raises(ConfigError, match=r"keep_optimiser = True needs config\.muon_rate = 0"):
        check_config(config | {"keep_optimiser": True, "muon_rate": 5e-3})
