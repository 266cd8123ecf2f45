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
import gzip
import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from nfcl_jax.faults import first_line
from nfcl_jax.scenarios import (
    NUM_CLASSES,
    NUM_FRAMES,
    SSIM_WINDOW,
    Scan,
    equidistant_frames,
    scale_intensities,
)

MAX_INFO_BYTES = 2**16
MAX_ASPECT = 16  # longer against shorter side of a slice
MIN_SPACING, MAX_SPACING = 0.01, 1000  # mm; beyond, the header means other units
MAX_SPACING_RATIO = 50  # largest against smallest voxel size; ACDC's are 10 mm to 1.5 mm and less
# What a run holds of each voxel of the four frames, at most: the scan twice, its outputs and the
# teacher's, and DINER's table with its gradient, two moments, an update and two copies, in float32.
BYTES_PER_VOXEL = 4 * (2 + 2 + 7)
# Of the whole file: its bytes, as stored, in float64 if it is scaled, and in float32.
BYTES_PER_VOXEL_READ = 28


class DataError(ValueError):
    """Something in the data folder is missing or wrong: one line for each fault."""


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
    if os.access(root, os.X_OK) and (root / "Info.cfg").exists():
        return f"; this is a single patient, its folder {root.parent} would be right"
    below = [path.parent for path in sorted(root.glob("*/patient*")) if path.is_dir()]
    return f"; {below[0]} would be right" if below else ""


