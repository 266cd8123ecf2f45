"""Imports point one way: each module may import only what stands before it."""

import ast
import re
from pathlib import Path

ORDER = [
    "errors", "processes", "checks", "sine", "points", "losses", "scan", "initialisers", "fields",
    "scenarios",
    "padded", "params", "curve", "records", "storage",
    "strategies.base", "strategies.distillation", "strategies.replay", "strategies.importance",
    "strategies.ewc", "strategies.mas", "strategies.ogd", "strategies",
    "metrics", "arguments", "optimiser", "step", "batching", "batch_task", "fitting", "plan",
    "loop", "parts", "checkpoints", "partial", "shelf", "locks",
    "geometry", "data.volumes", "data.grids", "data.sources", "data.table", "data.things",
    "data.compared",
    "data.acdc", "data.phantom", "data.cohorts", "data.sequence", "config",
    "run_folder", "rows", "run_log", "report.statistics", "report.scores", "inputs", "resume",
    "runner",
    "table_run", "adopt", "recommended", "new_row", "learning", "fitted", "nifti", "sizes",
    "overview", "runs", "new_run",
    "report.results", "report.tables", "report.caveats", "report.verdicts", "report.claims",
    "report.figures", "report.drawn", "report.shown", "report.panels", "report.viewer",
    "report.page", "report.report", "report.study", "report.kept", "report.sequence",
    "analysis.tangent", "analysis.spectrum", "analysis.forgetting", "analysis.summary",
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
        if path.name != "__init__.py" or (path.parent != PACKAGE and path.read_text()):
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == set(ORDER)


def test_imports_point_one_way():
    for name, path in modules():
        own = {m.removeprefix("nfcl_jax.") for m in imported(path) if m.startswith("nfcl_jax.")}
        later = own & set(ORDER[ORDER.index(name) :]) - {name}
        assert not later, f"{name} imports {later}"


def test_only_the_edges_touch_flags_configs_and_orbax():
    for name, path in modules():
        outside = {m.split(".")[0] for m in imported(path)}
        assert not outside & {"absl", "ml_collections", "configs", "experiments"}, name
        assert "orbax" not in outside or name == "parts"
        assert not re.search(r"\bjax\.config", path.read_text())


def test_nothing_is_longer_than_can_be_read_at_one_sitting():
    """No file over 300 lines, no function over 60, none with more than 7 arguments."""
    folders = [PACKAGE.parent / name for name in ("nfcl_jax", "experiments", "configs", "tests")]
    for path in [*(p for f in folders for p in f.rglob("*.py"))]:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                own = node.args
                names = [a.arg for a in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
                assert node.end_lineno - node.lineno < 60, (path, node.name)
                assert len([name for name in names if name != "self"]) <= 7, (path, node.name)
