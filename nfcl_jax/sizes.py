"""How many bytes a field takes, and what it keeps of a scan when its weights take fewer."""

import gzip
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nfcl_jax.fields import Params

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
