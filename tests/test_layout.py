"""Rules of the package layout, checked on syntax trees: which modules a folder may import, and which only lazily."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "morphnas"
FILES = sorted(PACKAGE.rglob("*.py"))

ALLOWED_IMPORTS = {
    "graph": {"graph"},
    "train": {"train"},
    "search": {"search", "graph", "train.recipe"},
    "run": {"run", "graph", "search", "train"},
    "report": {"report", "graph", "search", "run.store", "train.recipe"},
}
"""Modules of morphnas that each folder may import; other folders and files may import all."""

LAZY_IMPORTS = {
    "PIL", "graphviz", "h5py", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas", "pygraphviz", "ray"
}  # fmt: skip
"""Optional or slow to import, so they are only imported inside functions."""

FORBIDDEN_IMPORTS = {"graph": {"time", "random", "os", "datetime"}, "search": {"time", "os", "datetime"}}
"""Clocks, files and global random state, which folders of pure functions must not use."""


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """The dotted names of all modules that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield str(node.module)
            if node.module == "morphnas":
                yield from (f"morphnas.{alias.name}" for alias in node.names)


def modules_imported_on_load(tree: ast.Module) -> Iterator[str]:
    """The same, without modules that are imported inside functions or for the type checker."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imported_modules(node)
        else:
            pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
            if isinstance(node, ast.Try):
                pending.extend(child for handler in node.handlers for child in handler.body)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_folder_imports_only_allowed_modules(path: Path) -> None:
    folder = path.relative_to(PACKAGE).parts[0]
    for name in imported_modules(parse(path)):
        top, _, rest = name.partition(".")
        if top == "morphnas" and folder in ALLOWED_IMPORTS:
            allowed = ALLOWED_IMPORTS[folder]
            assert any(f"{rest}.".startswith(f"{ours}.") for ours in allowed), f"{path} imports {name}"
        assert name.split(".")[0] not in FORBIDDEN_IMPORTS.get(folder, set()), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_extras_are_imported_lazily(path: Path) -> None:
    on_load = {name.split(".")[0] for name in modules_imported_on_load(parse(path))}
    assert not on_load & LAZY_IMPORTS, f"{path} imports {on_load & LAZY_IMPORTS} on load"


@pytest.mark.slow
def test_morphnas_imports_without_extras() -> None:
    """Extras are made impossible to import. Checking what is loaded would fail, as scikit-learn loads pandas itself."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(LAZY_IMPORTS)}))
from morphnas import *
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_cli_and_worker_do_not_import_slow_modules() -> None:
    """The command line does not import PyTorch to parse arguments, nor a worker process scikit-learn."""
    code = """
import sys
import morphnas.cli
assert "torch" not in sys.modules
import morphnas.run.worker
assert not {"sklearn", "scipy.stats", "scipy.optimize"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
