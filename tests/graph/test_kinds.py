"""User-defined kinds of ops and morphs."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from morphnas.graph import (
    Conv,
    Deeper,
    Dense,
    Flatten,
    Graph,
    Insertion,
    Limits,
    Morph,
    Network,
    Node,
    Op,
    ReLU,
    Shape,
    Weights,
    Wider,
    chain,
    fresh_weights,
    morph_from_json,
    neighbours,
    resnet,
    sites,
    to_module,
)
from morphnas.graph import morphs as morphs_module
from morphnas.graph import ops as ops_module
from morphnas.graph.morphs import MorphError, UnknownMorph, stored_morph
from morphnas.search import distances, sketch
from tests.strategies import sequential

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_morph.py"))
GRAPH = resnet((2, 8, 8), 3, width=4)


@pytest.fixture(autouse=True)
def _restore_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the registries of ops and morphs after a test that defines classes."""
    for module, name in ((morphs_module, "MORPHS"), (ops_module, "KINDS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


def define_factor_op_and_morph() -> tuple[type[Op], type[Insertion]]:
    """A user-defined op with weights, a factor per channel (Touvron et al. 2021, arXiv:2103.17239), and a morph that
    inserts it."""

    class FactorModule(nn.Module):
        def __init__(self, width: int, ndim: int) -> None:
            super().__init__()
            self.weight, self.ndim = nn.Parameter(torch.ones(width)), ndim

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.reshape(-1, *[1] * (self.ndim - 1))

    @dataclass(frozen=True)
    class Factor(Op):
        tag = "factor"
        axes = {"weight": ("out",)}

        def tensors(self, *inputs: Shape) -> dict[str, Shape]:
            return {"weight": (inputs[0][0],)}

        def init(self, *inputs: Shape, generator: torch.Generator) -> Weights:
            return {"weight": torch.ones(inputs[0][0])}

        def module(self, *inputs: Shape) -> nn.Module:
            return FactorModule(inputs[0][0], len(inputs[0]))

    @dataclass(frozen=True)
    class Scaled(Insertion):
        after: str
        tag = "scaled"

        @classmethod
        def candidates(cls, graph: Graph) -> Iterator[Scaled]:
            return (cls(name) for name in sites(graph))

        def plan(self, graph: Graph) -> tuple[list[Node], str, list[str]]:
            return chain(graph, self.after, [Factor()]), self.after, list(graph.consumers[self.after])

    return Factor, Scaled


def grow_checked(graph: Graph, morphs: list[Morph]) -> tuple[Graph, Weights]:
    """The graph after the morphs and its weights; asserts after each morph that the outputs are unchanged."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value.double() if value.is_floating_point() else value for name, value in fresh_weights(graph).items()
    }
    x = torch.randn(5, *graph.shapes[graph.input.name], generator=generator, dtype=torch.float64)
    before = to_module(graph, weights).eval()(x)
    for morph in morphs:
        weights, graph = morph.carry(graph, weights, generator), morph.grow(graph)
        assert torch.allclose(to_module(graph, weights).eval()(x), before, atol=1e-12)
    return graph, weights


def test_example_morph_is_offered_by_tag_and_keeps_function() -> None:
    morphs = list(neighbours(GRAPH, Limits(morphs=("spread",))))
    assert {type(morph).__name__ for morph in morphs} == {EXAMPLE["Spread"].__name__}
    assert not [morph for morph in neighbours(GRAPH) if morph.tag == "spread"]
    graph, _ = grow_checked(GRAPH, morphs)
    assert sum(node.op.tag == "depthwise" for node in graph.nodes) == len(morphs) > 1
    grow_checked(GRAPH, [*morphs, Wider("conv_1", 9)])


def test_user_defined_op_and_morph_are_stored_and_widened() -> None:
    factor, scaled = define_factor_op_and_morph()
    morphs: list[Morph] = [*neighbours(GRAPH, Limits(morphs=("scaled",))), Wider("conv_1", 7)]
    graph, weights = grow_checked(GRAPH, morphs)
    assert sum(isinstance(node.op, factor) for node in graph.nodes) == len(morphs) - 1
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    again = [morph_from_json(json.loads(json.dumps(morph.to_json()))) for morph in morphs]
    assert again == morphs
    assert isinstance(again[0], scaled)
    assert Network(graph, weights).to_module()(torch.zeros(2, 2, 8, 8, dtype=torch.float64)).shape == (2, 3)


def define_morph(module: str) -> type[Morph]:
    return type("Mine", (Morph,), {"tag": "mine", "__module__": module})


def test_tag_is_unique_but_class_may_be_redefined() -> None:
    first, again = define_morph("notebook"), define_morph("notebook")
    assert morphs_module.MORPHS["mine"] is again is not first
    with pytest.raises(TypeError, match=r"Mine: notebook\.Mine has the tag 'mine' already"):
        define_morph("other")
    with pytest.raises(TypeError, match="the tag 'relu' already"):
        type("ReLU", (Op,), {"tag": "relu"})
    assert morphs_module.MORPHS["mine"] is again


def test_class_with_slots_is_registered() -> None:
    """`dataclass` creates such a class twice."""

    @dataclass(frozen=True, slots=True)
    class Slotted(Morph):
        tag = "slotted"
        n: int = 3

    assert morphs_module.MORPHS["slotted"] is Slotted
    assert morph_from_json(Slotted(4).to_json()) == Slotted(4)


@pytest.mark.parametrize("tag", ["my-morph", "", "two words", "class 1"])
def test_tag_must_be_an_identifier(tag: str) -> None:
    for base in (Morph, Op):
        with pytest.raises(TypeError, match="Mine: the tag must be an identifier, not"):
            type("Mine", (base,), {"tag": tag})


def test_missing_setting_with_default_is_read() -> None:
    """As in a run that was stored before the setting was added."""

    @dataclass(frozen=True)
    class Grown(Morph):
        n: int
        added: int = 3
        tag = "grown"

    assert morph_from_json({"morph": "grown", "n": 9}) == Grown(9)
    for invalid in ({"added": 9}, {"n": 9, "other": 1}):
        with pytest.raises(MorphError, match="a grown has"):
            morph_from_json({"morph": "grown", **invalid})


def test_op_settings_may_be_negative() -> None:
    """Also in the edit distance, which compares them."""

    @dataclass(frozen=True)
    class Along(Flatten):
        axis: int
        tag = "along"

    graph, other = (sequential(Conv(4), ReLU(), Along(axis), Dense(3), shape=(2, 4, 4)) for axis in (-1, 2))
    assert 0 < distances([sketch(graph)], [sketch(other)]).item() < 2
    assert graph.key != other.key


def test_class_without_own_tag_is_not_registered() -> None:
    before = dict(morphs_module.MORPHS)

    class Same(Deeper):
        pass

    assert before == morphs_module.MORPHS


@pytest.mark.parametrize("postponed", [False, True])
def test_field_types_of_user_defined_classes_are_checked(postponed: bool) -> None:
    future = "from __future__ import annotations\n" if postponed else ""
    source = "import dataclasses\nfrom morphnas.graph import Morph, Op\n@dataclasses.dataclass(frozen=True)\n"
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(f"{future}{source}class Own(Morph):\n    n: int\n    tag = 'own'\n", namespace)
    assert morph_from_json({"morph": "own", "n": 3}) == namespace["Own"](3)
    with pytest.raises(MorphError, match=r"an? own has \{'n': 'int'\}"):
        morph_from_json({"morph": "own", "n": "three"})
    exec(f"{future}{source}class OwnOp(Op):\n    n: int\n    tag = 'own_op'\n", namespace)
    with pytest.raises(ValueError, match="own_op: n must be int"):
        namespace["OwnOp"]("three")


def test_unknown_morph_is_described_but_not_applied() -> None:
    data = {"morph": "elsewhere", "after": "relu_3", "sizes": [1, 2]}
    morph = stored_morph(data)
    assert isinstance(morph, UnknownMorph)
    assert (morph.tag, morph.to_json(), str(morph)) == ("elsewhere", data, "elsewhere(relu_3, [1, 2])")
    for use in (morph.grow, morph.check):
        with pytest.raises(MorphError, match="import the module that defines 'elsewhere'"):
            use(GRAPH)
    with pytest.raises(MorphError, match="unknown morph 'elsewhere'"):
        morph_from_json(data)


@pytest.mark.parametrize("tag", ["", "no name", "1", 3, None, "deeper"])
def test_stored_morph_rejects_invalid_data(tag: object) -> None:
    with pytest.raises(MorphError):
        stored_morph({"morph": tag, "x": 1})
