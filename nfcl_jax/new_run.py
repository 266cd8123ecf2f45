"""Fits an image from Python: `run = nfcl_jax.learn(image, workdir=...)`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nfcl_jax.learning import config_of, learn_next
from nfcl_jax.new_row import new_of
from nfcl_jax.runs import Run, open_run


def learn(
    image: Any = None,
    *,
    workdir: str | Path,
    field: str = "siren",
    strategy: str = "distillation",
    time_range: Any = (0, 1),
    resample: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **new: Any,
) -> Run:
    """Fits a field to an image; `Run.learn` goes on with the next one.

        run = nfcl_jax.learn(first, workdir="runs/mine", time_range=(0, 730))
        run = run.learn(second, time=365)
        run = run.learn(mask=lesions, channel="lesions")
        print(run)

    The folder has everything that is needed to go on: the same call on it, in another process too,
    learns what is new. What was learned is not learned again, and its image need not be kept.

    Args:
      image: a numpy array (x, y) or (x, y, z), or (x, y, 3) in colour; a nibabel image; a Pillow
        picture; or the path of a NIfTI file or a picture. None if there is a mask alone.
      workdir: the run's folder.
      field: one of FIELDS.
      strategy: one of STRATEGIES, from the second image on.
      time_range: the times at the ends of the field's time axis, with room for scans to come; None
        for a field without time.
      resample: whether volumes on another grid than the first one's are resampled to it.
      settings: values of the config by their names, such as {"num_steps": 1000,
        "distillation.weight": 5.0}. The others are those of the recommended recipe.
      **new: of this image, as `Run.learn` takes them: mask, time, channel, intensity_range,
        spacing, colour, on_progress.

    Returns:
      The run, opened.

    Raises:
      ConfigError: for settings that no run can be made with, or if the folder holds another run.
      DataError: if the image cannot be used; the message says why.
    """
    workdir = Path(workdir)
    config = config_of(field, strategy, time_range, resample, settings)
    return open_run(workdir, learn_next(workdir, config, (), new_of(image, False, new)))
