"""Cohorts that do not fit the memory, and what a run takes of it."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from commands import command
from small import FRAMES, cohort, distilled, recipe, train

from nfcl_jax import batching, checkpoints, inputs, plan, shelf
from nfcl_jax.batching import compile_for, device_mesh
from nfcl_jax.data.cohorts import read_cohort
from nfcl_jax.errors import DataError
from nfcl_jax.fields import FIELDS
from nfcl_jax.records import Learned
from nfcl_jax.runner import Caller, run
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.shelf import Shelf

RNG = np.random.default_rng(0)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_scans_beyond_what_is_kept_are_read_again(phantom_root):
    whole = read_cohort(phantom_root, SCENARIOS).scans
    some = sum(scan.intensities.nbytes for scan in whole["domain_expansion"][:2])
    for kept_bytes, unread in ((0, 3), (some, 1)):
        scans = read_cohort(phantom_root, ["domain_expansion"], kept_bytes=kept_bytes).scans
        scans = scans["domain_expansion"]
        assert [bool(scan.reader) for scan in scans] == [False] * (3 - unread) + [True] * unread
        for scan, own in zip(scans, whole["domain_expansion"], strict=True):
            assert (scan.name, scan.shape, scan.sha256) == (own.name, own.shape, own.sha256)
            equal(scan.read().intensities, own.intensities)
    with pytest.raises(RuntimeError, match=r"not in memory; Scan\.read has them"):
        np.asarray(scans[2].intensities)


def test_a_scan_whose_file_changed_meanwhile_is_refused():
    scan, other = cohort()[:2]
    hollow = scan.unread(lambda: dataclasses.replace(other, patient=scan.patient))
    with pytest.raises(DataError, match=r"patient0/cine: its files changed while the run"):
        hollow.read()
    with pytest.raises(DataError, match="its files changed"):
        train([hollow], FRAMES[:1], recipe())


def test_reading_ahead_and_parameters_in_files_change_nothing(tmp_path):
    scans, how = cohort(), distilled(scans_per_batch=2)
    kept = train(scans, FRAMES[:2], how)
    hollow = [scan.unread(lambda own=scan: own) for scan in scans]
    memory = Shelf(tmp_path, [scan.name for scan in scans], kept_bytes=3000)
    spilled = train(hollow, FRAMES[:2], how, memory=memory)
    assert [result.scores for result in spilled] == [result.scores for result in kept]
    equal(dict(memory), kept[-1].learned)


@pytest.mark.parametrize("kept_bytes", [0, 30, 1000])
def test_a_shelf_gives_what_was_put_there(tmp_path, kept_bytes):
    own = Learned({"params": {"a": {"b": RNG.normal(size=3)}}}, {"n": np.int32(2)})
    memory = Shelf(tmp_path, ["p/cine", "q/cine"], kept_bytes)
    memory["p/cine"] = own
    equal(memory["p/cine"], own)
    memory["p/cine"] = own._replace(state={})
    assert memory["p/cine"].state == {} and "q/cine" not in memory
    del memory["p/cine"]
    assert memory.get("p/cine") is None
    memory["p/cine"] = memory["q/cine"] = own
    assert list(memory) == ["p/cine", "q/cine"]
    files = sorted(path.parent.name for path in tmp_path.rglob("*.npz"))
    assert files == {0: ["p", "q"], 30: ["q"], 1000: []}[kept_bytes]


def test_a_large_run_is_the_same_in_parts(phantom_root, tmp_path, monkeypatch):
    """Scans and parameters in files, and a checkpoint for each scan; it goes on, and opens."""
    from test_train import make_config

    import nfcl_jax

    config = make_config("domain_expansion", "siren", "distillation", phantom_root, "")
    config |= {"num_steps": 10, "scans_per_batch": None}
    config["field"]["width"] = 16

    def make(name):
        scans = inputs.read_data(config, ["domain_expansion"], tmp_path).scans["domain_expansion"]
        run(config, scans, tmp_path / name, Caller())

    make("whole")
    monkeypatch.setattr(inputs, "KEPT_BYTES", 0)
    monkeypatch.setattr(shelf, "KEPT_BYTES", 0)
    monkeypatch.setattr(checkpoints, "PART_BYTES", 1)
    make("parts")
    path = checkpoints.checkpoint_path(tmp_path / "parts", 2)
    assert sorted(own.name for own in path.iterdir()) == ["part_1", "part_2", "part_3"]
    for task in (3, 4):  # learned again
        checkpoints.set_aside(tmp_path / "parts", task)
    make("parts")
    for task in (1, 2, 3, 4):
        folders = tmp_path / "whole", tmp_path / "parts"
        equal(*(checkpoints.load_all(folder, task) for folder in folders))
        abouts = [checkpoints.load_metadata(folder, task) for folder in folders]
        assert abouts[0]["digests"] == abouts[1]["digests"]
    opened = nfcl_jax.open_run(tmp_path / "parts").params("patient003", task=2)
    equal(opened, checkpoints.load(tmp_path / "whole", 2, "patient003", "cine"))
    with pytest.raises(KeyError, match=r"there are patient001/cine, patient002/cine, patient003"):
        checkpoints.load(tmp_path / "parts", 2, "patient009", "cine")
    for name in ("metrics.csv", "fits.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("field", ["siren", "diner"])
def test_memory_grows_with_scans_as_two_of_them_tell(field):
    scan, mesh = cohort()[3], device_mesh(jax.devices()[:1])
    for at_once in (False, True):
        own = plan.bytes_for(scan, FRAMES[:2], distilled(field), mesh, at_once)
        call = plan.call_of(scan, 7, FRAMES[:2], distilled(field), mesh)
        seven = plan.bytes_of(call, mesh, compile_for(mesh, at_once))
        np.testing.assert_allclose(own.fixed + 7 * own.per_scan, seven, rtol=0.05)


@pytest.mark.parametrize(
    ("memory", "count"), [(10_000, 5), (2_000, 3), (1_700, 2), (1_200, 1), (10, 1)]
)
def test_an_accelerator_takes_as_many_scans_as_fit_in_batches_alike(monkeypatch, memory, count):
    """100 bytes and 500 for each scan must fit four fifths of the memory."""
    mesh = device_mesh(jax.devices()[:1])
    assert plan.scans_at_once(cohort(), FRAMES, recipe(), mesh) == 1  # a CPU
    assert plan.scans_at_once(cohort(), FRAMES, recipe(scans_per_batch=4), mesh) == 4
    monkeypatch.setattr(plan, "fits_at_once", lambda device: True)
    monkeypatch.setattr(plan, "LEAST_MEMORY", memory)
    monkeypatch.setattr(plan, "bytes_for", lambda *_: plan.Bytes(100, 500))
    assert plan.scans_at_once(cohort(), FRAMES, recipe(), mesh) == count


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(field, marks=[pytest.mark.slow] * (field in ("pe_relu", "finer")))
        for field in FIELDS
    ],
)
def test_the_plan_counts_parameters_and_operations(field):
    """Against the parameters that a run leaves, and each layer's products by hand."""
    how = distilled(field, batch_size=0 if field == "diner" else 64)
    scans = cohort()[:2]
    planned = plan.plan_of(scans, FRAMES[:2], how, device_mesh(jax.devices()[:1]))
    learned = train(scans, FRAMES[:2], how)[-1].learned.values()
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(own.params)) for own in learned]
    assert planned.parameters == sum(sizes) and planned.learned_bytes == 4 * sum(sizes)
    layers = next(iter(learned)).params["params"]
    first, second, last = (layers[n]["kernel"].size for n in ("hidden_0", "hidden_1", "output"))
    products = 3 * (first + second + last) - (0 if field == "diner" else first)
    points = FIELDS[field].knots if field == "diner" else 64
    # The second task asks twice as many points.
    assert planned.flops == 2 * 2 * products * points * 12 * (1 + 2)
    assert planned.batches == [1, 1] and 0 <= planned.padding < 0.13
    assert planned.device_bytes > max(sizes) * 4


