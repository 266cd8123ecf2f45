"""The scans that a config asks for, from the folder that it names or from the phantom."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nfcl_jax import processes
from nfcl_jax.checks import split_words
from nfcl_jax.data.cohorts import Cohort, read_cohort, refuse_faults
from nfcl_jax.data.phantom import write_phantom
from nfcl_jax.errors import ConfigError, DataError

KEPT_BYTES = 2**30  # of scans that stay in memory; what is beyond is read again for each task

log = logging.getLogger("nfcl_jax")


def read_data(config: Mapping[str, Any], scenarios: Iterable[str], workdir: Path) -> Cohort:
    """The scans of the config's patients for each scenario; of the phantom, written first, if the
    config names no root.

    Raises:
      ConfigError: if it names another data set than the phantom's, and no root.
      DataError: if there are faults that the config does not skip, or nothing is left.
    """
    data = config["data"]
    root, dataset = data["root"], data["dataset"]
    if not root:
        if dataset != "acdc":
            raise ConfigError(f"config.data.dataset = {dataset!r} needs config.data.root.")
        root = Path(processes.on_first(lambda: str(written_phantom(workdir))))
        log.info("no config.data.root: running on the built-in phantom, written to %s", root)
    cohort = read_cohort(
        root, scenarios, split_words(data["patients"]), dataset, data["intensity_range"], KEPT_BYTES
    )
    there = [bool(scans) for scans in cohort.scans.values()]
    for warning in cohort.warnings:
        log.warning(warning)
    if not data["skip_invalid"] or not any(map(any, processes.gathered(there))):
        refuse_faults(cohort.faults)
    numbers = processes.gathered([len(scans) for scans in cohort.scans.values()])
    if idle := [str(process) for process, own in enumerate(numbers) if not all(own)]:
        raise DataError(
            f"no patient that can be used for process {', '.join(idle)} of {len(numbers)}; fewer "
            "processes would be right."
        )
    return cohort


def phantom_root(workdir: Path) -> Path:
    """Where the phantom goes that is used when no data are named."""
    return workdir / "phantom"


def written_phantom(workdir: Path) -> Path:
    """The phantom's folder; it is written the first time, whole or not at all."""
    root = phantom_root(workdir)
    if not root.exists():
        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_phantom(unfinished).rename(root)
    return root
