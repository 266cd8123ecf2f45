"""What comes out of learning a task, as plain rows and trees on the host."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from nfcl_jax.fields import Params

State = dict[str, Any]  # of a strategy: nested dictionaries of arrays


class Score(NamedTuple):
    """One score of one scan; tasks count from 1."""

    patient: str
    image: str
    trained_task: int
    evaluated_task: int
    metric: str
    value: float


class Fit(NamedTuple):
    """How one scan's fit to one task ended. `first_bad_step` is the first step, from 1, whose
    loss was not finite, or 0. The shares are those of PenaltyShare after the first chunk of steps,
    0 of fine-tuning. `curve_error` is that of the last step, see `curve.error`; 0 where the
    field itself was asked."""

    patient: str
    image: str
    task: int
    final_loss: float
    final_penalty: float
    collapsed: bool
    diverged: bool
    first_bad_step: int
    penalty_share: float = 0.0
    penalty_gradient_share: float = 0.0
    curve_error: float = 0.0


class Losses(NamedTuple):
    """Of each step: the loss on the new task, and what the strategy added to it."""

    fit: Float[Array | np.ndarray, "*steps"]
    penalty: Float[Array | np.ndarray, "*steps"]


class PenaltyShare(NamedTuple):
    """What a strategy adds to the fitting loss, and the norm of its gradient towards all
    parameters, as multiples of the fitting loss's. Of a strategy that adds nothing, both are how
    much it changes the update, relative to its norm. And whether the fitting loss moves any layer
    before the output: a field whose ReLUs have died answers a constant, and nothing reaches its
    layers."""

    loss: Any
    gradient: Any
    alive: Any = True


class Learned(NamedTuple):
    """What a task left of one scan: the field's parameters, and the strategy's state."""

    params: Params
    state: State


class TaskResult(NamedTuple):
    """What a task left, by the scans' names."""

    number: int
    learned: Mapping[str, Learned]
    scores: list[Score]
    fits: list[Fit]


class Partial(NamedTuple):
    """What one scan has of a task after `step` of its steps, on the host: all that is needed to go
    on. `learned` is as the training sees it, padded; once the scan is done with the task it is not,
    there is no state of the optimiser, and there are scores."""

    step: int
    learned: Learned | None
    optimiser: list[np.ndarray]  # leaves
    losses: Losses
    penalty_share: PenaltyShare | None
    scores: list[Score]
    fits: list[Fit]


class Progress(NamedTuple):
    """Where the work is: batch `batch` of `num_batches`, from 1, has done `step` of the steps of
    task `task`, from 1."""

    task: int
    batch: int
    num_batches: int
    scans: tuple[str, ...]
    step: int
    loss: float
