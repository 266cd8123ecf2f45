"""What keeps a run's folder whole: one process at a time, and a stop that loses nothing."""

import contextlib
import fcntl
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from nfcl_jax.errors import ConfigError
from nfcl_jax.storage import LOCK, remove_parts

log = logging.getLogger("nfcl_jax")


class Stopped(BaseException):
    """A signal ended the work, and everything is saved. Not an Exception, so that no cell of a
    grid takes it for a fault of its own."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of `workdir`. The lock is the operating system's: it goes with the
    process, however that ends.

    Raises:
      ConfigError: if another process is at work there, or a link leads out.
    """
    refuse_links_out(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{workdir}: {file.read() or 'another process'} is at work here; wait for it, or "
                "choose another --workdir."
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): let no other process work there", workdir, error)
        with contextlib.suppress(OSError):  # a full disk is told of where it matters
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        remove_parts(workdir)
        yield


def refuse_links_out(workdir: Path) -> None:
    """Raises ConfigError if a link below `workdir` leads out of it: a folder from somebody else
    could have us write over any file of ours."""
    for folder, folders, files in os.walk(workdir):
        for path in (Path(folder, name) for name in folders + files):
            target = Path(os.path.realpath(path))  # which a link to itself does not stop
            if path.is_symlink() and not target.is_relative_to(os.path.realpath(workdir)):
                raise ConfigError(
                    f"{path}: a link to {target}, out of --workdir; move what it leads to "
                    "here, or remove it."
                )


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], int | None]]:
    """Gives a function that tells which signal, SIGTERM or that of Ctrl-C, has asked to stop. The
    same signal again ends the process at once."""
    asked: list[int] = []
    before = {}

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, before[number])
        log.warning("%s: saving, then stopping", signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
