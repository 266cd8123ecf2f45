"""How every command starts, and how it tells the user what is wrong with what was given."""

import argparse
import functools
import hashlib
import importlib.util
import io
import logging
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax
from absl import app, flags
from rich.console import Console

from nfcl_jax import processes
from nfcl_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InactivePenaltyError,
    OtherProcessError,
    ReportError,
    RunError,
    Stopped,
    first_line,
)

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nfcl_jax"),
    "folder that keeps compiled programs for the next launch; empty keeps none",
)

_EXTEND = flags.DEFINE_multi_string(
    "extend", [], "Python files that add fields, strategies, ...; they are run before all else"
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first of several processes at one run"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is", lower_bound=0)

# What launchers of several processes set, from which JAX takes the rest.
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Seconds after which a process that does not answer has died, or one that is done waits no more.
PATIENCE = 30

# ml_collections tells of a config file that is not there by an OSError at its first use.
FAULTS = (
    ConfigError, DataError, ReportError, RunError, CheckpointError, InactivePenaltyError, OSError,
    OtherProcessError,
)  # fmt: skip


def launch(main: Callable[[list[str]], None], required: list[str], several: bool = False) -> None:
    """Parses the flags and runs `main`; faults of the input end it with one message and code 2. If
    not `several`, it is refused in several processes at once."""
    flags.mark_flags_as_required(required)

    @_explain
    def run(argv):
        _configure_jax()
        _join_processes(several)
        main(argv)

    app.run(run, flags_parser=_explain(_parse))


def _configure_jax() -> None:
    if _CACHE.value:
        folder = Path(_CACHE.value) / _processor()
        jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _join_processes(several: bool) -> None:
    """Joins the other processes of this run, if there are any.

    Raises:
      ConfigError: if the flags do not tell who they are, or they do not come.
    """
    given = {
        "coordinator_address": _COORDINATOR.value,
        "num_processes": _NUM_PROCESSES.value,
        "process_id": _PROCESS_ID.value,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not several or not any(int(os.environ.get(name) or 1) > 1 for name in LAUNCHERS):
            return
        given = {}
    elif not several:
        raise ConfigError("only experiments.train and experiments.paper take several processes.")
    elif missing:
        raise ConfigError(f"{', '.join(missing)}: missing; several processes need all three.")
    elif given["process_id"] >= given["num_processes"]:
        raise ConfigError(f"--process_id must be below --num_processes, got {given['process_id']}.")
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=10 * PATIENCE,
            heartbeat_timeout_seconds=PATIENCE,
            shutdown_timeout_seconds=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes of this run do not meet: {first_line(error)}") from error


def screen() -> Console:
    """Where a command tells what it does: of several processes the first one does."""
    return Console(quiet=processes.index() > 0)


def _processor() -> str:
    """A name for what the CPU can do: programs compiled for one may be wrong for another that
    shares the folder, and JAX does not tell them apart."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.platform()} {features}".encode()).hexdigest()[:12]


def _parse(argv):
    _extend(argv)
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # what ml_collections makes of an unknown field
        raise ConfigError(f"no such field in this config: {error.args[0]}") from error


def _extend(argv: list[str]) -> None:
    """Runs the files that --extend names, before the flags are parsed: the argument of a config
    may be what they define."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--extend", action="append", default=[])
    for file in parser.parse_known_args(argv[1:])[0].extend:
        try:
            spec = importlib.util.spec_from_file_location(Path(file).stem, file)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a user's file does
            raise ConfigError(f"--extend={file}: {type(error).__name__}: {error}") from error


def _explain(function):
    @functools.wraps(function)
    def explained(argv):
        # Orbax tells each of its steps, and with asyncio each part of a damaged checkpoint, nibabel
        # what it mends; what matters of that is raised.
        absl.logging.set_verbosity(absl.logging.FATAL)
        for name in ("asyncio", "nibabel.global"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        for stream in (sys.stdout, sys.stderr):  # names of files may hold anything
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return function(argv)
        except FAULTS as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Stopped as stop:
            print(f"{stop}; everything is saved, the same command goes on", file=sys.stderr)
            sys.exit(stop.exit_code)

    return explained
