"""Whatever ends a run, what it did is kept, and the same command goes on to the same end."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from test_partial import PowerError

from nfcl_jax import checkpoints
from nfcl_jax.data import phantom
from nfcl_jax.errors import ConfigError, Stopped
from nfcl_jax.inputs import written_phantom
from nfcl_jax.locks import locked, stopping
from nfcl_jax.storage import write_file

TRAIN = [
    *(sys.executable, "-m", "experiments.train", "--workdir=run"),
    f"--config={REPOSITORY}/configs/domain_expansion.py:siren,distillation",
    *("--config.num_steps=1000", "--config.batch_size=64", "--config.field.width=16"),
    *("--config.data.root=data", "--config.data.patients=patient001,patient002"),
    "--config.checkpoint_every_steps=100",
]


def test_what_two_write_at_once_is_one_of_both(tmp_path):
    path, contents = tmp_path / "results.csv", [bytes([65 + i]) * 10**5 for i in range(8)]
    threads = [threading.Thread(target=write_file, args=(path, text)) for text in contents * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and os.listdir(tmp_path) == [path.name]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / "cells").mkdir()
    left = tmp_path / "cells" / ".metrics.csv.123-456.part"
    left.write_text("half of it")
    with locked(tmp_path):
        assert not left.exists()
    with locked(tmp_path / "cells"):  # a run at work, of whose parent a report is made
        left.write_text("not whole yet")
        with locked(tmp_path):
            assert left.exists()


def test_a_phantom_that_was_not_written_to_the_end_is_written_again(tmp_path, monkeypatch):
    written = phantom._write_patient

    def killed(folder, i, rng):
        if i == 1:
            raise PowerError
        written(folder, i, rng)

    monkeypatch.setattr(phantom, "_write_patient", killed)
    with pytest.raises(PowerError):
        written_phantom(tmp_path)
    monkeypatch.setattr(phantom, "_write_patient", written)
    assert len(list(written_phantom(tmp_path).iterdir())) == 4
    assert os.listdir(tmp_path) == ["phantom"]


def test_one_process_at_a_time(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another machine")  # left by a dead one
    with locked(tmp_path), pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* work"):
        locked(tmp_path).__enter__()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: not a folder; another --workdir would be right"):
        locked(tmp_path / "file").__enter__()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_of_once_and_the_second_is_not_held_up(number, tmp_path):
    handler = signal.signal(number, lambda *_: (_ for _ in ()).throw(PowerError))
    try:
        with stopping(tmp_path) as asked:
            assert asked() is None
            os.kill(os.getpid(), number)
            assert asked() == number
            with pytest.raises(PowerError):
                os.kill(os.getpid(), number)
                time.sleep(1)
        assert Stopped(number).exit_code == 128 + number
    finally:
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(phantom_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "data").symlink_to(phantom_root)
    return folder


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def none_outlives_its_test():
    """What a test that fails, or takes too long, leaves at work would slow down all the others."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start(folder):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen(TRAIN, cwd=folder, env=environment, **pipes))
    return STARTED[-1]


def wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(folder):
    process = start(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return (folder / "run").rename(folder / "undisturbed")


def assert_same_end(run, undisturbed):
    for name in ("metrics.csv", "fits.csv", "summary.csv", "config.json", "patients.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for task in range(1, 5):
        both = [checkpoints.load_all(folder, task) for folder in (run, undisturbed)]
        jax.tree.map(np.testing.assert_array_equal, *both)
    assert not (run / "unfinished").exists()


def test_a_signal_stops_a_run_which_then_goes_on_to_the_same_end(folder, undisturbed):
    for number, task, code in ((signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)):
        process = start(folder)
        wait_for((folder / f"run/unfinished/task_{task}").exists, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        assert "everything is saved, the same command goes on" in output
        assert "Traceback" not in output
    process, lock = start(folder), folder / "run/.lock"
    wait_for(lambda: f"process {process.pid} " in lock.read_text(), process)
    second = start(folder)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 2 and "is at work here" in output, output
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_end((folder / "run").rename(folder / "stopped"), undisturbed)


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_no_task(folder, undisturbed):
    """No file may grow beyond some size, from the second task on."""
    process = start(folder)
    wait_for((folder / "run/checkpoints/task_1").exists, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, 4000))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "error: " in output and "Traceback" not in output
    assert not list((folder / "run").rglob("*tmp*")) + list((folder / "run").rglob("*.part"))
    assert checkpoints.load_all(folder / "run", 1)
    process = start(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_end((folder / "run").rename(folder / "full"), undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_comes_to_the_same_end(folder, undisturbed):
    """Twenty times without warning, in however many runs that takes."""
    moments, kills = random.Random(0), 0
    for number in range(100):
        if kills >= 20:
            break
        done = False
        while not done:
            process = start(folder)
            try:
                output, _ = process.communicate(timeout=moments.uniform(3, 15))
                done = True
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert process.returncode == 0, output
        assert_same_end((folder / "run").rename(folder / f"killed_{number}"), undisturbed)
    assert kills >= 20
