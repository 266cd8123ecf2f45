"""What both scenarios' configs share: fields, strategies, and the checks of a config's values."""

from ml_collections import ConfigDict, config_dict

FIELDS = {
    "pe_relu": {"num_frequencies": 10},
    "siren": {"w0": 15.0},
    "finer": {"w0": 5.0, "detach_scale": True, "first_bias": 0.0},
    "diner": {"table_features": 1, "table_range": 1e-4},
}
LEARNING_RATES = {"pe_relu": 1e-3, "siren": 1e-3, "finer": 1e-3, "diner": 1e-2}
# Of distillation, by a sweep on real patients (docs/reproduction.md). Cross-entropy on the mask
# outweighs Huber's loss on the image, hence the larger weight there.
DEFAULT_WEIGHTS = {"domain_expansion": 1.0, "signal_expansion": 10.0}
SCENARIOS = tuple(DEFAULT_WEIGHTS)
MATMUL_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
STRATEGIES = ("finetune", "distillation")


class ConfigError(Exception):
    """The config, or the argument that chooses it, is wrong. Not a ValueError, which
    ml_collections would bury in a traceback."""


def make_config(scenario: str, argument: str) -> ConfigDict:
    """The config of a scenario for an argument "FIELD,STRATEGY".

    Raises:
      ConfigError: if the argument is anything else; the message lists what there is.
    """
    words = argument.split(",")
    if len(words) != 2 or words[0] not in FIELDS or words[1] not in STRATEGIES:
        raise ConfigError(
            f"expected configs/{scenario}.py:FIELD,STRATEGY with FIELD one of {', '.join(FIELDS)} "
            f"and STRATEGY one of {', '.join(STRATEGIES)}; got {argument!r}."
        )
    field, strategy = words
    config = ConfigDict()
    config.scenario = scenario
    config.seed = 0
    config.num_steps = 500  # of Adam, per task
    config.batch_size = 4096  # points per step; 0 is every voxel of the task
    config.learning_rate = LEARNING_RATES[field]
    config.huber_delta = 1.0
    # How many scans one call of the program fits: 0 is all; None is one per device on CPUs, where
    # more are no faster and take more memory, and as many as draw 131,072 points elsewhere.
    config.patients_per_batch = config_dict.placeholder(int)
    # Steps after which a task in the middle is saved, at the end of a chunk of 50; 0 saves it only
    # when a signal stops the run, and between patients.
    config.checkpoint_every_steps = 0
    # Whether a single fit that diverges or collapses, or a patient who is left out, makes the exit
    # code 1; otherwise only a run without any usable fit does.
    config.strict = False
    # Of the matrix products, on hardware that has others: one of MATMUL_PRECISIONS.
    config.matmul_precision = "float32"

    config.field = ConfigDict({"name": field, "width": 256, "depth": 3, **FIELDS[field]})

    config.strategy = strategy
    if strategy == "distillation":
        config.distillation = ConfigDict()
        config.distillation.weight = DEFAULT_WEIGHTS[scenario]
        # Or "continuous": anywhere between them; or "shared": those that the step fits.
        config.distillation.points = "voxels"

    config.data = ConfigDict()
    config.data.root = ""  # the folder of patientNNN folders; empty is the built-in phantom
    config.data.patients = ""  # comma-separated; empty is all
    config.data.skip_invalid = False  # go on without patients whose files have faults
    return config


def split_words(words: str) -> list[str]:
    """The words between the commas of a flag; a comma too many leaves an empty one."""
    return [word.strip() for word in words.split(",")] if words.strip() else []


def check_config(config: ConfigDict) -> None:
    """Refuses values that no run can be made with.

    Raises:
      ConfigError: with one line for each of them.
    """
    if "field" not in config:
        raise ConfigError(
            "this is not the config of a run; configs/SCENARIO.py:FIELD,STRATEGY would be right."
        )
    field = config.field
    faults = []

    def check(name, good, wanted):
        value = config
        for part in name.split("."):
            value = value[part]
        if not good(value):
            faults.append(f"config.{name} must be {wanted}, got {value!r}.")

    def positive(x):
        return 0 < x < float("inf")

    def at_least(low):
        return lambda x: low <= x

    check("seed", lambda x: 0 <= x < 2**32, "from 0 to 2^32 - 1")
    check("num_steps", at_least(1), "at least 1")
    check("batch_size", at_least(0), "at least 1, or 0 for every voxel")
    check("learning_rate", positive, "positive")
    check("huber_delta", positive, "positive")
    check("patients_per_batch", lambda x: x is None or x >= 0, "at least 1, or 0 for all")
    check("checkpoint_every_steps", at_least(0), "at least 1, or 0 for never")
    precisions = ", ".join(MATMUL_PRECISIONS)
    check("matmul_precision", lambda x: x in MATMUL_PRECISIONS, f"one of {precisions}")
    check("field.width", at_least(1), "at least 1")
    check("field.depth", at_least(1), "at least 1")
    for name in ("w0", "table_range"):
        if name in field:
            check(f"field.{name}", positive, "positive")
    for name in ("num_frequencies", "table_features"):
        if name in field:
            check(f"field.{name}", at_least(1), "at least 1")
    if "first_bias" in field:
        check("field.first_bias", lambda x: 0 <= x < float("inf"), "at least 0")
    # The argument of the config file chose what the sections hold; a flag cannot change it.
    constants = set(field) - {"name", "width", "depth"}
    check("field.name", lambda x: set(FIELDS.get(x, ("?",))) == constants, "set by :FIELD,STRATEGY")
    check("scenario", lambda x: x in SCENARIOS, f"one of {', '.join(SCENARIOS)}")
    check(
        "data.patients",
        lambda x: all(split_words(x)),
        "names between commas, or empty for all",
    )
    check(
        "strategy",
        lambda x: x in STRATEGIES and (x in config or x == "finetune"),
        "set by :FIELD,STRATEGY",
    )
    if "distillation" in config:
        check("distillation.weight", lambda x: 0 < x < float("inf"), "positive")
        check(
            "distillation.points",
            lambda x: x in ("voxels", "continuous", "shared"),
            "'voxels', 'continuous' or 'shared'",
        )
        if config.scenario == "domain_expansion" and config.distillation.points == "shared":
            faults.append(
                "config.distillation.points must not be 'shared' in domain_expansion: the frame "
                "that a step fits is none that the teacher knows."
            )
        if field.name == "diner" and config.distillation.points == "continuous":
            faults.append(
                "config.distillation.points must not be 'continuous' for diner: its table has "
                "nothing between voxels."
            )
    if faults:
        raise ConfigError("\n".join(faults))
