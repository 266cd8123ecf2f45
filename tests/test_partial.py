"""A task in the middle: what its scans have is kept, and goes on to the same end."""

import jax
import numpy as np
import pytest
from small import FRAMES, IMAGE_AND_MASK, apart, cohort, distilled, recipe, scans_for, train

from nfcl_jax import batch_task, partial, runner
from nfcl_jax.batching import device_mesh
from nfcl_jax.config import make_config
from nfcl_jax.loop import Hooks, Start, learn
from nfcl_jax.strategies.ewc import ewc


class PowerError(Exception):
    """The power fails."""


@pytest.mark.parametrize(
    ("how", "tasks"),
    [
        pytest.param(distilled("diner"), FRAMES[:2], marks=pytest.mark.slow),
        pytest.param(distilled("siren"), IMAGE_AND_MASK, marks=pytest.mark.slow),
        pytest.param(recipe("diner", ewc()), FRAMES[:2], marks=pytest.mark.slow),
        pytest.param(
            distilled("siren", keep_optimiser=True, warmup_steps=5, mask_later_factor=0.5),
            IMAGE_AND_MASK,
            marks=pytest.mark.slow,
        ),
        pytest.param(recipe("siren", ewc()), IMAGE_AND_MASK, marks=pytest.mark.slow),
        pytest.param(
            apart(distilled("diner", batch_size=0)), IMAGE_AND_MASK, marks=pytest.mark.slow
        ),
        pytest.param(
            distilled("siren", muon_rate=0.01, mask_later_factor=0.5, in_passes=True),
            IMAGE_AND_MASK,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["diner", "siren-signal", "diner-ewc", "kept", "siren-ewc-signal", "diner-apart", "muon"],
)
def test_a_task_goes_on_from_any_chunk_to_the_same_bits(how, tasks, monkeypatch, tmp_path):
    """Stopped at each place in turn where it can be, through the files on disk."""
    monkeypatch.setattr(batch_task, "STEPS_PER_CHUNK", 4)
    scans, how = scans_for(tasks)[:3], how._replace(scans_per_batch=2)
    expected = train(scans, tasks, how)
    mesh, places, results, begun = device_mesh(jax.devices()[:1]), 0, [], {}
    while len(results) < len(tasks):
        stops = []

        def stop(task, step, snapshot, stops=stops):
            stops.append(step)
            if len(stops) == 1:
                partial.save(tmp_path, task, snapshot(), "a run")
                raise PowerError

        start = Start(len(results), results[-1].learned if results else {}, begun)
        try:
            for result in learn(scans, tasks, how, mesh, start, Hooks(on_chunk=stop)):
                results.append(result)
                partial.clear(tmp_path)
        except PowerError:
            places += 1
        names = [scan.name for scan in scans]
        begun, faults = partial.load(tmp_path, len(results) + 1, names, "a run")
        assert not faults
    # Per task: two chunks before the last of each of two batches, and the end of the first batch.
    assert places == 5 * len(tasks)
    for a, b in zip(expected, results, strict=True):
        assert (a.scores, a.fits) == (b.scores, b.fits)
        jax.tree.map(np.testing.assert_array_equal, a.learned, b.learned)


def test_what_does_not_fit_any_more_is_begun_again(monkeypatch):
    """Scans of another batch, at another step, or half of a batch."""
    monkeypatch.setattr(batch_task, "STEPS_PER_CHUNK", 4)
    scans, tasks = cohort()[:3], FRAMES[:1]
    saved = {}

    def keep(task, step, snapshot):
        for scan, progress in snapshot().items():
            saved.setdefault((scan, step), progress)

    (expected,) = train(scans, tasks, distilled(), hooks=Hooks(on_chunk=keep))
    first, second = scans[0].name, scans[1].name
    for begun in (
        {first: saved[first, 4], second: saved[second, 8]},
        {first: saved[first, 4]},
    ):
        (result,) = train(scans, tasks, distilled(scans_per_batch=0), start=Start(partial=begun))
        assert (result.scores, result.fits) == (expected.scores, expected.fits)


def test_a_damaged_file_of_a_partial_checkpoint_is_named(tmp_path):
    scans, tasks = cohort()[:1], FRAMES[:1]

    def stop(task, step, snapshot):
        partial.save(tmp_path, task, snapshot(), "a run")
        raise PowerError

    with pytest.raises(PowerError):
        train(scans, tasks, distilled(num_steps=60), hooks=Hooks(on_chunk=stop))
    (path,) = (tmp_path / "unfinished/task_1").iterdir()
    _, (fault,) = partial.load(tmp_path, 1, [scans[0].name], "another run")
    assert "cannot be used (of a run of another config)" in fault
    assert partial.load(tmp_path, 1, [scans[0].name], "a run")[0]
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:200] + b"x" * 50 + whole[250:]):
        path.write_bytes(damaged)
        scans_left, (fault,) = partial.load(tmp_path, 1, [scans[0].name], "a run")
        assert not scans_left
        assert fault.startswith(f"{path}: cannot be used (") and f"{scans[0].name} begins" in fault


@pytest.mark.parametrize("batches", [1, 2])
def test_every_task_and_batch_is_saved_as_often_as_the_config_says(batches, monkeypatch, tmp_path):
    monkeypatch.setattr(batch_task, "STEPS_PER_CHUNK", 4)
    saved = []
    monkeypatch.setattr(partial, "save", lambda workdir, task, *rest: saved.append(task))
    how = distilled(num_steps=20, scans_per_batch=3 - batches)
    config = make_config("domain_expansion", "siren", "distillation")
    config |= {"num_steps": 20, "checkpoint_every_steps": 8}
    keep = runner.keeper(config, tmp_path, lambda: None)
    train(cohort()[:2], FRAMES[:3], how, hooks=Hooks(on_chunk=keep))
    # At steps 8 and 16 of each batch, and where one that is not the last is done.
    assert [saved.count(task) for task in (1, 2, 3)] == [3 * batches - 1] * 3
