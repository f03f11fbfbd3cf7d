"""How a run is sized: by what this machine can do in the time, and within the limits."""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from morphnas.graph import AddSkip, Conv, Dense, Limits, ReLU, cnn, mlp, neighbours, resnet, starters, to_module
from morphnas.run import plan as module
from morphnas.run.files import RunError
from morphnas.run.plan import (
    PROBE_BYTES,
    STARTER_LATENCY_SHARE,
    Pace,
    Plan,
    _probe,
    batch_size,
    default_recipe,
    measure,
    plan,
)
from morphnas.train.augment import Draw
from morphnas.train.data import Task
from morphnas.train.recipe import DEFAULT_SHIFT, Augment, Recipe
from morphnas.train.step import GRAPH_RECORDERS, Run, Step
from tests.train.tasks import blobs, images

SHAPES = [
    (1,),
    (5,),
    (300,),
    (1, 1),
    (2, 30),
    (1, 1, 1),
    (1, 1, 9),
    (3, 2, 2),
    (1, 8, 8),
    (3, 32, 32),
    (1, 1, 1, 1),
    (1, 6, 6, 6),
]
RECIPE = Recipe(epochs=6, batch_size=32)
COST = 1e-6
"""Seconds of an epoch per operation: of 1,000 examples at a thousand million operations a second."""


def planned(shape: tuple[int, ...], seconds: float = 60.0, **settings: Any) -> Plan:
    given: dict[str, Any] = {"n": 1000, "recipe": RECIPE, "pace": Pace(COST, 1, "float32"), "limits": Limits()}
    return plan(shape, 3, seconds=seconds, **given | settings)


# -- starters


def test_networks_are_made_once_however_many_plans_ask_for_them() -> None:
    """`seconds_for_search` makes many plans."""
    one, other = (planned((1, 8, 8), seconds, width=8, depth=30) for seconds in (60.0, 61.0))
    assert all(a is b for a, b in zip(one.starts, other.starts, strict=True))


@pytest.mark.parametrize("seconds", [0.01, 60.0, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
def test_starters_fit_the_task_whatever_its_shape(shape: tuple[int, ...], seconds: float) -> None:
    found = planned(shape, seconds)
    assert found.starts
    assert len({graph.key for graph in found.starts}) == len(found.starts)
    for graph in found.starts:
        assert graph.shapes[graph.input.name] == shape
        assert graph.shapes[graph.output.name] == (3,)
    smallest = min(found.starts, key=lambda graph: graph.work)
    assert to_module(smallest)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("limits", [{"max_params": 3000}, {"max_width": 8}, {"max_flops": 200_000}, {"max_depth": 5}])
def test_starters_are_within_the_limits(shape: tuple[int, ...], limits: dict[str, Any]) -> None:
    for seconds in (1.0, 1e9):
        found = planned(shape, seconds, limits=Limits(**limits))
        assert found.starts
        assert all(found.limits.violation(graph) is None for graph in found.starts)


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8)])
def test_shallow_starters_are_found_where_the_limits_are_shallow(shape: tuple[int, ...]) -> None:
    found = planned(shape, limits=Limits(max_depth=2))
    assert {graph.depth for graph in found.starts} == ({1, 2} if len(shape) == 1 else {2})


