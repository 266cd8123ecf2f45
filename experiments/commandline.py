"""How every command starts, and how it tells the user what is wrong with what was given."""

import functools
import sys
from collections.abc import Callable

import absl.logging
import jax
from absl import app, flags

from configs.base import ConfigError
from nfcl_jax.data.acdc import DataError
from nfcl_jax.reporting.results import ReportError


def launch(main: Callable[[list[str]], None], required: list[str]) -> None:
    """Parses the flags and runs `main`; faults of the input end it with one message and code 2."""
    flags.mark_flags_as_required(required)
    # Some accelerators would round float32 products to 10 bits, and coordinates with them.
    jax.config.update("jax_default_matmul_precision", "float32")
    app.run(_explain(main), flags_parser=_explain(_parse))


def _parse(argv):
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # what ml_collections makes of an unknown field
        raise ConfigError(f"no such field in this config: {error.args[0]}") from error


def _explain(function):
    @functools.wraps(function)
    def explained(argv):
        absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells each of its steps
        try:
            return function(argv)
        # ml_collections tells of a config file that is not there by an OSError at its first use.
        except (ConfigError, DataError, ReportError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return explained