def check_inside(path: Path, root: Path) -> None:
    """Raises DataError if `path` is a link to somewhere outside of `root`."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links that lead in a circle
        raise DataError(f"{path}: a link that leads nowhere; a file would be right.") from error
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{path}: leads out of the data folder, to {target}; a copy of it would be right."
        )


def _missing(path: Path) -> str:
    """That a file is missing, and what has nearly its name."""
    if path.exists():
        return f"{path}: missing; what is there is no file."
    near = {path.name.lower(), path.name.lower().removesuffix(".gz")}
    others = [other.name for other in path.parent.iterdir() if other.name.lower() in near]
    return f"{path}: missing" + (f"; {others[0]} is there instead." if others else ".")


def read_info(folder: Path) -> dict[str, str]:
    """The entries of a patient's Info.cfg; `ED`, `ES` are there and are integers from 1.

    Raises:
      DataError: if the file is missing, or a line or one of those two is malformed.
    """
    path = folder / "Info.cfg"
    check_inside(path, folder.parent)
    if not path.is_file():
        raise DataError(_missing(path))
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


def read_volume(path: Path, dimensions: int) -> Volume:
    """A NIfTI file with its intensities scaled as its header says, float32.

    The spacing is that of pixdim, which ACDC's headers have right where their sform may not.

    Raises:
      DataError: if the file is missing, unreadable, of other dimensions, too large for the memory
        of this machine, or holds no usable image.
    """
    check_inside(path, path.parent.parent)
    if not path.is_file():
        raise DataError(_missing(path))
    try:
        image = nib.load(path)
        shape = tuple(int(size) for size in image.shape)
        kind = image.get_data_dtype().kind
        # As it is in the file: nibabel turns a voxel size of 0 into 1 mm and takes its sign off.
        with image.file_map["image"].get_prepare_fileobj("rb") as file:
            header = type(image.header).from_fileobj(file, check=False)
        spacing = tuple(float(size) for size in header["pixdim"][1:4])
        slope = float(header["scl_slope"])
    except Exception as error:  # a damaged header fails in any way
        raise DataError(f"{path}: not a readable NIfTI file ({first_line(error)}).") from error
    if len(shape) != dimensions or min(shape) < 1:
        raise DataError(f"{path}: expected {dimensions} dimensions, found shape {shape}.")
    _check_geometry(path, shape, spacing)
    if math.isinf(slope):  # which nibabel takes for none; NaN is how it writes that
        raise DataError(f"{path}: scl_slope must be finite, found {slope}.")
    if kind not in "iuf":
        raise DataError(f"{path}: holds {image.get_data_dtype()}; real numbers would be right.")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise DataError(f"{path}: the affine must be finite and invertible, found {image.affine}.")
    try:
        size = image.dataobj.offset + math.prod(shape) * image.get_data_dtype().itemsize
        contents = _read_to_the_end(path, size)
        with np.errstate(over="ignore"):  # of what is not finite in float32; see below
            image = type(image).from_bytes(contents)
            data = np.asarray(image.get_fdata(dtype=np.float32))
    except Exception as error:  # and so do damaged data
        raise DataError(f"{path}: not a readable NIfTI file ({first_line(error)}).") from error
    if not np.isfinite(data).all():
        raise DataError(f"{path}: {int((~np.isfinite(data)).sum())} voxels are not finite.")
    return Volume(data, spacing, image.affine)


def _read_to_the_end(path: Path, size: int) -> bytearray:
    """The file's contents, uncompressed, which must be `size` bytes. Gzip checks them at its end
    only; and what a header claims is not set aside in memory before it is there."""
    contents = bytearray()
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while len(contents) <= size and (piece := file.read(2**20)):
            contents += piece
    if len(contents) != size:
        there = "more" if len(contents) > size else str(len(contents))
        raise ValueError(f"its header says {size} bytes, there are {there}")
    return contents


def _check_geometry(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Raises DataError for a grid that no field can be fitted to, before it is read."""
    if min(shape[:2]) < SSIM_WINDOW:
        raise DataError(
            f"{path}: slices of {shape[0]} x {shape[1]} voxels are smaller "
            f"than the {SSIM_WINDOW} x {SSIM_WINDOW} window of SSIM."
        )
    if shape[2] < 2:
        raise DataError(f"{path}: a single slice; a volume of at least 2 would be right.")
    if max(shape[:2]) > MAX_ASPECT * min(shape[:2]):
        raise DataError(
            f"{path}: slices of {shape[0]} x {shape[1]} voxels; one side at most {MAX_ASPECT} "
            "times the other would be right."
        )
    if not all(0 < size < float("inf") for size in spacing):
        raise DataError(f"{path}: the voxel size must be positive, found {spacing} mm.")
    if not MIN_SPACING <= min(spacing) <= max(spacing) <= MAX_SPACING:
        raise DataError(
            f"{path}: voxels of {spacing} mm; {MIN_SPACING} to {MAX_SPACING} mm would be right."
        )
    if max(spacing) > MAX_SPACING_RATIO * min(spacing):
        raise DataError(
            f"{path}: voxels of {spacing} mm; one side at most {MAX_SPACING_RATIO} times another "
            "would be right."
        )
    frames = math.prod(shape[3:])
    needed = math.prod(shape) * BYTES_PER_VOXEL_READ
    needed += math.prod(shape[:3]) * min(frames, NUM_FRAMES) * BYTES_PER_VOXEL
    available = memory_of_machine()
    if needed > available:
        raise DataError(
            f"{path}: {' x '.join(map(str, shape))} voxels need about {needed / 1e9:.1f} GB, this "
            f"machine has {available / 1e9:.1f} GB; a crop of it would be right."
        )


def memory_of_machine() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(machine, int(text)) if text.isdigit() else machine


def stored_voxels(folder: Path, image: str, frame_numbers: Sequence[int]) -> bytes:
    """The voxels of a scan as its file has them, uncompressed, unscaled, without a header.

    Args:
      folder: the patient's.
      image: "cine", "ED" or "ES".
      frame_numbers: of the scan, from 1.
    """
    name = "4d" if image == "cine" else f"frame{frame_numbers[0]:02d}"
    voxels = nib.load(folder / f"{folder.name}_{name}.nii.gz").dataobj.get_unscaled()
    frames = voxels[..., [number - 1 for number in frame_numbers]] if image == "cine" else voxels
    return np.asfortranarray(frames).tobytes(order="F")


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
    _check_contrast(frames, path, numbers)
    return Scan(
        patient=folder.name,
        image="cine",
        intensities=scale_intensities(np.moveaxis(frames, 3, 0)),
        labels=None,
        frame_numbers=numbers,
        spacing=volume.spacing,
        affine=volume.affine,
    )


