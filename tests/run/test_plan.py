"""Tests of the plan of a run: starters, time and limits, stored plans, measuring, and recipes."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from morphnas.graph import AddSkip, Conv, Dense, Graph, Limits, ReLU, cnn, mlp, neighbours, resnet, starters, to_module
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
from tests.train.tasks import Clock, blob_task, image_task

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
"""Seconds per FLOP of an epoch: of 1,000 examples at 1e9 FLOPs a second."""


def make_plan(shape: tuple[int, ...], seconds: float = 60.0, **settings: Any) -> Plan:
    defaults: dict[str, Any] = {"n": 1000, "recipe": RECIPE, "pace": Pace(COST, 1, "float32"), "limits": Limits()}
    return plan(shape, 3, seconds=seconds, **defaults | settings)


# -- starters


def test_starters_are_cached_between_plans() -> None:
    one, other = (make_plan((1, 8, 8), seconds, width=8, depth=30) for seconds in (60.0, 61.0))
    assert all(a is b for a, b in zip(one.starts, other.starts, strict=True))


@pytest.mark.parametrize("seconds", [0.01, 60.0, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
def test_starters_fit_shape_of_task(shape: tuple[int, ...], seconds: float) -> None:
    starters = make_plan(shape, seconds).starts
    assert starters
    assert len({graph.key for graph in starters}) == len(starters)
    for graph in starters:
        assert graph.shapes[graph.input.name] == shape
        assert graph.shapes[graph.output.name] == (3,)
    smallest = min(starters, key=lambda graph: graph.work)
    assert to_module(smallest)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("limits", [{"max_params": 3000}, {"max_width": 8}, {"max_flops": 200_000}, {"max_depth": 5}])
def test_starters_meet_limits(shape: tuple[int, ...], limits: dict[str, Any]) -> None:
    for seconds in (1.0, 1e9):
        result = make_plan(shape, seconds, limits=Limits(**limits))
        assert result.starts
        assert all(result.limits.violation(graph) is None for graph in result.starts)


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8)])
def test_max_depth_gives_shallow_starters(shape: tuple[int, ...]) -> None:
    starters = make_plan(shape, limits=Limits(max_depth=2)).starts
    assert {graph.depth for graph in starters} == ({1, 2} if len(shape) == 1 else {2})


@pytest.mark.parametrize("shape", [(2, 30), (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("factor", [1.01, 1.5])
def test_one_starter_is_well_below_max_latency(shape: tuple[int, ...], factor: float) -> None:
    """A shallower one is added if the others barely meet the limit by predictions, which may be wrong."""
    without_limit = Limits(pace=(1e-5, 0.0, 0.0))
    max_latency = factor * min(map(without_limit.latency, make_plan(shape, limits=without_limit).starts))
    limits = replace(without_limit, max_latency_ms=1000 * max_latency)
    starters = make_plan(shape, limits=limits).starts
    assert all(limits.violation(graph) is None for graph in starters)
    assert min(map(limits.latency, starters)) <= STARTER_LATENCY_SHARE * max_latency
    assert make_plan(shape, limits=limits, depth=2).starts[:1] == make_plan(shape, depth=2).starts[:1]


def test_little_time_does_not_make_starters_tiny() -> None:
    """The smallest widths take as long as the next ones, so little time is no reason for them."""
    short, long = (make_plan((1, 8, 8), seconds, limits=Limits(max_params=1000)) for seconds in (0.01, 1e9))
    assert short.starts == long.starts
    assert max(graph.parameters for graph in short.starts) > 500


def test_tabular_starters_include_linear_model() -> None:
    *_, last = make_plan((20,)).starts
    assert [node.op for node in last.nodes[1:]] == [Dense(3)]
    (only,) = make_plan((20,), limits=Limits(max_depth=1)).starts
    assert only == last


@pytest.mark.parametrize(
    ("shape", "n", "epochs"),
    [
        ((20,), 2, module.MAX_EPOCHS_FOR_STEPS),
        ((20,), 640, 25),
        ((20,), 1600, 10),
        ((20,), 10_000, module.EPOCHS),
        ((1, 8, 8), 100, module.MAX_EPOCHS_FOR_STEPS),
        ((1, 8, 8), 640, 10),
        ((1, 100), 640, 10),
        ((1, 8, 8), 1600, module.EPOCHS),
    ],
)
def test_few_examples_get_more_epochs(shape: tuple[int, ...], n: int, epochs: int) -> None:
    assert default_recipe(n, DEVICES[0], None, shape).epochs == epochs


@pytest.mark.parametrize(
    ("shape", "limits", "words"),
    [
        *[(shape, {"max_params": 2}, "parameters, at most 2 are") for shape in ((20,), (1, 8, 8), (1, 1, 1))],
        *[(shape, {"max_depth": 1}, "2 layers of depth, at most 1 are") for shape in ((1, 8, 8), (1, 1, 1))],
    ],
)
def test_limits_that_no_starter_meets_raise_value_error(
    shape: tuple[int, ...], limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(
        ValueError, match=f"limits: no first network meets them; the smallest one has .*{words} allowed"
    ):
        make_plan(shape, limits=Limits(**limits))


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8), (3, 32, 32)])
def test_more_time_allows_larger_starters(shape: tuple[int, ...]) -> None:
    plans = [make_plan(shape, 2.0**i) for i in range(-4, 24, 2)]
    epochs = [each.recipe.epochs for each in plans]
    largest = [max(graph.work for graph in each.starts) for each in plans]
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
def test_starters_cost_about_a_childs_share_at_most(
    shape: tuple[int, ...], seconds: float, cost: float, n: int
) -> None:
    """Except for the smallest of a family, which is tried however little time there is."""
    result = make_plan(shape, seconds, pace=Pace(cost, 1, "float32"), n=n)
    smallest = {graph.key for graph in make_plan(shape, 1e-9, pace=Pace(cost, 1, "float32")).starts}
    for graph in result.starts:
        training = graph.work * result.recipe.epochs * result.seconds_per_flop
        assert training <= 2.5 * module.CHILD_SHARE * seconds or graph.key in smallest


@given(st.floats(1, 1e6), st.integers(50, 3_000_000))
def test_final_trainings_have_time_for_min_passes(seconds: float, n: int) -> None:
    starters = make_plan((3, 16, 16), seconds, n=n, pace=Pace(1e-11 * n, 1, "float32")).starts
    smallest = {graph.key for graph in make_plan((3, 16, 16), 1e-9).starts}
    for graph in starters:
        assert graph.work * 1e-11 * n * module.MIN_PASSES <= 0.8 * seconds or graph.key in smallest


@pytest.mark.parametrize(
    ("channels", "examples"), [(1, module.MIN_SEEN), (2, module.MIN_SEEN), (3, module.MIN_SEEN_COLOUR)]
)
def test_final_trainings_of_few_examples_see_them_more_often(channels: int, examples: int) -> None:
    """Colour images are seen less often than grey ones, with larger networks."""
    pace, shape = Pace(2e-8, 1, "float32"), (channels, 32, 32)
    largest = max(graph.work for graph in make_plan(shape, 120.0, n=2_000, pace=pace).starts)
    assert 0.4 * module.MIN_FINAL_SHARE * 120 < largest * 2e-8 * examples / 2_000 <= module.MIN_FINAL_SHARE * 120


@pytest.mark.parametrize(
    ("channels", "seconds", "searches"), [(3, 300.0, False), (3, 3600.0, True), (1, 300.0, True), (1, 60.0, True)]
)
def test_few_colour_images_are_searched_only_with_much_time(channels: int, seconds: float, searches: bool) -> None:
    pace = Pace(2_000 / 7.5e10, 1, "bfloat16")
    assert make_plan((channels, 32, 32), seconds, n=2_000, pace=pace).searches == searches


def test_more_time_gives_colour_images_more_passes() -> None:
    """With eight times the time, networks are about four times as large, and passes twice as many."""
    pace, shape = Pace(2e-8, 1, "float32"), (3, 32, 32)
    works = [max(graph.work for graph in make_plan(shape, t, n=2_000, pace=pace).starts) for t in (150.0, 1200.0)]
    assert 2.5 < works[1] / works[0] < 6.0


@pytest.mark.parametrize("make", [cnn, resnet])
@pytest.mark.parametrize(
    ("shape", "full"),
    [((3, 32, 32), True), ((1, 28, 28), True), ((1, 8, 8), True), ((3, 64, 64), False), ((2, 100), False)],
)
def test_stem_reads_small_images_at_full_resolution(make: Any, shape: tuple[int, ...], full: bool) -> None:
    graph = make(shape, 10, width=4, depth=4)
    stem = next(graph.shapes[node.name] for node in graph.nodes if isinstance(node.op, ReLU))
    assert stem == (4, *(size // (1 if full else 2) for size in shape[1:]))
    spatial = [shape for shape in graph.shapes.values() if len(shape) > 1]
    assert min(spatial[-1][1:]) >= 4


def test_full_resolution_costs_as_much_as_twice_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    full = cnn((3, 32, 32), 10, 16, 4)
    monkeypatch.setattr(starters, "MIN_SIZE_FOR_POOLED_STEM", 28)
    pooled = cnn((3, 32, 32), 10, 32, 4)
    assert 0.8 < full.flops / pooled.flops < 1.2
    assert full.parameters < 0.4 * pooled.parameters
    assert full.depth == pooled.depth


@pytest.mark.parametrize(("side", "blocks"), [(8, 2), (28, 2), (32, 3), (63, 3), (64, 2)])
def test_last_stage_has_residual_block_if_pooled(side: int, blocks: int) -> None:
    graph = resnet((3, side, side), 10, width=4, depth=2)
    assert sum(node.op.tag == "add" for node in graph.nodes) == blocks
    before_head = graph.nodes[-3]
    assert (before_head.op.tag == "add") == (blocks == 3)


@pytest.mark.parametrize("make", [cnn, resnet])
def test_resolution_bounds_width_of_deep_networks(make: Any) -> None:
    graph = make((3, 32, 32), 10, width=4, depth=30)
    assert max(shape[0] for shape in graph.shapes.values() if len(shape) == 3) == 32


def test_childs_epochs_are_parts_of_large_data() -> None:
    """So that there are several epochs even of networks as large as the final trainings allow."""
    small, large = (make_plan((3, 32, 32), 600.0, n=n, pace=Pace(1e-11 * n, 1, "float32")) for n in (5_000, 500_000))
    assert small.recipe.epochs == RECIPE.epochs
    assert large.recipe.epochs == RECIPE.epochs
    assert large.recipe.examples is not None
    assert 10_000 < large.recipe.examples * RECIPE.epochs < 250_000
    assert large.seconds_per_flop == pytest.approx(5e-6 * large.recipe.examples / 500_000)
    short = make_plan((3, 32, 32), 0.6, n=500_000, pace=Pace(5e-6, 1, "float32")).recipe
    assert (short.epochs, short.examples) == (1, module.MIN_EPOCH_BATCHES * RECIPE.batch_size)


def test_given_examples_per_epoch_are_kept() -> None:
    recipe = replace(RECIPE, examples=2_000)
    for seconds in (1.0, 1e9):
        assert make_plan((3, 32, 32), seconds, n=500_000, recipe=recipe).recipe.examples == 2_000


def test_zero_cost_gives_largest_starters() -> None:
    result = make_plan((1, 8, 8), pace=Pace(0.0, 1, "float32"))
    assert result.starts == make_plan((1, 8, 8), 1e15).starts
    assert result.recipe == RECIPE


@pytest.mark.parametrize(("device", "widest"), [("cpu", 64), ("cuda", 256)])
def test_max_width_depends_on_shape_and_device(device: str, widest: int) -> None:
    tabular, image = (
        max(graph.parameters for graph in make_plan(shape, 1e9, device=torch.device(device)).starts)
        for shape in ((784,), (1, 28, 28))
    )
    assert tabular == mlp((784,), 3, width=256, depth=3).parameters
    assert image == max(
        make((1, 28, 28), 3, width=widest, depth=depth).parameters for make, depth in ((cnn, 4), (resnet, 2))
    )


def test_given_width_is_used() -> None:
    """It is the width of the first layer; later ones may be wider."""
    for seconds in (1e-3, 1e9):
        *mlps, _ = make_plan((20,), seconds, width=5).starts
        assert {graph["dense_1"].op for graph in mlps} == {Dense(5, bias=False)}
        for graph in make_plan((1, 16, 16), seconds, width=5).starts:
            assert next(node.op.filters for node in graph.nodes if isinstance(node.op, Conv)) == 5
    with pytest.raises(ValueError, match="width must be a positive integer"):
        make_plan((20,), width=-3)


def test_given_depth_is_used() -> None:
    for depth in (1, 2, 4):
        assert {graph.depth for graph in make_plan((20,), depth=depth).starts} == {depth + 1}
        assert min(graph.depth for graph in make_plan((1, 16, 16), depth=depth).starts) == depth + 1


def test_other_recipe_settings_are_kept() -> None:
    recipe = Recipe(epochs=50, batch_size=17, lr=0.3, optimizer="adamw", patience=4)
    assert make_plan((20,), 1e9, recipe=recipe).recipe == recipe
    short = make_plan((1, 16, 16), 0.5, recipe=recipe).recipe
    assert short.epochs < 50
    assert short == replace(recipe, epochs=short.epochs, examples=short.examples)


def test_search_share_is_between_0_and_1() -> None:
    for seconds in (1e-3, 1.0, 60.0, 1e9):
        assert 0 < make_plan((1, 8, 8), seconds).search_share < 1


# -- as JSON


@pytest.mark.parametrize("shape", [(20,), (1, 8, 8)])
def test_plan_round_trips_through_json(shape: tuple[int, ...]) -> None:
    limits = Limits(max_params=100_000, morphs=("deeper", "wider"))
    recipe = default_recipe(500, torch.device("cpu"), None, (1, 8, 8))
    original = make_plan(shape, limits=limits, recipe=recipe, pace=Pace(COST, 3, "float32"))
    data = json.loads(json.dumps(original.to_json(), allow_nan=False))
    assert Plan.of_run({"seed": 1, "plan": data}, "2.0") == original


@pytest.mark.parametrize(
    "change",
    [{"starts": 3}, {"starts": [3]}, {"recipe": None}, {"limits": []}, {"limits": {"morphs": 3}},
     {"search_share": None}, {"threads": "many"}, {"seconds_per_flop": []}, {"searches": 1}],
)  # fmt: skip
def test_invalid_plan_raises_value_error(change: dict[str, Any]) -> None:
    data = make_plan((5,)).to_json() | change
    with pytest.raises(ValueError, match=r"run\.json does not hold the plan of a run"):
        Plan.of_run({"plan": data}, "2.0")


@pytest.mark.parametrize("field", ["searches", "cost", "recipe.rate", "recipe.augment.cut", "limits.max_weight"])
def test_plan_of_another_version_raises_run_error(field: str) -> None:
    """It has a field that is unknown here, or lacks one."""
    data = json.loads(json.dumps(make_plan((5,)).to_json()))
    *parts, name = field.split(".")
    part = functools.reduce(dict.__getitem__, parts, data)
    if part.pop(name, None) is None:
        part[name] = 1
    about = {"plan": data, "versions": {"morphnas": "1.0", "torch": "2.8"}}
    with pytest.raises(RunError, match=rf"another version of morphnas \(1\.0, this is 2\.0\), .*{name}.*load_run"):
        Plan.of_run(about, "2.0")
    unknown: list[Any] = [None, [], {"torch": "2.8"}, {"morphnas": "2.0"}]
    for versions in unknown:
        with pytest.raises(RunError, match="by another version of morphnas, with"):
            Plan.of_run(about | {"versions": versions}, "2.0")


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("count", [1, 11, 12, 30])
def test_many_initial_networks_do_not_prevent_a_search(count: int, workers: int) -> None:
    initial = [mlp((5,), 3, width=3 + i) for i in range(count)]
    assert make_plan((5,), 1e6, initial=initial, workers=workers).searches
    short = make_plan((5,), 2.0, initial=initial, n=100_000)
    assert (short.searches, short.max_networks(None)) == (False, count)
    assert 0 < short.search_share <= 1
    assert Plan.of_run({"plan": json.loads(json.dumps(short.to_json()))}, "2.0") == short


@pytest.mark.parametrize(("shape", "n", "seconds"), [((3, 32, 32), 45_000, 534.0), ((3, 32, 32), 2_000, 300.0)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_faster_machine_searches_if_slower_one_does(
    shape: tuple[int, ...], n: int, seconds: float, device: str
) -> None:
    """Whichever widths of starters its speed leads to."""
    costs = [1e-10 * n / 2 ** (i / 4) for i in range(100)]
    searches = [
        make_plan(shape, seconds, n=n, pace=Pace(cost, 1, "float32"), device=torch.device(device)).searches
        for cost in costs
    ]
    assert searches == sorted(searches)
    assert searches[0] is False
    assert searches[-1] is True


@pytest.mark.parametrize("about", [{}, {"plan": None}, {"plan": []}, {"plan": 3}, {"plan": {}}])
def test_missing_plan_raises_value_error(about: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"run\.json does not hold the plan of a run"):
        Plan.of_run(about, "2.0")


# -- measuring


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that are set, the current one last, instead of real threads."""
    numbers = [2]
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    return numbers


