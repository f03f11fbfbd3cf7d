"""Capture and replay of steps: on a CPU, where a recorder stands in for CUDA graphs."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morphnas.graph import cnn, densenet, mlp, resnet, to_module
from morphnas.run import plan
from morphnas.run.jobs import Job
from morphnas.run.plan import measure
from morphnas.run.work import work
from morphnas.train.augment import Draw
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER
from morphnas.train.recipe import Augment, Optimizer, Recipe
from morphnas.train.step import EAGER_STEPS, GRAPH_RECORDERS, CudaGraphs, Run, Step, input_dropout
from morphnas.train.trainer import train
from tests.train.tasks import Clock, blobs, equal, images, linear, seeded, state

RECIPE = Recipe(epochs=8, batch_size=16, lr=0.05, cuda_graphs=True, optimizer="muon", average=1.0, bias_rate=4.0)
MANY = Augment(0.2, True, 0.3, 20, flip_vertical=True, zoom=0.2, brightness=0.2, contrast=0.2)
FAMILIES: dict[str, Any] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "densenet": densenet}


class Tape(TorchDispatchMode):
    """Records every operation; those that read a value on the host, which would synchronise a GPU, raise an error."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            raise RuntimeError(f"{func} waits for the device")
        found = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, found))
        return found


class Recorder:
    """Works as a CUDA graph: a replay repeats the recorded operations on the same tensors."""

    def __init__(self, broken: Callable[[Tensor], None] | None = None) -> None:
        self.lengths: list[int] = []
        self.replays = 0
        self.broken = broken

    def __call__(self, run: Run, draw: Draw) -> Run:
        self.lengths.append(len(draw))
        given, owner = draw.map(Tensor.clone), run.__self__  # type: ignore[attr-defined]
        before = [value.clone() for value in changing(owner)]
        with Tape() as tape:
            loss = run(given)
        for value, old in zip(changing(owner), before, strict=True):  # a capture changes nothing
            value.copy_(old)

        def replayed(draw: Draw) -> Tensor:
            self.replays += 1
            given.copy_(draw)
            with torch.no_grad():
                for func, args, kwargs, found in tape.done:
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                            old.copy_(new)
                if self.broken:
                    for p in owner.module.parameters():
                        self.broken(p)
            return loss

        return replayed


def changing(step: Step) -> list[Tensor]:
    """All tensors that a step changes."""
    found = [*step.module.state_dict().values(), *step.evaluated.state_dict().values()]
    for values in step.optimizer.state.values():
        found += [value for value in values.values() if isinstance(value, Tensor)]
    return found if step.mirrored is None else [*found, step.mirrored]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: found)
    return found


def both(module: nn.Module, task: Task, recipe: Recipe, scored: bool = True) -> list[dict[str, Tensor]]:
    """The weights that a network is trained to, in eager mode and with replayed steps."""
    found = []
    for graphs in (False, True):
        one = copy.deepcopy(module)
        outcome = train(one, task, replace(recipe, cuda_graphs=graphs), NEVER, seeded(), scored=scored)
        assert outcome.status == "finished"
        found.append(state(one))
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_replayed_steps_train_the_same_network(recorder: Recorder, family: str, optimizer: Optimizer) -> None:
    """Bitwise, with all options of a recipe. One capture serves all batches."""
    task = blobs(85, 40) if family == "mlp" else images(85, 40)
    shape = tuple(task.train.x.shape[1:])
    module = to_module(FAMILIES[family](shape, task.goal.outputs, width=4))
    recipe = replace(RECIPE, optimizer=optimizer, augment=MANY, label_smoothing=0.2)
    eager, replayed = both(module, task, recipe)
    assert equal(eager, replayed)
    assert recorder.lengths == [14]
    assert recorder.replays == 8 * 6 - EAGER_STEPS
    assert not equal(replayed, state(module))


def test_in_bfloat16_and_without_a_judge(recorder: Recorder) -> None:
    module = to_module(cnn((2, 8, 8), 3, width=4))
    assert equal(*both(module, images(), replace(RECIPE, precision="bfloat16"), scored=False))
    assert recorder.replays


