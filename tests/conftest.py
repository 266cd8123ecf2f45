import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked while the tests run.
_hook = install_import_hook("nfcl_jax", "beartype.beartype")
import nfcl_jax  # noqa: E402, F401

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