@pytest.mark.parametrize("shape", [(2, 30), (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("room", [1.01, 1.5])
def test_a_first_network_is_surely_fast_enough(shape: tuple[int, ...], room: float) -> None:
    """It is shallower than the others if these barely meet the limit by predictions, which may be wrong."""
    free = planned(shape, limits=Limits(pace=(1e-5, 0.0, 0.0))).starts
    most = 1000 * min(map(Limits(pace=(1e-5, 0.0, 0.0)).latency, free)) * room
    limits = Limits(max_latency_ms=most, pace=(1e-5, 0.0, 0.0))
    found = planned(shape, limits=limits).starts
    assert all(limits.violation(graph) is None for graph in found)
    assert min(map(limits.latency, found)) <= STARTER_LATENCY_SHARE * most / 1000
    assert planned(shape, limits=limits, depth=2).starts[:1] == planned(shape, depth=2).starts[:1]


def test_limits_make_starters_tiny_and_little_time_does_not() -> None:
    """Since the smallest widths take as long as the next ones."""
    short, long = (planned((1, 8, 8), seconds, limits=Limits(max_params=1000)) for seconds in (0.01, 1e9))
    assert short.starts == long.starts
    assert max(graph.parameters for graph in short.starts) > 500


def test_of_rows_a_linear_map_is_tried_too() -> None:
    *_, last = planned((20,)).starts
    assert [node.op for node in last.nodes[1:]] == [Dense(3)]
    (only,) = planned((20,), limits=Limits(max_depth=1)).starts
    assert only == last


@pytest.mark.parametrize(
    ("n", "epochs"), [(2, module.MAX_TABULAR_EPOCHS), (640, 25), (1600, 10), (10_000, module.EPOCHS)]
)
def test_few_rows_are_seen_more_often(n: int, epochs: int) -> None:
    assert default_recipe(n, DEVICES[0], None, (20,)).epochs == epochs
    assert default_recipe(n, DEVICES[0], None, (1, 8, 8)).epochs == module.EPOCHS


@pytest.mark.parametrize(
    ("shape", "limits", "words"),
    [
        *[(shape, {"max_params": 2}, "parameters, at most 2 are") for shape in ((20,), (1, 8, 8), (1, 1, 1))],
        *[(shape, {"max_depth": 1}, "2 layers of depth, at most 1 are") for shape in ((1, 8, 8), (1, 1, 1))],
    ],
)
def test_limits_that_nothing_meets_are_a_value_error(
    shape: tuple[int, ...], limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(
        ValueError, match=f"limits: no first network meets them; the smallest one has .*{words} allowed"
    ):
        planned(shape, limits=Limits(**limits))


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8), (3, 32, 32)])
def test_more_time_allows_larger_starters(shape: tuple[int, ...]) -> None:
    sizes = [[graph.work for graph in planned(shape, 2.0**i).starts] for i in range(-4, 24, 2)]
    epochs = [planned(shape, 2.0**i).recipe.epochs for i in range(-4, 24, 2)]
    largest = [max(size) for size in sizes]
    assert all(b >= a for a, b, m, n in zip(largest, largest[1:], epochs, epochs[1:], strict=False) if m == n)
    assert largest[-1] > (4 if len(shape) > 1 else 1) * largest[0]
    assert sorted(epochs) == epochs
    assert (epochs[0], epochs[-1]) == (1, RECIPE.epochs)


@given(
    st.sampled_from([(20,), (1, 8, 8), (3, 16, 16)]),
    st.floats(1, 1e6),
    st.floats(1e-9, 1e-5),
    st.sampled_from([50, 1_000, 60_000, 3_000_000]),
)
def test_no_starter_costs_much_more_than_a_childs_share(
    shape: tuple[int, ...], seconds: float, cost: float, n: int
) -> None:
    """Except for the smallest of a family, which is tried however little time there is."""
    found = planned(shape, seconds, pace=Pace(cost, 1, "float32"), n=n)
    smallest = {graph.key for graph in planned(shape, 1e-9, pace=Pace(cost, 1, "float32")).starts}
    for graph in found.starts:
        price = graph.work * found.recipe.epochs * found.seconds_per_flop
        assert price <= 2.5 * module.CHILD_SHARE * seconds or graph.key in smallest


@given(st.floats(1, 1e6), st.integers(50, 3_000_000))
def test_the_final_trainings_have_time_for_all_examples(seconds: float, n: int) -> None:
    found = planned((3, 16, 16), seconds, n=n, pace=Pace(1e-11 * n, 1, "float32"))
    smallest = {graph.key for graph in planned((3, 16, 16), 1e-9).starts}
    for graph in found.starts:
        assert graph.work * 1e-11 * n * module.MIN_PASSES <= 0.8 * seconds or graph.key in smallest


@pytest.mark.parametrize(
    ("channels", "examples"), [(1, module.MIN_SEEN), (2, module.MIN_SEEN), (3, module.MIN_SEEN_COLOUR)]
)
def test_of_few_examples_all_are_seen_more_often(channels: int, examples: int) -> None:
    """Colour images less often, with larger networks."""
    pace, shape = Pace(2e-8, 1, "float32"), (channels, 32, 32)
    largest = max(graph.work for graph in planned(shape, 120.0, n=2_000, pace=pace).starts)
    assert 0.4 * module.MIN_FINAL_SHARE * 120 < largest * 2e-8 * examples / 2_000 <= module.MIN_FINAL_SHARE * 120


@pytest.mark.parametrize(
    ("channels", "seconds", "searches"), [(3, 300.0, False), (3, 3600.0, True), (1, 300.0, True), (1, 60.0, True)]
)
def test_few_coloured_images_are_searched_for_only_beside_a_long_final_training(
    channels: int, seconds: float, searches: bool
) -> None:
    found = planned((channels, 32, 32), seconds, n=2_000, pace=Pace(2_000 / 7.5e10, 1, "bfloat16"))
    assert found.searches == searches


def test_and_coloured_ones_the_more_often_the_more_time_there_is() -> None:
    """Eight times the time is for networks four times as large, and twice the passes."""
    pace, shape = Pace(2e-8, 1, "float32"), (3, 32, 32)
    works = [max(graph.work for graph in planned(shape, t, n=2_000, pace=pace).starts) for t in (150.0, 1200.0)]
    assert 2.5 < works[1] / works[0] < 6.0


@pytest.mark.parametrize("make", [cnn, resnet])
@pytest.mark.parametrize(
    ("shape", "whole"),
    [((3, 32, 32), True), ((1, 28, 28), True), ((1, 8, 8), True), ((3, 64, 64), False), ((2, 100), False)],
)
def test_images_are_read_whole_unless_they_are_large(make: Any, shape: tuple[int, ...], whole: bool) -> None:
    graph = make(shape, 10, width=4, depth=4)
    stem = next(graph.shapes[node.name] for node in graph.nodes if isinstance(node.op, ReLU))
    assert stem == (4, *(size // (1 if whole else 2) for size in shape[1:]))
    seen = [shape for shape in graph.shapes.values() if len(shape) > 1]
    assert min(seen[-1][1:]) >= 4


def test_networks_that_read_the_whole_cost_as_others_of_twice_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cnn((3, 32, 32), 10, 16, 4)
    monkeypatch.setattr(starters, "MIN_SIZE_FOR_POOLED_STEM", 28)
    pooled = cnn((3, 32, 32), 10, 32, 4)
    assert 0.8 < whole.flops / pooled.flops < 1.2
    assert whole.parameters < 0.4 * pooled.parameters
    assert whole.depth == pooled.depth


@pytest.mark.parametrize(("side", "blocks"), [(8, 2), (28, 2), (32, 3), (63, 3), (64, 2)])
def test_the_last_convolution_has_a_residual_block_where_it_is_pooled(side: int, blocks: int) -> None:
    graph = resnet((3, side, side), 10, width=4, depth=2)
    assert sum(node.op.tag == "add" for node in graph.nodes) == blocks
    before_the_head = graph.nodes[-3]
    assert (before_the_head.op.tag == "add") == (blocks == 3)


@pytest.mark.parametrize("make", [cnn, resnet])
def test_deep_networks_are_no_wider_than_the_resolution_allows(make: Any) -> None:
    graph = make((3, 32, 32), 10, width=4, depth=30)
    assert max(shape[0] for shape in graph.shapes.values() if len(shape) == 3) == 32


def test_of_large_data_a_childs_epochs_are_parts() -> None:
    """So that networks may be as large as the final trainings allow, and there are several epochs nevertheless."""
    small, large = (planned((3, 32, 32), 600.0, n=n, pace=Pace(1e-11 * n, 1, "float32")) for n in (5_000, 500_000))
    assert small.recipe.epochs == RECIPE.epochs
    assert large.recipe.epochs == RECIPE.epochs
    assert large.recipe.examples is not None
    assert 10_000 < large.recipe.examples * RECIPE.epochs < 250_000
    assert large.seconds_per_flop == pytest.approx(5e-6 * large.recipe.examples / 500_000)
    hurried = planned((3, 32, 32), 0.6, n=500_000, pace=Pace(5e-6, 1, "float32")).recipe
    assert (hurried.epochs, hurried.examples) == (1, module.MIN_EPOCH_BATCHES * RECIPE.batch_size)


def test_how_much_an_epoch_is_can_be_given() -> None:
    recipe = replace(RECIPE, examples=2_000)
    for seconds in (1.0, 1e9):
        assert planned((3, 32, 32), seconds, n=500_000, recipe=recipe).recipe.examples == 2_000


def test_what_costs_nothing_may_be_large() -> None:
    assert planned((1, 8, 8), pace=Pace(0.0, 1, "float32")).starts == planned((1, 8, 8), 1e15).starts
    assert planned((1, 8, 8), pace=Pace(0.0, 1, "float32")).recipe == RECIPE


@pytest.mark.parametrize(("device", "widest"), [("cpu", 64), ("cuda", 256)])
def test_networks_for_rows_may_be_wider_and_so_may_those_on_a_gpu(device: str, widest: int) -> None:
    there = {"device": torch.device(device)}
    rows, images = (max(g.parameters for g in planned(shape, 1e9, **there).starts) for shape in ((784,), (1, 28, 28)))
    assert rows == mlp((784,), 3, width=256, depth=3).parameters
    assert images == max(m((1, 28, 28), 3, width=widest, depth=d).parameters for m, d in ((cnn, 4), (resnet, 2)))


def test_the_width_can_be_given() -> None:
    """It is the width of the first layer; later ones may be wider."""
    for seconds in (1e-3, 1e9):
        assert {graph["dense_1"].op for graph in planned((20,), seconds, width=5).starts[:-1]} == {Dense(5, bias=False)}
        for graph in planned((1, 16, 16), seconds, width=5).starts:
            first = next(node.op for node in graph.nodes if isinstance(node.op, Conv))
            assert first.filters in (5, 10)  # the stem of a densenet is twice as wide
    with pytest.raises(ValueError, match="width must be a positive integer"):
        planned((20,), width=-3)


def test_the_depth_can_be_given() -> None:
    for depth in (1, 2, 4):
        assert {graph.depth for graph in planned((20,), depth=depth).starts} == {depth + 1}
        assert min(graph.depth for graph in planned((1, 16, 16), depth=depth).starts) == depth + 1


def test_the_rest_of_the_recipe_is_kept() -> None:
    recipe = Recipe(epochs=50, batch_size=17, lr=0.3, optimizer="adamw", patience=4)
    assert planned((20,), 1e9, recipe=recipe).recipe == recipe
    short = planned((1, 16, 16), 0.5, recipe=recipe).recipe
    assert short.epochs < 50
    assert short == replace(recipe, epochs=short.epochs, examples=short.examples)


def test_the_search_has_a_share_of_the_time() -> None:
    for seconds in (1e-3, 1.0, 60.0, 1e9):
        assert 0 < planned((1, 8, 8), seconds).search_share < 1


# -- as JSON


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8)])
def test_plans_come_back_from_json(shape: tuple[int, ...]) -> None:
    limits = Limits(max_params=100_000, morphs=("deeper", "wider"))
    recipe = default_recipe(500, torch.device("cpu"), None, (1, 8, 8))
    found = planned(shape, limits=limits, recipe=recipe, pace=Pace(COST, 3, "float32"))
    assert Plan.of_run({"seed": 1, "plan": json.loads(json.dumps(found.to_json(), allow_nan=False))}, "2.0") == found