@pytest.mark.parametrize(
    "task",
    [blob_task(20, 4), image_task(12, 4), image_task(12, 4, (1, 9)), image_task(12, 4, (1, 1, 3)), blob_task(2, 2)],
)
@pytest.mark.parametrize("size", [1, 8, 500])
def test_measure_gives_pace_and_restores_state(task: Task, size: int, threads: list[int]) -> None:
    random_state = torch.get_rng_state()
    pace = measure(task, 0.0, Recipe(batch_size=size))
    assert 0 < pace.seconds_per_flop < math.inf
    assert pace.threads in (1, 2)
    assert pace.precision in ("float32", "bfloat16")
    assert threads == [2, *[1, 1, 2, 2] * 2, 2]  # each number with both precisions, and then the original one
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 1200, 900), (1, 200, 200, 200), (1, 500_000), (9,)])
@pytest.mark.parametrize("max_bytes", [PROBE_BYTES, 10**7])
def test_probe_fits_memory(shape: tuple[int, ...], max_bytes: int) -> None:
    graph, n = _probe(shape, 10, 128, max_bytes)
    assert graph.peak_bytes(n) <= max_bytes
    assert 2 <= n <= 128
    probed = graph.shapes[graph.input.name]
    assert all(1 <= side <= full for side, full in zip(probed, shape, strict=True))
    if max_bytes == PROBE_BYTES and math.prod(shape) < 4000:
        assert (probed, n) == (shape, 128)


