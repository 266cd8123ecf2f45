"""Longer sequences than the paper's, for `experiments.paper`: does forgetting compound?

    python -m experiments.paper --config=configs/long.py --config.data.root=/data/ACDC/training \\
        --workdir=runs/long
    python -m experiments.report --extend=configs/long.py --workdir=runs/long

Twelve frames of a cine, which every ACDC patient has; and a mix of both of the paper's scenarios:
the end-diastolic and the end-systolic image, then the masks of both.
"""

import functools

from configs import recommended
from nfcl_jax.scenarios import MASK, SCENARIOS, Scenario, Task, frame_by_frame, teach


def frames_then_masks(huber_delta: float) -> tuple[Task, ...]:
    return (*frame_by_frame(2, huber_delta), teach("masks", MASK, range(2)))


SCENARIOS["domain_expansion_12"] = Scenario(
    "Twelve frames, one after the other",
    ("cine",),
    functools.partial(frame_by_frame, 12),
    "Learning twelve frames in turn",
    "the earlier ones on average",
)
SCENARIOS["mixed_expansion"] = Scenario(
    "Two frames, one after the other, then their masks",
    ("phases",),
    frames_then_masks,
    "Learning two frames and their masks",
    "the frames on average",
    {name: {"weight": 10.0} for name in ("distillation", "joint", "replay")},
)


def get_config():
    config = recommended.get_config()
    config.scenarios = "domain_expansion_12,mixed_expansion"
    config.fields = "siren,diner"
    config.overrides = ",".join([config.overrides, *recommended.classes_apart("mixed")])
    return config
