"""A grid of runs over one set of scans, and their report."""

import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.launch import words
from experiments.launch.console import ProgressBar, claims_table, log_to_screen
from nfcl_jax import processes
from nfcl_jax.checkpoints import num_learned
from nfcl_jax.checks import split_words
from nfcl_jax.config import check_config, make_config, read_config
from nfcl_jax.data.cohorts import Cohort
from nfcl_jax.errors import ConfigError
from nfcl_jax.fields import FIELDS
from nfcl_jax.inputs import phantom_root, read_data
from nfcl_jax.locks import locked, stopping
from nfcl_jax.report.report import write_report
from nfcl_jax.report.shown import save_shown
from nfcl_jax.run_folder import refuse_another_run
from nfcl_jax.runner import Caller, log, planned_work, records_of_all, run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.storage import LOCK, PART
from nfcl_jax.strategies import STRATEGIES

NUM_SHOWN = 3  # patients in the report's viewer, unless config.show names them
# What every cell takes from the grid's config, where that is not None.
SHARED = (
    "num_steps", "batch_size", "scans_per_batch", "checkpoint_every_steps", "strict",
    "matmul_precision",
)  # fmt: skip
# What the first task knows nothing of.
NOT_FIRST = ("strategy", "later_factor", "mask_later_factor", "separate_classes", *STRATEGIES)


class Cell(NamedTuple):
    """One run of the grid. `twin` is an earlier cell, if there is one, with the same first task."""

    name: str
    config: dict[str, Any]
    twin: str | None


def run_grid(
    config: Mapping[str, Any], workdir: Path, console: Console, others: Sequence[Path] = ()
) -> bool:
    """Runs the cells of the grid that are not done, and writes the report of all that are.

    Args:
      config: of the grid.
      workdir: its folder.
      console: where it is told.
      others: folders of other grids, whose finished cells are taken where they are the same.

    Returns:
      Whether every cell was done; those that failed are told of at the end.

    Raises:
      ConfigError: if the config holds values that no run can be made with.
      DataError: if the scans cannot be used.
    """
    cells = make_cells(config, workdir)
    refuse_other_cells(cells, workdir)
    with locked(workdir):
        return _run_grid(config, cells, workdir, console, others)


def _run_grid(config, cells: list[Cell], workdir: Path, console: Console, others) -> bool:
    with log_to_screen(console):
        scenarios = dict.fromkeys(cell.config["scenario"] for cell in cells)
        cohort = read_data(config, scenarios, workdir)
    scans = cohort.scans
    shown = shown_patients(config, scans)
    taken = processes.on_first(
        lambda: [f"taken from {of}: {name}" for name, of in take_finished(cells, workdir, others)]
    )
    for line in taken:
        console.print(line, markup=False)
    refuse_other_cells(cells, workdir, cohort)
    if idle := overrides_of_none(config["overrides"], cells):
        console.print(f"config.overrides of no cell: {', '.join(idle)}", markup=False)
    save_shown(workdir, [scan for s in scans.values() for scan in s], shown)
    with log_to_screen(console, logging.WARNING), stopping(workdir) as asked_to_stop:
        failed = run_cells(cells, cohort, workdir, console, asked_to_stop)
    console.print(f"{len(cells) - len(failed)} of {len(cells)} cells are done.")
    for name, fault in failed.items():
        console.print(f"failed: {name}: {fault}", style="bold red", markup=False)
    processes.on_first(lambda: _report(cells, workdir, console))
    return not failed


def _report(cells: list[Cell], workdir: Path, console: Console) -> None:
    if any((workdir / "cells" / cell.name / "summary.csv").exists() for cell in cells):
        console.print(claims_table(write_report(workdir)))
        console.print(f"the report is in {workdir / 'report.html'}")


def refuse_other_cells(cells: list[Cell], workdir: Path, cohort: Cohort | None = None) -> None:
    """Raises ConfigError if a cell's folder holds another run; without a cohort by the config
    alone."""
    for cell in cells:
        records = cohort and records_of_all(
            cohort.scans[cell.config["scenario"]], cell.config, cohort.faults
        )
        refuse_another_run(cell.config, records, workdir / "cells" / cell.name)


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
        work[cell.name] = planned_work(cell.config, cohort.scans[cell.config["scenario"]], learned)
    failed = {}
    with ProgressBar(console, sum(map(sum, work.values()))) as bar:
        for number, cell in enumerate(cells, start=1):
            title = f"cell {number}/{len(cells)} {cell.name}"
            twin = folder / cell.twin if cell.twin else None
            scans = cohort.scans[cell.config["scenario"]]
            started = time.monotonic()
            try:
                with (
                    locked(folder / cell.name),
                    bar.of_run(title, work[cell.name], cell.config["num_steps"]) as on_progress,
                ):
                    caller = Caller(on_progress, asked_to_stop, twin, cohort.faults)
                    outcome = run(cell.config, scans, folder / cell.name, caller)
            except Exception as error:  # one cell shall not take the others with it
                if not processes.is_of_all(error):  # but processes that have lost each other end
                    raise
                failed[cell.name] = f"{type(error).__name__}: {error}"
                log.warning("%s failed: %s", cell.name, failed[cell.name])
            else:
                if fault := outcome.fault(cell.config["strict"], cohort.faults):
                    failed[cell.name] = fault
                seconds = f"{time.monotonic() - started:.0f} s"
                bar.bar.print(f"{title}: {seconds if sum(work[cell.name]) else 'done before'}")
    return failed