@pytest.mark.slow
def test_products_in_bfloat16_at_once_teach_as_much(monkeypatch):
    """Accelerators round the factors of all products but the first layer's."""
    exact, products = jax.lax.dot_general, []

    def rounded(a, b, dimensions, precision=None, **rest):
        products.append(precision)
        if precision is not None:
            return exact(a, b, dimensions, precision=precision, **rest)
        a, b = (x.astype("bfloat16").astype("float32") for x in (a, b))
        return exact(a, b, dimensions, **rest)

    scans, how = cohort()[:3], distilled(scans_per_batch=0, num_steps=50)
    expected = train(scans, FRAMES[:2], how)
    monkeypatch.setattr(batching, "fits_at_once", lambda device: True)
    monkeypatch.setattr(jax.lax, "dot_general", rounded)
    compile_for.cache_clear()
    found = train(scans, FRAMES[:2], how)
    compile_for.cache_clear()
    assert products.count(None) and len(products) > products.count(None)
    pairs = [
        pair
        for before, after in zip(expected, found, strict=True)
        for pair in zip(before.scores, after.scores, strict=True)
    ]
    for a, b in pairs:
        assert a[:5] == b[:5]
        assert abs(a.value - b.value) < (0.3 if a.metric == "psnr" else 0.05), (a, b)
    assert any(a.value != b.value for a, b in pairs)


def test_a_dry_run_says_what_a_run_takes_and_begins_none(phantom_root, tmp_path):
    start = [
        *("experiments.train", "--dry_run", f"--workdir={tmp_path / 'run'}"),
        *("--config=configs/signal_expansion.py:siren,distillation", "--config.batch_size=64"),
        *("--config.field.width=16", f"--config.data.root={phantom_root}"),
    ]
    done = command(*start, "--flops_per_second=1e12")
    assert done.returncode == 0 and not (tmp_path / "run").exists(), done.stderr
    assert "6 of 1 scan" in done.stdout and "hours, of the products alone" in done.stdout
    number, unit = re.search(r"of the process +([\d.]+) (.B)", done.stdout).groups()
    assert 200 < float(number) * {"MB": 1, "GB": 1000}[unit] < 3000