def test_the_rate_is_read_at_every_replay(recorder: Recorder) -> None:
    task, rates = images(), [1.0] * (EAGER_STEPS + 2) + [0.0, 0.3]
    eager, replayed = (Step(to_module(cnn((2, 8, 8), 3, width=4)), task, replace(RECIPE, cuda_graphs=graphs))
                       for graphs in (False, True))  # fmt: skip
    draw = Draw.of(torch.arange(16), (2, 8, 8), RECIPE.augment, seeded())
    for rate in rates:
        before = state(replayed.module)
        one, other = eager(draw, rate), replayed(draw, rate)
        assert torch.equal(one, other)
        assert equal(state(eager.module), state(replayed.module))
        weights = [name for name in before if name.endswith("weight")]
        assert all(torch.equal(before[name], state(replayed.module)[name]) == (rate == 0) for name in weights)
    assert recorder.replays == 4


def test_what_cannot_be_recorded_is_done_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def failing(run: Run, draw: Draw) -> Run:
        tries.append(len(draw))
        raise RuntimeError("operation not permitted when stream is capturing")

    module = to_module(cnn((2, 8, 8), 3, width=4))
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: failing)
    with caplog.at_level(logging.WARNING):
        assert equal(*both(module, images(), RECIPE))
    assert tries == [16]  # once, and never again in this training
    assert "cannot be captured here: operation not permitted" in caplog.text


def test_nothing_is_recorded_where_it_would_not_be_right(recorder: Recorder) -> None:
    """Micro-batches, short trainings, and examples on another device."""
    task = blobs()
    train(linear(), task, replace(RECIPE, epochs=9), NEVER, seeded(), micro=8)
    train(linear(), task, replace(RECIPE, epochs=2), NEVER, seeded())
    train(linear(), task, replace(RECIPE, cuda_graphs=False), NEVER, seeded())
    assert not recorder.lengths
    apart = replace(task, train=Examples(task.train.x.to("meta"), task.train.y))
    assert Step(linear(), apart, RECIPE)._record is None
    train(linear(), task, RECIPE, NEVER, seeded())
    assert recorder.lengths == [16]


def test_trainings_are_recorded_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 99)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: object())
    first, second = CudaGraphs(device), CudaGraphs(device)
    assert first.stream is second.stream
    assert first.pool is not second.pool
    assert CudaGraphs(torch.device("cuda", 98)).stream is not first.stream


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that `CudaGraphs` makes to a fake `torch.cuda`."""
    found: list[Any] = []
    random = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=found.append)
    stream = SimpleNamespace(device=torch.device("cuda", 1))
    fakes = {
        "graph_pool_handle": lambda: "pool", "Stream": lambda _: stream, "CUDAGraph": object,
        "device": lambda _: nullcontext(), "current_stream": lambda: "before", "set_stream": found.append,
        "default_generators": [None, random], "graph": lambda *_, **__: nullcontext(),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


BATCH = Draw.of(torch.arange(4), (2, 8, 8), RECIPE.augment, seeded())


@pytest.mark.parametrize("newer", [False, True])
def test_what_torch_leaves_of_a_recording_that_fails_is_put_right(
    newer: bool, done: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream, the random state, and allocation to the graph's memory pool, after which nothing would be freed."""

    def end(device: int, pool: object) -> None:
        done.append((device, pool))
        if newer:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def run(draw: Draw) -> Tensor:
        raise ValueError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    with pytest.raises(ValueError, match="not permitted"):
        CudaGraphs(torch.device("cuda", 97))(run, BATCH)
    assert done == ["before", "state", (1, "pool")]


def test_one_thread_records_at_a_time(done: list[Any]) -> None:
    """PyTorch synchronises the device before a capture, which CUDA forbids while any thread captures on it."""

    def run(draw: Draw) -> Tensor:
        done.append("begun")
        time.sleep(0.05)
        done.append("ended")
        return torch.zeros(())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: CudaGraphs(torch.device("cuda", i))(run, BATCH), range(90, 94)))
    assert done == ["begun", "ended"] * 4


