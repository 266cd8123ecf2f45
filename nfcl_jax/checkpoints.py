"""Parameters on disk: one Orbax checkpoint per task, with one unpadded pytree per scan.

The layout is {patient: {image: params}} of numpy arrays, so that a checkpoint opens on any number
of devices, without the code that made it, and one patient's part without the others'. The run's
config, patients and tasks go in as custom metadata, so that it explains itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nfcl_jax.fields import Params

FORMAT = 1


def checkpoint_path(workdir: str | Path, task: int) -> Path:
    """Where the checkpoint after task `task` (from 1) lies; absolute, as Orbax demands."""
    return Path(workdir).absolute() / "checkpoints" / f"task_{task}"


def save(
    workdir: str | Path, task: int, params: Mapping[str, Params], metadata: dict[str, Any]
) -> None:
    """Writes the parameters after a task, whole or not at all.

    Args:
      workdir: the run's folder.
      task: the task's number, from 1.
      params: by the scan's name, "patient001/cine".
      metadata: anything that JSON can hold; `task` and `format` are added.
    """
    tree: dict[str, dict[str, Params]] = {}
    for name, scan_params in params.items():
        patient, image = name.split("/")
        tree.setdefault(patient, {})[image] = jax.tree.map(np.asarray, scan_params)
    ocp.save(
        checkpoint_path(workdir, task),
        tree,
        custom_metadata=metadata | {"task": task, "format": FORMAT},
    )


def load_metadata(workdir: str | Path, task: int) -> dict[str, Any]:
    """What `save` was given as metadata.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if it was written in another format.
    """
    return dict(_metadata(workdir, task).custom_metadata)


def load(workdir: str | Path, task: int, patient: str, image: str) -> Params:
    """One scan's parameters after a task, as numpy arrays; nothing else is read.

    Raises:
      FileNotFoundError, ValueError: as `load_metadata`.
      KeyError: if the checkpoint does not have that patient and image.
    """
    shapes = _metadata(workdir, task).metadata
    if image not in shapes.get(patient, {}):
        known = [f"{p}/{i}" for p, images in shapes.items() for i in images]
        raise KeyError(f"no {patient}/{image} in this checkpoint; there are {', '.join(known)}")
    return _load(workdir, task, {patient: {image: shapes[patient][image]}})[patient][image]


def load_all(workdir: str | Path, task: int) -> dict[str, Params]:
    """Every scan's parameters after a task, as numpy arrays, by the scan's name.

    Raises:
      FileNotFoundError, ValueError: as `load_metadata`.
    """
    tree = _load(workdir, task, _metadata(workdir, task).metadata)
    return {
        f"{patient}/{image}": params
        for patient, images in tree.items()
        for image, params in images.items()
    }


def finished_tasks(workdir: str | Path) -> tuple[int, ...]:
    """Numbers of the tasks that have a checkpoint in the run's folder, from 1."""
    names = [path.name for path in (Path(workdir) / "checkpoints").glob("task_*")]
    numbers = [name.removeprefix("task_") for name in names]
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def _load(workdir, task, shapes):
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load(checkpoint_path(workdir, task), wanted)


def _metadata(workdir: str | Path, task: int):
    path = checkpoint_path(workdir, task)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no checkpoint of task {task} here.")
    metadata = ocp.metadata(path)
    version = (metadata.custom_metadata or {}).get("format")
    if version != FORMAT:
        raise ValueError(f"{path}: format {version} instead of {FORMAT}.")
    return metadata
