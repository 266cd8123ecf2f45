import json
import tracemalloc

import jax
import numpy as np
import pytest

from nfcl_jax import checkpoints, storage
from nfcl_jax.errors import CheckpointError
from nfcl_jax.records import Learned

RNG = np.random.default_rng(0)


def make_params(rows):
    return {
        "params": {
            "table": RNG.normal(size=(rows, 1)).astype("f4"),
            "output": {"kernel": RNG.normal(size=(4, 5)).astype("f4"), "bias": np.zeros(5, "f4")},
        }
    }


@pytest.fixture
def saved(tmp_path):
    params = {
        f"patient00{i}/{image}": make_params(10 + i) for i in (1, 2) for image in ("ED", "ES")
    }
    learned = {name: Learned(own, {}) for name, own in params.items()}
    checkpoints.save(tmp_path, 2, learned, {"config": {"seed": 3}})
    return tmp_path, params


def test_a_state_may_be_of_any_numbers(tmp_path):
    state = {"half": np.ones(3, jax.numpy.bfloat16), "count": np.int32(2), "on": np.array([True])}
    learned = {"patient001/ED": Learned(make_params(3), state)}
    checkpoints.save(tmp_path, 1, learned, {})
    (loaded,) = checkpoints.load_all(tmp_path, 1).values()
    jax.tree.map(np.testing.assert_array_equal, loaded.state, state)


def test_what_is_saved_is_loaded_to_the_bit_one_scan_at_a_time(saved):
    workdir, params = saved
    for name, expected in params.items():
        loaded = checkpoints.load(workdir, 2, *name.split("/"))
        assert jax.tree.structure(loaded) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_a_strategys_state_lies_beside_the_parameters(tmp_path):
    params = make_params(10)
    state = {"importance": make_params(10), "count": np.int32(3)}
    learned = {"p/ED": Learned(params, state), "p/ES": Learned(params, {})}
    checkpoints.save(tmp_path, 1, learned, {})
    loaded = checkpoints.load_all(tmp_path, 1)
    jax.tree.map(np.testing.assert_array_equal, loaded, learned)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(tmp_path, 1, "p", "ED"), params)
    alter(checkpoints.checkpoint_path(tmp_path, 1))
    with pytest.raises(CheckpointError):
        checkpoints.load_all(tmp_path, 1)


def test_a_checkpoint_explains_itself(saved):
    metadata = checkpoints.load_metadata(saved[0], 2)
    assert set(metadata.pop("digests")) == set(saved[1])
    assert metadata == {"config": {"seed": 3}, "task": 2, "format": checkpoints.FORMAT}


def test_what_is_not_there_is_named(saved):
    with pytest.raises(FileNotFoundError, match="no checkpoint of task 5"):
        checkpoints.load(saved[0], 5, "patient001", "ED")
    with pytest.raises(KeyError, match=r"no patient009/ED .* there are patient001/ED, "):
        checkpoints.load(saved[0], 2, "patient009", "ED")


def test_another_format_is_refused(saved):
    path = checkpoints.checkpoint_path(saved[0], 2) / "_CHECKPOINT_METADATA"
    path.write_text(
        path.read_text().replace('"format": 1', '"format": 99').replace('"format":1', '"format":99')
    )
    assert "99" in json.dumps(json.loads(path.read_text()))
    with pytest.raises(ValueError, match="format 99 instead of 1"):
        checkpoints.load(saved[0], 2, "patient001", "ED")


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def alter(folder):
    """One bit in a hundred bytes."""
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[50::100] = bytes(byte ^ 1 for byte in data[50::100])
    path.write_bytes(data)


def cut(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(folder):
    largest_file(folder).unlink()


def empty_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").write_text("")


def lose_structure(folder):
    (folder / "_CHECKPOINT_METADATA").unlink()


def alter_list(folder):
    (path,) = folder.rglob("_METADATA")
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


DAMAGES = [alter, cut, lose, empty_metadata, lose_structure, alter_list]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(saved, damage):
    path = checkpoints.checkpoint_path(saved[0], 2)
    damage(path)
    with pytest.raises(CheckpointError, match=f"^{path}: ") as caught:
        checkpoints.load_all(saved[0], 2)
    assert "NoneType" not in str(caught.value)


def test_tasks_count_up_to_the_first_gap(saved):
    assert checkpoints.num_learned(saved[0]) == 0
    assert checkpoints.finished_tasks(saved[0]) == (2,)
    for task in (1, 4):
        checkpoints.save(saved[0], task, checkpoints.load_all(saved[0], 2), {})
    assert checkpoints.num_learned(saved[0]) == 2
    assert checkpoints.set_aside(saved[0], 4).is_dir()
    assert checkpoints.finished_tasks(saved[0]) == (1, 2)


def test_arrays_that_would_fill_the_memory_are_refused_before_they_are_made(tmp_path):
    """Zeros, of which a small folder may hold any number; and those of another field than is
    asked for."""
    zeros = {"params": {"table": np.zeros((10**7, 1), "f4")}}
    checkpoints.save(tmp_path, 1, {"p/ED": Learned(zeros, {})}, {})
    tracemalloc.start()
    for load in (checkpoints.load_all, lambda *key: checkpoints.load(*key, "p", "ED")):
        with pytest.raises(CheckpointError, match=r"task_1: damaged \(arrays of 40 MB in files of"):
            load(tmp_path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_parameters_of_another_shape_than_is_asked_for_are_refused(saved):
    workdir, params = saved
    same = checkpoints.load(workdir, 2, "patient001", "ED", params["patient001/ED"])
    jax.tree.map(np.testing.assert_array_equal, same, params["patient001/ED"])
    for like in (params["patient002/ED"], {"params": {"table": np.zeros((11, 1), "f4")}}):
        with pytest.raises(CheckpointError, match=r"damaged \(patient001/ED: .*instead of"):
            checkpoints.load(workdir, 2, "patient001", "ED", like)
        with pytest.raises(CheckpointError, match=r"damaged \(patient001/ED: .*instead of"):
            checkpoints.load_all(workdir, 2, {"patient001/ED": like})
    with pytest.raises(CheckpointError, match=r"damaged \(patient003/ED: "):
        checkpoints.load_all(workdir, 2, {"patient003/ED": like})


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", zeros=np.zeros(10**7))
    np.savez_compressed(tmp_path / "noise.npz", noise=RNG.normal(size=10**5))
    with pytest.raises(ValueError, match=r"arrays of 80 MB in files of 0\.078 MB"):
        storage.read_npz(tmp_path / "zeros.npz")
    assert storage.read_npz(tmp_path / "noise.npz")["noise"].shape == (10**5,)
