"""Numbers over patients, and over the matrix of scores that continual learning leaves.

R[s, e] is a score (the higher the better) on task e after learning task s, of S tasks. It is NaN
for s < e and where a task has no such score; all summaries of R leave those out, and are NaN
where nothing is left.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

MOST_PATIENTS = 1000


class Interval(NamedTuple):
    low: float
    high: float


def average_forgetting(matrix: Float[np.ndarray, "tasks tasks"]) -> float:
    """Mean over tasks e < S of max over e <= s < S of R[s, e], minus R[S, e]: what was lost since
    the best time (Chaudhry et al., ECCV 2018)."""
    before = matrix[:-1, :-1]
    if not before.size:  # of a single task there is nothing to forget
        return float("nan")
    scored = np.isfinite(before).any(axis=0)
    best = np.nanmax(before[:, scored], axis=0)
    return _mean(best - matrix[-1, :-1][scored])


def backward_transfer(matrix: Float[np.ndarray, "tasks tasks"]) -> float:
    """Mean over tasks e < S of R[S, e] - R[e, e]: negative where later tasks harm earlier ones
    (Lopez-Paz and Ranzato, NeurIPS 2017)."""
    return _mean((matrix[-1] - np.diagonal(matrix))[:-1])


def largest_drop(matrix: Float[np.ndarray, "tasks tasks"]) -> float:
    """Max over tasks e < S of R[e, e] - R[S, e]: the drop, since it was learned, of the task whose
    score dropped most."""
    lost = (np.diagonal(matrix) - matrix[-1])[:-1]
    present = lost[~np.isnan(lost)]
    return float(np.max(present)) if present.size else float("nan")


def gap_closed(
    kept: Float[np.ndarray, " patients"],
    tuned: Float[np.ndarray, " patients"],
    joint: Float[np.ndarray, " patients"],
) -> float:
    """Where a strategy stands between fine-tuning (0%) and joint training (100%), by a score of the
    earlier tasks at the end: 100 mean(kept - tuned) / mean(joint - tuned), over patients who have
    all three. NaN unless joint training is better than fine-tuning by a mean whose 95% interval
    lies above 0, or for the one patient that there is."""
    there = np.isfinite(kept) & np.isfinite(tuned) & np.isfinite(joint)
    gap = (joint - tuned)[there]
    clear = mean_interval(gap).low > 0 if len(gap) > 1 else (gap > 0).all()
    if not len(gap) or not clear:
        return float("nan")
    return float(100 * np.mean((kept - tuned)[there]) / np.mean(gap))


def stability(matrix: Float[np.ndarray, "tasks tasks"]) -> float:
    """Mean over tasks e < S of R[S, e]: what is left of the earlier tasks at the end."""
    return _mean(matrix[-1, :-1])


def plasticity(matrix: Float[np.ndarray, "tasks tasks"]) -> float:
    """Mean over all tasks e of R[e, e]: how well each was learned when it came."""
    return _mean(np.diagonal(matrix))


SUMMARIES = {
    "forgetting": average_forgetting,
    "backward_transfer": backward_transfer,
    "largest_drop": largest_drop,
    "stability": stability,
    "plasticity": plasticity,
}


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(np.mean(present)) if present.size else float("nan")


def mean_interval(values: Float[np.ndarray, " patients"]) -> Interval:
    """95% interval of the mean over patients by Student's t: mean -+ t s / sqrt(n). NaN for fewer
    than two patients or values that are not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return Interval(float("nan"), float("nan"))
    half = _half_width(float(np.std(values, ddof=1)), len(values))
    return Interval(float(np.mean(values)) - half, float(np.mean(values)) + half)


def share_interval(count: int, patients: int) -> Interval:
    """95% interval of a share, `count` of so many patients (Clopper and Pearson, 1934)."""
    from scipy import stats  # slow to import, and only a report needs it

    if not patients:
        return Interval(float("nan"), float("nan"))
    return Interval(*stats.binomtest(count, patients).proportion_ci(0.95, "exact"))


def patients_needed(distance: float, deviation: float) -> int | None:
    """The fewest patients of whom a mean at that distance from a limit would be known to be on its
    side of it, at this standard deviation; None if more than MOST_PATIENTS."""
    fits = (n for n in range(2, MOST_PATIENTS + 1) if _half_width(deviation, n) < abs(distance))
    return next(fits, None)


def _half_width(deviation: float, patients: int) -> float:
    """Of the 95% interval of a mean."""
    from scipy import special

    return float(special.stdtrit(patients - 1, 0.975)) * deviation / patients**0.5
