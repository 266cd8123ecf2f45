"""How every command starts, and how it tells the user what is wrong with what was given."""

import functools
import hashlib
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

from configs.base import ConfigError
from experiments.guards import Stopped
from nfcl_jax.checkpoints import CheckpointError
from nfcl_jax.continual import InactivePenaltyError
from nfcl_jax.data.acdc import DataError
from nfcl_jax.reporting.results import ReportError

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nfcl_jax"),
    "folder that keeps compiled programs for the next launch; empty keeps none",
)

# ml_collections tells of a config file that is not there by an OSError at its first use.
FAULTS = (
    ConfigError, DataError, ReportError, CheckpointError, InactivePenaltyError, OSError,
)  # fmt: skip


def launch(main: Callable[[list[str]], None], required: list[str]) -> None:
    """Parses the flags and runs `main`; faults of the input end it with one message and code 2."""
    flags.mark_flags_as_required(required)

    @_explain
    def run(argv):
        _configure_jax()
        main(argv)

    app.run(run, flags_parser=_explain(_parse))


def _configure_jax() -> None:
    if _CACHE.value:
        folder = Path(_CACHE.value) / _processor()
        jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _processor() -> str:
    """A name for what the CPU can do: programs compiled for one may be wrong for another that
    shares the folder, and JAX does not tell them apart."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.platform()} {features}".encode()).hexdigest()[:12]


def _parse(argv):
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # what ml_collections makes of an unknown field
        raise ConfigError(f"no such field in this config: {error.args[0]}") from error


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
