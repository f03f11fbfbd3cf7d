"""The documentation is consistent: links resolve, code blocks are valid Python, and every argument is documented."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import morphnas

ROOT = Path(__file__).parent.parent
TEXTS = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def heading_anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", FENCED.sub("", text))
    for link in (markdown or html for markdown, html in links):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_code_blocks_parse(path: Path) -> None:
    for language, code in FENCED.findall(path.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(code)


def arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def documented_parameters(docstring: str | None) -> list[str]:
    """The names in the section "Parameters"."""
    section = (docstring or "").split("Parameters\n")[1].split("\n\n")[0]
    lines = re.findall(r"^ *(\w+(?:, \w+)*)(?: : .+)?$", section, re.MULTILINE)
    return [name for line in lines for name in line.split(", ")]


@pytest.mark.parametrize(
    ("function", "docstring"),
    [
        (morphnas.ImageClassifier.__init__, morphnas.ImageClassifier.__doc__),
        (morphnas.ImageClassifier.fit, morphnas.ImageClassifier.fit.__doc__),
        (morphnas.ImageClassifier.final_fit, morphnas.ImageClassifier.final_fit.__doc__),
    ],
    ids=["ImageClassifier", "fit", "final_fit"],
)
def test_every_argument_is_documented(function: Callable[..., Any], docstring: str | None) -> None:
    assert arguments(function) == documented_parameters(docstring)


def test_regressor_documents_arguments_unlike_those_of_classifier() -> None:
    """It refers to the classifier for the others."""
    assert arguments(morphnas.ImageRegressor.__init__) == arguments(morphnas.ImageClassifier.__init__)
    assert documented_parameters(morphnas.ImageRegressor.__doc__) == ["metric", "loss"]


@pytest.mark.parametrize("name", [name for name in morphnas.__all__ if inspect.isfunction(getattr(morphnas, name))])
def test_every_argument_of_public_function_is_documented(name: str) -> None:
    """In the section "Parameters", or in the text: as "name: ..." or in backticks."""
    function = getattr(morphnas, name)
    if "Parameters\n" in function.__doc__:
        assert sorted(arguments(function)) == sorted(documented_parameters(function.__doc__))
    else:
        mentioned = {word for pair in re.findall(r"`(\w+)`|\b(\w+): ", function.__doc__) for word in pair}
        assert set(arguments(function)) <= mentioned
