"""What was learned of each scan, in files instead of memory: of a cohort that does not fit there,
and of one that several processes share."""

import contextlib
import io
import shutil
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nfcl_jax import processes
from nfcl_jax.errors import RunError
from nfcl_jax.parts import digest
from nfcl_jax.records import Learned
from nfcl_jax.storage import read_npz, write_file

KEPT_BYTES = 2**28  # of parameters that stay in memory between tasks, where they are no more
PATIENCE = 60.0  # seconds until a file of another machine must be seen here


class Shelf(MutableMapping[str, Learned]):
    """By the scan's name, "patient001/cine", a file each: FOLDER/patient001/cine.npz.

    Attributes:
      folder: of all processes.
      names: of everyone's scans, in the order in which they are gone through.
      expected: digests of what other processes have put here; network drives may be late.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, list(names)
        self.expected: dict[str, str] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def __getitem__(self, name: str) -> Learned:
        expected, latest = self.expected.get(name), time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(FileNotFoundError):
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
        path, buffer = self._path(name), io.BytesIO()
        path.parent.mkdir(parents=True, exist_ok=True)
        trees = jax.tree.map(np.asarray, learned._asdict())
        np.savez(buffer, **flatten_dict(trees, sep="/"))
        write_file(path, buffer.getvalue())
        self.expected.pop(name, None)

    def __delitem__(self, name: str) -> None:
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return (n for n in self.names if n in self.expected or self._path(n).exists())

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextlib.contextmanager
def memory_of(
    scan_records: Sequence[Mapping[str, Any]], workdir: Path
) -> Iterator[MutableMapping[str, Learned]]:
    """Where parameters wait between the tasks of a run: a dictionary or, where they are many or of
    several processes, a shelf in the run's folder, which is gone when the run is done."""
    there = {f"{own['patient']}/{own['image']}": own for own in scan_records if "image" in own}
    size = 4 * sum(own["parameters"] for own in there.values())
    folder = workdir / "unfinished" / "learned"
    processes.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))  # of a run that was ended
    if processes.count() == 1 and size <= KEPT_BYTES:
        yield {}
        return
    yield Shelf(folder, list(there))
    processes.on_first(lambda: shutil.rmtree(folder.parent, ignore_errors=True))


def agree(memory: MutableMapping[str, Learned], names: Sequence[str]) -> None:
    """Tells all processes what this one has put into the memory under these names."""
    if processes.count() > 1 and isinstance(memory, Shelf):
        own = {name: digest(memory[name]) for name in names if name in memory}
        for digests in processes.gathered(own):
            memory.expected |= digests
