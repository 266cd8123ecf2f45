"""Errors of what a user gave, each with a message that says what is wrong and what would be right,
and the one-line account of what another library could not read."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """A config, or the folder that a run is to be made in, is wrong. Not a ValueError, which
    ml_collections would bury in a traceback."""


class AnotherRunError(ConfigError):
    """The folder holds a run of something else. `differing` has a line for each difference."""

    def __init__(self, workdir: Path, differing: Sequence[str]):
        super().__init__(
            f"{workdir}: holds a run with\n  "
            + "\n  ".join(differing)
            + "\nGo on with it by its own settings, or choose another workdir."
        )
        self.differing = differing


class DataError(ValueError):
    """Something in the data folder is missing or wrong: one line for each fault."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used."""


class ReportError(ValueError):
    """The runs cannot be reported on as they are."""


class RunError(ValueError):
    """A file in a run's folder is not what a run leaves there."""


class InactivePenaltyError(ValueError):
    """What a strategy adds to the loss, or to its gradient, is zero."""


class OtherProcessError(RuntimeError):
    """Another process of the same run has failed."""

    of_all = True  # see processes.is_of_all


class Stopped(BaseException):
    """A signal ended the work, and everything is saved. Not an Exception, so that no cell of a
    grid takes it for a fault of its own."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters, or its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def look_up(
    table: Mapping[str, Any], kind: str, name: str, error: type[Exception] = ValueError
) -> Any:
    """The entry of that name; if there is none, an error that lists what there is."""
    if name not in table:
        raise error(f"unknown {kind} {name!r}; there are {', '.join(table)}.")
    return table[name]