def test_for_memory_a_recording_is_tried_again(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some more eager steps."""
    tries: list[int] = []

    def once(run: Run, draw: Draw) -> Run:
        tries.append(len(draw))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no room for a graph")
        return recorder(run, draw)

    module = to_module(cnn((2, 8, 8), 3, width=4))
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: once)
    recipe = replace(RECIPE, epochs=9)
    assert equal(*both(module, images(), recipe))
    assert tries == [16, 16]
    assert recorder.replays == 9 * 6 - 2 * EAGER_STEPS


def test_nothing_recorded_outlives_its_training(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Run]] = []

    def noted(run: Run, draw: Draw) -> Run:
        replay = recorder(run, draw)
        made.append(weakref.ref(replay))
        return replay

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: noted)
    kept: list[Any] = []
    forget = Step.release_graphs

    def held(step: Step) -> None:
        kept.append(step)
        forget(step)

    monkeypatch.setattr(Step, "release_graphs", held)
    train(linear(), blobs(), RECIPE, NEVER, seeded())
    assert len(kept) == len(made) == 1
    assert made[0]() is None


def test_memory_that_is_out_later_is_halved_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """During a capture: the next steps are eager, in micro-batches."""

    def out(run: Run, draw: Draw) -> Run:
        full.append(1)
        raise torch.OutOfMemoryError("no room for a graph")

    full: list[int] = []
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: out)
    task, module = images(), to_module(cnn((2, 8, 8), 3, width=4))

    def room(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if full and len(inputs[0]) > 8 and module.training:
            raise torch.OutOfMemoryError("no room")

    module.register_forward_pre_hook(room)
    outcome = train(module, task, RECIPE, NEVER, seeded())
    assert (outcome.status, outcome.micro_batch, len(full)) == ("finished", 8, 1)


def test_the_speed_is_that_of_replayed_steps(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which an eager step takes 1 s, a replayed one 0.1 s, and the first of these 10 s more."""
    clock, eager = Clock(), Step._eager

    def whole(self: Step, draw: Draw) -> Tensor:
        clock.now += 1.0
        return eager(self, draw)

    def record(run: Run, draw: Draw) -> Run:
        inner, rest = recorder(run, draw), [10.0]

        def timed(draw: Draw) -> Tensor:
            clock.now += 0.1 + (rest.pop() if rest else 0.0)
            return inner(draw)

        return timed

    monkeypatch.setattr(Step, "_eager", whole)
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: record)
    outcome = train(linear(), blobs(), replace(RECIPE, epochs=9), clock.deadline(1e9), seeded())
    assert recorder.replays > 1
    assert outcome.images_per_second == pytest.approx(160)


def test_a_search_trains_as_it_would_without(recorder: Recorder) -> None:
    task, graph = images(), cnn((2, 8, 8), 3, width=4)
    found = [work(Job(graph, (), replace(RECIPE, cuda_graphs=graphs), 600.0, 5), task) for graphs in (False, True)]
    assert found[0][0].score == found[1][0].score is not None
    assert found[0][1] is not None
    assert found[1][1] is not None
    assert equal(dict(found[0][1]), dict(found[1][1]))
    assert recorder.replays


# -- whether to use CUDA graphs is measured


def ticking(monkeypatch: pytest.MonkeyPatch, recorder: Recorder, replayed: float) -> None:
    """Use a clock on which an eager step takes 1 s, and a replayed one `replayed` seconds."""
    now = [0.0]
    eager, replays = Step._eager, recorder.__call__

    def whole(self: Step, draw: Draw) -> Tensor:
        now[0] += 1.0
        return eager(self, draw)

    def record(run: Run, draw: Draw) -> Run:
        inner = replays(run, draw)

        def timed(draw: Draw) -> Tensor:
            now[0] += replayed
            return inner(draw)

        return timed

    monkeypatch.setattr(plan, "PROBE_WIDTH", 8)
    monkeypatch.setattr(Step, "_eager", whole)
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: record)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])


