import os
from pathlib import Path

# The tests' programs take few steps: they are compiled quickly rather than well.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import pytest
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked while the tests run.
_hook = install_import_hook("nfcl_jax", "beartype.beartype")
import nfcl_jax  # noqa: E402, F401


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(840))
            if not config.getoption("--slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow"))


REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def acdc_root() -> Path:
    """Real patients: NFCL_ACDC_ROOT, or shared/acdc beside the checkout."""
    root = Path(os.environ.get("NFCL_ACDC_ROOT", REPOSITORY.parent / "shared/acdc/training"))
    if not root.is_dir():
        pytest.skip(f"no ACDC patients at {root}; set NFCL_ACDC_ROOT to the training folder")
    return root


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    from nfcl_jax.data.phantom import write_phantom

    return write_phantom(tmp_path_factory.mktemp("phantom"), num_patients=3)


@pytest.fixture(scope="session")
def runs(phantom_root, tmp_path_factory):
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
    workdir = tmp_path_factory.mktemp("grid")
    cells = {cell.name: cell for cell in grid.make_cells(config.to_dict(), workdir)}
    cohort = read_cohort(phantom_root, SCENARIOS, ["patient001"])
    save_shown(workdir, [scan for s in cohort.scans.values() for scan in s], ["patient001"])

    def run(scenario, field, strategy):
        wanted = [f"{scenario}-{field}-{s}-seed0" for s in ("finetune", strategy)]
        missing = [n for n in dict.fromkeys(wanted) if not (workdir / "cells" / n).exists()]
        failed = grid.run_cells([cells[n] for n in missing], cohort, workdir, Console(quiet=True))
        assert not failed
        return workdir / "cells" / wanted[-1]

    return run
