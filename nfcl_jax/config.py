"""The config of a run, as nested dictionaries: its defaults, each read from where the thing is
defined, and the checks of its values."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nfcl_jax import fields, strategies
from nfcl_jax.checks import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, Check, one_of, split_words
from nfcl_jax.data.cohorts import DATASETS, INTENSITY_RANGES
from nfcl_jax.errors import ConfigError, RunError, look_up
from nfcl_jax.fields import FIELDS
from nfcl_jax.scenarios import SEQUENCE, all_scenarios, heads_of, num_frames, tasks_of
from nfcl_jax.storage import read_json
from nfcl_jax.strategies import STRATEGIES

SCHEDULES = ("constant", "cosine", "exponential")  # which end at 1, 0, 0.1
MATMUL_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# What changes no result but by rounding: batches, when a run is saved, what is an error.
INDIFFERENT = ("scans_per_batch", "checkpoint_every_steps", "strict")
ALWAYS = ("seed", "num_steps", "batch_size", "huber_delta")  # in the config of every run
ABSENT = object()


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
        "num_steps": 500,  # of the optimiser, per task
        # Points per step; 0 is every voxel of the task. Its default, and those of the rate and the
        # warm-up, are the field's.
        "batch_size": kind.batch_size,
        "in_passes": False,  # whether they are drawn in passes over all voxels, or with replacement
        "learning_rate": kind.learning_rate,
        "muon_rate": 0.0,  # of Muon, for matrices but a new mask's outputs; 0: all is Adam's
        "later_factor": 1.0,  # what both are multiplied by in a later task without a new head
        "mask_later_factor": 1.0,  # and in one with a new mask, but no new image
        "keep_optimiser": False,  # whether Adam's moments go on from one task to the next
        "warmup_steps": kind.warmup_steps,  # of each task, in which the rate grows to its value
        # How the rate goes on from there in each task: one of SCHEDULES.
        "schedule": "constant",
        "huber_delta": 1.0,
        # How many scans one call of the program fits: 0 is all; None is one per device on CPUs,
        # where more are no faster and take more memory, elsewhere as many as fit.
        "scans_per_batch": None,
        # Steps after which a task in the middle is saved, at the end of a chunk of 50; 0 saves it
        # only when a signal stops the run, and between batches.
        "checkpoint_every_steps": 0,
        # Whether one fit that diverges or collapses, or one patient who is left out, makes the exit
        # code 1; otherwise only a run without any usable fit does.
        "strict": False,
        # Of the matrix products, on hardware that has others: one of MATMUL_PRECISIONS.
        "matmul_precision": "float32",
        "field": {"name": field, **fields.constants(field)},
        "strategy": strategy,
    }
    constants = strategies.constants(
        strategy, look_up(all_scenarios(), "scenario", scenario, ConfigError)
    )
    if constants:
        config[strategy] = constants
    if scenario == SEQUENCE:
        config["mask_factor"] = 1.0  # what the loss of masks is multiplied by, beside the images'
    config["data"] = _data_of_table() if scenario == SEQUENCE else _data_of_root()
    return config


def _data_of_root() -> dict[str, Any]:
    return {
        "dataset": "acdc",  # how its files are read
        "root": "",  # the folder of patientNNN folders; empty is the built-in phantom
        "patients": "",  # comma-separated; empty is all
        # What is scaled to [0, 1]: the patient's whole "cine", where there is one, or the "frames"
        # of a scan.
        "intensity_range": "cine",
        "skip_invalid": False,  # go on without patients whose files have faults
    }


def _data_of_table() -> dict[str, Any]:
    return {
        "table": "",  # the CSV file, see nfcl_jax/data/table.py
        "time_range": "",  # the times that are -1 and 1 for a field, such as "0,730"
        # Whether images on another grid than the patient's first are resampled to it.
        "resample": False,
    }


def in_todays_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config, of an earlier version maybe: renamed fields by their new name, and what did
    not exist as it was then."""
    config = dict(config)
    if "patients_per_batch" in config:
        config["scans_per_batch"] = config.pop("patients_per_batch")
    if config["scenario"] != SEQUENCE:
        config["data"] = {"dataset": "acdc", "intensity_range": "frames", **config["data"]}
    rates = {"warmup_steps": 0, "schedule": "constant", "muon_rate": 0.0, "later_factor": 1.0}
    rates["mask_later_factor"] = config.get("later_factor", 1.0)
    factor = {"mask_factor": 1.0} if config["scenario"] == SEQUENCE else {}
    config = rates | factor | {"keep_optimiser": False, "in_passes": False} | config
    for strategy, constant in (("ewc", "decay"), ("distillation", "ramp")):
        if isinstance(config.get(strategy), Mapping):
            config[strategy] = {constant: 1.0, **config[strategy]}
    kind = FIELDS.get(config["field"]["name"])
    if kind and issubclass(kind, fields.CoordinateField):
        config["field"] = {"time_scale": 1.0, "signed": False, **config["field"]}
        if config["field"].get("centred") is False:  # if true, it is refused by its name
            del config["field"]["centred"]
    of_diner = {"knots": 0, "initialisation": "lecun", "separate_classes": False}
    own = {"pe_relu": {"scale": 1.0}, "diner": of_diner}.get(config["field"]["name"], {})
    return config | {"field": own | config["field"]}


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a run, in today's terms.

    Raises:
      RunError: if it is none.
    """
    return stored_config(read_json(path), path)


def stored_config(config: Any, path: Path) -> dict[str, Any]:
    """What was read from `path`, in today's terms. It may lack what did not exist when it was
    written, and name a scenario, field, strategy or data set that is not loaded.

    Raises:
      RunError: if it is not the config of a run, or has values that no run is made with.
    """
    known = isinstance(config, dict) and all(
        isinstance(config.get(name), kind)
        for name, kind in {"scenario": str, "strategy": str, "field": dict, "data": dict}.items()
    )
    if not (
        known
        and isinstance(config["field"].get("name"), str)
        and config["strategy"] not in ("scenario", "strategy", "field", "data", *ALWAYS)
        and (config["strategy"] in STRATEGIES or _is_section(config, config["strategy"]))
    ):
        raise RunError(f"{path}: not the config of a run; another --workdir would be right.")
    config = in_todays_terms(config)
    faults = [f"config.{name} is missing." for name in ALWAYS if name not in config]
    faults += _mistyped(config, shipped := _shipped(config))
    extra = sorted(config["field"].keys() - shipped["field"].keys())
    if extra and config["field"]["name"] in FIELDS:
        faults.append(f"config.field: {config['field']['name']} has no {', '.join(extra)}.")
    names = ("scenario", "field.name", "strategy", "data.dataset")
    faults = faults or _out_of_range(config, but=names)
    if faults:
        raise RunError("\n".join(f"{path}: {fault}" for fault in faults))
    return config


def _is_section(config: Mapping[str, Any], name: str) -> bool:
    return isinstance(config.get(name, {}), dict)


def constants_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of a config's strategy."""
    return dict(config.get(config["strategy"], {}))


