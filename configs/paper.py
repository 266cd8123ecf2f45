"""The paper's experiments: every scenario, field and strategy, for `experiments.paper`."""

from ml_collections import ConfigDict, config_dict

METHOD = ("finetune", "distillation")  # what the paper compares


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Lists between commas; a cell of the grid is one of each. A strategy may have constants
    # of its own, and be for one scenario alone: "distillation:weight=10", "mas@domain_expansion".
    config.scenarios = "domain_expansion,signal_expansion"
    config.fields = "pe_relu,siren,finer,diner"
    weights = ("0.01", "1", "100", "1e4")  # of EWC, which must fail at the best of them: claim C10
    ewc = (f"ewc:weight={weight}@domain_expansion" for weight in weights)
    config.strategies = ",".join([*METHOD, *ewc])
    config.seeds = "0"
    # Cells to run, by patterns between commas: "*-siren-*,signal_expansion-*"; empty is all.
    config.cells = ""

    # For every cell; what each means is said in nfcl_jax/config.py.
    config.num_steps = 500
    config.batch_size = config_dict.placeholder(int)  # of every field; None is each field's own
    config.scans_per_batch = config_dict.placeholder(int)
    config.checkpoint_every_steps = 0
    config.strict = False
    config.matmul_precision = "float32"
    config.data = ConfigDict(
        {
            "dataset": "acdc",
            "root": "",
            "patients": "",
            "intensity_range": "cine",
            "skip_invalid": False,
        }
    )

    # Other values for the cells of a field, or of all, between commas: "diner:batch_size=4096",
    # "diner:field.initialisation=torch", "*:huber_delta=0.5".
    config.overrides = ""

    # Patients that the report shows slice by slice, between commas; empty is the first three.
    config.show = ""
    return config
