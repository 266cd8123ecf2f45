"""One part of a task's checkpoint, most often the only one, as Orbax writes and reads it."""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nfcl_jax import processes
from nfcl_jax.errors import CheckpointError, first_line
from nfcl_jax.fields import Params
from nfcl_jax.records import Learned
from nfcl_jax.storage import refuse_inflated

FORMAT = 1
STATE = "strategy"  # the key of a strategy's state, beside "params"


def save_part(path: Path, learned: Mapping[str, Learned], about: dict[str, Any]) -> None:
    tree: dict[str, dict[str, Any]] = {}
    for name, (params, state) in learned.items():
        patient, image = name.split("/")
        both = params | ({STATE: state} if state else {})
        tree.setdefault(patient, {})[image] = jax.tree.map(np.asarray, both)
    digests = {name: digest(own.params) for name, own in learned.items()}
    digests |= {f"{name}/{STATE}": digest(own.state) for name, own in learned.items() if own.state}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    processes.on_first(lambda: _refuse_full_disk(path, size))
    ocp.save(path, tree, custom_metadata=about | {"digests": digests})


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


def remove_unfinished(path: Path) -> None:
    """Deletes what is left of a checkpoint whose saving was interrupted."""
    for kind in (".unfinished", ".orbax-checkpoint-tmp*"):
        for part in path.parent.glob(f"{path.name}{kind}"):
            shutil.rmtree(part, ignore_errors=True)


def digest(tree: Any) -> str:
    """SHA-256 of the names, types, shapes and bytes of all leaves."""
    state = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        state.update(leaf.view(np.uint8).data)  # bfloat16 has no buffer of its own
    return state.hexdigest()


def read_part(path: Path, task: int) -> ocp.CheckpointMetadata:
    try:
        with _alone():
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


def load_part(path: Path, digests: Mapping[str, str], shapes, like: Mapping[str, Params | None]):
    """The arrays of one part that have these shapes."""
    context = _alone()
    context.pytree.loading.partial_load = True
    try:
        _refuse_other_arrays(shapes, like, path)
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        with context:
            tree = ocp.load(path, wanted)
    except Exception as error:  # of any kind, as the damage may be
        raise CheckpointError(f"{path}: damaged ({first_line(error)}).") from error
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
        if params is not None and image in shapes.get(patient, {}):
            found = {"params": shapes[patient][image]["params"]}
            both = [
                jax.tree.map(lambda leaf: f"{leaf.dtype}{leaf.shape}", own)
                for own in (found, params)
            ]
            if both[0] != both[1]:
                raise ValueError(f"{name}: {both[0]} instead of {both[1]}")


def _alone() -> ocp.Context:
    """Where a process reads, the others need not wait for it; but Orbax counts what it does, and
    what they do together hangs where one has done more."""
    context, own = ocp.Context(), processes.index()
    if processes.count() > 1:
        context.multiprocessing.primary_host = own
        context.multiprocessing.active_processes = {own}
        context.multiprocessing.barrier_sync_key_prefix = f"process_{own}"
    return context
