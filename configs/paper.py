"""The paper's experiments: every scenario, field and strategy, for `experiments.paper`."""

from ml_collections import ConfigDict, config_dict

from configs.base import FIELDS, SCENARIOS, STRATEGIES


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Each is a list between commas; a cell of the grid is one of each.
    config.scenarios = ",".join(SCENARIOS)
    config.fields = ",".join(FIELDS)
    config.strategies = ",".join(STRATEGIES)
    config.seeds = "0"
    config.weights = ""  # of distillation; empty is each scenario's own
    # Cells to run, by patterns between commas: "*-siren-*,signal_expansion-*"; empty is all.
    config.cells = ""

    # For every cell; what each means is said in base.py.
    config.num_steps = 500
    config.batch_size = 4096
    config.patients_per_batch = config_dict.placeholder(int)
    config.checkpoint_every_steps = 0
    config.strict = False
    config.matmul_precision = "float32"
    config.data = ConfigDict({"root": "", "patients": "", "skip_invalid": False})

    # Patients that the report shows slice by slice, between commas; empty is the first three.
    config.show = ""
    return config
