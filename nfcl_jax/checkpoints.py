"""What a task left, on disk: one Orbax checkpoint per task, with unpadded arrays of each scan.

The layout is {patient: {image: {"params": ..., "strategy": ...}}} of numpy arrays, so that a
checkpoint opens on any number of devices, without the code that made it, and one patient's part
without the others'; "strategy" is the strategy's state, where it has one, with Adam's moments,
where they are kept. The run's config, its scans and the task's number go in as custom metadata, so
that it explains itself.
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from nfcl_jax import processes
from nfcl_jax.errors import CheckpointError, first_line
from nfcl_jax.fields import Params
from nfcl_jax.parts import FORMAT, STATE, load_part, read_part, remove_unfinished, save_part
from nfcl_jax.records import Learned

# Of a large cohort a checkpoint is a folder of several, part_1 and so on: Orbax takes a checkpoint
# as a whole, and more than twice its size of memory.
PART_BYTES = 2**27


def checkpoint_path(workdir: str | Path, task: int) -> Path:
    """Where the checkpoint after task `task` (from 1) lies; absolute, as Orbax demands."""
    return Path(workdir).absolute() / "checkpoints" / f"task_{task}"


def save(
    workdir: str | Path, task: int, learned: Mapping[str, Learned], metadata: dict[str, Any]
) -> None:
    """Writes what a task left, whole or not at all. Where there are several processes, all of them
    take part, each with the same arguments.

    Args:
      workdir: the run's folder.
      task: the task's number, from 1.
      learned: by the scan's name, "patient001/cine"; no more than a part is asked for at once.
      metadata: anything that JSON can hold; `task` and `format` are added.

    Raises:
      CheckpointError: if it cannot be written.
    """
    path = checkpoint_path(workdir, task)
    unfinished = path.with_name(f"{path.name}.unfinished")
    about = metadata | {"task": task, "format": FORMAT}
    try:
        processes.on_first(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        part, rest = _next_part(learned, list(learned))
        if not rest:
            return save_part(path, part, about)
        for number in itertools.count(1):
            save_part(unfinished / f"part_{number}", part, about)
            if not rest:
                break
            part, rest = _next_part(learned, rest)
        processes.on_first(lambda: os.rename(unfinished, path))
    except Exception as error:  # of any kind, such as that of a full disk
        remove_unfinished(path)
        raise CheckpointError(f"{path}: could not be saved ({first_line(error)}).") from error


def _next_part(
    learned: Mapping[str, Learned], names: list[str]
) -> tuple[dict[str, Learned], list[str]]:
    """As much of what was learned as fits a part, and the names of the rest."""
    part, size = {}, 0
    for name in names:
        own = learned[name]
        size += sum(leaf.nbytes for leaf in jax.tree.leaves(own))
        if part and size > PART_BYTES:
            break
        part[name] = own
    return part, names[len(part) :]


class Stored(NamedTuple):
    """What is known of a checkpoint before its arrays are read.

    Attributes:
      about: `save`'s metadata, and a digest of each scan's arrays.
      parts: where its arrays are, and shapes and types of those, by patient and image.
    """

    about: dict[str, Any]
    parts: dict[Path, dict[str, Any]]

    @property
    def digests(self) -> dict[str, str]:
        """By the scan's name; early runs have none."""
        return self.about.get("digests", {})

    def places(self) -> dict[str, Path]:
        """The part of each scan, by the scan's name."""
        return {
            f"{patient}/{image}": part
            for part, shapes in self.parts.items()
            for patient, images in shapes.items()
            for image in images
        }


def load_metadata(workdir: str | Path, task: int) -> dict[str, Any]:
    """What `save` was given as metadata.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      CheckpointError: if it was written in another format, or is damaged.
    """
    return read_metadata(workdir, task).about


def load(
    workdir: str | Path,
    task: int,
    patient: str,
    image: str,
    like: Params | None = None,
    stored: Stored | None = None,
) -> Params:
    """One scan's parameters after a task, as numpy arrays; nothing else is read.

    Args:
      workdir: the run's folder.
      task: the task's number, from 1.
      patient: the scan's.
      image: likewise.
      like: shapes and types that they must have; None takes any.
      stored: of `read_metadata`, which is read where there is none.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
      KeyError: if the checkpoint does not have that patient and image.
    """
    stored = stored or read_metadata(workdir, task)
    name, places = f"{patient}/{image}", stored.places()
    if name not in places:
        raise KeyError(f"no {name} in this checkpoint; there are {', '.join(places)}")
    params = stored.parts[places[name]][patient][image]["params"]
    wanted = {patient: {image: {"params": params}}}
    return load_part(places[name], stored.digests, wanted, {name: like})[patient][image]


def load_each(
    workdir: str | Path, task: int, like: Mapping[str, Params] = MappingProxyType({})
) -> Iterator[tuple[str, Learned]]:
    """The name of each scan, and what a task left of it, as numpy arrays; no more than a part of
    the checkpoint is read at once. `like` has shapes and types that parameters must have, by the
    same names.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
    """
    stored = read_metadata(workdir, task)
    if missing := sorted(like.keys() - stored.places().keys()):
        path = checkpoint_path(workdir, task)
        raise CheckpointError(f"{path}: damaged ({', '.join(missing)}: nothing of it).")
    for path, shapes in stored.parts.items():
        for patient, images in load_part(path, stored.digests, shapes, like).items():
            for image, own in images.items():
                learned = Learned({"params": own["params"]}, own.get(STATE, {}))
                yield f"{patient}/{image}", learned


def load_all(
    workdir: str | Path, task: int, like: Mapping[str, Params] = MappingProxyType({})
) -> dict[str, Learned]:
    """All that `load_each` gives."""
    return dict(load_each(workdir, task, like))


def finished_tasks(workdir: str | Path) -> tuple[int, ...]:
    """Numbers of the tasks that have a checkpoint in the run's folder, from 1."""
    folders = (Path(workdir) / "checkpoints").glob("task_*")
    names = [path.name for path in folders if path.is_dir()]
    numbers = [name.removeprefix("task_") for name in names]
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def num_learned(workdir: str | Path) -> int:
    """How many tasks have checkpoints without a gap, from the first on."""
    numbers = finished_tasks(workdir)
    return next(n for n in itertools.count() if n + 1 not in numbers)


def set_aside(workdir: str | Path, task: int) -> Path:
    """Renames a checkpoint, so that the task can be saved again; returns where it is now."""
    path = checkpoint_path(workdir, task)
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def read_metadata(workdir: str | Path, task: int) -> Stored:
    """What is known of a checkpoint before its arrays are read.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
    """
    path = checkpoint_path(workdir, task)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no checkpoint of task {task} here.")
    numbered = (path / f"part_{number}" for number in itertools.count(1))
    parts = [*itertools.takewhile(Path.is_dir, numbered)] or [path]
    read = {part: read_part(part, task) for part in parts}
    abouts = [own.custom_metadata for own in read.values()]
    digests = {name: own for about in abouts for name, own in about.get("digests", {}).items()}
    about = dict(abouts[0]) | ({"digests": digests} if digests else {})
    return Stored(about, {part: own.metadata for part, own in read.items()})
