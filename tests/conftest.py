import contextlib
import fcntl
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# The tests' programs take few steps: they are compiled quickly rather than well.
flags = ["--xla_backend_optimization_level=0"]
# XLA ends the process at a flag that it lacks.
if version("jaxlib").startswith(("0.6.", "0.7.", "0.8.", "0.9.", "0.10.")):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Most of their time is compiling: what one process has compiled, no other compiles again.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nfcl_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

if not hasattr(jax, "enable_x64"):  # before JAX 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

# Shapes and types in signatures are checked while the tests run.
_hook = install_import_hook("nfcl_jax", "beartype.beartype")
from nfcl_jax import batching  # noqa: E402

# But for a run's steps: some tests take 150. Of every test alike, as some compare runs to the bit.
batching.CPU_OPTIONS["xla_backend_optimization_level"] = 2


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_unconfigure():
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(840))
            if not config.getoption("--slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow"))


REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process that holds hundreds of compiled programs can crash in XLA when it saves or loads
    another one."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def acdc_root() -> Path:
    """Real patients: NFCL_ACDC_ROOT, or shared/acdc beside the checkout."""
    root = Path(os.environ.get("NFCL_ACDC_ROOT", REPOSITORY.parent / "shared/acdc/training"))
    if not root.is_dir():
        pytest.skip(f"no ACDC patients at {root}; set NFCL_ACDC_ROOT to the training folder")
    return root


@pytest.fixture
def without_figures(monkeypatch):
    """Reports take half of their time to draw."""
    monkeypatch.setattr("nfcl_jax.report.report._figures", lambda *_: ())


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of all the processes that run tests at once."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(name: Path):
    """Other processes wait here until this one has made what they can take."""
    with name.with_suffix(".waiting").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def phantom_root(shared) -> Path:
    from nfcl_jax.data.phantom import write_phantom

    root = shared / "phantom"
    with one_at_a_time(root):
        if not root.exists():
            unfinished = tempfile.mkdtemp(dir=shared)
            write_phantom(unfinished, num_patients=3).rename(root)
    return root


@pytest.fixture(scope="session")
def runs(phantom_root, shared):
    """Cells of a small grid, every field x strategy x scenario on one phantom patient, made when
    first asked for: (scenario, field, strategy) -> folder, in WORKDIR/cells."""
    from rich.console import Console

    from configs import paper as paper_config
    from experiments.launch import grid
    from nfcl_jax.data.cohorts import read_cohort
    from nfcl_jax.report.shown import save_shown
    from nfcl_jax.scenarios import SCENARIOS

    config = paper_config.get_config()
    config.num_steps, config.scans_per_batch = 150, 0
    fewer = [f"{field}:batch_size=1024" for field in ("pe_relu", "siren", "finer")]
    config.overrides = ",".join(["*:field.width=64", *fewer])
    config.data.root, config.data.patients = str(phantom_root), "patient001"
    workdir = shared / "grid"
    cells = {cell.name: cell for cell in grid.make_cells(config.to_dict(), workdir)}
    cohort = read_cohort(phantom_root, SCENARIOS, ["patient001"])
    scans = [scan for own in cohort.scans.values() for scan in own]
    with one_at_a_time(workdir):
        if len([*workdir.glob("shown/*.npz")]) < len(scans):
            save_shown(workdir, scans, ["patient001"])

    def run(scenario, field, strategy):
        wanted = [f"{scenario}-{field}-{s}-seed0" for s in ("finetune", strategy)]
        with one_at_a_time(shared / f"{scenario}-{field}"):
            done = workdir / "cells"
            missing = [n for n in dict.fromkeys(wanted) if not (done / n / "summary.csv").exists()]
            own = [cells[name] for name in missing]
            failed = grid.run_cells(own, cohort, workdir, Console(quiet=True))
        assert not failed
        return workdir / "cells" / wanted[-1]

    return run
