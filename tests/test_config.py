"""The config: defaults, arguments, checks."""

from pathlib import Path

import pytest

from configs import domain_expansion, recommended
from experiments.launch.grid import make_cells
from nfcl_jax.config import check_config, in_todays_terms, make_config, stored_config
from nfcl_jax.errors import ConfigError, RunError
from nfcl_jax.fields import FIELDS
from nfcl_jax.inputs import read_data
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import STRATEGIES


@pytest.mark.parametrize("argument", ["siren", "wire,finetune", "siren,finetune,x", ""])
def test_a_wrong_argument_is_answered_with_what_there_is(argument):
    with pytest.raises(ConfigError, match=r"pe_relu, siren, finer, diner.*finetune, distillation"):
        domain_expansion.get_config(argument)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("num_steps", 0),
        ("batch_size", -1),
        ("learning_rate", float("nan")),
        ("huber_delta", 0.0),
        ("scans_per_batch", -2),
        ("seed", -1),
        ("field.w0", 0.0),
        ("field.width", 0),
        ("field.name", "diner"),
        ("field.name", "wire"),
        ("scenario", "time_travel"),
        ("data.patients", "patient001,,patient003"),
        ("data.patients", ","),
        ("strategy", "ewc"),
        ("strategy", "hope"),
        ("data.dataset", "mnms"),
        ("distillation.weight", -1.0),
        ("distillation.points", "everywhere"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_done(name, wrong):
    config = domain_expansion.get_config("siren,distillation")
    config.update_from_flattened_dict({name: wrong})
    with pytest.raises(ConfigError, match=rf"config\.{name} must be .*, got {wrong!r}"):
        check_config(config.to_dict())


def test_points_are_not_shared_between_frames():
    config = domain_expansion.get_config("siren,distillation")
    config.distillation.points = "shared"
    with pytest.raises(ConfigError, match=r"config\.distillation\.points must not be 'shared' in"):
        check_config(config.to_dict())
    config = domain_expansion.get_config("diner,distillation")
    config.distillation.points = "continuous"
    with pytest.raises(ConfigError, match=r"must not be 'continuous' for DINER"):
        check_config(config.to_dict())


def test_every_default_config_is_sound():
    for scenario in SCENARIOS:
        for field in FIELDS:
            for strategy in STRATEGIES:
                check_config(make_config(scenario, field, strategy))
    with pytest.raises(ConfigError, match="unknown scenario 'cinema'; there are domain_expansion"):
        make_config("cinema", "siren", "ewc")


def test_every_default_stands_where_the_thing_is_defined(monkeypatch):
    monkeypatch.setattr(FIELDS["siren"], "learning_rate", 0.25)
    monkeypatch.setitem(SCENARIOS["signal_expansion"].strategies["distillation"], "weight", 7.0)
    config = make_config("signal_expansion", "siren", "distillation")
    assert (config["learning_rate"], config["field"]["w0"]) == (0.25, 15.0)
    assert config["distillation"] == {"weight": 7.0, "points": "shared", "ramp": 1.0}
    assert "finetune" not in make_config("signal_expansion", "siren", "finetune")


def test_a_config_of_an_earlier_version_is_read_in_todays_terms():
    config = make_config("domain_expansion", "siren", "ewc")
    early = config | {"patients_per_batch": 3, "data": {"root": "/data", "patients": ""}}
    del early["scans_per_batch"]
    today = in_todays_terms(early)
    assert today["scans_per_batch"] == 3 and "patients_per_batch" not in today
    own = {"dataset": "acdc", "intensity_range": "frames"}
    assert today["data"] == own | {"root": "/data", "patients": ""}
    assert in_todays_terms(config) == config
    diner = make_config("domain_expansion", "diner", "finetune")
    early = diner | {"field": {k: v for k, v in diner["field"].items() if k != "knots"}}
    del early["warmup_steps"]
    assert in_todays_terms(early)["field"]["knots"] == 0  # its full batches asked every voxel
    assert in_todays_terms(early)["warmup_steps"] == 0
    early = config | {
        "field": {k: v for k, v in config["field"].items() if k not in ("time_scale", "signed")}
    }
    assert in_todays_terms(early) == config
    assert in_todays_terms({k: v for k, v in early.items() if k != "in_passes"}) == config
    early["field"]["centred"] = False
    assert in_todays_terms(early) == config
    early["field"]["centred"] = True  # whose output layer began elsewhere
    with pytest.raises(RunError, match="siren has no centred"):
        stored_config(early, Path("config.json"))
    encoded = make_config("domain_expansion", "pe_relu", "finetune")
    early = {k: v for k, v in encoded["field"].items() if k != "scale"}
    assert in_todays_terms(encoded | {"field": early}) == encoded
    early = {k: v for k, v in diner["field"].items() if k != "separate_classes"}
    assert in_todays_terms(diner | {"field": early}) == diner
    distilled = make_config("domain_expansion", "siren", "distillation")
    early = distilled | {"distillation": {"weight": 1.0, "points": "voxels"}}
    assert in_todays_terms(early) == distilled


def test_a_value_that_would_do_nothing_is_refused(tmp_path):
    """DINER's knots, where its steps do not ask at them; and a data set without its files."""
    for changes, knots in (({"batch_size": 4096}, 64), ({"batch_size": 4096}, 1024), ({}, 64)):
        config = make_config("domain_expansion", "diner", "finetune")
        config |= changes
        config["field"]["knots"] = knots
        if changes and knots == 64:
            with pytest.raises(ConfigError, match=r"config\.field\.knots = 64 does nothing"):
                check_config(config)
        else:
            check_config(config)
    passes = make_config("domain_expansion", "siren", "finetune") | {"in_passes": True}
    check_config(passes)
    check_config(passes | {"batch_size": 0})  # each step is a pass then
    scaled = make_config("signal_expansion", "siren", "finetune")
    scaled["field"]["time_scale"] = 0.2
    with pytest.raises(ConfigError, match=r"time_scale = 0\.2 does nothing: the scenario has"):
        check_config(scaled)
    apart = make_config("domain_expansion", "diner", "finetune")
    apart["field"]["separate_classes"] = True
    with pytest.raises(ConfigError, match="separate_classes = True does nothing: the scenario has"):
        check_config(apart)
    config["data"]["dataset"] = "mine"
    with pytest.raises(ConfigError, match=r"dataset = 'mine' needs config\.data\.root"):
        read_data(config, ["domain_expansion"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_classes_are_moved_apart_but_where_parameters_are_held(tmp_path):
    """And the first task, which has no classes, is shared all the same."""
    config = recommended.get_config().to_dict()
    config |= {"fields": "diner", "scenarios": "signal_expansion"}
    config["strategies"] = "finetune,distillation,replay:weight=3,ewc,mas,ogd"
    first, *cells = make_cells(config, tmp_path)
    apart = {cell.config["strategy"] for cell in cells if cell.config["field"]["separate_classes"]}
    assert apart == {"distillation", "replay", "ogd"} and len(cells) == 5
    assert {cell.twin for cell in cells} == {first.name}
