"""What keeps a run's folder whole: one run at a time, and a stop that loses nothing."""

import contextlib
import fcntl
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from nfcl_jax import processes
from nfcl_jax.errors import ConfigError
from nfcl_jax.storage import LOCK, remove_parts, write_file

STOP = ".stop"  # the file by which processes at one run tell each other to stop

log = logging.getLogger("nfcl_jax")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps others out of `workdir`. The lock is the operating system's: it goes with the process,
    however that ends. Of several processes at one run the first has it for all.

    Raises:
      ConfigError: if another process is at work there, a link leads out, or it is no folder.
    """
    with contextlib.ExitStack() as held:
        processes.on_first(lambda: held.enter_context(_locked(workdir)))
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    refuse_links_out(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir}: not a folder; another --workdir would be right.")
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
        (workdir / STOP).unlink(missing_ok=True)
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
def stopping(workdir: Path) -> Iterator[Callable[[], int | None]]:
    """Gives a function that tells which signal, SIGTERM or that of Ctrl-C, has asked to stop. The
    same signal again ends the process at once. Of several processes at one run, all are told of
    a signal to one, by a file in the run's folder."""
    asked: list[int] = []
    before = {}

    def ask(number, frame):
        asked.append(number)
        signal.signal(number, before[number])
        log.warning("%s: saving, then stopping", signal.Signals(number).name)

    def of_any_process() -> int | None:
        number = asked[0] if asked else None
        if processes.count() == 1:
            return number
        if number and not (workdir / STOP).exists():
            write_file(workdir / STOP, str(number))
        with contextlib.suppress(FileNotFoundError):
            number = number or int((workdir / STOP).read_text())
        return number

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield of_any_process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
