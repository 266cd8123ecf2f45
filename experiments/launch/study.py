"""The grids of a study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.launch.grid import make_cells
from nfcl_jax.errors import ConfigError
from nfcl_jax.runner import written_phantom


def choices_of(config: Mapping[str, Any], workdir: Path) -> dict[str, dict[str, Any]]:
    """The config of each choice's grid, checked, by the choice's name. Without a `data.root`
    all are run on one phantom.

    Raises:
      ConfigError: if the config is of something else, or one of the grids' is not right.
    """
    if "choices" not in config:
        raise ConfigError("this is not the config of a study; configs/study.py would be right.")
    grids = {}
    for name, changes in config["choices"].items():
        grid = _updated({k: v for k, v in config.items() if k != "choices"}, changes, name)
        if not grid["data"]["root"]:
            grid["data"] |= {"root": str(written_phantom(workdir)), "dataset": "acdc"}
        make_cells(grid, workdir / name)
        grids[name] = grid
    return grids


def _updated(config: dict[str, Any], changes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config with other values in some of its fields; overrides come after those there are."""
    unknown = sorted(set(changes) - set(config))
    if unknown:
        raise ConfigError(f"config.choices.{name}: a grid has no {', '.join(unknown)}.")
    updated = dict(config)
    for key, value in changes.items():
        if key == "overrides":
            updated[key] = ",".join(word for word in (config[key], value) if word)
        else:
            section = isinstance(config[key], dict)
            updated[key] = _updated(config[key], value, name) if section else value
    return updated
