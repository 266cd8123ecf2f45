"""Reads cine MRI in the folder layout of ACDC (Bernard et al., IEEE TMI 37(11), 2018).

    ROOT/patient001/Info.cfg                        ED, ES (frame numbers from 1), NbFrame, ...
    ROOT/patient001/patient001_4d.nii.gz            the cine, (x, y, z, frame)
    ROOT/patient001/patient001_frame01.nii.gz       the ED and the ES frame, (x, y, z)
    ROOT/patient001/patient001_frame01_gt.nii.gz    their masks: 0 background, 1 right ventricle,
                                                    2 myocardium, 3 left ventricle

Every fault is a `DataError` that names the file, what is wrong and what would be right.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from nfcl_jax.scenarios import NUM_CLASSES, SSIM_WINDOW, Scan, equidistant_frames, scale_intensities


class DataError(ValueError):
    """Something in the data folder is missing or wrong."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """An image with its geometry; `data` is (x, y, z) or (x, y, z, frame)."""

    data: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray


def find_patients(root: str | Path, patients: Sequence[str] = ()) -> list[Path]:
    """Folders of the wanted patients under `root`, in the order of their names.

    Args:
      root: the folder that holds patient001, patient002, ...
      patients: names of the wanted ones; all if empty.

    Raises:
      DataError: if `root` does not exist, holds no patients, or lacks a wanted one.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; the folder of patientNNN folders would be right.")
    found = {path.name: path for path in sorted(root.glob("patient*")) if path.is_dir()}
    if not found:
        raise DataError(f"{root}: no patientNNN folder here{_likely_root(root)}.")
    missing = [name for name in patients if name not in found]
    if missing:
        raise DataError(f"{root}: no folder of {', '.join(missing)}; there are {', '.join(found)}.")
    return [found[name] for name in sorted(set(patients) or found)]


def _likely_root(root: Path) -> str:
    """A hint where the patients are, if they are one level away."""
    if (root / "Info.cfg").exists():
        return f"; this is a single patient, its folder {root.parent} would be right"
    below = [path.parent for path in sorted(root.glob("*/patient*")) if path.is_dir()]
    return f"; {below[0]} would be right" if below else ""


def read_info(folder: Path) -> dict[str, str]:
    """The entries of a patient's Info.cfg; `ED`, `ES` are there and are integers from 1.

    Raises:
      DataError: if the file is missing, or a line or one of those two is malformed.
    """
    path = folder / "Info.cfg"
    if not path.is_file():
        raise DataError(f"{path}: missing.")
    info = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if line.strip():
            key, separator, value = line.partition(":")
            if not separator:
                raise DataError(f"{path}, line {number}: expected 'key: value', found {line!r}.")
            info[key.strip()] = value.strip()
    for key in ("ED", "ES"):
        if not re.fullmatch(r"0*[1-9][0-9]{0,3}", info.get(key, "")):
            found = repr(info[key]) if key in info else "none"
            raise DataError(f"{path}: {key} must be a frame number from 1, found {found}.")
    return info


def read_volume(path: Path, dimensions: int) -> Volume:
    """A NIfTI file with its intensities scaled as its header says, float32.

    The spacing is that of pixdim, which ACDC's headers have right where their sform may not.

    Raises:
      DataError: if the file is missing, unreadable, of other dimensions, or holds no usable image.
    """
    if not path.is_file():
        raise DataError(f"{path}: missing.")
    try:
        image = nib.load(path)
        data = np.asarray(image.get_fdata(dtype=np.float32))
    except (nib.filebasedimages.ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: not a readable NIfTI file ({error}).") from error
    if data.ndim != dimensions:
        raise DataError(f"{path}: expected {dimensions} dimensions, found shape {data.shape}.")
    if min(data.shape[:2]) < SSIM_WINDOW:
        raise DataError(
            f"{path}: slices of {data.shape[0]} x {data.shape[1]} voxels are smaller "
            f"than the {SSIM_WINDOW} x {SSIM_WINDOW} window of SSIM."
        )
    if not np.isfinite(data).all():
        raise DataError(f"{path}: {int((~np.isfinite(data)).sum())} voxels are not finite.")
    spacing = tuple(float(size) for size in image.header.get_zooms()[:3])
    if min(spacing) <= 0:
        raise DataError(f"{path}: the voxel size must be positive, found {spacing} mm.")
    return Volume(data, spacing, image.affine)


def read_cine(folder: Path) -> Scan:
    """The four equidistant frames of a patient's cine, scaled together to [0, 1].

    Raises:
      DataError: as `read_volume`, or if there are fewer than four frames or no contrast.
    """
    path = folder / f"{folder.name}_4d.nii.gz"
    volume = read_volume(path, dimensions=4)
    try:
        numbers = equidistant_frames(volume.data.shape[3])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    frames = volume.data[..., [number - 1 for number in numbers]]
    return Scan(
        patient=folder.name,
        image="cine",
        intensities=_scale(np.moveaxis(frames, 3, 0), path),
        labels=None,
        frame_numbers=numbers,
        spacing=volume.spacing,
        affine=volume.affine,
    )


def read_phase(folder: Path, phase: str) -> Scan:
    """A patient's end-diastolic ("ED") or end-systolic ("ES") image with its mask.

    Raises:
      DataError: as `read_info` and `read_volume`, or if the mask does not fit the image.
    """
    number = int(read_info(folder)[phase])
    path = folder / f"{folder.name}_frame{number:02d}.nii.gz"
    mask_path = folder / f"{folder.name}_frame{number:02d}_gt.nii.gz"
    volume, mask = read_volume(path, dimensions=3), read_volume(mask_path, dimensions=3)
    if mask.data.shape != volume.data.shape:
        raise DataError(f"{mask_path}: shape {mask.data.shape}, its image has {volume.data.shape}.")
    labels = np.unique(mask.data)
    if not np.isin(labels, np.arange(NUM_CLASSES)).all():
        raise DataError(f"{mask_path}: labels must be 0 to 3, found {labels[:8].tolist()}.")
    if labels.max() == 0:
        raise DataError(f"{mask_path}: the mask is empty.")
    return Scan(
        patient=folder.name,
        image=phase,
        intensities=_scale(volume.data[None], path),
        labels=mask.data[None].astype(np.uint8),
        frame_numbers=(number,),
        spacing=volume.spacing,
        affine=volume.affine,
    )


def _scale(frames: np.ndarray, path: Path) -> np.ndarray:
    if frames.min() == frames.max():
        raise DataError(f"{path}: every voxel is {frames.min():g}, there is nothing to fit.")
    return scale_intensities(frames)


def read_scans(root: str | Path, scenario: str, patients: Sequence[str] = ()) -> list[Scan]:
    """Every scan that `scenario` needs of the wanted patients, in the order of their names.

    Raises:
      DataError: with one line for each fault of each patient.
    """
    readers = {
        "domain_expansion": [read_cine],
        "signal_expansion": [
            lambda folder: read_phase(folder, "ED"),
            lambda folder: read_phase(folder, "ES"),
        ],
    }[scenario]
    scans, faults = [], []
    for folder in find_patients(root, patients):
        for read in readers:
            try:
                scans.append(read(folder))
            except DataError as fault:
                if str(fault) not in faults:
                    faults.append(str(fault))
    if faults:
        raise DataError("\n".join(["the data cannot be used as it is:", *faults]))
    return scans
