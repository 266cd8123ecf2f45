"""Adam's rate in each step, against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FRAMES, make_scan, params_of, recipe, train

from nfcl_jax.fitting import BatchTask, task_arguments
from nfcl_jax.step import optimiser


def rates(**changes):
    """By a gradient that is always 1: Adam then moves by its rate."""
    task = BatchTask([make_scan("patient0", (7, 8, 2))], 1, FRAMES[:1], recipe(**changes), None)
    adam = optimiser(task_arguments(task)[0])

    def step(state, _):
        update, state = adam.update(jnp.ones(()), state)
        return state, -update

    return jax.lax.scan(step, adam.init(jnp.zeros(())), length=changes["num_steps"])[1]


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_rate_grows_and_then_stays_or_falls_as_a_cosine(warmup, schedule):
    own = rates(learning_rate=0.5, warmup_steps=warmup, schedule=schedule, num_steps=40)
    i = np.arange(40)
    growing = (i + 1) / max(warmup, 1)
    falling = (1 + np.cos(np.pi * (i - warmup) / (40 - warmup))) / 2
    later = falling if schedule == "cosine" else np.ones(40)
    if warmup == 1:  # a warm-up of one step is none
        later = (1 + np.cos(np.pi * i / 39)) / 2 if schedule == "cosine" else later
        warmup = 0
    expected = 0.5 * np.where(i < warmup, growing, later)
    np.testing.assert_allclose(own, expected, atol=1e-5)


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
