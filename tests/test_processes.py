"""Several processes at one run, as `jax.distributed` starts them, against one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import command
from conftest import REPOSITORY

from nfcl_jax import checkpoints, processes

SMALL = [
    f"--config={REPOSITORY}/configs/domain_expansion.py:siren,distillation",
    *("--config.num_steps=60", "--config.batch_size=64", "--config.field.width=16"),
]


def start(workdir, *flags, devices=2, count=2):
    """The same command in `count` processes of so many CPU devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    several = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *flags),
                *([*several, f"--process_id={number}"] if count > 1 else []),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def ended(running, timeout=300):
    """The exit codes, and what was printed, of processes that have ended."""
    said = [process.communicate(timeout=timeout) for process in running]
    return [process.returncode for process in running], said


def assert_same(a, b):
    assert checkpoints.finished_tasks(a) == checkpoints.finished_tasks(b) == (1, 2, 3, 4)
    for task in (1, 2, 3, 4):
        both = [checkpoints.load_all(folder, task) for folder in (a, b)]
        assert both[0].keys() == both[1].keys()
        for name, own in both[0].items():
            jax.tree.map(np.testing.assert_array_equal, own, both[1][name])
    for name in ("metrics.csv", "summary.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert not (a / "unfinished").exists()


@pytest.fixture(scope="module")
def one(phantom_root, tmp_path_factory):
    """The run of one process on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    (code,), said = ended(
        start(workdir, *SMALL, f"--config.data.root={phantom_root}", count=1, devices=1)
    )
    assert code == 0, said
    return workdir


def test_two_processes_leave_what_one_does(one, phantom_root, tmp_path):
    """On two devices each. And each goes on with what the other has begun, in parts."""
    root, parts = f"--config.data.root={phantom_root}", tmp_path / "parts.py"
    parts.write_text("from nfcl_jax import checkpoints\n\ncheckpoints.PART_BYTES = 1\n")
    codes, said = ended(start(tmp_path / "two", *SMALL, root))
    assert codes == [0, 0], said
    assert_same(tmp_path / "two", one)
    assert "over 3 patients" in said[0][0] and "frame" not in said[1][0]
    assert "2 x cpu in each of 2 processes" in (tmp_path / "two/train.log").read_text()
    for before, after, settings in (
        (one, "one-two", {}),
        (tmp_path / "two", "two-one", {"count": 1, "devices": 1}),
    ):
        shutil.copytree(before, tmp_path / after)
        for task in (3, 4):
            shutil.rmtree(tmp_path / after / "checkpoints" / f"task_{task}")
        flags = [*SMALL, root, f"--extend={parts}"]
        codes, said = ended(start(tmp_path / after, *flags, **settings))
        assert not any(codes), said
        assert_same(tmp_path / after, one)
        folder = checkpoints.checkpoint_path(tmp_path / after, 4)
        assert len(list(folder.glob("part_*"))) == 3


def test_two_devices_leave_what_one_does_by_points_in_passes_too(phantom_root, tmp_path):
    flags = [*SMALL, f"--config.data.root={phantom_root}", "--config.in_passes"]
    runs = [start(tmp_path / str(n), *flags, count=1, devices=n) for n in (1, 2)]
    for running in runs:
        codes, said = ended(running)
        assert codes == [0], said
    assert_same(tmp_path / "2", tmp_path / "1")


def test_a_fault_of_one_process_is_told_by_all(phantom_root, tmp_path):
    shutil.copytree(phantom_root, tmp_path / "data")
    (tmp_path / "data/patient002/patient002_4d.nii.gz").unlink()
    root = f"--config.data.root={tmp_path / 'data'}"
    codes, said = ended(start(tmp_path / "run", *SMALL, root))
    assert codes == [2, 2]
    assert all("patient002_4d.nii.gz" in errors for _, errors in said), said
    codes, said = ended(start(tmp_path / "few", *SMALL, root, "--config.data.patients=patient001"))
    assert codes == [2, 2]
    assert "no patient that can be used for process 1 of 2; fewer processes" in said[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(one, phantom_root, tmp_path, who):
    flags = [*SMALL, f"--config.data.root={phantom_root}"]
    running = start(tmp_path / "run", *flags)
    while not checkpoints.finished_tasks(tmp_path / "run"):
        time.sleep(0.05)
        assert all(process.poll() is None for process in running)
    running[who].kill()
    died = time.monotonic()
    codes, said = ended(running)
    assert all(codes) and time.monotonic() - died < 60
    assert (
        "another process has ended" in said[1 - who][1] or "another task died" in said[1 - who][1]
    )
    (code,), said = ended(start(tmp_path / "run", *flags, count=1))
    assert code == 0, said
    assert_same(tmp_path / "run", one)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_loses_nothing(one, phantom_root, tmp_path):
    flags = [*SMALL, f"--config.data.root={phantom_root}"]
    running = start(tmp_path / "run", *flags)
    while not checkpoints.finished_tasks(tmp_path / "run"):
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    codes, said = ended(running)
    assert codes == [143, 143], said
    codes, said = ended(start(tmp_path / "run", *flags))
    assert codes == [0, 0], said
    assert_same(tmp_path / "run", one)


def test_what_does_not_go_together_is_refused(tmp_path):
    start = ("experiments.train", *SMALL, f"--workdir={tmp_path / 'run'}")
    done = command(*start, "--num_processes=2", "--process_id=0")
    assert done.returncode == 2
    assert "--coordinator_address: missing; several processes need all three" in done.stderr
    three = ("--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2")
    assert "--process_id must be below --num_processes, got 2" in command(*start, *three).stderr
    done = command("experiments.check_data", "--root=data", *three)
    assert "only experiments.train and experiments.paper take several processes" in done.stderr


def test_each_has_its_share_and_alone_it_is_everything():
    assert (processes.count(), processes.index()) == (1, 0)
    assert processes.own([3, 1, 2]) == [3, 1, 2]
    assert processes.gathered({"a": 1.5}) == [{"a": 1.5}]
    with pytest.raises(ZeroDivisionError):
        processes.jointly(lambda: 1 / 0)
