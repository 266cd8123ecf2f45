"""Reads cine MRI in the folder layout of ACDC (Bernard et al., IEEE TMI 37(11), 2018).

    ROOT/patient001/Info.cfg                        ED, ES (frame numbers from 1), NbFrame, ...
    ROOT/patient001/patient001_4d.nii.gz            the cine, (x, y, z, frame)
    ROOT/patient001/patient001_frame01.nii.gz       the ED and the ES frame, (x, y, z)
    ROOT/patient001/patient001_frame01_gt.nii.gz    their masks: 0 background, 1 right ventricle,
                                                    2 myocardium, 3 left ventricle

Every fault is a `DataError` that names the file, what is wrong and what would be right.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from nfcl_jax.data.volumes import Volume, check_file, collect, corner_distance, read_volume
from nfcl_jax.errors import DataError
from nfcl_jax.scan import Scan, equidistant_frames, range_of, scale_intensities
from nfcl_jax.scenarios import NUM_CLASSES

MAX_INFO_BYTES = 2**16
PHASES = ("ED", "ES")  # end-diastole, end-systole


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
    # A link to nowhere is a patient with a fault, and none that is not there.
    found = {
        path.name: path
        for path in sorted(root.glob("patient*"))
        if path.is_dir() or (path.is_symlink() and not path.exists() and not path.suffix)
    }
    if not found:
        raise DataError(f"{root}: no patientNNN folder here{_likely_root(root)}.")
    missing = [name for name in patients if name not in found]
    if missing:
        raise DataError(f"{root}: no folder of {', '.join(missing)}; there are {', '.join(found)}.")
    return [found[name] for name in sorted(set(patients) or found)]


def _likely_root(root: Path) -> str:
    """A hint where the patients are, if they are one level away."""
    if os.access(root, os.X_OK) and (root / "Info.cfg").exists():
        return f"; this is a single patient, its folder {root.parent} would be right"
    below = [path.parent for path in sorted(root.glob("*/patient*")) if path.is_dir()]
    return f"; {below[0]} would be right" if below else ""


def read_info(folder: Path) -> dict[str, str]:
    """The entries of a patient's Info.cfg; `ED`, `ES` are there and are integers from 1.

    Raises:
      DataError: if the file is missing, or a line or one of those two is malformed.
    """
    path = folder / "Info.cfg"
    check_file(path)
    if path.stat().st_size > MAX_INFO_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes; a few lines would be right.")
    info = {}
    for number, line in enumerate(
        path.read_text("utf-8-sig", errors="replace").splitlines(), start=1
    ):
        if line.strip():
            key, separator, value = line.partition(":")
            if not separator:
                raise DataError(
                    f"{path}, line {number}: expected 'key: value', found {line[:80]!r}."
                )
            info[key.strip()] = value.strip()
    for key in ("ED", "ES"):
        if not re.fullmatch(r"0{0,9}[1-9][0-9]{0,3}", info.get(key, ""), re.ASCII):
            found = repr(info[key][:80]) if key in info else "none"
            raise DataError(f"{path}: {key} must be a frame number from 1, found {found}.")
    if int(info["ED"]) == int(info["ES"]):
        raise DataError(f"{path}: ED and ES are both frame {info['ED']}; two would be right.")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", info.get("NbFrame", "1"), re.ASCII):
        raise DataError(
            f"{path}: NbFrame must be a number of frames, found {info['NbFrame'][:80]!r}."
        )
    return info


def read_image(folder: Path, image: str, num_frames: int) -> Scan:
    """One image of a patient: "cine", with so many of its frames, "ED", "ES", or both: "phases".

    Raises:
      DataError: as `read_cine` and `read_phase`, or for another image.
    """
    if folder.is_symlink() and not folder.exists():
        raise DataError(f"{folder}: a link to {os.readlink(folder)}, where there is no folder.")
    if image == "cine":
        return read_cine(folder, num_frames)
    if image == "phases":
        return read_phases(folder)
    if image not in PHASES:
        raise DataError(f"{folder}: no image {image!r} in ACDC; cine, ED, ES, phases are there.")
    return read_phase(folder, image)


def read_cine(folder: Path, num_frames: int) -> Scan:
    """Equidistant frames of a patient's cine, first and last among them, scaled together to [0, 1]
    by their own range.

    Raises:
      DataError: as `read_volume`, or if there are fewer frames or no contrast.
    """
    path = folder / f"{folder.name}_4d.nii.gz"
    volume = read_volume(path, dimensions=4, num_frames=num_frames)
    try:
        numbers = equidistant_frames(volume.data.shape[3], num_frames)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    frames = volume.data[..., [number - 1 for number in numbers]]
    _check_contrast(frames, path, numbers)
    whole = range_of(volume.data)
    return Scan(
        patient=folder.name,
        image="cine",
        values={"image": scale_intensities(np.moveaxis(frames, 3, 0))},
        frame_numbers=numbers,
        spacing=volume.spacing,
        affine=volume.affine,
        intensity_range=range_of(frames),
        cine_range=lambda: whole,
    )


def _range_of_cine(folder: Path) -> tuple[float, float] | None:
    """Of a patient who may have none; read once for ED and ES."""
    path = folder / f"{folder.name}_4d.nii.gz"
    if not path.exists() and not path.is_symlink():
        return None
    check_file(path)
    state = path.stat()
    return _range_of_file(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)
def _range_of_file(path: Path, *state: int) -> tuple[float, float]:
    return range_of(read_volume(path, dimensions=4).data)


def read_phase(folder: Path, phase: str) -> Scan:
    """A patient's end-diastolic ("ED") or end-systolic ("ES") image, scaled to [0, 1] by its own
    range, with its mask.

    Raises:
      DataError: as `read_info` and `read_volume`, if the phase is beyond the last frame, or if the
        mask does not fit the image.
    """
    info = read_info(folder)
    number, count = int(info[phase]), info.get("NbFrame", "")
    if count.isdecimal() and number > int(count):
        raise DataError(
            f"{folder / 'Info.cfg'}: {phase} is frame {number} of {count}; one of 1 to {count} "
            "would be right."
        )
    path = folder / f"{folder.name}_frame{number:02d}.nii.gz"
    mask_path = folder / f"{folder.name}_frame{number:02d}_gt.nii.gz"
    faults: list[str] = []
    volume = collect(faults, _read_contrast, path)
    mask = collect(faults, _read_mask, mask_path)
    if volume and mask and mask.data.shape != volume.data.shape:
        faults.append(f"{mask_path}: shape {mask.data.shape}, its image has {volume.data.shape}.")
    elif volume and mask and not np.allclose(mask.spacing, volume.spacing, rtol=0.01):
        faults.append(f"{mask_path}: voxels of {mask.spacing} mm, its image's {volume.spacing} mm.")
    warnings = collect(faults, _misplaced, mask_path, mask, volume) if not faults else ()
    if faults:
        raise DataError("\n".join(faults))
    labels = mask.data[None].astype(np.uint8)
    return Scan(
        patient=folder.name,
        image=phase,
        values={"image": scale_intensities(volume.data[None]), "mask": labels},
        frame_numbers=(number,),
        spacing=volume.spacing,
        affine=volume.affine,
        intensity_range=range_of(volume.data),
        cine_range=functools.partial(_range_of_cine, folder),
        warnings=warnings,
    )


def read_phases(folder: Path) -> Scan:
    """A patient's two phases as frames, in the order of their numbers, on one scale, with masks.

    Raises:
      DataError: as `read_phase`, or if the two are on different grids.
    """
    faults: list[str] = []
    scans = [collect(faults, read_phase, folder, phase) for phase in PHASES]
    if faults:
        raise DataError("\n".join(faults))
    first, second = scans = sorted(scans, key=lambda scan: scan.frame_numbers)
    if first.shape != second.shape or not np.allclose(first.affine, second.affine, atol=1e-3):
        raise DataError(f"{folder}: ED and ES differ in shape or affine; one grid would be right.")
    values = [s.intensities * np.ptp(s.intensity_range) + s.intensity_range[0] for s in scans]
    values, labels = np.concatenate(values), np.concatenate([s.labels for s in scans])
    return dataclasses.replace(
        first,
        image="phases",
        values={"image": scale_intensities(values), "mask": labels},
        frame_numbers=first.frame_numbers + second.frame_numbers,
        intensity_range=range_of(values),
        warnings=first.warnings + second.warnings,
    )


def _misplaced(mask_path: Path, mask: Volume, volume: Volume) -> tuple[str, ...]:
    """A warning if, by the affines of both files, the mask's voxels lie elsewhere than its image's.

    Raises:
      DataError: if its axes point elsewhere.
    """
    image = mask_path.name.replace("_gt", "")
    if not (mask.placed and volume.placed):
        return ()
    affines = [mask.scanner_affine, volume.scanner_affine]
    axes = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in affines]
    if (axes[0] * axes[1]).sum(axis=0).min() < np.cos(np.pi / 4):
        codes = [" ".join(nib.aff2axcodes(affine)) for affine in affines]
        raise DataError(
            f"{mask_path}: its axes point to {codes[0]}, those of {image} to {codes[1]}; a mask on "
            "the grid of its image would be right."
        )
    distance = corner_distance(mask, volume)
    if distance <= min(volume.spacing) / 2:
        return ()
    return (
        f"{mask_path}: by its affine up to {distance:.3g} mm away from {image}; it is taken voxel "
        "by voxel all the same.",
    )


def _read_contrast(path: Path) -> Volume:
    volume = read_volume(path, dimensions=3)
    _check_contrast(volume.data, path)
    return volume


def _read_mask(path: Path) -> Volume:
    mask = read_volume(path, dimensions=3)
    labels = np.unique(mask.data)
    if not np.isin(labels, np.arange(NUM_CLASSES)).all():
        last, found = NUM_CLASSES - 1, labels[:8].tolist()
        raise DataError(f"{path}: labels must be 0 to {last}, found {found}.")
    if labels.max() == 0:
        raise DataError(f"{path}: the mask is empty.")
    if len(labels) == 1:
        raise DataError(f"{path}: every voxel is {labels[0]:g}; a mask with background is right.")
    return mask


def _check_contrast(frames: np.ndarray, path: Path, numbers: Sequence[int] = ()) -> None:
    if frames.min() == frames.max():
        raise DataError(f"{path}: every voxel is {frames.min():g}, there is nothing to fit.")
    for place, number in enumerate(numbers):
        frame = frames[..., place]
        if frame.min() == frame.max():
            raise DataError(
                f"{path}: every voxel of frame {number} is {frame.min():g}, nothing to fit."
            )


def stored_voxels(folder: Path, image: str, frame_numbers: Sequence[int]) -> bytes:
    """The voxels of a scan as its file has them, uncompressed, unscaled, without a header.

    Args:
      folder: the patient's.
      image: "cine", "ED", "ES" or "phases".
      frame_numbers: of the scan, from 1.
    """
    names = ["4d"] if image == "cine" else [f"frame{number:02d}" for number in frame_numbers]
    files = [folder / f"{folder.name}_{name}.nii.gz" for name in names]
    voxels = [nib.load(file).dataobj.get_unscaled() for file in files]
    if image == "cine":
        voxels = [voxels[0][..., [number - 1 for number in frame_numbers]]]
    return b"".join(frame.tobytes(order="F") for frame in voxels)
