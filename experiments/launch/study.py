"""The grids of a study."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.launch.grid import make_cells, refuse_other_cells, shown_patients
from experiments.launch.words import matching
from nfcl_jax.checks import split_words
from nfcl_jax.errors import ConfigError, DataError
from nfcl_jax.inputs import phantom_root, read_data, written_phantom


def choices_of(config: Mapping[str, Any], workdir: Path) -> dict[str, dict[str, Any]]:
    """The config of each choice's grid, checked, by the choice's name. Without a `data.root`
    all are run on one phantom.

    Raises:
      ConfigError: if the config is of something else, `only` names what there is not, or one
        of the grids' is not right.
    """
    if not {"choices", "only"} <= set(config):
        raise ConfigError("this is not the config of a study; configs/study.py would be right.")
    shipped = {key: value for key, value in config.items() if key not in ("choices", "only")}
    grids = {}
    for name in _chosen(config["choices"], split_words(config["only"])):
        changes = config["choices"][name]
        grid = _updated(shipped, changes, name)
        if not grid["data"]["root"]:
            grid["data"] |= {"root": str(phantom_root(workdir))}
        make_cells(grid, workdir / name)
        grids[name] = grid
    return grids


def _chosen(names: Iterable[str], patterns: list[str]) -> list[str]:
    """Those that one of the patterns is for; all without any."""
    for pattern in patterns:
        if not matching(names, [pattern]):
            raise ConfigError(f"config.only: no choice {pattern!r}; there are {', '.join(names)}.")
    return matching(names, patterns)


def check_choices(choices: Mapping[str, Mapping[str, Any]], workdir: Path) -> None:
    """Reads the scans of every choice, before the first is run; the phantom is written if it is
    asked for.

    Raises:
      ConfigError: if a choice's folder holds other runs, or a patient to show is not there.
      DataError: with the faults of each choice's scans.
    """
    read: dict[str, list[str]] = {}
    for name, config in choices.items():
        refuse_other_cells(make_cells(config, workdir / name), workdir / name)
        read.setdefault(json.dumps([config["data"], config["scenarios"]]), []).append(name)
    faults = []
    for names in read.values():
        grids = {name: make_cells(choices[name], workdir / name) for name in names}
        config = choices[names[0]]
        if config["data"]["root"] == str(phantom_root(workdir)):
            written_phantom(workdir)
        scenarios = dict.fromkeys(c.config["scenario"] for own in grids.values() for c in own)
        try:
            cohort = read_data(config, scenarios, workdir)
        except DataError as error:
            faults.append(f"config.choices.{names[0]}: {error}")
            continue
        for name, cells in grids.items():
            shown_patients(choices[name], cohort.scans)
            refuse_other_cells(cells, workdir / name, cohort)
    if faults:
        raise DataError("\n".join(faults))


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
