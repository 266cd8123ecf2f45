"""Commands as a user gives them."""

import multiprocessing
import os
import runpy
import shlex
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

REPOSITORY = Path(__file__).parents[1]
# `python -m`, but for the two seconds of its imports: the processes are forked from one that has
# imported what commands do, and has asked no device yet. Their environment is that of its start.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["nfcl_jax", "experiments.launch.cli", "nfcl_jax.report.report"])
SECONDS = 300


def typed(line: str, cwd: Path) -> CompletedProcess:
    """A line of a shell."""
    python, option, *arguments = shlex.split(line)
    assert (python, option) == ("python", "-m")
    return command(*arguments, cwd=cwd)


def command(*arguments: str, cwd: Path = REPOSITORY) -> CompletedProcess:
    """The module that is named first, with the other arguments."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("out", "err")]
        process = _FORKED.Process(target=_run, args=(arguments, cwd, *files))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutExpired(arguments, SECONDS)
        said = []
        for name in files:
            with open(name) as file:
                said.append(file.read())
    return CompletedProcess(arguments, process.exitcode, *said)


def _run(arguments: tuple[str, ...], cwd: Path, *files: str) -> None:
    for stream, name in zip((sys.stdout, sys.stderr), files, strict=True):
        stream.flush()
        with open(name, "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    os.environ["COLUMNS"] = "200"
    sys.path[:0] = ["", str(REPOSITORY)]
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
