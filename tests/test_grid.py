"""The grid of runs."""

import re
import shutil

import pytest
from rich.console import Console
from test_checkpoints import empty_metadata

from configs import domain_expansion, quickstart, recommended
from configs import paper as paper_config
from experiments.launch import grid
from nfcl_jax.config import check_config, make_config
from nfcl_jax.errors import ConfigError
from nfcl_jax.strategies import STRATEGIES
from nfcl_jax.strategies.base import Strategy, StrategyKind

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("without_figures")


def small(root, **changes):
    config = paper_config.get_config()
    config.num_steps, config.batch_size = 2, 64
    config.scenarios, config.fields = "domain_expansion", "siren"
    config.strategies = "finetune,distillation"
    config.data.root, config.data.patients = str(root), "patient001"
    config.update(changes)
    return config.to_dict()


def test_a_cell_that_another_grid_has_finished_is_copied(tmp_path, phantom_root):
    first, second = tmp_path / "first", tmp_path / "second"
    change = {"fields": "siren,finer", "strategies": "finetune"}
    assert grid.run_grid(small(phantom_root, **change), first, QUIET)
    change |= {"overrides": "finer:learning_rate=0.02"}
    assert grid.run_grid(small(phantom_root, **change), second, QUIET, [tmp_path / "none", first])
    siren, finer = (f"cells/domain_expansion-{f}-finetune-seed0" for f in ("siren", "finer"))
    for file in (first / siren).glob("checkpoints/**/*"):
        copy = second / siren / file.relative_to(first / siren)
        assert copy.is_dir() or (copy.read_bytes() == file.read_bytes() and not copy.samefile(file))
    learned = "task 4 of 4 (frame 4) learned"
    for folder, times in ((siren, 1), (finer, 1)):
        assert (second / folder / "train.log").read_text().count(learned) == times
    assert "4 of 4 tasks were learned before" in (second / siren / "train.log").read_text()
    assert "were learned before" not in (second / finer / "train.log").read_text()
    assert {path.name for path in (second / "cells").iterdir()} == {siren[6:], finer[6:]}


def test_the_papers_cells_are_the_configs_of_ordinary_runs(tmp_path):
    cells = grid.make_cells(paper_config.get_config().to_dict(), tmp_path)
    assert len(cells) == 2 * 4 * 2 + 4 * 4
    weights = set()
    for cell in cells:
        scenario, field, strategy = cell.name.split("-")[:3]
        expected = make_config(scenario, field, strategy.split("_")[0])
        expected["data"]["root"] = str(tmp_path / "phantom")
        if "ewc" in expected:
            assert scenario == "domain_expansion"
            weights.add(cell.config["ewc"]["weight"])
            expected["ewc"]["weight"] = cell.config["ewc"]["weight"]
        assert cell.config == expected
        twin = None if strategy == "finetune" else cell.name.replace(strategy, "finetune")
        assert cell.twin == twin
    assert max(weights) >= 1e6 * min(weights)


def test_a_strategy_may_come_with_several_constants(tmp_path):
    config = paper_config.get_config().to_dict()
    config |= {"fields": "diner", "scenarios": "signal_expansion", "seeds": "0, 7"}
    config["strategies"] = (
        "finetune,distillation:weight=0.1,distillation:weight=10,"
        "distillation:weight=100:points=voxels,ewc:weight=1e6,distillation"
    )
    cells = grid.make_cells(config, tmp_path)
    assert [cell.name for cell in cells[:5]] == [
        "signal_expansion-diner-finetune-seed0",
        "signal_expansion-diner-distillation_weight0.1-seed0",
        "signal_expansion-diner-distillation-seed0",  # 10 is the default here, and stands once
        "signal_expansion-diner-distillation_weight100_pointsvoxels-seed0",
        "signal_expansion-diner-ewc_weight1e+06-seed0",
    ]
    assert len(cells) == 2 * 5
    constants = [c.config[c.config["strategy"]] for c in cells[1:5]]
    assert [c["weight"] for c in constants] == [0.1, 10.0, 100.0, 1e6]
    assert [c.get("points") for c in constants] == ["shared", "shared", "voxels", None]


def test_values_are_overridden_for_one_field_or_all(tmp_path):
    config = paper_config.get_config().to_dict() | {"fields": "siren,diner", "seeds": "0"}
    config["overrides"] = (
        "diner:field.initialisation=torch,diner:warmup_steps=50,siren:batch_size=16384,"
        "*:huber_delta=0.5,*:strict=True"
    )
    for cell in grid.make_cells(config, tmp_path):
        diner = cell.config["field"]["name"] == "diner"
        assert cell.config["batch_size"] == (0 if diner else 16384)
        assert cell.config["warmup_steps"] == (50 if diner else 0)
        assert cell.config["field"].get("initialisation") == ("torch" if diner else None)
        assert cell.config["huber_delta"] == 0.5 and cell.config["strict"] is True


