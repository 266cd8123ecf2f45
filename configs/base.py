"""The config of a run, `nfcl_jax.config.make_config`, as ml_collections has it."""

from ml_collections import ConfigDict, config_dict

from nfcl_jax.config import make_config
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS
from nfcl_jax.strategies import STRATEGIES


def get_config(scenario: str, argument: str) -> ConfigDict:
    """The config of a scenario for an argument "FIELD,STRATEGY".

    Raises:
      ConfigError: if the argument is anything else; the message lists what there is.
    """
    words = argument.split(",")
    if len(words) != 2 or words[0] not in FIELDS or words[1] not in STRATEGIES:
        raise ConfigError(
            f"expected configs/{scenario}.py:FIELD,STRATEGY with FIELD one of {', '.join(FIELDS)} "
            f"and STRATEGY one of {', '.join(STRATEGIES)}; got {argument!r}."
        )
    return as_flags(make_config(scenario, *words))


def as_flags(config: dict) -> ConfigDict:
    """A config whose fields can be set by flags, those that are None too."""
    flags = ConfigDict(config)
    flags.scans_per_batch = config_dict.placeholder(int)
    return flags
