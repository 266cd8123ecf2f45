"""A beating-heart phantom in ACDC's folder layout, for trying things out without patient data.

Each patient is a short-axis stack: chest wall and lungs, a left ventricle with its muscle and
papillary shadows, a crescent of a right ventricle, liver; smooth tissue texture, coil shading and
Rician noise. Size, position, contraction, spacing, shape and number of frames differ by patient.
The images are made up from ellipses; no real scan went into them.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

IN_PLANE = ((48, 42), (52, 46), (44, 38))  # voxels, in turn over the patients
NUM_SLICES = (5, 4, 6)  # all a little below 10,240 voxels: one program serves them all
NUM_FRAMES = (16, 20, 13)
ED_FRAMES = (1, 1, 3)  # from 1; end-diastole is not always the first frame
SPACING = (2.8, 2.7, 3.0)  # mm, in plane; 10 mm between slices
BLUR = 0.8  # voxels
NOISE = 14.0  # standard deviation of each of the two channels, where blood is about 400


def write_phantom(root: str | Path, num_patients: int = 4, seed: int = 0) -> Path:
    """Writes `num_patients` phantom patients below `root`.

    Each gets Info.cfg, the 4D cine (int16 with a slope), and the end-diastolic and end-systolic
    frame with its mask. The same seed gives the same files' contents.

    Args:
      root: created if it is not there; patients are patient001, patient002, ... in it.
      num_patients: at least 1.
      seed: of anatomy, texture and noise.

    Returns:
      `root`, as `data.root` takes it.

    Raises:
      ValueError: if `num_patients` is below 1 or above 9999.
      FileExistsError: if there are patients below `root` already; they may be real ones.
    """
    if not 1 <= num_patients <= 9999:
        raise ValueError(f"num_patients must be from 1 to 9999, got {num_patients}.")
    root = Path(root)
    if any(root.glob("patient*")):
        raise FileExistsError(f"{root}: holds patients already; a new folder would be right.")
    for i in range(num_patients):
        _write_patient(root / f"patient{i + 1:03d}", i, np.random.default_rng([seed, i]))
    return root


def _write_patient(folder: Path, i: int, rng: np.random.Generator) -> None:
    kind = i % len(IN_PLANE)
    shape = (*IN_PLANE[kind], NUM_SLICES[kind])
    num_frames, ed = NUM_FRAMES[kind], ED_FRAMES[kind]
    anatomy = _Anatomy(shape, rng)
    # The volume falls during the first 40% of the cycle (systole) and then fills again.
    phase = (np.arange(num_frames) - (ed - 1)) / num_frames % 1.0
    systole, diastole = np.sin(np.pi * phase / 0.8), np.cos(np.pi * (phase - 0.4) / 1.2)
    contraction = np.where(phase < 0.4, systole, diastole)
    contraction = np.clip(contraction, 0, 1) ** 1.5
    es = int(np.argmax(contraction)) + 1
    frames, masks = zip(*(anatomy.render(c) for c in contraction), strict=True)
    cine = np.stack([_acquired(frame, rng) for frame in frames], axis=-1)

    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING[kind], SPACING[kind], 10.0, 1.0])
    _write_int16(folder / f"{folder.name}_4d.nii.gz", cine, affine)
    for number in (ed, es):
        stem = f"{folder.name}_frame{number:02d}"
        _write_int16(folder / f"{stem}.nii.gz", cine[..., number - 1], affine)
        mask = nib.Nifti1Image(masks[number - 1], affine)
        nib.save(mask, folder / f"{stem}_gt.nii.gz")
    (folder / "Info.cfg").write_text(
        f"ED: {ed}\nES: {es}\nGroup: PHANTOM\nHeight: {rng.integers(150, 195)}.0\n"
        f"NbFrame: {num_frames}\nWeight: {rng.integers(50, 100)}.0\n"
    )


def _write_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Stores `data` as int16 with a slope, as ACDC's 4D files are."""
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def _acquired(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The magnitude of a complex signal with Gaussian noise in both channels, blurred in plane:
    cine is acquired at larger voxels than it is reconstructed at."""
    real, imaginary = rng.normal(0, NOISE, (2, *image.shape))
    channels, blur = (image + real, imaginary), (BLUR, BLUR, 0)
    return np.hypot(*(ndimage.gaussian_filter(c, blur, mode="wrap") for c in channels))


def _texture(shape, sigmas, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit variance, correlated over `sigmas` voxels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigmas, mode="wrap")
    return noise / noise.std()


class _Anatomy:
    """One patient's geometry, in units of half the smaller side; (0, 0) is the heart's centre."""

    def __init__(self, shape, rng: np.random.Generator):
        self.shape = shape
        half = min(shape[:2]) / 2
        x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape[:2]), indexing="ij")
        # A smooth displacement bends the ellipses into less regular shapes.
        bend = 0.028 * np.stack([_texture(shape[:2], (5, 5), rng) for _ in range(2)])
        self.chest_x, self.chest_y = x / half + bend[0], y / half + bend[1]
        centre = rng.uniform(-0.06, 0.06, 2)
        angle = rng.uniform(-0.5, -0.1)
        dx, dy = self.chest_x - centre[0] - 0.05, self.chest_y - centre[1]
        self.x = dx * np.cos(angle) + dy * np.sin(angle)
        self.y = -dx * np.sin(angle) + dy * np.cos(angle)
        self.radius = rng.uniform(0.30, 0.36)
        self.wall = rng.uniform(0.10, 0.13)
        self.strength = rng.uniform(0.30, 0.40)
        self.blood = rng.uniform(380, 420)
        self.papillary = rng.uniform(0.6, 1.2)
        self.coarse = _texture(shape, (4, 4, 0.7), rng)
        self.fine = _texture(shape, (0.9, 0.9, 0.4), rng)
        vessels = _texture(shape, (1.2, 1.2, 0.5), rng)
        self.vessels = np.clip((vessels - 1.3) / 0.8, 0, 1)
        coil = rng.uniform(-0.25, 0.25, 2)
        self.shading = 1 + coil[0] * self.chest_x + coil[1] * self.chest_y

    def render(self, contraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Noise-free image and mask at a contraction from 0 (ED) to 1 (ES)."""
        slices = [self._slice(contraction, k) for k in range(self.shape[2])]
        image = np.stack([image for image, _ in slices], axis=-1)
        mask = np.stack([mask for _, mask in slices], axis=-1)
        image = image * (1 + 0.05 * self.coarse + 0.06 * self.fine) * self.shading[..., None]
        return np.clip(image, 0, None), mask.astype(np.uint8)

    def _slice(self, contraction, k):
        # From base (k = 0) to apex the ventricles taper; the last slice is mostly muscle.
        depth = k / (self.shape[2] - 1)
        taper = np.sqrt(1 - 0.72 * depth**2)
        squeeze = 1 - self.strength * contraction
        inner = self.radius * taper * squeeze
        # Muscle keeps its area: the wall thickens as the cavity shrinks.
        rest = self.radius * taper
        outer = np.sqrt(inner**2 + (rest + self.wall) ** 2 - rest**2)
        r = np.hypot(self.x, self.y * 1.06)

        image = self._chest(depth, k)
        right_squeeze = 1 - 0.8 * self.strength * contraction
        right = np.hypot((self.x + 0.30) / (1.15 * right_squeeze), self.y / 1.25)
        size = self.radius * taper * 1.12 if depth < 0.85 else -1.0
        image = _paint(image, _disc(r, outer + 0.035), 250.0)  # fat around the heart
        image = _paint(image, _disc(right, size + 0.05), 120.0)  # thin wall
        image = _paint(image, _disc(right, size), 0.95 * self.blood)
        image = _paint(image, _disc(r, outer), 115.0)
        image = _paint(image, _disc(r, inner), self.blood)
        if 0.1 < depth < 0.8:
            for side in (self.papillary, self.papillary + 2.3):
                px, py = 0.62 * inner * np.cos(side), 0.62 * inner * np.sin(side)
                muscle = np.hypot(self.x - px, self.y - py)
                image = _paint(image, 0.8 * _disc(muscle, 0.2 * inner + 0.01), 130.0)
        mask = np.zeros(r.shape, np.uint8)
        mask[right < size] = 1
        mask[r < outer] = 2
        mask[r < inner] = 3
        return image, mask

    def _chest(self, depth, k):
        x, y = self.chest_x, self.chest_y
        body = np.hypot(x / 1.05, y / 0.93)
        image = _paint(np.zeros(x.shape), _disc(body, 1.0), 330.0)  # subcutaneous fat
        image = _paint(image, _disc(body, 0.89), 110.0)  # chest wall
        lungs = np.minimum(
            np.hypot((x - 0.50) / 0.42, (y + 0.15) / 0.62),
            np.hypot((x + 0.55) / 0.36, (y + 0.30) / 0.50),
        )
        image = _paint(image, _disc(lungs, 1.0), 30.0)
        image = _paint(image, _disc(lungs, 0.95) * self.vessels[..., k], 190.0)
        liver = np.hypot((x + 0.35) / (0.48 + 0.1 * depth), (y - 0.55) / 0.30)
        image = _paint(image, _disc(liver, 1.0), 160.0)
        aorta = np.hypot(x - 0.50, y - 0.58)
        return _paint(image, _disc(aorta, 0.11), 0.9 * self.blood)


def _disc(distance: np.ndarray, radius: float) -> np.ndarray:
    """1 inside, 0 outside, with an edge of about a voxel: partial volume."""
    return np.clip((radius - distance) / 0.03 + 0.5, 0, 1)


def _paint(image: np.ndarray, coverage: np.ndarray, intensity: float) -> np.ndarray:
    return image * (1 - coverage) + intensity * coverage