@pytest.mark.parametrize(
    "change",
    [{"starts": 3}, {"starts": [3]}, {"recipe": None}, {"recipe": {"speed": 1}}, {"limits": []}, {"limits": {"max": 1}},
     {"limits": {"morphs": 3}}, {"search_share": None}, {"threads": "many"}, {"seconds_per_flop": []}],
)  # fmt: skip
def test_another_plan_is_a_value_error(change: dict[str, Any]) -> None:
    good = planned((5,)).to_json()
    with pytest.raises(ValueError, match=r"."):
        Plan.of_run({"plan": good | change}, "2.0")


@pytest.mark.parametrize("field", ["searches", "cost", "recipe.rate", "recipe.augment.cut", "limits.max_weight"])
def test_a_plan_of_another_version_is_told_of(field: str) -> None:
    plan = json.loads(json.dumps(planned((5,)).to_json()))
    *parts, name = field.split(".")
    part = functools.reduce(dict.__getitem__, parts, plan)
    if part.pop(name, None) is None:
        part[name] = 1
    about = {"plan": plan, "versions": {"morphnas": "1.0", "torch": "2.8"}}
    with pytest.raises(RunError, match=rf"another version of morphnas \(1\.0, this is 2\.0\), .*{name}.*load_run"):
        Plan.of_run(about, "2.0")
    unknown: list[Any] = [None, [], {"torch": "2.8"}, {"morphnas": "2.0"}]
    for versions in unknown:
        with pytest.raises(RunError, match="by another version of morphnas, with"):
            Plan.of_run(about | {"versions": versions}, "2.0")


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("count", [1, 11, 12, 30])
def test_many_first_networks_do_not_end_the_search(count: int, workers: int) -> None:
    initial = [mlp((5,), 3, width=3 + i) for i in range(count)]
    assert planned((5,), 1e6, initial=initial, workers=workers).searches
    short = planned((5,), 2.0, initial=initial, n=100_000)
    assert (short.searches, short.max_networks(None)) == (False, count)
    assert 0 < short.search_share <= 1
    assert Plan.of_run({"plan": json.loads(json.dumps(short.to_json()))}, "2.0") == short