def test_the_recommended_grid_differs_from_the_papers_in_how_fields_are_fitted(tmp_path):
    """Same steps and layers, no earlier data: only rates, points, weights and coordinates."""
    fitted = {
        "batch_size",
        "in_passes",
        "learning_rate",
        "muon_rate",
        "later_factor",
        "mask_later_factor",
        "warmup_steps",
        "schedule",
    }
    fitted |= {"keep_optimiser", "distillation", "joint"}
    factors = {}
    for cell in grid.make_cells(recommended.get_config().to_dict(), tmp_path):
        own = cell.config
        shipped = make_config(own["scenario"], own["field"]["name"], own["strategy"])
        changed = {k for k in own if k != "data" and own[k] != shipped[k]}
        assert "schedule" in changed <= fitted | {"field"}, cell.name
        same = {"time_scale": 1.0} | ({"scale": 1.0} if "scale" in own["field"] else {})
        apart = own["field"].get("separate_classes", False)
        assert apart == (cell.name.startswith("signal_expansion-diner"))
        same |= {"separate_classes": False} if apart else {}
        assert own["field"] | same == shipped["field"] | {"time_scale": 1.0}
        assert own["field"].get("scale") == (0.95 if own["field"]["name"] == "pe_relu" else None)
        assert own["in_passes"] == (own["field"]["name"] != "diner")
        if own["scenario"] == "signal_expansion" and own["strategy"] == "finetune":
            factors[own["field"]["name"]] = own["later_factor"], own["mask_later_factor"]
        if cell.name == "signal_expansion-siren-distillation-seed0":
            assert own["distillation"] == shipped["distillation"] | {"weight": 2000}
        if cell.name == "signal_expansion-siren-joint-seed0":
            assert own["joint"]["weight"] == 2000
    expected = {"pe_relu": (2.0, 3.0), "siren": (0.22, 0.22), "finer": (0.16, 0.4)}
    assert factors == expected | {"diner": (1.0, 1.0)}


def test_values_are_overridden_for_cells_by_their_names(tmp_path):
    """Cells that learn the first task in another way then do not take it from each other."""
    config = paper_config.get_config().to_dict() | {
        "fields": "siren",
        "strategies": "finetune,joint",
    }
    config["overrides"] = "signal*-joint-*:joint.weight=3,domain*-joint-*:learning_rate=1"
    cells = {cell.name: cell for cell in grid.make_cells(config, tmp_path)}
    domain, signal = (f"{s}_expansion-siren-joint-seed0" for s in ("domain", "signal"))
    assert cells[signal].config["joint"]["weight"] == 3 != cells[domain].config["joint"]["weight"]
    assert cells[domain].config["learning_rate"] == 1 != cells[signal].config["learning_rate"]
    assert cells[signal].twin == "signal_expansion-siren-finetune-seed0"
    assert cells[domain].twin is None
    with pytest.raises(ConfigError, match=r"has no joint.weight; .* \*-joint-\*:joint.weight=3"):
        grid.make_cells(config | {"overrides": "siren:joint.weight=3"}, tmp_path)
    config["overrides"] = "*-joint-*:later_factor=0.5"
    assert grid.make_cells(config, tmp_path)[1].twin == "domain_expansion-siren-finetune-seed0"


@pytest.mark.parametrize(
    "word",
    ["batch_size=1", "diners:batch_size=1", "diner:batch=1", "diner:field=1:2", "diner:seed.x=1",
     "diner:num_steps=many", "diner:strict=yes", "diner:seed", "diner:scans_per_batch=2",
     "*:data.skip_invalid=True"],
)  # fmt: skip
def test_an_override_that_is_none_is_refused(tmp_path, word):
    config = paper_config.get_config().to_dict() | {"overrides": word}
    with pytest.raises(ConfigError, match=f"config.overrides: {re.escape(repr(word))}"):
        grid.make_cells(config, tmp_path)


