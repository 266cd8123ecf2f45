"""What a task left, on disk: one Orbax checkpoint per task, with unpadded arrays of each scan.

The layout is {patient: {image: {"params": ..., "strategy": ...}}} of numpy arrays, so that a
checkpoint opens on any number of devices, without the code that made it, and one patient's part
without the others'; "strategy" is the strategy's state, where it has one, with Adam's moments,
where they are kept. The run's config, its scans and the task's number go in as custom metadata, so
that it explains itself.
"""

import hashlib
import itertools
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nfcl_jax.errors import CheckpointError, first_line
from nfcl_jax.fields import Params
from nfcl_jax.records import Learned
from nfcl_jax.storage import refuse_inflated

FORMAT = 1
STATE = "strategy"  # the key of a strategy's state, beside "params"


def checkpoint_path(workdir: str | Path, task: int) -> Path:
    """Where the checkpoint after task `task` (from 1) lies; absolute, as Orbax demands."""
    return Path(workdir).absolute() / "checkpoints" / f"task_{task}"


def save(
    workdir: str | Path, task: int, learned: Mapping[str, Learned], metadata: dict[str, Any]
) -> None:
    """Writes what a task left, whole or not at all.

    Args:
      workdir: the run's folder.
      task: the task's number, from 1.
      learned: by the scan's name, "patient001/cine".
      metadata: anything that JSON can hold; `task` and `format` are added.

    Raises:
      CheckpointError: if it cannot be written.
    """
    tree: dict[str, dict[str, Any]] = {}
    for name, (params, state) in learned.items():
        patient, image = name.split("/")
        both = params | ({STATE: state} if state else {})
        tree.setdefault(patient, {})[image] = jax.tree.map(np.asarray, both)
    digests = {name: digest(own.params) for name, own in learned.items()}
    digests |= {f"{name}/{STATE}": digest(own.state) for name, own in learned.items() if own.state}
    path = checkpoint_path(workdir, task)
    about = metadata | {"task": task, "format": FORMAT, "digests": digests}
    try:
        _refuse_full_disk(path, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        ocp.save(path, tree, custom_metadata=about)
    except Exception as error:  # of any kind, such as that of a full disk
        _remove_unfinished(path)
        raise CheckpointError(f"{path}: could not be saved ({first_line(error)}).") from error


def digest(tree: Any) -> str:
    """SHA-256 of the names, types, shapes and bytes of all leaves."""
    state = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        state.update(leaf.view(np.uint8).data)  # bfloat16 has no buffer of its own
    return state.hexdigest()


def load_metadata(workdir: str | Path, task: int) -> dict[str, Any]:
    """What `save` was given as metadata.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      CheckpointError: if it was written in another format, or is damaged.
    """
    return dict(read_metadata(workdir, task).custom_metadata)


def load(
    workdir: str | Path,
    task: int,
    patient: str,
    image: str,
    like: Params | None = None,
    metadata: ocp.CheckpointMetadata | None = None,
) -> Params:
    """One scan's parameters after a task, as numpy arrays; nothing else is read.

    Args:
      workdir: the run's folder.
      task: the task's number, from 1.
      patient: the scan's.
      image: likewise.
      like: shapes and types that they must have; None takes any.
      metadata: of `read_metadata`, which is read where there is none.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
      KeyError: if the checkpoint does not have that patient and image.
    """
    metadata = metadata or read_metadata(workdir, task)
    shapes = metadata.metadata
    if image not in shapes.get(patient, {}):
        known = [f"{p}/{i}" for p, images in shapes.items() for i in images]
        raise KeyError(f"no {patient}/{image} in this checkpoint; there are {', '.join(known)}")
    wanted = {patient: {image: {"params": shapes[patient][image]["params"]}}}
    return _load(workdir, task, metadata, wanted, {f"{patient}/{image}": like})[patient][image]


def load_all(
    workdir: str | Path, task: int, like: Mapping[str, Params] = MappingProxyType({})
) -> dict[str, Learned]:
    """What a task left of every scan, as numpy arrays, by the scan's name; `like` has shapes and
    types that parameters must have, by the same names.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
    """
    metadata = read_metadata(workdir, task)
    tree = _load(workdir, task, metadata, metadata.metadata, like)
    return {
        f"{patient}/{image}": Learned({"params": own["params"]}, own.get(STATE, {}))
        for patient, images in tree.items()
        for image, own in images.items()
    }


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


def _refuse_full_disk(path: Path, size: int) -> None:
    """Raises OSError if there is no room for `size` bytes; Orbax would print pages about it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f"{path.name}.part")
    try:
        with trial.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size + 2**18)  # for what describes them
    finally:
        trial.unlink(missing_ok=True)


def _remove_unfinished(path: Path) -> None:
    """Deletes what Orbax leaves of a checkpoint whose saving was interrupted."""
    for part in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(part, ignore_errors=True)


def _load(workdir, task, metadata, shapes, like):
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    path = checkpoint_path(workdir, task)
    try:
        _refuse_other_arrays(shapes, like, path)
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        with context:
            tree = ocp.load(path, wanted)
    except Exception as error:  # of any kind, as the damage may be
        raise CheckpointError(f"{path}: damaged ({first_line(error)}).") from error
    digests = metadata.custom_metadata.get("digests", {})
    for patient, images in tree.items():
        for image, own in images.items():
            name = f"{patient}/{image}"
            parts = {name: {"params": own["params"]}, f"{name}/{STATE}": own.get(STATE)}
            for part, arrays in parts.items():
                if arrays and part in digests and digests[part] != digest(arrays):
                    raise CheckpointError(f"{path}: damaged ({part}: other arrays were saved).")
    return tree


def _refuse_other_arrays(shapes, like: Mapping[str, Params | None], path: Path) -> None:
    """Raises ValueError unless a checkpoint claims the shapes and types that it must have, and no
    more than can be in its files."""
    refuse_inflated(
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        sum(file.stat().st_size for file in path.rglob("*")),
    )
    for name, params in like.items():
        patient, image = name.split("/")
        found = {"params": shapes.get(patient, {}).get(image, {}).get("params")}
        both = [jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", p) for p in (found, params)]
        if params is not None and both[0] != both[1]:
            raise ValueError(f"{name}: {both[0]} instead of {both[1]}")


def read_metadata(workdir: str | Path, task: int) -> ocp.CheckpointMetadata:
    """What Orbax has of a checkpoint: shapes and types of its arrays, and `load_metadata`'s.

    Raises:
      FileNotFoundError, CheckpointError: as `load_metadata`.
    """
    path = checkpoint_path(workdir, task)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no checkpoint of task {task} here.")
    try:
        metadata = ocp.metadata(path)
        version = metadata.custom_metadata.get("format")
        if metadata.metadata is None:  # which is how Orbax has a list that it cannot read
            raise ValueError("nothing says which arrays it has")
        for images in metadata.metadata.values():
            for own in images.values():
                dict(own["params"])
        dict(metadata.custom_metadata.get("digests", {}))  # early runs have none
    except Exception as error:  # of any kind, as the damage may be
        raise CheckpointError(f"{path}: damaged ({first_line(error)}).") from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: format {version} instead of {FORMAT}.")
    if metadata.custom_metadata.get("task") != task:
        raise CheckpointError(f"{path}: of task {metadata.custom_metadata.get('task')!r}.")
    return metadata