def check_config(config: Mapping[str, Any]) -> None:
    """Refuses values that no run can be made with.

    Raises:
      ConfigError: with one line for each of them.
    """
    if not isinstance(config.get("field"), Mapping):
        raise ConfigError(
            "this is not the config of a run; configs/SCENARIO.py:FIELD,STRATEGY would be right."
        )
    shipped = _shipped(config)
    # The argument of the config file says what the sections of field and strategy hold.
    lacks = [name for name in shipped if name not in config and name not in STRATEGIES]
    if isinstance(data := config.get("data"), Mapping):
        lacks += [f"data.{name}" for name in shipped["data"] if name not in data]
    faults = [f"config.{name} is missing." for name in lacks] + _mistyped(config, shipped)
    faults = faults or _out_of_range(config) or _incompatible(config)
    if faults:
        raise ConfigError("\n".join(faults))


def _shipped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of what the config holds, as far as its names are known."""
    names = config.get("scenario"), config["field"].get("name"), config.get("strategy")
    tables = all_scenarios(), FIELDS, STRATEGIES
    known = [isinstance(n, str) and n in t for n, t in zip(names, tables, strict=True)]
    some = [n if k else next(iter(t)) for n, k, t in zip(names, known, tables, strict=True)]
    shipped = make_config(*some)
    if not known[1]:
        shipped["field"] = {"name": ""}
    return shipped if known[2] else {k: v for k, v in shipped.items() if k != some[2]}


def _mistyped(config: Mapping[str, Any], shipped: Mapping[str, Any], within: str = "") -> list[str]:
    """A line for each value that is there and of another type than the default's."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
    faults = []
    for key, default in shipped.items():
        name, value = f"config.{within}{key}", config.get(key, default)
        if isinstance(default, Mapping):
            if isinstance(value, Mapping):
                faults += _mistyped(value, default, f"{within}{key}.")
            else:
                faults.append(f"{name} must be a section, got {value!r}.")
        elif not (default is None and value is None):
            kind = int if default is None else type(default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                faults.append(f"{name} must be {kinds[kind]}, got {value!r}.")
    return faults


def _out_of_range(config: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """A line for each value that is there and not good, `but` those of these names."""
    faults = []
    for name, check in _checks(config):
        value: Any = config
        for key in name.split("."):
            value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
        if name not in but and value is not ABSENT and not check.good(value):
            faults.append(f"config.{name} must be {check.wanted}, got {value!r}.")
    return faults


def _checks(config: Mapping[str, Any]) -> Iterator[tuple[str, Check]]:
    """Each value's name and check."""
    number = Check(lambda x: 0 <= x < 2**32, "from 0 to 2^32 - 1")
    batch = Check(lambda x: x is None or x >= 0, "at least 1, or 0 for all")
    names = Check(lambda x: all(split_words(x)), "names between commas, or empty for all")
    yield from (
        ("seed", number),
        ("num_steps", AT_LEAST_1),
        ("batch_size", NOT_NEGATIVE._replace(wanted="at least 1, or 0 for every voxel")),
        ("learning_rate", POSITIVE),
        ("muon_rate", NOT_NEGATIVE._replace(wanted="positive, or 0 for Adam alone")),
        ("later_factor", POSITIVE),
        ("mask_later_factor", POSITIVE),
        ("warmup_steps", NOT_NEGATIVE),
        ("schedule", one_of(SCHEDULES)),
        ("huber_delta", POSITIVE),
        ("mask_factor", POSITIVE),
        ("scans_per_batch", batch),
        ("checkpoint_every_steps", NOT_NEGATIVE._replace(wanted="at least 1, or 0 for never")),
        ("matmul_precision", one_of(MATMUL_PRECISIONS)),
        ("scenario", one_of(all_scenarios())),
        ("data.dataset", one_of(DATASETS)),
        ("data.patients", names),
        ("data.intensity_range", one_of(INTENSITY_RANGES)),
    )
    # A flag cannot change what the sections of field and strategy hold.
    field, strategy, own = config["field"], config["strategy"], constants_of(config)
    set_by = "set by :FIELD,STRATEGY"
    of_field = set(fields.constants(field["name"])) if field["name"] in FIELDS else set()
    yield "field.name", Check(lambda x: of_field == set(field) - {"name"}, set_by)
    scenarios = all_scenarios()
    known = strategy in STRATEGIES and config["scenario"] in scenarios
    of_strategy = strategies.constants(strategy, scenarios[config["scenario"]]) if known else {}
    fits = not known or set(of_strategy) == set(own)
    yield "strategy", Check(lambda x: x in STRATEGIES and fits, set_by)
    if of_field:
        for name, check in fields.checks(field["name"]).items():
            yield f"field.{name}", check
    if known and fits:
        for name, check in STRATEGIES[strategy].checks.items():
            yield f"{strategy}.{name}", check


def _incompatible(config: Mapping[str, Any]) -> list[str]:
    """Why strategy, field and tasks do not go together, or a value would do nothing."""
    tasks = tasks_of(config)
    field, kind = FIELDS[config["field"]["name"]], STRATEGIES[config["strategy"]]
    reason = kind.refuse(constants_of(config), field, tasks)
    is_known = config["scenario"] != SEQUENCE  # a table's tasks are not
    one_frame = is_known and num_frames(tasks) == 1
    no_mask = is_known and all(head.kind != "mask" for head in heads_of(tasks))
    apart = no_mask and config["field"].get("separate_classes", False)
    time_scale = config["field"].get("time_scale", 1)
    knots, own = config["field"].get("knots", 0), getattr(field, "knots", 0)
    at_knots = not config["batch_size"] and config["field"].get("table_features") == 1
    faults = {
        f"{config['strategy']}.{reason}": reason,
        "keep_optimiser = True needs config.muon_rate = 0: only Adam's moments are kept.": (
            config["keep_optimiser"] and config["muon_rate"]
        ),
        f"field.time_scale = {time_scale} does nothing: the scenario has one frame.": (
            one_frame and time_scale != 1
        ),
        "field.separate_classes = True does nothing: the scenario has no mask.": apart,
        f"field.knots = {knots} does nothing: only steps over every voxel, config.batch_size = 0, "
        "of one table feature ask at knots.": knots not in (0, own) and not at_knots,
    }
    return [f"config.{fault}" for fault, found in faults.items() if found]
