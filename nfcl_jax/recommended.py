"""The steps that forget least, as found on real patients: docs/strategies.md."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """Of a field that takes coordinates.

    Attributes:
      learning_rate, muon_rate: where an image is new.
      later_factor: what both are multiplied by in a later task without a new head.
      mask_later_factor: the same in one with a new mask, but no new image.
      time_scale: of the frames.
      weight: of distillation while frames are learned.
      mask_weight: and while a mask is.
      scale: of the field's axes, if it has one: PEReLU says why.
    """

    learning_rate: float
    muon_rate: float
    later_factor: float
    mask_later_factor: float
    time_scale: float
    weight: int
    mask_weight: int
    scale: float | None = None


RECIPES = {
    "pe_relu": Recipe(8e-3, 5.5e-3, 2.0, 3.0, 1.0, 12, 200, scale=0.95),
    "siren": Recipe(2e-3, 3.5e-3, 0.22, 0.22, 0.1, 8, 2000),
    "finer": Recipe(1e-3, 5e-3, 0.16, 0.4, 0.1, 13, 700),
}
RATES = ("learning_rate", "muon_rate", "later_factor", "mask_later_factor")
DINER_WEIGHT, DINER_MASK_WEIGHT = 4, 10
SCHEDULE = {"schedule": "cosine", "warmup_steps": 50}
DINER = {"keep_optimiser": True}
# Penalties on parameters: they would outweigh a smaller loss of masks, and move entries back.
HELD = ("ewc", "mas")
# Fewer points, to pay for what Muon costs; in passes, which leave no voxel out.
COORDINATES = {"batch_size": 3456, "in_passes": True}


def recommended(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a table of scans with the recipe of its field, if there is one. Images and
    masks are learned in any order, so it is the masks' loss that is weighed, by the ratio of the
    two weights."""
    config = copy.deepcopy(dict(config)) | SCHEDULE
    own = RECIPES.get(config["field"]["name"])
    weight, mask_weight = DINER_WEIGHT, DINER_MASK_WEIGHT
    if own:
        config |= COORDINATES | {name: getattr(own, name) for name in RATES}
        config["field"]["time_scale"] = own.time_scale
        if own.scale:
            config["field"]["scale"] = own.scale
        weight, mask_weight = own.weight, own.mask_weight
    elif config["field"]["name"] == "diner":
        config |= DINER
        config["field"]["separate_classes"] = config["strategy"] not in HELD
    else:
        return config
    if config["strategy"] not in HELD:
        config["mask_factor"] = weight / mask_weight
    if config["strategy"] in ("distillation", "joint", "replay"):
        config[config["strategy"]]["weight"] = float(weight)
    return config