def overrides_of_none(overrides: str, cells: Sequence[Cell]) -> list[str]:
    """The words of `config.overrides` that are for no cell, nor for one with another scenario,
    field or strategy, which the grid may leave out."""
    seeds = {cell.config["seed"] for cell in cells}
    could_be = itertools.product(SCENARIOS, FIELDS, STRATEGIES, [f"seed{seed}" for seed in seeds])
    names = [cell.name for cell in cells] + ["-".join(parts) for parts in could_be]
    return [
        word
        for word in split_words(overrides)
        if (pattern := word.partition(":")[0]) not in FIELDS
        and not words.matching(names, [pattern])
    ]


def take_finished(
    cells: Iterable[Cell], workdir: Path, others: Iterable[Path]
) -> Iterator[tuple[str, Path]]:
    """Copies cells that other grids have finished, with the very same config, to `workdir`; gives
    their names, and whose they were. They share no file, which both would write to."""
    unfinished = workdir / "cells" / PART
    for cell, other in itertools.product(cells, others):
        there, here = other / "cells" / cell.name, workdir / "cells" / cell.name
        if here.exists() or not (there / "summary.csv").is_file():
            continue
        if read_config(there / "config.json") == cell.config:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(there, unfinished / cell.name, ignore=lambda *_: [LOCK])
            (unfinished / cell.name).rename(here)
            unfinished.rmdir()
            yield cell.name, other


def make_cells(config: Mapping[str, Any], workdir: Path) -> list[Cell]:
    """The cells that a config asks for.

    Raises:
      ConfigError: for a config of something else, for a word that is none, or if nothing is left.
    """
    if "scenarios" not in config:
        raise ConfigError("this is not the config of a grid; configs/paper.py would be right.")
    scenarios = words.names_of(config, "scenarios", SCENARIOS)
    fields = words.names_of(config, "fields", FIELDS)
    strategies = words.strategies_of(config["strategies"])
    seeds = words.numbers_of(config, "seeds")
    wanted = split_words(config["cells"])
    cells: list[Cell] = []
    for scenario, field, seed in itertools.product(scenarios, fields, seeds):
        twins: dict[str, str] = {}
        for strategy, constants, only in strategies:
            if only not in ("", scenario):
                continue
            cell = make_config(scenario, field, strategy)
            changed = {k: v for k, v in constants.items() if cell[strategy].get(k) != v}
            label = "_".join([strategy, *(f"{k}{words.short(v)}" for k, v in changed.items())])
            name = f"{scenario}-{field}-{label}-seed{seed}"
            given = {shared: config[shared] for shared in SHARED if config[shared] is not None}
            cell |= {"seed": seed} | given
            cell["data"] |= dict(config["data"])
            cell["data"]["root"] = config["data"]["root"] or str(phantom_root(workdir))
            if changed:
                cell[strategy] |= changed
            words.override(cell, name, config["overrides"])
            check_config(cell)
            if words.matching([name], wanted):
                first = json.dumps(_of_first_task(cell | {"field": _of_first_task(cell["field"])}))
                if name not in (cell.name for cell in cells):
                    cells.append(Cell(name, cell, twins.get(first)))
                twins.setdefault(first, name)
    if not cells:
        raise ConfigError(
            f"config.strategies = {config['strategies']!r} in {', '.join(scenarios)}, and "
            f"config.cells = {config['cells']!r}, leave no cell of the grid."
        )
    return cells


def _of_first_task(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NOT_FIRST}


def shown_patients(config: Mapping[str, Any], scans: dict[str, list[Scan]]) -> list[str]:
    """Patients that the report shows.

    Raises:
      ConfigError: if one of `config.show` is not there.
    """
    own = sorted({scan.patient for s in scans.values() for scan in s})
    patients = sorted({name for names in processes.gathered(own) for name in names})
    wanted = split_words(config["show"])
    unknown = sorted(set(wanted) - set(patients))
    if unknown:
        raise ConfigError(f"config.show: no patient {', '.join(unknown)} among those of the grid.")
    return wanted or patients[:NUM_SHOWN]
