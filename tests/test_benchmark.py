import json

import jax
import pytest
from commands import typed
from conftest import REPOSITORY

from benchmarks import steps, tables
from benchmarks.steps import Case

SIREN = Case("siren", "distillation", "domain_expansion", 1000, patients=1, task=2)


@pytest.mark.parametrize(
    ("case", "per_point"),
    [
        # 2 flops x (forward + towards the weights + towards the inputs of all but coordinates)
        (SIREN._replace(task=1), 2 * (3 * (4 * 256 + 2 * 256**2 + 256) - 4 * 256)),
        (SIREN._replace(strategy="finetune"), 2 * (3 * (4 * 256 + 2 * 256**2 + 256) - 4 * 256)),
        (SIREN, 4 * (3 * (4 * 256 + 2 * 256**2 + 256) - 4 * 256)),
        (SIREN._replace(field="diner", task=1), 6 * (256 + 2 * 256**2 + 256)),
        (
            SIREN._replace(scenario="signal_expansion", strategy="distillation"),
            2 * (3 * (3 * 256 + 2 * 256**2 + 5 * 256) - 3 * 256),
        ),
        (
            SIREN._replace(
                field="pe_relu", scenario="signal_expansion", strategy="distillation_voxels"
            ),
            4 * (3 * (60 * 256 + 2 * 256**2 + 5 * 256) - 60 * 256),
        ),
    ],
)
def test_flops_are_those_of_the_matrix_products(case, per_point):
    sizes = steps.layer_sizes(case, steps.config_of(case))
    assert steps.flops(case, sizes) == 1000 * per_point


@pytest.mark.parametrize("patients", [1, 2])
def test_the_products_of_all_patients_run(patients):
    steps.matmul_steps(8, [(3, 5), (5, 1)], towards_coords=False, patients=patients)(2)


def test_the_fraction_of_the_products_rate_is_of_as_many_patients():
    case = Case("siren", "finetune", "domain_expansion", 64, patients=4, task=2)
    times = {(case, "jax"): [8.0], (case, "matmul"): [3.0]}
    assert tables.timing_of(case, times, megabytes=1.0, at_once=4).fraction_of_matmul == 3 / 8
    assert tables.timing_of(case, times, megabytes=1.0, at_once=2).fraction_of_matmul == 6 / 8


def test_all_take_their_turns_in_every_round():
    turns = []
    runs = {name: lambda steps, name=name: turns.append((name, steps)) for name in "ab"}
    times = steps.interleave(runs, rounds=3, seconds=0.0)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    timed = [name for name, steps in turns if steps >= 20]
    assert timed == ["a", "b"] * 3
    assert steps.median_ratio([1.0, 2.0, 4.0], [2.0, 6.0, 4.0]) == 2.0


def test_the_benchmark_writes_a_record_of_each_case(tmp_path):
    done = typed(
        "python -m benchmarks --out=out --fields=siren --strategies=finetune "
        "--scenarios=domain_expansion --points=64,128 --rounds=1 --seconds=0",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert [(r["field"], r["points"], r["patients"]) for r in records] == [
        ("siren", 64, 1),
        ("siren", 128, 1),
    ]
    for r in records:
        assert r["gflops"] > 0 and r["fraction_of_matmul"] > 0 and r["torch_ms_per_step"] is None
    for name in ("benchmark.md", "benchmark.png"):
        assert (tmp_path / "out" / name).exists()


def test_a_wrong_case_is_one_message(tmp_path):
    done = typed("python -m benchmarks --out=out --points=0", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: --points must be numbers from 1 to ")


def test_the_page_on_performance_shows_the_last_run():
    docs = REPOSITORY / "docs"
    records = json.loads((docs / "performance/benchmark.json").read_text())
    timings = [tables.Timing(**{k: r[k] for k in tables.Timing._fields}) for r in records]
    page = (docs / "performance.md").read_text()
    assert tables.summary(timings) in page
    assert records[0]["machine"] in page


def test_a_case_that_is_not_timed_yet_has_no_number():
    records = json.loads((REPOSITORY / "docs/performance/benchmark.json").read_text())
    timings = [tables.Timing(**{k: r[k] for k in tables.Timing._fields}) for r in records]
    two = [t for t in timings if (t.field, t.points) in {("siren", 1024), ("diner", 4096)}]
    for row in tables.summary(two).splitlines()[2:]:
        assert row.split("|")[4 if "DINER" in row else 5].strip() == "-"
        assert "x, " in row


def test_their_fields_are_of_the_same_size_as_ours():
    pytest.importorskip("torch")
    from benchmarks import photographs
    from nfcl_jax.fields import create_field, init_params
    from nfcl_jax.params import num_parameters

    constants = {"width": photographs.WIDTH, "depth": photographs.DEPTH, "w0": photographs.W0}
    for name in photographs.SCHEDULES:
        theirs = photographs.their_field(name, channels=3)
        field = create_field({"name": name, **constants}, 3, 1)
        ours = num_parameters(init_params(field, jax.random.key(0), axes=2))
        assert sum(own.numel() for own in theirs.parameters()) == ours


def test_the_times_to_quality_on_the_page_are_the_benchmarks():
    names = {"domain_expansion": "four frames", "signal_expansion": "image and mask"}
    page = (REPOSITORY / "docs/performance.md").read_text()
    rows = (REPOSITORY / "docs/performance/quality.md").read_text().splitlines()[4:]
    assert len(rows) == 6
    above = []
    for row in rows:
        scenario, field, _, theirs, ours, steps, times, *ends = row.strip("| ").split(" | ")
        first_of_theirs, first_of_ours = (float(own.split(",")[0]) for own in ends)
        above.append(first_of_ours - first_of_theirs)
        assert f"| {names[scenario]}, {field} | {theirs} | {ours} | {steps} | {times} |" in page
    assert f"The first frames, or the image, end up to {max(above):.1f} dB above PyTorch's" in page


def test_time_to_quality_is_of_the_first_number_of_steps_that_is_enough():
    pytest.importorskip("torch")
    from benchmarks import quality
    from configs import recommended

    config = quality.cell_of(recommended, "domain_expansion", "siren", num_steps=60)
    assert (config["num_steps"], config["schedule"], config["muon_rate"]) == (60, "cosine", 3.5e-3)
    same = {"scenario": "domain_expansion", "field": "siren", "scan": "patient001/cine"}
    torch = same | {"by": "PyTorch", "steps": 500, "seconds": 60.0, "scores": [30.0, 33.0]}
    ours = same | {"by": "nfcl_jax", "steps": 60, "seconds": 5.0, "scores": [29.0, 34.0]}
    records = [torch, ours | {"enough": False}]
    assert "| not reached | 60 | - |" in quality.table(records)
    records.append(ours | {"steps": 80, "seconds": 10.0, "scores": [30.0, 33.5], "enough": True})
    assert "| 60 | 10 | 80 | 6.0 | 30, 33 | 30, 33.5 |" in quality.table(records)
