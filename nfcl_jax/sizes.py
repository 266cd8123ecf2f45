"""How many bytes a field takes, and what it keeps of a scan when its weights take fewer."""

import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfcl_jax import run_folder
from nfcl_jax.data.cohorts import DATASETS, read_scans
from nfcl_jax.errors import DataError
from nfcl_jax.fields import Params
from nfcl_jax.fitted import FittedField
from nfcl_jax.metrics import metrics_of
from nfcl_jax.metrics import score as score_lesson
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task, num_frames, tasks_of

STORAGES = ("float32", "bfloat16", "int8")


def stored(params: Params, storage: str) -> tuple[bytes, Params]:
    """Parameters in fewer bits.

    "int8" holds w as a whole number q from -127 to 127 and one float32 scale s = max |w| / 127 for
    each unit of a layer, or feature of DINER's table: w is nearly s q.

    Args:
      params: float32.
      storage: one of STORAGES.

    Returns:
      All bytes that are needed, and the parameters that come back, float32.
    """
    parts = []

    def store(leaf):
        leaf = np.asarray(leaf, np.float32)
        if storage == "int8" and leaf.ndim > 1:
            scale = np.maximum(np.abs(leaf).max(axis=0), np.finfo(np.float32).tiny) / 127
            codes = np.rint(leaf / scale).astype(np.int8)
            parts.extend([codes, scale.astype(np.float32)])
            return codes * scale.astype(np.float32)
        # Biases are few: bfloat16 is the least that they get.
        kind = jnp.float32 if storage == "float32" else jnp.bfloat16
        parts.append(leaf.astype(kind))
        return parts[-1].astype(np.float32)

    back = jax.tree.map(store, params)
    return b"".join(part.tobytes() for part in parts), back


def compressed(data: bytes) -> int:
    """Bytes that gzip leaves of `data`, at its highest level."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def table(
    params: Params, scan_bytes: bytes, score: Callable[[Params], dict[str, float]]
) -> list[dict[str, float | str]]:
    """A row for each storage: bytes, those that gzip leaves, both beside what it leaves of the
    scan, and the scores that are kept.

    Args:
      params: of one scan's field.
      scan_bytes: the voxels that it was fitted to, as their file has them.
      score: of a field with other parameters.
    """
    whole = compressed(scan_bytes)
    rows = []
    for storage in STORAGES:
        data, back = stored(params, storage)
        gzipped = compressed(data)
        rows.append(
            {
                "weights": storage,
                "bytes": len(data),
                "gzipped": gzipped,
                "scan gzipped": whole,
                "ratio": gzipped / whole,
                **score(back),
            }
        )
    return rows


def scan_of(
    record: Mapping[str, Any], config: Mapping[str, Any], root: Path, task: int
) -> tuple[Scan, bytes]:
    """A scan of a run by its record in patients.json, read again, and the voxels that its field
    holds after a task as their file stores them.

    Raises:
      DataError: if its files cannot be read, or hold another scan.
    """
    data, patient = config["data"], record["patient"]
    dataset = data["dataset"] if data["root"] else "acdc"
    scans = read_scans(root, config["scenario"], [patient], dataset, data["intensity_range"])
    (found,) = DATASETS[dataset].find(root, [patient])
    (scan,) = (s for s in scans if s.image == record["image"])
    there = run_folder.describe_scans([scan], config, {})
    if differing := run_folder.differing_scans([record], there):
        raise DataError(
            "\n  ".join([f"{root}: other scans than those of the run, which has", *differing])
        )
    frames, stored_voxels = num_frames(tasks_of(config)[:task]), DATASETS[dataset].stored_voxels
    if not stored_voxels:
        return scan, scan.intensities[:frames].tobytes()
    return scan, stored_voxels(found, scan.image, scan.frame_numbers[:frames])


def kept_scores(field: FittedField, tasks: Sequence[Task], scan: Scan) -> dict[str, float]:
    """What a scan's field scores on tasks, by the first metric of each kind, on average."""
    shape = (num_frames(tasks), *scan.intensities.shape[1:])
    outputs = field.at_voxels(np.arange(math.prod(shape))).reshape(*shape, -1)
    kept: dict[str, list[float]] = {}
    for task in tasks:
        metric = metrics_of(task.head.kind)[0]
        kept.setdefault(metric, []).append(score_lesson(task.lessons[0], scan, outputs)[metric])
    return {metric: float(np.mean(values)) for metric, values in kept.items()}
