"""The config of a run, as nested dictionaries: its defaults, each read from where the thing is
defined, and the checks of its values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfcl_jax import fields, strategies
from nfcl_jax.checks import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, Check, one_of
from nfcl_jax.data.cohorts import DATASETS, INTENSITY_RANGES
from nfcl_jax.errors import ConfigError, RunError, first_line, look_up
from nfcl_jax.fields import FIELDS
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import STRATEGIES

MATMUL_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# What changes no result but by rounding: the size of batches, when a run is saved, what is an
# error.
INDIFFERENT = ("scans_per_batch", "checkpoint_every_steps", "strict")


def make_config(scenario: str, field: str, strategy: str) -> dict[str, Any]:
    """The defaults for a scenario, field and strategy, which are names.

    Raises:
      ConfigError: for a name that is none; the message lists what there is.
    """
    look_up(STRATEGIES, "strategy", strategy, ConfigError)
    kind = look_up(FIELDS, "field", field, ConfigError)
    config: dict[str, Any] = {
        "scenario": scenario,
        "seed": 0,
        "num_steps": 500,  # of Adam, per task
        # Points per step; 0 is every voxel of the task. Its default, and those of the rate and the
        # warm-up, are the field's.
        "batch_size": kind.batch_size,
        "learning_rate": kind.learning_rate,
        "keep_optimiser": False,  # whether Adam's moments go on from one task to the next
        "warmup_steps": kind.warmup_steps,  # of each task, in which the rate grows to its value
        "huber_delta": 1.0,
        # How many scans one call of the program fits: 0 is all; None is one per device on CPUs,
        # where more are no faster and take more memory, and as many as draw 131,072 points
        # elsewhere.
        "scans_per_batch": None,
        # Steps after which a task in the middle is saved, at the end of a chunk of 50; 0 saves it
        # only when a signal stops the run, and between batches.
        "checkpoint_every_steps": 0,
        # Whether a single fit that diverges or collapses, or a patient who is left out, makes the
        # exit code 1; otherwise only a run without any usable fit does.
        "strict": False,
        # Of the matrix products, on hardware that has others: one of MATMUL_PRECISIONS.
        "matmul_precision": "float32",
        "field": {"name": field, **fields.constants(field)},
        "strategy": strategy,
    }
    constants = strategies.constants(
        strategy, look_up(SCENARIOS, "scenario", scenario, ConfigError)
    )
    if constants:
        config[strategy] = constants
    config["data"] = {
        "dataset": "acdc",  # how its files are read
        "root": "",  # the folder of patientNNN folders; empty is the built-in phantom
        "patients": "",  # comma-separated; empty is all
        # What is scaled to [0, 1]: the patient's whole "cine", where there is one, or the "frames"
        # of a scan.
        "intensity_range": "cine",
        "skip_invalid": False,  # go on without patients whose files have faults
    }
    return config


def split_words(words: str) -> list[str]:
    """The words between the commas of a flag; a comma too many leaves an empty one."""
    return [word.strip() for word in words.split(",")] if words.strip() else []


def in_todays_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config, of an earlier version maybe: renamed fields by their new name, and what did
    not exist as it was then."""
    config = dict(config)
    if "patients_per_batch" in config:
        config["scans_per_batch"] = config.pop("patients_per_batch")
    config["data"] = {"dataset": "acdc", "intensity_range": "frames", **config["data"]}
    config = {"warmup_steps": 0, "keep_optimiser": False, **config}
    if config["field"]["name"] == "diner":
        config["field"] = {"knots": 0, "initialisation": "lecun", **config["field"]}
    return config


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run, in today's terms.

    Raises:
      RunError: if it is none.
    """
    config = _read_json(path)
    known = isinstance(config, dict) and all(
        isinstance(config.get(name), kind)
        for name, kind in {"scenario": str, "strategy": str, "field": dict, "data": dict}.items()
    )
    if not known or not isinstance(config["field"].get("name"), str):
        raise RunError(f"{path}: not the config of a run; another --workdir would be right.")
    return in_todays_terms(config)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The patients.json of a run: a record of each scan, or of a patient who was left out.

    Raises:
      RunError: if it is none.
    """
    records = _read_json(path)
    of_scan = {"image": str, "shape": list, "frame_numbers": list, "spacing": list, "affine": list}
    for record in records if isinstance(records, list) else [None]:
        of = {"left_out": list} if isinstance(record, dict) and "left_out" in record else of_scan
        wanted = {"patient": str, **of}
        if not isinstance(record, dict) or not all(
            isinstance(record.get(name), kind) for name, kind in wanted.items()
        ):
            raise RunError(f"{path}: not the scans of a run; a copy of the file would be right.")
    return records


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: damaged ({first_line(error)}).") from error


