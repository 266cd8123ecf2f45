"""Opens the folder of a finished or unfinished run."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfcl_jax import checkpoints
from nfcl_jax.fields import Params, create_field, evaluate, num_output_channels

BLOCK = 8192  # points that an opened field is asked at once


# Compiled once for all fields of one kind and size.
_apply = jax.jit(lambda module, params, inputs: module.apply(params, inputs), static_argnums=0)
_evaluate = jax.jit(evaluate, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
      workdir: the folder.
      config: the config that made it, as nested dictionaries.
      scans: for each scan its patient, image, shape, frames and spacing, as in patients.json.
      tasks: numbers of the tasks that have a checkpoint, from 1.
    """

    workdir: Path
    config: dict[str, Any]
    scans: list[dict[str, Any]]
    tasks: tuple[int, ...]

    def params(self, patient: str, task: int, image: str | None = None) -> Params:
        """One scan's parameters after a task, as numpy arrays; see `field` for the arguments."""
        scan = self._scan(patient, image)
        self._check_task(task)
        return checkpoints.load(self.workdir, task, scan["patient"], scan["image"])

    def field(
        self, patient: str, task: int, image: str | None = None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """One patient's field after a task, as a plain function.

        Args:
          patient: such as "patient001".
          task: number of the task, from 1.
          image: "cine", "ED" or "ES"; may be left out where the patient has one image.

        Returns:
          A function of coordinates in [-1, 1], (points, 3) as (x, y, z) or (points, 4) as
          (x, y, z, t), or for DINER of flat voxel indices, (points,), in C order over the scan's
          `shape`. It returns raw outputs (points, channels): the intensity, then from task 2 of
          signal expansion the logits of four classes. It raises ValueError for points of another
          shape or off DINER's grid.

        Raises:
          KeyError: if the run has no such patient, image or task.
        """
        module, params, shape = self._opened(patient, task, image)
        size = int(np.prod(shape))

        def at_voxels(index):
            index = np.asarray(index)
            if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
                raise ValueError(
                    f"DINER takes flat voxel indices, integers of shape (points,); got "
                    f"{index.dtype} of shape {index.shape}."
                )
            if index.size and not 0 <= index.min() <= index.max() < size:
                raise ValueError(
                    f"off the grid: the indices of a {shape} grid run from 0 to {size - 1}, got "
                    f"{index.min()} to {index.max()}."
                )
            return _in_blocks(functools.partial(_apply, module, params), index)

        def at_coords(coords):
            coords = np.asarray(coords, np.float32)
            if coords.ndim != 2 or coords.shape[1] != len(shape):
                raise ValueError(f"expected shape (points, {len(shape)}), got {coords.shape}.")
            return _in_blocks(functools.partial(_apply, module, params), coords)

        return at_voxels if module.on_grid else at_coords

    def at_voxels(
        self, patient: str, task: int, index: np.ndarray, image: str | None = None
    ) -> np.ndarray:
        """What any field answers at voxels, given as flat indices (points,) in C order over the
        scan's `shape`: raw outputs (points, channels). See `field` for the other arguments."""
        module, params, shape = self._opened(patient, task, image)
        return _in_blocks(lambda block: _evaluate(module, params, block, np.array(shape)), index)

    def _opened(self, patient: str, task: int, image: str | None):
        """The module, parameters and grid of one scan's field after a task."""
        shape = tuple(self._scan(patient, image)["shape"])
        params = jax.tree.map(jnp.asarray, self.params(patient, task, image))
        rows = int(np.prod(shape))
        module = create_field(self.config["field"], num_output_channels(params), rows)
        return module, params, shape

    def _scan(self, patient: str, image: str | None) -> dict[str, Any]:
        found = [
            scan
            for scan in self.scans
            if scan["patient"] == patient and image in (None, scan["image"])
        ]
        if len(found) != 1:
            known = ", ".join(f"{scan['patient']}/{scan['image']}" for scan in self.scans)
            what = f"{patient}/{image}" if image else patient
            problem = "say which image" if found else "not in this run"
            raise KeyError(f"{what}: {problem}; there are {known}")
        return found[0]

    def _check_task(self, task: int) -> None:
        if task not in self.tasks:
            raise KeyError(f"no checkpoint of task {task}; there are {list(self.tasks)}")


def _in_blocks(answer: Callable[[np.ndarray], jax.Array], points: np.ndarray) -> np.ndarray:
    """`answer` at every point, in blocks of one size: bounded memory, one compiled program."""
    blocks = []
    for start in range(0, max(len(points), 1), BLOCK):
        block = points[start : start + BLOCK]
        padding = np.zeros((BLOCK - len(block), *block.shape[1:]), block.dtype)
        blocks.append(np.asarray(answer(np.concatenate([block, padding])))[: len(block)])
    return np.concatenate(blocks)


def open_run(workdir: str | Path) -> Run:
    """Opens a run's folder; nothing but its description is read.

    Raises:
      FileNotFoundError: if the folder holds no run.
    """
    workdir = Path(workdir)
    config, scans = workdir / "config.json", workdir / "patients.json"
    for path in (config, scans):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; {workdir} is not the folder of a run.")
    tasks = checkpoints.finished_tasks(workdir)
    records = [r for r in json.loads(scans.read_text()) if "left_out" not in r]
    return Run(workdir, json.loads(config.read_text()), records, tasks)
