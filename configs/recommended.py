"""What forgets least with no earlier data kept, as found on real patients: docs/strategies.md."""

from typing import NamedTuple

from configs import paper


class Recipe(NamedTuple):
    """Of a field that takes coordinates.

    Attributes:
      muon_rate: in the first task.
      later_factor: what it and Adam's rate are multiplied by from the second frame on.
      time_scale: of the frames.
      weight: of distillation while frames are learned.
      mask_weight: and while a mask is.
    """

    muon_rate: float
    later_factor: float
    time_scale: float
    weight: int
    mask_weight: int


RECIPES = {
    "pe_relu": Recipe(2e-2, 0.1, 1.0, 4, 200),
    "siren": Recipe(3.5e-3, 0.22, 0.1, 7, 2000),
    "finer": Recipe(5e-3, 0.13, 0.1, 10, 2000),
}


def get_config():
    config = paper.get_config()
    config.strategies = ",".join(paper.METHOD)
    words = ["*:schedule=cosine", "*:warmup_steps=50", "diner:keep_optimiser=True"]
    for field, own in RECIPES.items():
        words += [
            f"{field}:muon_rate={own.muon_rate}",
            f"{field}:learning_rate=2e-3",
            f"{field}:batch_size=3456",  # fewer, to pay for what Muon costs
            f"domain*-{field}-*:later_factor={own.later_factor}",
            f"domain*-{field}-*:field.time_scale={own.time_scale}",
        ]
    for strategy in ("distillation", "joint"):  # joint training is then its mark
        words.append(f"domain*-diner-{strategy}-*:{strategy}.weight=4")
        for field, own in RECIPES.items():
            words += [
                f"domain*-{field}-{strategy}-*:{strategy}.weight={own.weight}",
                f"signal*-{field}-{strategy}-*:{strategy}.weight={own.mask_weight}",
            ]
    config.overrides = ",".join(words)
    return config
