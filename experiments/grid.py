"""A grid of runs over one set of scans, and their report."""

import fnmatch
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from configs.base import (
    DEFAULT_WEIGHTS,
    FIELDS,
    STRATEGIES,
    ConfigError,
    check_config,
    make_config,
    split_words,
)
from experiments.guards import locked, stopping
from experiments.running import (
    describe_scans,
    log,
    phantom_root,
    planned_work,
    read_data,
    refuse_another_run,
    run,
)
from experiments.screen import ProgressBar, claims_table, log_to_screen
from nfcl_jax.checkpoints import num_learned
from nfcl_jax.data.acdc import Cohort
from nfcl_jax.reporting.report import write_report
from nfcl_jax.reporting.shown import save_shown
from nfcl_jax.scenarios import SCENARIOS, Scan

NUM_SHOWN = 3  # patients in the report's viewer, unless config.show names them
# What every cell takes from the grid's config.
SHARED = (
    "num_steps", "batch_size", "patients_per_batch", "checkpoint_every_steps", "strict",
    "matmul_precision",
)  # fmt: skip


class Cell(NamedTuple):
    """One run of the grid. `twin` is an earlier cell, if there is one, that differs in the strategy
    alone."""

    name: str
    config: ConfigDict
    twin: str | None


def run_grid(config: ConfigDict, workdir: Path, console: Console) -> bool:
    """Runs the cells of the grid that are not done, and writes the report of all that are.

    Returns:
      Whether every cell was done; those that failed are told of at the end.

    Raises:
      ConfigError: if the config holds values that no run can be made with.
      DataError: if the scans cannot be used.
    """
    cells = make_cells(config, workdir)
    with locked(workdir):
        return _run_grid(config, cells, workdir, console)


def _run_grid(config: ConfigDict, cells: list[Cell], workdir: Path, console: Console) -> bool:
    with log_to_screen(console):
        scenarios = dict.fromkeys(cell.config.scenario for cell in cells)
        cohort = read_data(config, scenarios, workdir)
    scans = cohort.scans
    shown = _shown(config, scans)
    for cell in cells:
        own, tasks = scans[cell.config.scenario], SCENARIOS[cell.config.scenario]()
        records = describe_scans(own, tasks, cell.config, cohort.faults)
        refuse_another_run(cell.config, records, workdir / "cells" / cell.name)
    save_shown(workdir, [scan for s in scans.values() for scan in s], shown)
    with log_to_screen(console, logging.WARNING), stopping() as asked_to_stop:
        failed = run_cells(cells, cohort, workdir, console, asked_to_stop)
    console.print(f"{len(cells) - len(failed)} of {len(cells)} cells are done.")
    for name, fault in failed.items():
        console.print(f"failed: {name}: {fault}", style="bold red", markup=False)
    if any((workdir / "cells" / cell.name / "summary.csv").exists() for cell in cells):
        console.print(claims_table(write_report(workdir, DEFAULT_WEIGHTS)))
        console.print(f"the report is in {workdir / 'report.html'}")
    return not failed


def run_cells(
    cells: list[Cell],
    cohort: Cohort,
    workdir: Path,
    console: Console,
    asked_to_stop: Callable[[], int | None] = lambda: None,
) -> dict[str, str]:
    """Runs the cells one after the other; what went wrong, by name, of those that failed."""
    folder = workdir / "cells"
    work = {}
    for cell in cells:
        learned = num_learned(folder / cell.name) or int(cell.twin is not None)
        work[cell.name] = planned_work(cell.config, cohort.scans[cell.config.scenario], learned)
    failed = {}
    with ProgressBar(console, sum(map(sum, work.values()))) as bar:
        for number, cell in enumerate(cells, start=1):
            title = f"cell {number}/{len(cells)} {cell.name}"
            twin = folder / cell.twin if cell.twin else None
            scans = cohort.scans[cell.config.scenario]
            started = time.monotonic()
            try:
                with (
                    locked(folder / cell.name),
                    bar.of_run(title, work[cell.name], cell.config.num_steps) as on_progress,
                ):
                    own, left_out = folder / cell.name, cohort.faults
                    outcome = run(
                        cell.config, scans, own, on_progress, asked_to_stop, twin, left_out
                    )
            except Exception as error:  # one cell shall not take the others with it
                failed[cell.name] = f"{type(error).__name__}: {error}"
                log.warning("%s failed: %s", cell.name, failed[cell.name])
            else:
                if fault := outcome.fault(cell.config.strict, left_out):
                    failed[cell.name] = fault
                seconds = f"{time.monotonic() - started:.0f} s"
                bar.bar.print(f"{title}: {seconds if sum(work[cell.name]) else 'done before'}")
    return failed


def make_cells(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The cells that a config asks for, those with the same first task one after the other.

    Raises:
      ConfigError: for a config of something else, for a word that is none, or if nothing is left.
    """
    if "scenarios" not in config:
        raise ConfigError("this is not the config of a grid; configs/paper.py would be right.")
    words = {
        name: _words(config, name, known)
        for name, known in [
            ("scenarios", tuple(SCENARIOS)),
            ("fields", tuple(FIELDS)),
            ("strategies", STRATEGIES),
        ]
    }
    seeds = _numbers(config, "seeds", int)
    weights = _numbers(config, "weights", float) if config.weights else [None]
    cells: list[Cell] = []
    for scenario, field, seed in itertools.product(words["scenarios"], words["fields"], seeds):
        twin = None
        for strategy, weight in itertools.product(words["strategies"], weights):
            cell = make_config(scenario, f"{field},{strategy}")
            constants = cell.get(strategy, {})
            name = f"{scenario}-{field}-{strategy}-seed{seed}"
            if weight is not None and weight != constants.get("weight", weights[0]):
                if "weight" not in constants:
                    continue  # a strategy without a weight, once
                constants.weight = weight
                name = f"{scenario}-{field}-{strategy}_weight{weight:g}-seed{seed}"
            cell.seed = seed
            for shared in SHARED:
                cell[shared] = config[shared]
            cell.data.root = config.data.root or str(phantom_root(workdir))
            cell.data.patients = config.data.patients
            cell.data.skip_invalid = config.data.skip_invalid
            check_config(cell)
            if any(fnmatch.fnmatchcase(name, p) for p in split_words(config.cells) or ["*"]):
                cells.append(Cell(name, cell, twin))
                twin = twin or name
    if not cells:
        raise ConfigError(f"config.cells = {config.cells!r} leaves no cell of the grid.")
    return cells


def _words(config: ConfigDict, name: str, known: tuple[str, ...]) -> list[str]:
    words = split_words(config[name])
    if not words or not set(words) <= set(known):
        raise ConfigError(f"config.{name} must be of {', '.join(known)}, got {config[name]!r}.")
    return list(dict.fromkeys(words))


def _numbers(config: ConfigDict, name: str, kind: Callable) -> list:
    try:
        numbers = list(dict.fromkeys(kind(word) for word in split_words(config[name])))
    except ValueError:
        numbers = []
    if not numbers:
        raise ConfigError(f"config.{name} must be numbers between commas, got {config[name]!r}.")
    return numbers


def _shown(config: ConfigDict, scans: dict[str, list[Scan]]) -> list[str]:
    """Patients that the report shows."""
    patients = sorted({scan.patient for s in scans.values() for scan in s})
    wanted = split_words(config.show)
    unknown = sorted(set(wanted) - set(patients))
    if unknown:
        raise ConfigError(f"config.show: no patient {', '.join(unknown)} among those of the grid.")
    return wanted or patients[:NUM_SHOWN]