def test_large_examples_are_cropped_for_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Graph, Tensor]] = []

    def recording_module(graph: Graph) -> nn.Module:
        network = to_module(graph)
        network.register_forward_pre_hook(lambda _, inputs: calls.append((graph, inputs[0])))
        return network

    monkeypatch.setattr(module, "PROBE_BYTES", 10**6)
    monkeypatch.setattr(module, "to_module", recording_module)
    task = image_task(12, 4, (1, 40, 40))
    assert measure(task, 0.0, Recipe()).seconds_per_flop > 0
    graph, x = calls[0]
    side = graph.shapes["x"][1]
    assert graph.shapes["x"] == (1, side, side)
    assert side < 40
    assert torch.equal(x, task.normalised(task.train.x[: len(x)])[:, :, :side, :side])


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.8, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_faster_precision_is_chosen_on_busy_machine(
    bfloat16: float, expected: str, monkeypatch: pytest.MonkeyPatch, threads: list[int]
) -> None:
    """Steps may take up to four times as long in some turns, and one fast float32 step does not decide.

    bfloat16: seconds of a step in bfloat16, relative to float32.
    """
    clock, calls = Clock(), itertools.count()

    @contextmanager
    def slow_autocast(precision: str, device: torch.device) -> Iterator[None]:
        turn = next(calls) // 4  # two numbers of threads with two precisions
        costs = {"float32": 0.5 if turn == 4 else 1.0, "bfloat16": bfloat16}
        clock.now += costs[precision] * (1 + turn % 4)
        yield

    monkeypatch.setattr(module, "autocast_to", slow_autocast)
    monkeypatch.setattr(time, "perf_counter", clock)
    assert measure(image_task(), 1e9, Recipe(batch_size=8)).precision == expected


