"""What a run says in the log: where it runs, on what, and how each task came out."""

import contextlib
import functools
import logging
import platform
import resource
import statistics
import sys
from pathlib import Path

import jax
from jax.sharding import Mesh

from nfcl_jax import curve, processes
from nfcl_jax.records import TaskResult

log = logging.getLogger("nfcl_jax")


@contextlib.contextmanager
def log_to(path: Path, quiet: type[BaseException]):
    """Sends the log to a file too, and what ends the run early; of an end of the `quiet` kind no
    more than its message. Of several processes the first one writes the file; others print what
    went wrong."""
    if own := processes.index():
        handler: logging.Handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"process {own}: %(message)s"))
    else:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk is told of by what cannot do without it.
    handler.handleError = lambda record: None
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except quiet as stop:
        log.info("%s; the same command goes on from here", stop)
        raise
    except BaseException:
        record = log.makeRecord(log.name, logging.ERROR, "", 0, "ended early", (), sys.exc_info())
        handler.handle(record)
        raise
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def log_machine(mesh: Mesh) -> None:
    """On what the run is computed."""
    log.info(
        "%s, Python %s, JAX %s on %d x %s%s",
        platform.node(),
        platform.python_version(),
        jax.__version__,
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
        f" in each of {processes.count()} processes" if processes.count() > 1 else "",
    )


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def log_memory() -> None:
    """The same, and of the first device, if that tells."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    device = f", of a device {of_device / 1e6:.0f} MB" if of_device else ""
    log.info("memory at its peak: of the process %.0f MB%s", peak_memory() / 1e6, device)


def log_start(scan_records: list[dict]) -> None:
    """What is fitted, and who is left out."""
    for record in scan_records:
        if "left_out" in record:
            log.warning("%s is left out: %s", record["patient"], " ".join(record["left_out"]))
            continue
        voxels = functools.reduce(int.__mul__, record["shape"])
        log.info(
            "%s/%s: %s voxels, %d parameters, %.3f per voxel",
            record["patient"],
            record["image"],
            " x ".join(map(str, record["shape"])),
            record["parameters"],
            record["parameters"] / voxels,
        )


def log_task(result: TaskResult, name: str, num_tasks: int) -> None:
    """How the fits of a task came out."""
    log.info("task %d of %d (%s) learned and saved", result.number, num_tasks, name)
    if any(fit.penalty_share for fit in result.fits):
        log.info(
            "after the first steps the strategy adds %.3g times the fitting loss; its gradient, or "
            "what it changes of the update, is %.3g times the fit's (medians)",
            statistics.median(fit.penalty_share for fit in result.fits),
            statistics.median(fit.penalty_gradient_share for fit in result.fits),
        )
    if any(fit.curve_error for fit in result.fits):
        log.info(
            "at most %.1g between the field and the curve that stood for it in the last step",
            max(fit.curve_error for fit in result.fits),
        )
    for fit in result.fits:
        name = f"{fit.patient}/{fit.image}"
        if fit.curve_error > curve.MAX_ERROR:
            log.warning(
                "%s: the curve of task %d is %.2g away from the field; more config.field.knots, or "
                "0, would be right",
                *(name, fit.task, fit.curve_error),
            )
        if fit.diverged:
            when = f"from step {fit.first_bad_step} on" if fit.first_bad_step else "after its steps"
            log.warning("%s diverged in task %d: not finite %s", name, fit.task, when)
        if fit.collapsed:
            log.warning("%s collapsed to a constant in task %d", name, fit.task)
