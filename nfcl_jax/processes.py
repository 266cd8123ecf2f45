"""Several processes at one run, each with patients of its own, as `jax.distributed` starts them.

Nothing here is asked while a device works: processes meet between tasks, to tell each other rows of
results and what went wrong. What one of them raises all of them raise, so that none waits for
another in vain.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nfcl_jax.errors import OtherProcessError, RunError, Stopped

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index()


def own(items: Sequence[T]) -> list[T]:
    """This process's share: every n-th of what all processes have in the same order."""
    return list(items[index() :: count()])


def gathered(value: Any) -> list[Any]:
    """What each process has, in their order, as JSON gives it back.

    Raises:
      RunError: if another process has ended.
    """
    if count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    try:
        sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32))
        padded = np.pad(data, (0, int(sizes.max()) - len(data)))
        everyone = multihost_utils.process_allgather(padded)
    except jax.errors.JaxRuntimeError as error:
        raise RunError(
            "another process has ended; its own output says why. What was saved stays, and the "
            "same command goes on."
        ) from error
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(np.asarray(everyone), np.asarray(sizes).ravel(), strict=True)
    ]


def jointly(
    work: Callable[[], T],
    place: Path | None = None,
    meanwhile: Callable[[], Any] = lambda: None,
) -> T:
    """What `work` gives here, once every process has done its own. Where that may take some of them
    half an hour longer than others, `place` is a folder of all, where they wait: Gloo, by which
    CPUs talk, waits no longer. `meanwhile` is called while this one waits there.

    Raises:
      Whatever `work` raises here; OtherProcessError if it failed in another process; Stopped if
      another one was stopped.
    """
    if count() == 1:
        return work()
    result, raised, told = None, None, {}
    try:
        result = work()
    except Stopped as stop:
        raised, told = stop, {"stopped": stop.number}
    except Exception as error:
        raised, told = error, {"error": f"{type(error).__name__}: {error}"}
    if place:
        _wait_at(place, meanwhile)
    try:
        everyone = gathered(told)
    except RunError as ended:
        raise (raised or ended) from ended
    if raised:
        raised.of_all = True
        raise raised
    for number, other in enumerate(everyone):
        if "error" in other:
            raise OtherProcessError(f"process {number}: {other['error']}")
    for other in everyone:
        if other:
            raise Stopped(other["stopped"])
    return result


def is_of_all(error: Exception) -> bool:
    """Whether every process raises it, at the same place: they can go on together."""
    return count() == 1 or getattr(error, "of_all", False)


def _wait_at(place: Path, meanwhile: Callable[[], Any]) -> None:
    """Waits until every process is here; JAX ends this one if another dies meanwhile."""
    place.mkdir(parents=True, exist_ok=True)
    (place / str(index())).touch()
    while len(list(place.iterdir())) < count():
        meanwhile()
        time.sleep(0.2)


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, the only one that does it, as JSON gives it back.

    Raises:
      As `jointly`.
    """
    if count() == 1:
        return work()
    result = jointly(lambda: work() if index() == 0 else None)
    return gathered(result)[0]