@pytest.mark.parametrize(("shape", "n", "seconds"), [((3, 32, 32), 45_000, 534.0), ((3, 32, 32), 2_000, 300.0)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_faster_machine_searches_where_a_slower_one_does(
    shape: tuple[int, ...], n: int, seconds: float, device: str
) -> None:
    """Whichever widths of starters its speed leads to."""
    costs = [1e-10 * n / 2 ** (i / 4) for i in range(100)]
    found = [
        planned(shape, seconds, n=n, pace=Pace(cost, 1, "float32"), device=torch.device(device)).searches
        for cost in costs
    ]
    assert found == sorted(found)
    assert found[0] is False
    assert found[-1] is True


def test_a_plan_says_whether_there_is_a_search() -> None:
    old = planned((5,), 1e6).to_json()
    with pytest.raises(ValueError, match="searches is 1"):
        Plan.of_run({"plan": old | {"searches": 1}}, "2.0")


@pytest.mark.parametrize("about", [{}, {"plan": None}, {"plan": []}, {"plan": 3}, {"plan": {}}])
def test_no_plan_is_a_value_error(about: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"run\.json does not hold the plan of a run"):
        Plan.of_run(about, "2.0")


# -- measuring


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were set, the current one last; real threads would wait for one another here."""
    seen = [2]
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: seen[-1])
    return seen


def one_pixel() -> Task:
    return images(12, 4, (1, 1, 3))


@pytest.mark.parametrize("task", [blobs(20, 4), images(12, 4), images(12, 4, (1, 9)), one_pixel(), blobs(2, 2)])
@pytest.mark.parametrize("size", [1, 8, 500])
def test_an_epoch_has_a_price(task: Task, size: int, threads: list[int]) -> None:
    random = torch.get_rng_state()
    pace = measure(task, 0.0, Recipe(batch_size=size))
    assert 0 < pace.seconds_per_flop < math.inf
    assert pace.threads in (1, 2)
    assert pace.precision in ("float32", "bfloat16")
    assert threads == [2, *[1, 1, 2, 2] * 2, 2]  # each is tried with both precisions, and then it is as before
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 1200, 900), (1, 200, 200, 200), (1, 500_000), (9,)])
@pytest.mark.parametrize("most", [PROBE_BYTES, 10**7])
def test_the_price_is_found_in_little_memory(shape: tuple[int, ...], most: int) -> None:
    graph, n = _probe(shape, 10, 128, most)
    assert graph.peak_bytes(n) <= most
    assert 2 <= n <= 128
    probed = graph.shapes[graph.input.name]
    assert all(1 <= side <= whole for side, whole in zip(probed, shape, strict=True))
    if most == PROBE_BYTES and math.prod(shape) < 4000:
        assert (probed, n) == (shape, 128)


def test_of_large_examples_a_corner_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_BYTES", 10**5)
    assert measure(images(12, 4, (1, 40, 40)), 0.0, Recipe()).seconds_per_flop > 0


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.8, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_the_faster_precision_is_taken_however_busy_the_machine(
    bfloat16: float, expected: str, monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    """Steps may take up to four times as long in some turns, and one fast float32 step does not decide."""
    now, calls = [0.0], iter(range(10_000))

    @contextmanager
    def timed(precision: str, device: torch.device) -> Iterator[None]:
        turn = next(calls) // len(threads_and_precisions)
        costs = {"float32": 0.5 if turn == 4 else 1.0, "bfloat16": bfloat16}
        now[0] += costs[precision] * (1 + turn % 4)
        yield

    threads_and_precisions = list(product((1, 2), ("float32", "bfloat16")))
    monkeypatch.setattr(module, "autocast_to", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert measure(images(), 1e9, Recipe(batch_size=8)).precision == expected


def test_the_number_of_threads_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(nn.functional, "cross_entropy", broken)
    with pytest.raises(MemoryError):
        measure(blobs(), 0.0, Recipe(batch_size=8))
    assert threads[-1] == 2


def test_twice_the_examples_take_twice_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    one, other = (measure(blobs(n, 2), 0.0, Recipe(batch_size=16)).seconds_per_flop for n in (40, 80))
    assert other == pytest.approx(2 * one)


@pytest.mark.parametrize(("recorded", "kept"), [("rounded", True), ("idle", False)])
def test_recorded_steps_may_differ_by_rounding_and_not_by_more(
    recorded: str, kept: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[Step] = []

    def recorder(_: torch.device) -> Callable[[Run, Draw], Run]:
        def rounded(draw: Draw) -> torch.Tensor:
            for p in steps[-1].module.parameters():
                p.data.mul_(1 + 1e-6 * torch.randn_like(p))
            return steps[-1]._run(draw)

        def idle(draw: Draw) -> torch.Tensor:
            return torch.zeros(())

        return lambda run, draw: {"rounded": rounded, "idle": idle}[recorded]

    class Seen(Step):
        def __init__(self, *args: Any, **settings: Any) -> None:
            steps.append(self)
            super().__init__(*args, **settings)

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", recorder)
    monkeypatch.setattr(module, "Step", Seen)
    monkeypatch.setattr(module, "PROBE_WIDTH", 16)
    monkeypatch.setattr(module, "MAX_TIME_RATIO", 0.0)  # however long they take
    task = images(64, 4, (3, 16, 16))
    with caplog.at_level(logging.INFO, "morphnas"):
        pace = measure(task, 0.0, default_recipe(64, torch.device("cpu"), None, (3, 16, 16)))
    assert pace.cuda_graphs is kept
    assert ("CUDA graphs are not used" in caplog.text) is not kept


# -- recipes

DEVICES = [torch.device("cpu"), torch.device("cuda")]


@pytest.mark.parametrize("device", DEVICES)
def test_batches_grow_with_the_data(device: torch.device) -> None:
    sizes = [batch_size(n, device) for n in (1, 2, 50, 500, 5_000, 50_000, 5_000_000)]
    assert sorted(sizes) == sizes
    assert all(size & (size - 1) == 0 and size >= 8 for size in sizes)
    assert sizes[-1] <= 1024


@pytest.mark.parametrize("augment", [None, True, False])
@pytest.mark.parametrize("shape", [(3, 8, 8), (5,)])
def test_images_are_moved_unless_that_is_unwanted(augment: bool | None, shape: tuple[int, ...]) -> None:
    recipe = default_recipe(1000, DEVICES[0], augment, shape)
    if len(shape) > 1 and augment is not False:
        assert recipe.augment.shift == (DEFAULT_SHIFT if augment else None)
        assert recipe.augment.flip is None  # to be found out
    else:
        assert recipe.augment == Augment()


@pytest.mark.parametrize(
    ("shape", "white"), [((3, 32, 32), True), ((1, 28, 28), False), ((3, 100), False), ((3, 8, 8, 8), False)]
)
def test_colour_images_are_whitened(shape: tuple[int, ...], white: bool) -> None:
    assert default_recipe(1000, DEVICES[0], None, shape).whiten == white


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("epochs", [6, 100])
@pytest.mark.parametrize("seconds", [60.0, 600.0, 6e4, 1e9])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_children_are_bounded_by_time(seconds: float, width: int | None, device: str, epochs: int) -> None:
    """By the time that final trainings have for their passes, which are more if there is much time, and by that which a
    search has for one child."""
    n = 50_000
    ample = n * module.MIN_FINAL_SHARE * seconds / (COST * module.AMPLE_COMPUTE)
    passes = min(module.MAX_PASSES, module.MIN_PASSES * max(1.0, ample) ** (1 / 3))
    assert (passes > module.MIN_PASSES, passes == module.MAX_PASSES) == (seconds > 60, seconds > 1e6)
    recipe = replace(RECIPE, epochs=epochs)
    found = planned((3, 32, 32), seconds, n=n, width=width, device=torch.device(device), recipe=recipe)
    own, most = max(graph.work for graph in found.starts), found.limits.max_work
    assert most is not None
    one = most * COST  # seconds of a pass
    final = one * passes / (module.MAX_GROWTH * module.MIN_FINAL_SHARE * seconds)
    passed = found.recipe.epochs * (found.recipe.examples or n) / n
    typical = passed * COST * statistics.median(graph.work for graph in found.starts)
    child = one * passed / (module.MAX_CHILD_COST * max(typical, module.CHILD_SHARE * seconds))
    assert max(final, child) == pytest.approx(1.0, rel=1e-3) or most == own
    there = {"n": n, "limits": Limits(max_work=own), "device": torch.device(device)}
    assert (planned((3, 32, 32), seconds, **there).limits.max_work or 0) <= own


def test_skips_take_more_time_than_their_flops_tell() -> None:
    graph = grown = resnet((3, 32, 32), 10, width=8)
    for _ in range(8):
        grown = next(morph for morph in neighbours(grown) if isinstance(morph, AddSkip)).grow(grown)
    assert grown.work / graph.work - 1 > 5 * (grown.flops / graph.flops - 1)


def test_time_for_few_networks_is_the_best_starters() -> None:
    """The search's share grows with the time, but is small if there is only time for a few networks."""
    shares = [planned((3, 32, 32), seconds, n=6_000).search_share for seconds in (1.0, 60.0, 1e3, 1e4, 1e5, 1e6)]
    assert shares[0] < 4 * module.CHILD_SHARE
    assert all(
        share < 4 * module.CHILD_SHARE or share >= module.MIN_SEARCH_NETWORKS * module.CHILD_SHARE for share in shares
    )
    assert sorted(shares) == shares
    assert shares[-1] == 1 - module.MIN_FINAL_SHARE


@pytest.mark.parametrize("seconds", [1.0, 60.0, 1e4])
def test_several_workers_have_a_search(seconds: float) -> None:
    one, four = (planned((3, 32, 32), seconds, n=6_000, workers=workers).search_share for workers in (1, 4))
    assert four >= max(one, 0.4)


def test_without_a_final_training_a_search_is_not_kept_to_small_networks() -> None:
    """A network that is too large for a final training may still grow."""
    start = cnn((1, 8, 8), 3, width=32)
    capped, free = (planned((1, 8, 8), seconds=1.0, initial=[start], finals=finals) for finals in (True, False))
    assert capped.limits.max_work == start.work
    assert free.limits.max_work is not None
    assert free.limits.max_work > start.work