def test_number_of_threads_is_restored_after_error(monkeypatch: pytest.MonkeyPatch, threads: list[int]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(nn.functional, "cross_entropy", fail)
    with pytest.raises(MemoryError):
        measure(blob_task(), 0.0, Recipe(batch_size=8))
    assert threads[-1] == 2


def test_pace_is_proportional_to_number_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", Clock(tick=1.0))
    one, other = (measure(blob_task(n, 2), 0.0, Recipe(batch_size=16)).seconds_per_flop for n in (40, 80))
    assert other == pytest.approx(2 * one)


@pytest.mark.parametrize(("captured", "used"), [("rounded", True), ("idle", False)])
def test_captured_steps_are_used_if_equal_up_to_rounding(
    captured: str, used: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Captured steps that round differently are used, and those that do not train are not."""
    steps: list[Step] = []

    def recorder(_: torch.device) -> Callable[[Run, Draw], Run]:
        def rounded(draw: Draw) -> torch.Tensor:
            for p in steps[-1].module.parameters():
                p.data.mul_(1 + 1e-6 * torch.randn_like(p))
            return steps[-1]._run(draw)

        def idle(draw: Draw) -> torch.Tensor:
            return torch.zeros(())

        return lambda run, draw: {"rounded": rounded, "idle": idle}[captured]

    class ListedStep(Step):
        def __init__(self, *args: Any, **settings: Any) -> None:
            steps.append(self)
            super().__init__(*args, **settings)

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", recorder)
    monkeypatch.setattr(module, "Step", ListedStep)
    monkeypatch.setattr(module, "PROBE_WIDTH", 16)
    monkeypatch.setattr(module, "MAX_TIME_RATIO", 0.0)  # however long they take
    task = image_task(64, 4, (3, 16, 16))
    with caplog.at_level(logging.INFO, "morphnas"):
        pace = measure(task, 0.0, default_recipe(64, torch.device("cpu"), None, (3, 16, 16)))
    assert pace.cuda_graphs is used
    assert ("CUDA graphs are not used" in caplog.text) is not used


# -- recipes

DEVICES = [torch.device("cpu"), torch.device("cuda")]


@pytest.mark.parametrize("device", DEVICES)
def test_batch_size_grows_with_number_of_examples(device: torch.device) -> None:
    sizes = [batch_size(n, device) for n in (1, 2, 50, 500, 5_000, 50_000, 5_000_000)]
    assert sorted(sizes) == sizes
    assert all(size & (size - 1) == 0 and size >= 8 for size in sizes)
    assert sizes[-1] <= 1024


@pytest.mark.parametrize("augment", [None, True, False])
@pytest.mark.parametrize("shape", [(3, 8, 8), (5,)])
def test_images_are_augmented_unless_disabled(augment: bool | None, shape: tuple[int, ...]) -> None:
    recipe = default_recipe(1000, DEVICES[0], augment, shape)
    if len(shape) > 1 and augment is not False:
        assert recipe.augment.shift == (DEFAULT_SHIFT if augment else None)
        assert recipe.augment.flip is None  # decided later
    else:
        assert recipe.augment == Augment()


@pytest.mark.parametrize(
    ("shape", "whiten"), [((3, 32, 32), True), ((1, 28, 28), False), ((3, 100), False), ((3, 8, 8, 8), False)]
)
def test_only_colour_images_are_whitened(shape: tuple[int, ...], whiten: bool) -> None:
    assert default_recipe(1000, DEVICES[0], None, shape).whiten == whiten


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("epochs", [6, 100])
@pytest.mark.parametrize("seconds", [60.0, 600.0, 6e4, 1e9])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_time_bounds_work_of_children(seconds: float, width: int | None, device: str, epochs: int) -> None:
    """By the time that final trainings have for their passes, of which there are more if there is much time, and by
    the time that a search has for one child."""
    n = 50_000
    ample = n * module.MIN_FINAL_SHARE * seconds / (COST * module.AMPLE_COMPUTE)
    passes = min(module.MAX_PASSES, module.MIN_PASSES * max(1.0, ample) ** (1 / 3))
    assert (passes > module.MIN_PASSES, passes == module.MAX_PASSES) == (seconds > 60, seconds > 1e6)
    recipe = replace(RECIPE, epochs=epochs)
    result = make_plan((3, 32, 32), seconds, n=n, width=width, device=torch.device(device), recipe=recipe)
    largest_starter, max_work = max(graph.work for graph in result.starts), result.limits.max_work
    assert max_work is not None
    seconds_per_pass = max_work * COST
    final = seconds_per_pass * passes / (module.MAX_GROWTH * module.MIN_FINAL_SHARE * seconds)
    child_passes = result.recipe.epochs * (result.recipe.examples or n) / n
    typical = child_passes * COST * statistics.median(graph.work for graph in result.starts)
    child = seconds_per_pass * child_passes / (module.MAX_CHILD_COST * max(typical, module.CHILD_SHARE * seconds))
    assert max(final, child) == pytest.approx(1.0, rel=1e-3) or max_work == largest_starter
    limited = {"n": n, "limits": Limits(max_work=largest_starter), "device": torch.device(device)}
    assert (make_plan((3, 32, 32), seconds, **limited).limits.max_work or 0) <= largest_starter


def test_work_of_skips_exceeds_their_flops() -> None:
    graph = grown = resnet((3, 32, 32), 10, width=8)
    for _ in range(8):
        grown = next(morph for morph in neighbours(grown) if isinstance(morph, AddSkip)).grow(grown)
    assert grown.work / graph.work - 1 > 5 * (grown.flops / graph.flops - 1)


def test_search_share_is_small_if_few_networks_fit() -> None:
    """It grows with the time."""
    shares = [make_plan((3, 32, 32), seconds, n=6_000).search_share for seconds in (1.0, 60.0, 1e3, 1e4, 1e5, 1e6)]
    assert shares[0] < 4 * module.CHILD_SHARE
    assert all(
        share < 4 * module.CHILD_SHARE or share >= module.MIN_SEARCH_NETWORKS * module.CHILD_SHARE for share in shares
    )
    assert sorted(shares) == shares
    assert shares[-1] == 1 - module.MIN_FINAL_SHARE


@pytest.mark.parametrize("seconds", [1.0, 60.0, 1e4])
def test_several_workers_get_larger_search_share(seconds: float) -> None:
    one, four = (make_plan((3, 32, 32), seconds, n=6_000, workers=workers).search_share for workers in (1, 4))
    assert four >= max(one, 0.4)


def test_networks_may_grow_more_without_final_trainings() -> None:
    """A network that is too large for a final training may still grow."""
    start = cnn((1, 8, 8), 3, width=32)
    with_finals, without = (make_plan((1, 8, 8), 1.0, initial=[start], finals=finals) for finals in (True, False))
    assert with_finals.limits.max_work == start.work
    assert without.limits.max_work is not None
    assert without.limits.max_work > start.work