def read_phase(folder: Path, phase: str) -> Scan:
    """A patient's end-diastolic ("ED") or end-systolic ("ES") image with its mask.

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
    volume = _collect(faults, _read_contrast, path)
    mask = _collect(faults, _read_mask, mask_path)
    if volume and mask and mask.data.shape != volume.data.shape:
        faults.append(f"{mask_path}: shape {mask.data.shape}, its image has {volume.data.shape}.")
    elif volume and mask and not np.allclose(mask.spacing, volume.spacing, rtol=0.01):
        faults.append(f"{mask_path}: voxels of {mask.spacing} mm, its image's {volume.spacing} mm.")
    if faults:
        raise DataError("\n".join(faults))
    return Scan(
        patient=folder.name,
        image=phase,
        intensities=scale_intensities(volume.data[None]),
        labels=mask.data[None].astype(np.uint8),
        frame_numbers=(number,),
        spacing=volume.spacing,
        affine=volume.affine,
    )


def _collect(faults: list[str], function, *arguments):
    """What the function returns or, if it finds faults, None. What it did not foresee, such as a
    file that may not be read, is a fault of the file or folder that it was given."""
    try:
        return function(*arguments)
    except DataError as error:
        lines = str(error).splitlines()
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        lines = [f"{arguments[0]}: cannot be read ({first_line(error)})."]
    faults += [line for line in lines if line not in faults]
    return None


def _read_contrast(path: Path) -> Volume:
    volume = read_volume(path, dimensions=3)
    _check_contrast(volume.data, path)
    return volume


def _read_mask(path: Path) -> Volume:
    mask = read_volume(path, dimensions=3)
    labels = np.unique(mask.data)
    if not np.isin(labels, np.arange(NUM_CLASSES)).all():
        raise DataError(f"{path}: labels must be 0 to 3, found {labels[:8].tolist()}.")
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


class Cohort(NamedTuple):
    """What `read_cohort` found.

    Attributes:
      scans: of each scenario, in the order of the patients' names; none of a patient with faults.
      faults: a patient's, one line each.
      warnings: what should be known of patients without faults.
    """

    scans: dict[str, list[Scan]]
    faults: dict[str, list[str]]
    warnings: list[str]


READERS = {
    "domain_expansion": (read_cine,),
    "signal_expansion": (
        functools.partial(read_phase, phase="ED"),
        functools.partial(read_phase, phase="ES"),
    ),
}


def read_cohort(root: str | Path, scenarios: Iterable[str], patients: Sequence[str] = ()) -> Cohort:
    """Every scan that the scenarios need of the wanted patients, and every fault of them.

    Raises:
      DataError: as `find_patients`.
    """
    cohort = Cohort({scenario: [] for scenario in scenarios}, {}, [])
    owners: dict[str, str] = {}
    for folder in find_patients(root, patients):
        faults: list[str] = []
        scans = {
            scenario: [_collect(faults, read, folder) for read in READERS[scenario]]
            for scenario in cohort.scans
        }
        if faults:
            cohort.faults[folder.name] = faults
            continue
        for scenario, own in scans.items():
            cohort.scans[scenario] += own
            for scan in own:
                digest = hashlib.sha256(np.ascontiguousarray(scan.intensities)).hexdigest()
                owner = owners.setdefault(digest, folder.name)
                if owner != folder.name:
                    cohort.warnings.append(
                        f"{folder}: the same {scan.image} as {owner}'s; if that is one patient, "
                        "it counts twice."
                    )
    return cohort


def read_scans(root: str | Path, scenario: str, patients: Sequence[str] = ()) -> list[Scan]:
    """Every scan that `scenario` needs of the wanted patients, in the order of their names.

    Raises:
      DataError: with one line for each fault of each patient.
    """
    cohort = read_cohort(root, [scenario], patients)
    refuse_faults(cohort)
    return cohort.scans[scenario]


def refuse_faults(cohort: Cohort) -> None:
    """Raises DataError with one line for each fault, if there are any."""
    lines = [line for faults in cohort.faults.values() for line in faults]
    if lines:
        raise DataError("\n".join(["the data cannot be used as it is:", *lines]))
