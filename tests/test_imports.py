"""Imports point one way: each module may import only what stands before it."""

import ast
from pathlib import Path

ORDER = [
    "faults", "sine", "coordinates", "losses", "scenarios", "fields", "strategies", "training",
    "programs", "evaluation",
    "data.acdc", "data.phantom", "checkpoints", "opened", "nifti", "sizes", "runs", "continual",
    "reporting.records", "unfinished", "reporting.statistics", "reporting.results",
    "reporting.weights",
    "reporting.tables", "reporting.cautions", "reporting.claims", "reporting.figures",
    "reporting.shown",
    "reporting.page", "reporting.report",
]  # fmt: skip
PACKAGE = Path(__file__).parents[1] / "nfcl_jax"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == set(ORDER)


def test_imports_point_one_way():
    for name, path in modules():
        own = {m.removeprefix("nfcl_jax.") for m in imported(path) if m.startswith("nfcl_jax.")}
        later = own & set(ORDER[ORDER.index(name) :])
        assert not later, f"{name} imports {later}"


def test_only_the_edges_touch_flags_configs_and_orbax():
    for name, path in modules():
        outside = {m.split(".")[0] for m in imported(path)}
        assert not outside & {"absl", "ml_collections", "configs", "experiments"}, name
        assert "orbax" not in outside or name == "checkpoints"
        assert "jax.config" not in path.read_text()
