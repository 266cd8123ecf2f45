"""What a value of a config may be. Each field and strategy states its own."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Check(NamedTuple):
    """Whether a value is good, and in words what a good one is."""

    good: Callable[[Any], bool]
    wanted: str


POSITIVE = Check(lambda x: 0 < x < float("inf"), "positive")
NOT_NEGATIVE = Check(lambda x: 0 <= x < float("inf"), "at least 0")
FRACTION = Check(lambda x: 0 < x <= 1, "above 0 and at most 1")
AT_LEAST_1 = Check(lambda x: x >= 1, "at least 1")


def split_words(words: str) -> list[str]:
    """The words between the commas of a flag; a comma too many leaves an empty one."""
    return [word.strip() for word in words.split(",")] if words.strip() else []


def one_of(values) -> Check:
    """A check that a value is one of `values`."""
    return Check(lambda x: x in values, f"one of {', '.join(map(repr, values))}")