def constants_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of a config's strategy."""
    return dict(config.get(config["strategy"], {}))


def check_config(config: Mapping[str, Any]) -> None:
    """Refuses values that no run can be made with.

    Raises:
      ConfigError: with one line for each of them.
    """
    if "field" not in config:
        raise ConfigError(
            "this is not the config of a run; configs/SCENARIO.py:FIELD,STRATEGY would be right."
        )
    faults = [
        f"config.{name} must be {check.wanted}, got {value!r}."
        for name, check, value in _checked(config)
        if not check.good(value)
    ]
    faults = faults or _incompatible(config)
    if faults:
        raise ConfigError("\n".join(faults))


def _checked(config: Mapping[str, Any]):
    """Each field's name, its check, and its value."""
    number = Check(lambda x: 0 <= x < 2**32, "from 0 to 2^32 - 1")
    batch = Check(lambda x: x is None or x >= 0, "at least 1, or 0 for all")
    names = Check(lambda x: all(split_words(x)), "names between commas, or empty for all")
    yield from (
        ("seed", number, config["seed"]),
        ("num_steps", AT_LEAST_1, config["num_steps"]),
        (
            "batch_size",
            NOT_NEGATIVE._replace(wanted="at least 1, or 0 for every voxel"),
            config["batch_size"],
        ),
        ("learning_rate", POSITIVE, config["learning_rate"]),
        ("warmup_steps", NOT_NEGATIVE, config["warmup_steps"]),
        ("huber_delta", POSITIVE, config["huber_delta"]),
        ("scans_per_batch", batch, config["scans_per_batch"]),
        (
            "checkpoint_every_steps",
            NOT_NEGATIVE._replace(wanted="at least 1, or 0 for never"),
            config["checkpoint_every_steps"],
        ),
        ("matmul_precision", one_of(MATMUL_PRECISIONS), config["matmul_precision"]),
        ("scenario", one_of(SCENARIOS), config["scenario"]),
        ("data.dataset", one_of(DATASETS), config["data"]["dataset"]),
        ("data.patients", names, config["data"]["patients"]),
        ("data.intensity_range", one_of(INTENSITY_RANGES), config["data"]["intensity_range"]),
    )
    # The argument of the config file chose what the sections hold; a flag cannot change it.
    field, strategy, own = config["field"], config["strategy"], constants_of(config)
    set_by = "set by :FIELD,STRATEGY"
    of_field = set(fields.constants(field["name"])) if field["name"] in FIELDS else set()
    yield "field.name", Check(lambda x: of_field == set(field) - {"name"}, set_by), field["name"]
    known = strategy in STRATEGIES and config["scenario"] in SCENARIOS
    of_strategy = strategies.constants(strategy, SCENARIOS[config["scenario"]]) if known else {}
    fits = not known or set(of_strategy) == set(own)
    yield "strategy", Check(lambda x: x in STRATEGIES and fits, set_by), strategy
    if of_field:
        for name, check in fields.checks(field["name"]).items():
            if name in field:
                yield f"field.{name}", check, field[name]
    if known and fits:
        for name, check in STRATEGIES[strategy].checks.items():
            yield f"{strategy}.{name}", check, own[name]


def _incompatible(config: Mapping[str, Any]) -> list[str]:
    """Why a strategy's constants, the field and the tasks do not go together."""
    tasks = SCENARIOS[config["scenario"]].tasks(config["huber_delta"])
    field, kind = FIELDS[config["field"]["name"]], STRATEGIES[config["strategy"]]
    reason = kind.refuse(constants_of(config), field, tasks)
    return [f"config.{config['strategy']}.{reason}"] if reason else []