@pytest.mark.parametrize("task", [blobs(40, 4), images(40, 4), images(40, 4, (1, 9))], ids=["rows", "images", "spans"])
@pytest.mark.parametrize(
    ("replayed", "recorded", "native"), [(0.5, True, True), (0.5, True, False), (1.05, True, True), (1.2, False, True)]
)
def test_recorded_steps_are_taken_unless_they_are_slower(
    task: Task, replayed: float, recorded: bool, native: bool, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a tenth or more: less may be noise. In bfloat16 if the device supports it natively."""
    ticking(monkeypatch, recorder, replayed)
    monkeypatch.setattr(plan, "_computes_bfloat16", lambda _: native)
    pace = measure(task, 1e9, replace(RECIPE, augment=MANY))
    assert (pace.precision, pace.cuda_graphs) == ("bfloat16" if native else "float32", recorded)
    shape = tuple(task.train.x.shape[1:])
    graph = mlp(shape, 2, width=256) if len(shape) == 1 else cnn(shape, 3, width=plan.PROBE_WIDTH)
    assert pace.seconds_per_flop == pytest.approx((replayed if recorded else 1.0) / 16 / graph.work * 40)


@pytest.mark.parametrize("wrong", [lambda p: p.mul_(1.1), lambda p: p.add_(0.1), lambda p: p.zero_()])
def test_a_recording_that_trains_otherwise_is_not_used(
    wrong: Callable[[Tensor], None], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch, recorder, 0.1)
    recorder.broken = wrong
    assert not measure(images(), 1e9, RECIPE).cuda_graphs
    assert recorder.replays


def test_what_cannot_be_recorded_is_not_said_to_be(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch, recorder, 0.5)
    task = images()
    elsewhere = replace(task, train=Examples(task.train.x.to("meta"), task.train.y))
    assert not Step(linear(), elsewhere, RECIPE).records  # its images come batch by batch
    assert measure(task, 0.0, RECIPE).cuda_graphs

    def failing(run: Run, draw: Draw) -> Run:
        raise RuntimeError("no graphs here")

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: failing)
    assert not measure(task, 0.0, RECIPE).cuda_graphs


def test_both_ways_are_tried_however_little_time_there_is(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_WIDTH", 8)
    random = torch.get_rng_state()
    assert measure(images(), 0.0, RECIPE).seconds_per_flop > 0
    assert recorder.replays
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("make", [cnn, resnet, densenet])
def test_nothing_in_a_step_asks_for_a_value(make: Any) -> None:
    """On a CPU that costs nothing, but a GPU would be idle meanwhile."""
    step = Step(to_module(make((3, 16, 16), 3, width=4)), images(40, 8, (3, 16, 16)), RECIPE)
    draw = Draw.of(torch.arange(16), (3, 16, 16), MANY, seeded())
    step(draw, 1.0)
    with Tape() as tape:
        step._run(draw)
    assert tape.done
    with Tape(), pytest.raises(RuntimeError, match="waits for the device"):
        torch.ones(()).item()


@pytest.mark.parametrize(("make", "shape"), [(mlp, (6,)), (mlp, (2, 6, 6)), (cnn, (3, 16, 16)), (densenet, (1, 9))])
def test_dense_layers_read_less_but_the_first_of_all_layers(make: Any, shape: tuple[int, ...]) -> None:
    module = to_module(make(shape, 3, width=32))
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    read: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, _: read[layer].append(given[0].detach()))
    x = torch.randn(64, *shape, generator=seeded())
    module(x)
    before = copy.deepcopy(module.state_dict())
    with input_dropout(module, 0.25):
        module.load_state_dict(before)  # batch norms of the first pass have moved
        module(x)
    for layer in layers:
        whole, some = ((values != 0).double().mean().item() for values in read[layer])
        less = isinstance(layer, nn.Linear) and layer is not layers[0]
        assert some == pytest.approx(whole * (0.75 if less else 1.0), abs=0.07)
        assert not layer._forward_pre_hooks
    if isinstance(second := layers[1], nn.Linear):
        whole_values, some_values = read[second]
        assert torch.allclose(some_values[some_values != 0], whole_values[some_values != 0] / 0.75)


def test_nothing_of_dropout_is_left_in_a_network() -> None:
    module, task = to_module(mlp((2, 4, 4), 3, width=16)), images(64, 16, (2, 4, 4))
    assert train(module, task, Recipe(epochs=2, dropout=0.5), NEVER, seeded()).status == "finished"
    x = task.normalised(task.train.x)
    module.train()
    module(x)
    with torch.no_grad():
        one, other = module(x), module(x)
    assert torch.equal(one, other)
