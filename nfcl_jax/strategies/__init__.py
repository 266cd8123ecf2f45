"""What keeps a field from forgetting; see `base`. A strategy is added by an entry in STRATEGIES."""

import inspect
from collections.abc import Mapping
from typing import Any

from nfcl_jax.errors import look_up
from nfcl_jax.scenarios import Scenario
from nfcl_jax.strategies import distillation, ewc, mas, ogd, replay
from nfcl_jax.strategies.base import Strategy, StrategyKind

FINETUNE = Strategy()

STRATEGIES: dict[str, StrategyKind] = {
    "finetune": StrategyKind("fine-tuned", lambda: FINETUNE),  # the paper's baseline
    "distillation": distillation.KIND,
    "joint": replay.JOINT,
    "replay": replay.REPLAY,
    "ewc": ewc.KIND,
    "mas": mas.KIND,
    "ogd": ogd.KIND,
}


def strategy_title(name: str) -> str:
    """What tables call the strategy, or its name if there is none of that name here."""
    return STRATEGIES[name].title if name in STRATEGIES else name


def constants(name: str, scenario: Scenario | None = None) -> dict[str, Any]:
    """The constants of a strategy with their defaults, in a scenario if one is given, as a config
    holds them.

    Raises:
      ValueError: if there is no strategy of that name.
    """
    own = inspect.signature(look_up(STRATEGIES, "strategy", name).make).parameters
    special = scenario.strategies.get(name, {}) if scenario else {}
    return {k: p.default for k, p in own.items()} | dict(special)


def create_strategy(name: str, given: Mapping[str, Any]) -> Strategy:
    """The strategy of that name with its constants.

    Raises:
      ValueError: if there is no strategy of that name.
    """
    return look_up(STRATEGIES, "strategy", name).make(**given)
