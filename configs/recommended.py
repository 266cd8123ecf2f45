"""What forgets least with no earlier data kept, as found on real patients: docs/strategies.md."""

from configs import paper
from nfcl_jax.recommended import COORDINATES, DINER, DINER_WEIGHT, HELD, RATES, RECIPES, SCHEDULE
from nfcl_jax.strategies import STRATEGIES


def classes_apart(scenario: str) -> list[str]:
    """Overrides for DINER in scenarios of this name's beginning."""
    may = [name for name in STRATEGIES if name not in HELD]
    return [f"{scenario}*-diner-{name}*:field.separate_classes=True" for name in may]


def get_config():
    config = paper.get_config()
    config.strategies = ",".join(paper.METHOD)
    words = [f"*:{name}={value}" for name, value in SCHEDULE.items()]
    words += [f"diner:{name}={value}" for name, value in DINER.items()]
    words += classes_apart("signal")
    for field, own in RECIPES.items():
        words += [
            *(f"{field}:{name}={value}" for name, value in COORDINATES.items()),
            *(f"{field}:{name}={getattr(own, name)}" for name in RATES),
            f"domain*-{field}-*:field.time_scale={own.time_scale}",
            *([f"{field}:field.scale={own.scale}"] if own.scale else []),
        ]
    for strategy in ("distillation", "joint", "replay"):  # true values weigh what answers do
        words.append(f"domain*-diner-{strategy}-*:{strategy}.weight={DINER_WEIGHT}")
        for field, own in RECIPES.items():
            words += [
                f"domain*-{field}-{strategy}-*:{strategy}.weight={own.weight}",
                f"signal*-{field}-{strategy}-*:{strategy}.weight={own.mask_weight}",
            ]
    config.overrides = ",".join(words)
    return config
