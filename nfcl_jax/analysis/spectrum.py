"""What a volume holds in bands of spatial frequency."""

import itertools

import numpy as np
from jaxtyping import Float, Shaped
from scipy.fft import dctn

# Ends of the bands, in parts of the Nyquist frequency along an axis; the last takes the corners.
BANDS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def band_names() -> list[str]:
    """Such as "1/8 to 1/4"."""
    ends = ["0", *(f"1/{round(1 / end)}" if end < 1 else "1" for end in BANDS[1:])]
    return [f"{low} to {high}" for low, high in itertools.pairwise(ends)]


def band_power(volume: Shaped[np.ndarray, "x y z"]) -> Float[np.ndarray, " bands"]:
    """The mean square of a volume, split into BANDS of the frequency within slices.

    By the cosine transform of each slice (type II), which has no jump at the edges as Fourier's
    has; it is orthogonal, so that the bands add up to the mean square (Parseval).
    """
    coefficients = dctn(volume.astype(np.float64), axes=(0, 1), norm="ortho")
    along = [np.arange(size) / size for size in volume.shape[:2]]
    frequency = np.hypot(*np.meshgrid(*along, indexing="ij"))
    band = np.clip(np.searchsorted(BANDS, frequency, side="right") - 1, 0, len(BANDS) - 2)
    power = np.sum(coefficients**2, axis=2).ravel()
    return np.bincount(band.ravel(), weights=power, minlength=len(BANDS) - 1) / volume.size
