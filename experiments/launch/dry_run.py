"""What runs will take, before they are begun: `--dry_run`."""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.launch.console import log_to_screen
from nfcl_jax import checkpoints, processes, run_log, shelf
from nfcl_jax.batch_task import STEPS_PER_CHUNK
from nfcl_jax.batching import device_mesh, make_batches
from nfcl_jax.errors import ConfigError
from nfcl_jax.padded import padded_size
from nfcl_jax.plan import Plan, plan_of
from nfcl_jax.runner import Caller, recipe_of, run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import tasks_of

DRY_RUN = flags.DEFINE_bool("dry_run", False, "say what this will take, and do not begin it")
RATE = flags.DEFINE_float(
    "flops_per_second", None, "of a machine that --dry_run is to tell the hours of", lower_bound=1.0
)

SAVING = 4  # times the size of a part of a checkpoint that Orbax takes to write it; it was 4 to 6


class Needs(NamedTuple):
    """Of one run: its plan, the most memory of the process, in bytes, and seconds of fitting."""

    plan: Plan
    process_bytes: int
    seconds: float


def needs_of(config: Mapping[str, Any], scans: Sequence[Scan], learned: int = 0) -> Needs:
    """What a run will take, whose first tasks are `learned`. As many of its largest scans as a
    batch holds are tried for two chunks of steps of each task, in a temporary folder."""
    tasks, recipe, mesh = tasks_of(config), recipe_of(config), device_mesh()
    plan = plan_of(scans, tasks, recipe, mesh)
    count, batches = make_batches(scans, plan.scans_per_batch, mesh)
    largest = sorted(scans, key=lambda scan: scan.num_voxels)[-count:]
    reached: dict[tuple[int, int], float] = {}

    def clock(progress):
        reached[progress.task, progress.step] = time.perf_counter()

    trial = {**config, "num_steps": 2 * STEPS_PER_CHUNK, "scans_per_batch": 0}
    with tempfile.TemporaryDirectory() as folder, log_to_screen(Console(quiet=True)):
        run(trial, largest, Path(folder), Caller(clock))
    # With steps over every voxel, batches of smaller scans take less.
    sizes = [padded_size(batch[-1].num_voxels) for batch in batches]
    work = len(batches) if config["batch_size"] else sum(sizes) / max(sizes)
    seconds = sum(
        (reached[task, 2 * STEPS_PER_CHUNK] - reached[task, STEPS_PER_CHUNK]) / STEPS_PER_CHUNK
        for task in range(learned + 1, len(tasks) + 1)
    )
    rest = plan.learned_bytes * (1 - len(largest) / len(scans))
    kept = min(rest, shelf.KEPT_BYTES) + SAVING * min(rest, checkpoints.PART_BYTES)
    peak = run_log.peak_memory() + kept
    return Needs(plan, int(peak), seconds * config["num_steps"] * work)


def show_needs(console: Console, needs: Needs, rate: float | None) -> None:
    """What one run takes; with `rate`, also the hours that its matrix products take at so many
    floating-point operations per second."""
    plan, device = needs.plan, jax.local_devices()[0].device_kind
    scans = statistics.mode(plan.batches)
    lines = {
        "batches": f"{len(plan.batches)} of {scans} scan{'s' * (scans > 1)}; of the voxels, "
        f"{plan.padding:.0%} more are padding",
        "parameters": f"{plan.parameters:,} of {sum(plan.batches)} fields",
        "memory": f"{_in_words(plan.device_bytes)} on each of {jax.local_device_count()} x "
        f"{device}, by the compiled programs' own analysis",
        "of the process": f"{_in_words(needs.process_bytes)} at its peak: a trial of the largest "
        "batch, and the other scans' parameters",
        "operations": f"{plan.flops:.2g} of all matrix products",
        "hours": f"{needs.seconds / 3600:.2g} here, of all steps as the trial's; compiling, "
        "reading, scoring and saving come on top",
    }
    if rate:
        lines["at that rate"] = f"{plan.flops / rate / 3600:.2g} hours, of the products alone"
    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, line in lines.items():
        shown.add_row(name, line)
    console.print(shown)


def show_all_needs(console: Console, needs: Mapping[str, Needs], rate: float | None) -> None:
    """The same of several runs, by their names, and all of them."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("", overflow="fold")
    for column in ("device", "operations", "hours", *(["at rate"] if rate else [])):
        shown.add_column(column, justify="right", no_wrap=True)

    def row(name, rows):
        flops = sum(own.plan.flops for own in rows)
        shown.add_row(
            escape(name),
            _in_words(max(own.plan.device_bytes for own in rows)),
            f"{flops:.2g}",
            f"{sum(own.seconds for own in rows) / 3600:.2g}",
            *([f"{flops / rate / 3600:.2g}"] if rate else []),
        )

    for name, own in needs.items():
        row(name, [own])
    shown.add_section()
    row(f"all {len(needs)}", list(needs.values()))
    console.print(shown)
    peak = _in_words(max(own.process_bytes for own in needs.values()))
    console.print(
        f"Memory of each device by the compiled programs' own analysis; {peak} of the process at "
        "its peak. Hours are those of the steps alone, as a trial of each run's largest batch took."
    )


def _in_words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def prepare() -> None:
    """Before anything is compiled. Compiling takes memory, of a real run too: programs of an
    earlier launch would hide it.

    Raises:
      ConfigError: where there are several processes.
    """
    if processes.count() > 1:
        raise ConfigError("--dry_run takes one process, and one process's patients.")
    jax.config.update("jax_enable_compilation_cache", False)
