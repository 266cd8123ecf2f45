"""Partial checkpoints: what each scan has of a task in the middle, one file per scan.

    WORKDIR/unfinished/task_2/patient001-cine.npz

A file is of numpy's format, arrays and one line of JSON, and never unpickled. It does not depend on
who else was in the batch.
"""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nfcl_jax.errors import first_line
from nfcl_jax.records import Fit, Learned, Losses, Partial, PenaltyShare, Score
from nfcl_jax.storage import read_npz, write_file

FORMAT = 2


def save(workdir: Path, task: int, scans: dict[str, Partial], run: str) -> None:
    """Writes what some scans have of task `task`, from 1, each file whole or not at all; `run` is
    the fingerprint of the run's config."""
    folder = _folder(workdir, task)
    folder.mkdir(parents=True, exist_ok=True)
    for name, scan in scans.items():
        about = {
            "format": FORMAT,
            "run": run,
            "of": _what(task, name),
            "step": scan.step,
            "penalty_share": scan.penalty_share,
            "metrics": [score._asdict() for score in scan.scores],
            "fits": [f._asdict() for f in scan.fits],
        }
        arrays = {f"losses/{k}": v for k, v in scan.losses._asdict().items()}
        arrays |= {f"optimiser/{i}": leaf for i, leaf in enumerate(scan.optimiser)}
        learned = {"params": scan.learned.params, "strategy": scan.learned.state}
        arrays |= flatten_dict(learned, sep="/")
        buffer = io.BytesIO()
        np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
        write_file(_file(folder, name), buffer.getvalue())


def load(
    workdir: Path, task: int, names: list[str], run: str
) -> tuple[dict[str, Partial], list[str]]:
    """What the scans of these names have of task `task`, those that have something; `run` as in
    `save`.

    Returns:
      The scans by their name, and a line for each file that cannot be used.
    """
    scans, faults = {}, []
    for name in names:
        path = _file(_folder(workdir, task), name)
        try:
            scans[name] = _read(path, run, _what(task, name))
        except FileNotFoundError:
            pass
        except Exception as error:  # of any kind, as the damage may be
            faults.append(
                f"{path}: cannot be used ({first_line(error)}); {name} begins task {task} again."
            )
    return scans, faults


def clear(workdir: Path) -> None:
    """Deletes all of it."""
    unfinished = workdir / "unfinished"
    for folder in unfinished.glob("task_*"):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # something else is there, or nothing
        unfinished.rmdir()


def _folder(workdir: Path, task: int) -> Path:
    return workdir / "unfinished" / f"task_{task}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '-')}.npz"


def _what(task: int, name: str) -> str:
    return f"task {task} of {name}"


def _read(path: Path, run: str, of: str) -> Partial:
    arrays = read_npz(path)
    about = json.loads(str(arrays.pop("about")))
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']} instead of {FORMAT}")
    if about.get("run", run) != run:  # early ones do not say
        raise ValueError("of a run of another config")
    if about.get("of", of) != of:
        raise ValueError(about["of"])
    optimiser = sum(name.startswith("optimiser/") for name in arrays)
    learned = {k: v for k, v in arrays.items() if k.startswith(("params/", "strategy/"))}
    trees = unflatten_dict(learned, sep="/")
    return Partial(
        about["step"],
        Learned(trees["params"], trees.get("strategy", {})),
        [arrays[f"optimiser/{i}"] for i in range(optimiser)],
        Losses(**{name: arrays[f"losses/{name}"] for name in Losses._fields}),
        about["penalty_share"] and PenaltyShare(*about["penalty_share"]),
        [Score(**row) for row in about["metrics"]],
        [Fit(**row) for row in about["fits"]],
    )
