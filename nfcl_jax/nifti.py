"""NIfTI files of what a field makes of a scan, on grids that lie over the scan's."""

import gzip
import logging
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from nfcl_jax.data.volumes import memory_of_machine
from nfcl_jax.geometry import MAX_SIZE, resampled, scanner_affine
from nfcl_jax.metrics import intensity
from nfcl_jax.scenarios import Head, Task
from nfcl_jax.storage import write_file

log = logging.getLogger("nfcl_jax")

BYTES_PER_POINT = 4 * 4 * 5  # of up to five outputs: themselves, what is made of them, two copies


class Sampling(NamedTuple):
    """Where a field is asked for a volume.

    Attributes:
      spacing: along the scan's axes, in mm; None is its own. The first voxel stays where it is, and
        no voxel lies beyond the scan's last one.
      times: so many time points from the first to the last frame that was learned; None is those
        frames.
      interpolate: whether DINER answers between its voxels, by linear interpolation in its table;
        otherwise it refuses.
    """

    spacing: Sequence[float | int] | None = None
    times: int | None = None
    interpolate: bool = False


def check_name(path: str | Path) -> None:
    """Raises ValueError unless `path` is the name of a NIfTI file in a folder that exists."""
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the name must end in .nii or .nii.gz.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}.")


def write(
    path: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    voxel_size: Sequence[float],
    first_time: float = 0.0,
) -> Path:
    """Writes a volume, (x, y, z), (x, y, z, t) or with channels after that, whole or not at all.

    The affine goes into the sform, which can hold any; into the qform, too, if that can hold it:
    without shears, and with voxels of the size that is given.

    Args:
      path: of the file.
      volume: of the type that it is stored in.
      affine: voxel indices to scanner coordinates, 4 x 4.
      voxel_size: along each axis of the volume, in mm for the first three.
      first_time: of a volume (x, y, z, t).

    Returns:
      The path.
    """
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code="aligned")
    image.set_qform(scanner_affine(affine, voxel_size[:3]), code="aligned", strip_shears=True)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, code="unknown")
    image.header.set_zooms(voxel_size)
    image.header["toffset"] = first_time
    image.header.set_xyzt_units("mm")
    contents = image.to_bytes()
    if str(path).endswith(".gz"):
        contents = gzip.compress(contents, compresslevel=1, mtime=0)
    write_file(Path(path).resolve(), contents)  # where a link leads
    return Path(path)


def outputs_of(tasks: Iterable[Task]) -> dict[str, Head]:
    """The heads that tasks taught, by their names, and "probabilities" for the first mask,
    unless that is a name itself."""
    heads = {lesson.head.name: lesson.head for task in tasks for lesson in task.lessons}
    mask = next((head for head in heads.values() if head.kind == "mask"), None)
    return ({"probabilities": mask} if mask else {}) | heads


def as_volume(head: Head, channels: np.ndarray, probabilities: bool) -> np.ndarray:
    """What the channels of a head say, (..., channels): intensities in [0, 1], labels, or the
    probabilities of the classes."""
    if probabilities:
        return np.asarray(head.as_targets(channels))
    if head.kind == "image":
        return intensity(np.clip(channels, 0, 1))
    classes = np.argmax(channels, axis=-1)
    return np.array(head.labels, np.int32)[classes] if head.labels else classes.astype(np.uint8)


def sampled(
    scan: Mapping[str, Any],
    wanted: Sampling,
    num_learned: int,
) -> tuple[list[np.ndarray], np.ndarray, list[float], float]:
    """Coordinates along each axis, the affine, the size of a voxel along each axis, and the first
    time. `scan` is its record in patients.json. Where a table's times are not equidistant, which
    NIfTI cannot say, the size along them is their mean distance, and a warning says so.

    Raises:
      ValueError: for a spacing or a number of times that cannot be, or too many points for the
        memory of this machine.
    """
    *frames, x, y, z = scan["shape"]
    times, first_time = wanted.times, 0.0
    whole = times is None or isinstance(times, numbers.Integral)
    if not whole or (times is not None and not (frames and 1 <= times <= MAX_SIZE)):
        raise ValueError(f"times must be 1 to {MAX_SIZE}, and the scan a cine; got {times!r}.")
    voxel = list(map(float, scan["spacing"] if wanted.spacing is None else wanted.spacing))
    axes, affine = resampled((x, y, z), np.array(scan["affine"]), scan["spacing"], voxel)
    if scan.get("times"):
        there = sorted(scan["times"][:num_learned])
        if times and times > 1 and len(there) < 2:
            raise ValueError("one time was learned by then: there are none in between.")
        axes.append(np.linspace(there[0], there[-1], times) if times else np.array(there))
        own = sorted(list(dict.fromkeys(row["time"] for row in scan["rows"]))[:num_learned])
        first_time = own[0]
        voxel.append((own[-1] - first_time) / max(len(axes[3]) - 1, 1) or 1.0)
        if not times and not np.allclose(np.diff(own), voxel[3], rtol=1e-3):
            log.warning(
                "the times %s are not equidistant, which a NIfTI file cannot say: its header has "
                "their mean distance; times=N (--times=N) writes N that are",
                ", ".join(f"{time:.9g}" for time in own),
            )
    elif frames:
        last = num_learned - 1
        count = times or num_learned
        if count > 1 and not last:
            raise ValueError("one frame was learned by then: there are no times in between.")
        axes.append(-1 + 2 * np.linspace(0, last, count) / (frames[0] - 1))
        first_frame, *_, last_frame = scan["frame_numbers"]
        between_frames = (last_frame - first_frame) / last_frame / (frames[0] - 1)
        voxel.append(between_frames * (last / (count - 1) if count > 1 else 1))
    needed, available = math.prod(map(len, axes)) * BYTES_PER_POINT, memory_of_machine()
    if needed > available:
        raise ValueError(
            f"{' x '.join(str(len(axis)) for axis in axes)} points need about {needed / 1e9:.1f} "
            f"GB, this machine has {available / 1e9:.1f} GB; a larger spacing would be right."
        )
    return axes, affine, voxel, first_time
