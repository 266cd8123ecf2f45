"""What was learned of each scan: in memory, and in files what does not fit there, or several
processes share."""

import contextlib
import io
import shutil
import time
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nfcl_jax import processes
from nfcl_jax.errors import RunError
from nfcl_jax.parts import digest
from nfcl_jax.records import Learned
from nfcl_jax.storage import read_npz, write_file

KEPT_BYTES = 2**28  # of what was learned that stays in memory between tasks
PATIENCE = 60.0  # seconds until a file of another machine must be seen here


class Shelf(MutableMapping[str, Learned]):
    """By the scan's name, "patient001/cine": in memory, and what is more than `kept_bytes` in a
    file each, FOLDER/patient001/cine.npz.

    Attributes:
      folder: of all processes.
      names: of everyone's scans, in the order in which they are gone through.
      left: of `kept_bytes`, which of several processes are 0, so that each sees the others'.
      expected: digests of what other processes have put here; network drives may be late.
    """

    def __init__(self, folder: Path, names: Sequence[str], kept_bytes: int):
        self.folder, self.names, self.left = folder, list(names), kept_bytes
        self.kept: dict[str, Learned] = {}
        self.expected: dict[str, str] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def __getitem__(self, name: str) -> Learned:
        if name in self.kept:
            return self.kept[name]
        expected, latest = self.expected.get(name), time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(*([OSError, ValueError] if expected else [FileNotFoundError])):
                trees = unflatten_dict(read_npz(self._path(name)), sep="/")
                learned = Learned(trees["params"], trees.get("state", {}))
                if expected in (None, digest(learned)):
                    return learned
            if expected is None:
                raise KeyError(name)
            if time.monotonic() > latest:
                raise RunError(
                    f"{self._path(name)}: not what another process left there. All processes need "
                    "the same --workdir, on a drive that they share."
                )
            time.sleep(1)

    def __setitem__(self, name: str, learned: Learned) -> None:
        self._let_go(name)
        self.expected.pop(name, None)
        if (size := _bytes(learned)) <= self.left:
            self.kept[name] = learned
            self.left -= size
            return
        path, buffer = self._path(name), io.BytesIO()
        path.parent.mkdir(parents=True, exist_ok=True)
        trees = jax.tree.map(np.asarray, learned._asdict())
        np.savez(buffer, **flatten_dict(trees, sep="/"))
        write_file(path, buffer.getvalue())

    def __delitem__(self, name: str) -> None:
        if not self._let_go(name):
            self._path(name).unlink()

    def _let_go(self, name: str) -> bool:
        """Forgets what is in memory of a scan; whether there was something."""
        if there := name in self.kept:
            self.left += _bytes(self.kept.pop(name))
        return there

    def __contains__(self, name: object) -> bool:
        return name in self.kept or name in self.expected or self._path(str(name)).exists()

    def __iter__(self) -> Iterator[str]:
        return filter(self.__contains__, self.names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _bytes(learned: Learned) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(learned))


@contextlib.contextmanager
def memory_of(names: Sequence[str], workdir: Path) -> Iterator[Shelf]:
    """Where what was learned waits between the tasks of a run. Its files are in the run's folder,
    and gone when the run is done."""
    folder = workdir / "unfinished" / "learned"
    processes.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))  # of a run that was ended
    yield Shelf(folder, names, KEPT_BYTES if processes.count() == 1 else 0)
    processes.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))
    with contextlib.suppress(OSError):  # something else is there, or nothing
        folder.parent.rmdir()


def agree(memory: Shelf, names: Sequence[str]) -> None:
    """Tells all processes what this one has put into the memory under these names."""
    if processes.count() > 1:
        own = {name: digest(memory[name]) for name in names if name in memory}
        for digests in processes.gathered(own):
            memory.expected |= digests
