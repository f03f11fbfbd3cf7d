"""The rules of the layout, read from the syntax trees: who may import what, and what nobody imports at once."""

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

MAY_IMPORT = {
    "graph": {"graph"},
    "train": {"train"},
    "search": {"search", "graph", "train.recipe"},
    "run": {"run", "graph", "search", "train"},
    "report": {"report", "graph", "search", "run.store", "train.recipe"},
}
"""What of ours each folder may import; all that is above them may import everything."""

LAZY = {
    "PIL", "graphviz", "h5py", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas", "pygraphviz", "ray"
}  # fmt: skip
"""Imported inside functions only, so that whoever does not use them need not have them, nor wait."""

UNSEEN = {"graph": {"time", "random", "os", "datetime"}, "search": {"time", "os", "datetime"}}
"""What folders of pure values have no use for: clocks, disks and global random state."""


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names of all modules that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield str(node.module)
            if node.module == "morphnas":
                yield from (f"morphnas.{alias.name}" for alias in node.names)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """The same, without what is imported inside functions or for the type checker."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imported(node)
        else:
            waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
            if isinstance(node, ast.Try):
                waiting.extend(child for handler in node.handlers for child in handler.body)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_what_stands_below_it(path: Path) -> None:
    folder = path.relative_to(PACKAGE).parts[0]
    for name in imported(parse(path)):
        top, _, rest = name.partition(".")
        if top == "morphnas" and folder in MAY_IMPORT:
            allowed = MAY_IMPORT[folder]
            assert any(f"{rest}.".startswith(f"{ours}.") for ours in allowed), f"{path} imports {name}"
        assert name.split(".")[0] not in UNSEEN.get(folder, set()), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_extras_are_imported_when_used(path: Path) -> None:
    at_once = {name.split(".")[0] for name in imported_at_once(parse(path))}
    assert not at_once & LAZY, f"{path} imports {at_once & LAZY} at once"


@pytest.mark.slow
def test_morphnas_is_imported_without_any_extra() -> None:
    """scikit-learn loads pandas where there is one, so what is loaded tells less than what can be done without."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(LAZY)}))
from morphnas import *
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_nobody_waits_for_what_is_not_used() -> None:
    """Neither for PyTorch, to be told the options of a command, nor for scikit-learn in a worker's process."""
    code = """
import sys
import morphnas.cli
assert "torch" not in sys.modules
import morphnas.run.worker
assert not {"sklearn", "scipy.stats", "scipy.optimize"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
