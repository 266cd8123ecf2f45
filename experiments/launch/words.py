"""What the words between the commas of a grid's flags say."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nfcl_jax import strategies
from nfcl_jax.checks import split_words
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import STRATEGIES


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that one of the patterns is for; all if there is no pattern."""
    patterns = list(patterns) or ["*"]
    return [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]


def override(cell: dict[str, Any], name: str, words: str) -> None:
    """Sets what the words of `config.overrides` that are for this cell say.

    Args:
      cell: the config of a run, which is changed.
      name: of the cell.
      words: such as "diner:field.knots=2048,signal*-distillation-*:distillation.weight=100".

    Raises:
      ConfigError: for a word that is none.
    """
    for word in split_words(words):
        pattern, _, assignment = word.partition(":")
        path, equals, value = assignment.partition("=")
        known = "*" in pattern or pattern in (*FIELDS, name)
        if known and not is_for(word, name, cell):
            continue
        *sections, key = path.split(".")
        inner: Any = cell
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        one_for_all = path.partition(".")[0] == "data"  # which is read once for the grid
        there = isinstance(inner, dict) and key in inner and not one_for_all
        if not (known and equals and there):
            if known and equals and sections and sections[0] in STRATEGIES:
                raise ConfigError(
                    f"config.overrides: {word!r}: {name} has no {path}; a pattern of its cells "
                    f"would be right, such as *-{sections[0]}-*:{assignment}."
                )
            raise ConfigError(
                f"config.overrides: {word!r} is not FIELD:NAME=VALUE with FIELD one of "
                f"{', '.join(FIELDS)}, or a pattern of cells with *, and NAME as in the config of "
                "a run, outside its data, such as diner:field.knots=2048."
            )
        try:
            inner[key] = _like(inner[key], value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.overrides: {word!r}: {error}.") from error


def is_for(word: str, name: str, cell: Mapping[str, Any]) -> bool:
    """Whether a word of `config.overrides` is for the cell: for its field, or by its name."""
    pattern = word.partition(":")[0]
    return pattern == cell["field"]["name"] or fnmatch.fnmatchcase(name, pattern)


class Word(NamedTuple):
    """A strategy of a grid, such as "ewc:weight=10@domain_expansion".

    Attributes:
      name: of the strategy.
      constants: that the word gives.
      scenario: the only one that it is used in; any if empty.
    """

    name: str
    constants: dict[str, Any]
    scenario: str


def strategies_of(words: str) -> list[Word]:
    """The strategies of a grid.

    Raises:
      ConfigError: for a word that is none.
    """
    found = []
    for word in split_words(words):
        strategy, at, scenario = word.partition("@")
        name, *pairs = strategy.split(":")
        if at and scenario not in SCENARIOS:
            raise ConfigError(
                f"config.strategies: {word!r}: one of {', '.join(SCENARIOS)} after the @ would be "
                "right."
            )
        own = strategies.constants(name) if name in STRATEGIES else {}
        constants = dict(pair.partition("=")[::2] for pair in pairs)
        if name not in STRATEGIES or not set(constants) <= set(own):
            raise ConfigError(
                f"config.strategies must be of {', '.join(STRATEGIES)}, with constants as in "
                f"distillation:weight=10, got {word!r}."
            )
        try:
            found.append(Word(name, {k: _like(own[k], v) for k, v in constants.items()}, scenario))
        except ValueError as error:
            raise ConfigError(f"config.strategies: {word!r}: {error}.") from error
    if not found:
        raise ConfigError("config.strategies names none.")
    return found


def names_of(config: Mapping[str, Any], key: str, known: Iterable[str]) -> list[str]:
    """The words of `config.KEY`, each once.

    Raises:
      ConfigError: if there is none, or one that is not known.
    """
    words = split_words(config[key])
    if not words or not set(words) <= set(known):
        raise ConfigError(f"config.{key} must be of {', '.join(known)}, got {config[key]!r}.")
    return list(dict.fromkeys(words))


def numbers_of(config: Mapping[str, Any], key: str) -> list[int]:
    """The whole numbers of `config.KEY`, each once.

    Raises:
      ConfigError: if there is none, or a word that is none.
    """
    try:
        numbers = list(dict.fromkeys(int(word) for word in split_words(config[key])))
    except ValueError:
        numbers = []
    if not numbers:
        raise ConfigError(f"config.{key} must be numbers between commas, got {config[key]!r}.")
    return numbers


def short(value: Any) -> str:
    """A constant in a cell's name."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _like(default: Any, word: str) -> Any:
    """The word as a value of the default's type.

    Raises:
      ValueError: if it is none.
    """
    if isinstance(default, bool) and word not in ("True", "False"):
        raise ValueError(f"True or False would be right, not {word!r}")
    return word == "True" if isinstance(default, bool) else type(default)(word)