def test_an_override_of_no_cell_is_told_of_unless_the_grid_leaves_its_cells_out(
    phantom_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(grid, "run_cells", lambda cells, *_: {})
    idle = "domain*-sirn-*:batch_size=9,*-siren-*-seed7:batch_size=9"
    out = "diner:batch_size=9,signal*-diner-replay-*:replay.weight=2"
    words = f"{idle},{out},siren:batch_size=9,*:huber_delta=2"
    grid.run_grid(small(phantom_root, overrides=words), tmp_path, Console())
    told = " ".join(capsys.readouterr().out.split())
    assert f"config.overrides of no cell: {idle.replace(',', ', ')} 2 of 2" in told


def test_a_constant_that_is_true_or_false_is_said_so(tmp_path, monkeypatch):
    kind = StrategyKind("kept", lambda often=True: Strategy())
    monkeypatch.setitem(STRATEGIES, "keep", kind)
    config = paper_config.get_config().to_dict() | {"fields": "siren", "seeds": "0"}
    config |= {"scenarios": "domain_expansion", "strategies": "keep,keep:often=False"}
    cells = grid.make_cells(config, tmp_path)
    assert [cell.config["keep"]["often"] for cell in cells] == [True, False]
    with pytest.raises(ConfigError, match="True or False would be right, not '0'"):
        grid.make_cells(config | {"strategies": "keep:often=0"}, tmp_path)


def test_cells_can_be_chosen(tmp_path):
    config = quickstart.get_config().to_dict()
    config["cells"] = "domain_expansion-siren-*, *-diner-distillation-seed0"
    names = [cell.name for cell in grid.make_cells(config, tmp_path)]
    assert names == [
        "domain_expansion-siren-finetune-seed0",
        "domain_expansion-siren-distillation-seed0",
        "domain_expansion-diner-distillation-seed0",
        "signal_expansion-diner-distillation-seed0",
    ]


def test_a_strategy_may_be_for_one_scenario_alone(tmp_path):
    config = quickstart.get_config().to_dict() | {"fields": "siren"}
    config["strategies"] = "finetune,mas:weight=2@signal_expansion"
    assert [cell.name for cell in grid.make_cells(config, tmp_path)] == [
        "domain_expansion-siren-finetune-seed0",
        "signal_expansion-siren-finetune-seed0",
        "signal_expansion-siren-mas_weight2-seed0",
    ]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("fields", "siren,wire", "config.fields must be of pe_relu, siren"),
        ("strategies", "", "config.strategies names none"),
        (
            "strategies",
            "hope",
            "config.strategies must be of finetune, distillation, joint, replay, ewc, mas, ogd",
        ),
        ("strategies", "ewc:wait=3", "as in distillation:weight=10, got 'ewc:wait=3'"),
        ("strategies", "ewc@cinema", "'ewc@cinema': one of domain_expansion, signal_expansion"),
        ("strategies", "ewc@signal_expansion", "leave no cell"),
        ("strategies", "ewc:weight=much", "'ewc:weight=much': could not convert"),
        ("seeds", "zero", "config.seeds must be numbers"),
        ("strategies", "ewc:weight=-1", "config.ewc.weight must be positive"),
        ("cells", "*-wire-*", "leave no cell"),
        ("num_steps", 0, "config.num_steps must be at least 1"),
        ("show", "patient777", "no patient patient777"),
    ],
)
def test_a_wrong_word_is_named_before_anything_is_fitted(
    phantom_root, tmp_path, monkeypatch, name, wrong, message
):
    monkeypatch.setattr(grid, "run_cells", None)
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        grid.run_grid(small(phantom_root, **{name: wrong}), tmp_path, QUIET)


def test_the_config_of_a_run_is_none_of_a_grid_nor_the_other_way_round(tmp_path):
    with pytest.raises(ConfigError, match=r"not the config of a grid; configs/paper\.py"):
        grid.make_cells(domain_expansion.get_config().to_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"not the config of a run; configs/SCENARIO\.py"):
        check_config(paper_config.get_config().to_dict())


@pytest.mark.slow
def test_a_cell_that_fails_does_not_stop_the_others(phantom_root, tmp_path, monkeypatch, capsys):
    run = grid.run

    def run_but_one(config, *arguments):
        if config["strategy"] == "finetune":
            raise RuntimeError("out of luck")
        return run(config, *arguments)

    monkeypatch.setattr(grid, "run", run_but_one)
    assert not grid.run_grid(small(phantom_root), tmp_path, Console())
    failed, done = (f"domain_expansion-siren-{s}-seed0" for s in ("finetune", "distillation"))
    assert (tmp_path / "cells" / done / "summary.csv").exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 cells are done" in printed
    assert f"failed: {failed}: RuntimeError: out of luck" in printed
    assert (tmp_path / "report.html").exists()

    # The second time the cell that failed is done, and the one that is done is not.
    monkeypatch.setattr(grid, "run", run)
    before = (tmp_path / "cells" / done / "checkpoints/task_4").stat().st_mtime_ns
    assert grid.run_grid(small(phantom_root), tmp_path, QUIET)
    assert (tmp_path / "cells" / done / "checkpoints/task_4").stat().st_mtime_ns == before

    # Nor is it needed any more: a damaged twin's first task is learned again.
    shutil.rmtree(tmp_path / "cells" / done)
    empty_metadata(tmp_path / "cells" / failed / "checkpoints/task_1")
    assert grid.run_grid(small(phantom_root), tmp_path, QUIET)
    assert "Task 1 is learned again" in (tmp_path / "cells" / done / "train.log").read_text()

    assert f"patient001/cine without {failed}: " in (tmp_path / "report.html").read_text()

    # Other scans are shown, those of the other scenario stay.
    monkeypatch.setattr(grid, "run_cells", lambda cells, *_: {})
    grid.run_grid(small(phantom_root, scenarios="signal_expansion"), tmp_path, QUIET)
    shown = {path.name for path in (tmp_path / "shown").iterdir()}
    assert shown == {"patient001_cine_4.npz", "patient001_ED_1.npz", "patient001_ES_1.npz"}

    # With other settings the whole folder is refused, not only its finished cells.
    monkeypatch.setattr(grid, "run_cells", None)
    with pytest.raises(ConfigError, match=r"config\.num_steps = 2 instead of 3"):
        grid.run_grid(small(phantom_root, num_steps=3), tmp_path, QUIET)
