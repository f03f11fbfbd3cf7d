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
from morphnas.train.step import EAGER_STEPS, GRAPH_RECORDERS, CudaGraphs, Run, Step, input_dropout, set_training_mode
from morphnas.train.trainer import train
from tests.train.tasks import Clock, blob_task, copy_state, image_task, linear, seeded, states_equal

RECIPE = Recipe(epochs=8, batch_size=16, lr=0.05, cuda_graphs=True, optimizer="muon", average=1.0, bias_rate=4.0)
MANY = Augment(0.2, True, 0.3, 20, flip_vertical=True, zoom=0.2, brightness=0.2, contrast=0.2)
FAMILIES: dict[str, Any] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "densenet": densenet}


class Tape(TorchDispatchMode):
    """Records all operations; those that read a value on the host, which would synchronise a GPU, raise an error."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            raise RuntimeError(f"{func} waits for the device")
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found


class Recorder:
    """Works as a CUDA graph: a replay repeats the recorded operations on the same tensors.

    lengths: of the captured batches. corrupt: applied to all parameters after every replay.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.replays = 0
        self.corrupt: Callable[[Tensor], None] | None = None

    def __call__(self, run: Run, draw: Draw) -> Run:
        self.lengths.append(len(draw))
        static_draw, owner = draw.map(Tensor.clone), run.__self__  # type: ignore[attr-defined]
        before = [value.clone() for value in mutable_tensors(owner)]
        with Tape() as tape:
            loss = run(static_draw)
        for value, old in zip(mutable_tensors(owner), before, strict=True):  # a capture changes nothing
            value.copy_(old)

        def replayed(draw: Draw) -> Tensor:
            self.replays += 1
            static_draw.copy_(draw)
            with torch.no_grad():
                for func, args, kwargs, found in tape.operations:
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                            old.copy_(new)
                if self.corrupt:
                    for p in owner.module.parameters():
                        self.corrupt(p)
            return loss

        return replayed


def mutable_tensors(step: Step) -> list[Tensor]:
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


def train_both_ways(module: nn.Module, task: Task, recipe: Recipe, scored: bool = True) -> list[dict[str, Tensor]]:
    """The weights after training a network with eager steps, and with replayed ones."""
    states = []
    for graphs in (False, True):
        trained = copy.deepcopy(module)
        outcome = train(trained, task, replace(recipe, cuda_graphs=graphs), NEVER, seeded(), scored=scored)
        assert outcome.status == "finished"
        states.append(copy_state(trained))
    return states


def simulate_durations(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, replayed: float, first_replay: float = 0.0
) -> Clock:
    """A clock on which an eager step takes 1 s, a replayed one `replayed` seconds, and the first of these
    `first_replay` more."""
    clock, eager = Clock(), Step._eager

    def timed_eager(self: Step, draw: Draw) -> Tensor:
        clock.now += 1.0
        return eager(self, draw)

    def record(run: Run, draw: Draw) -> Run:
        replay, extra = recorder(run, draw), [first_replay]

        def timed_replay(draw: Draw) -> Tensor:
            clock.now += replayed + (extra.pop() if extra else 0.0)
            return replay(draw)

        return timed_replay

    monkeypatch.setattr(plan, "PROBE_WIDTH", 8)
    monkeypatch.setattr(Step, "_eager", timed_eager)
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: record)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_replayed_steps_train_the_same_network(recorder: Recorder, family: str, optimizer: Optimizer) -> None:
    """Bitwise, with all options of a recipe. One capture serves all batches."""
    task = blob_task(85, 40) if family == "mlp" else image_task(85, 40)
    shape = tuple(task.train.x.shape[1:])
    module = to_module(FAMILIES[family](shape, task.goal.outputs, width=4))
    recipe = replace(RECIPE, optimizer=optimizer, augment=MANY, label_smoothing=0.2)
    eager, replayed = train_both_ways(module, task, recipe)
    assert states_equal(eager, replayed)
    assert recorder.lengths == [14]
    assert recorder.replays == 8 * 6 - EAGER_STEPS
    assert not states_equal(replayed, copy_state(module))


def test_replayed_steps_in_bfloat16_without_validation(recorder: Recorder) -> None:
    module = to_module(cnn((2, 8, 8), 3, width=4))
    assert states_equal(*train_both_ways(module, image_task(), replace(RECIPE, precision="bfloat16"), scored=False))
    assert recorder.replays


def test_learning_rate_is_read_at_every_replay(recorder: Recorder) -> None:
    task, rates = image_task(), [1.0] * (EAGER_STEPS + 2) + [0.0, 0.3]
    eager, replayed = (Step(to_module(cnn((2, 8, 8), 3, width=4)), task, replace(RECIPE, cuda_graphs=graphs))
                       for graphs in (False, True))  # fmt: skip
    draw = Draw.of(torch.arange(16), (2, 8, 8), RECIPE.augment, seeded())
    for rate in rates:
        before = copy_state(replayed.module)
        one, other = eager(draw, rate), replayed(draw, rate)
        assert torch.equal(one, other)
        assert states_equal(copy_state(eager.module), copy_state(replayed.module))
        weights = [name for name in before if name.endswith("weight")]
        assert all(torch.equal(before[name], copy_state(replayed.module)[name]) == (rate == 0) for name in weights)
    assert recorder.replays == 4


def test_steps_are_eager_after_a_failed_capture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def fail(run: Run, draw: Draw) -> Run:
        attempts.append(len(draw))
        raise RuntimeError("operation not permitted when stream is capturing")

    module = to_module(cnn((2, 8, 8), 3, width=4))
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: fail)
    with caplog.at_level(logging.WARNING):
        assert states_equal(*train_both_ways(module, image_task(), RECIPE))
    assert attempts == [16]  # once in a training
    assert "cannot be captured here: operation not permitted" in caplog.text


def test_steps_that_are_never_captured(recorder: Recorder) -> None:
    """Micro-batches, short trainings, trainings without CUDA graphs, and examples on another device."""
    task = blob_task()
    train(linear(), task, replace(RECIPE, epochs=9), NEVER, seeded(), micro=8)
    train(linear(), task, replace(RECIPE, epochs=2), NEVER, seeded())
    train(linear(), task, replace(RECIPE, cuda_graphs=False), NEVER, seeded())
    assert not recorder.lengths
    separated = replace(task, train=Examples(task.train.x.to("meta"), task.train.y))
    assert Step(linear(), separated, RECIPE)._record is None
    train(linear(), task, RECIPE, NEVER, seeded())
    assert recorder.lengths == [16]


def test_captures_on_one_device_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 99)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: object())
    first, second = CudaGraphs(device), CudaGraphs(device)
    assert first.stream is second.stream
    assert first.pool is not second.pool
    assert CudaGraphs(torch.device("cuda", 98)).stream is not first.stream


@pytest.fixture
def cuda_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
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
def test_failed_capture_restores_state_of_torch(
    newer: bool, cuda_calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream, the random state, and allocation outside the graph's memory pool, in which nothing is freed."""

    def end_allocation(device: int, pool: object) -> None:
        cuda_calls.append((device, pool))
        if newer:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def run(draw: Draw) -> Tensor:
        raise ValueError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation)
    with pytest.raises(ValueError, match="not permitted"):
        CudaGraphs(torch.device("cuda", 97))(run, BATCH)
    assert cuda_calls == ["before", "state", (1, "pool")]


def test_only_one_thread_captures_at_a_time(cuda_calls: list[Any]) -> None:
    """PyTorch synchronises the device before a capture, which CUDA forbids while any thread captures on it."""

    def run(draw: Draw) -> Tensor:
        cuda_calls.append("begun")
        time.sleep(0.05)
        cuda_calls.append("ended")
        return torch.zeros(())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: CudaGraphs(torch.device("cuda", i))(run, BATCH), range(90, 94)))
    assert cuda_calls == ["begun", "ended"] * 4


def test_capture_is_retried_after_out_of_memory(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some more eager steps."""
    attempts: list[int] = []

    def fail_once(run: Run, draw: Draw) -> Run:
        attempts.append(len(draw))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("no room for a graph")
        return recorder(run, draw)

    module = to_module(cnn((2, 8, 8), 3, width=4))
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: fail_once)
    recipe = replace(RECIPE, epochs=9)
    assert states_equal(*train_both_ways(module, image_task(), recipe))
    assert attempts == [16, 16]
    assert recorder.replays == 9 * 6 - 2 * EAGER_STEPS


def test_graphs_are_released_after_training(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[weakref.ref[Run]] = []

    def record(run: Run, draw: Draw) -> Run:
        replay = recorder(run, draw)
        replays.append(weakref.ref(replay))
        return replay

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: record)
    steps: list[Any] = []
    release_graphs = Step.release_graphs

    def keep_step(step: Step) -> None:
        steps.append(step)
        release_graphs(step)

    monkeypatch.setattr(Step, "release_graphs", keep_step)
    train(linear(), blob_task(), RECIPE, NEVER, seeded())
    assert len(steps) == len(replays) == 1
    assert replays[0]() is None


def test_out_of_memory_in_capture_leads_to_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next steps are eager."""

    def fail(run: Run, draw: Draw) -> Run:
        failures.append(1)
        raise torch.OutOfMemoryError("no room for a graph")

    failures: list[int] = []
    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: fail)
    task, module = image_task(), to_module(cnn((2, 8, 8), 3, width=4))

    def limit_memory(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if failures and len(inputs[0]) > 8 and module.training:
            raise torch.OutOfMemoryError("no room")

    module.register_forward_pre_hook(limit_memory)
    outcome = train(module, task, RECIPE, NEVER, seeded())
    assert (outcome.status, outcome.micro_batch, len(failures)) == ("finished", 8, 1)


def test_speed_is_that_of_replayed_steps(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = simulate_durations(monkeypatch, recorder, 0.1, first_replay=10.0)
    outcome = train(linear(), blob_task(), replace(RECIPE, epochs=9), clock.deadline(1e9), seeded())
    assert recorder.replays > 1
    assert outcome.images_per_second == pytest.approx(160)


def test_jobs_with_and_without_replays_have_equal_results(recorder: Recorder) -> None:
    task, graph = image_task(), cnn((2, 8, 8), 3, width=4)
    results = [work(Job(graph, (), replace(RECIPE, cuda_graphs=graphs), 600.0, 5), task) for graphs in (False, True)]
    assert results[0][0].score == results[1][0].score is not None
    assert results[0][1] is not None
    assert results[1][1] is not None
    assert states_equal(dict(results[0][1]), dict(results[1][1]))
    assert recorder.replays


# -- the choice of CUDA graphs, by measurement


@pytest.mark.parametrize(
    "task", [blob_task(40, 4), image_task(40, 4), image_task(40, 4, (1, 9))], ids=["features", "images", "series"]
)
@pytest.mark.parametrize(
    ("replayed", "chosen", "native"), [(0.5, True, True), (0.5, True, False), (1.05, True, True), (1.2, False, True)]
)
def test_cuda_graphs_are_chosen_unless_slower(
    task: Task, replayed: float, chosen: bool, native: bool, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower by a tenth or more: less may be noise. In bfloat16 if the device supports it natively."""
    simulate_durations(monkeypatch, recorder, replayed)
    monkeypatch.setattr(plan, "_computes_bfloat16", lambda _: native)
    pace = measure(task, 1e9, replace(RECIPE, augment=MANY))
    assert (pace.precision, pace.cuda_graphs) == ("bfloat16" if native else "float32", chosen)
    shape = tuple(task.train.x.shape[1:])
    graph = mlp(shape, 2, width=256) if len(shape) == 1 else cnn(shape, 3, width=plan.PROBE_WIDTH)
    assert pace.seconds_per_flop == pytest.approx((replayed if chosen else 1.0) / 16 / graph.work * 40)


@pytest.mark.parametrize("corrupt", [lambda p: p.mul_(1.1), lambda p: p.add_(0.1), lambda p: p.zero_()])
def test_cuda_graphs_with_other_results_are_not_chosen(
    corrupt: Callable[[Tensor], None], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate_durations(monkeypatch, recorder, 0.1)
    recorder.corrupt = corrupt
    assert not measure(image_task(), 1e9, RECIPE).cuda_graphs
    assert recorder.replays


def test_cuda_graphs_are_not_chosen_if_capture_fails(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_durations(monkeypatch, recorder, 0.5)
    task = image_task()
    separated = replace(task, train=Examples(task.train.x.to("meta"), task.train.y))
    assert not Step(linear(), separated, RECIPE).records  # its images are moved batch by batch
    assert measure(task, 0.0, RECIPE).cuda_graphs

    def fail(run: Run, draw: Draw) -> Run:
        raise RuntimeError("no graphs here")

    monkeypatch.setitem(GRAPH_RECORDERS, "cpu", lambda _: fail)
    assert not measure(task, 0.0, RECIPE).cuda_graphs


def test_replays_are_measured_even_without_time(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_WIDTH", 8)
    random_state = torch.get_rng_state()
    assert measure(image_task(), 0.0, RECIPE).seconds_per_flop > 0
    assert recorder.replays
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("make", [cnn, resnet, densenet])
def test_step_reads_no_value_on_the_host(make: Any) -> None:
    """On a GPU this would wait for the device, which would then be idle."""
    step = Step(to_module(make((3, 16, 16), 3, width=4)), image_task(40, 8, (3, 16, 16)), RECIPE)
    draw = Draw.of(torch.arange(16), (3, 16, 16), MANY, seeded())
    step(draw, 1.0)
    with Tape() as tape:
        step._run(draw)
    assert tape.operations
    with Tape(), pytest.raises(RuntimeError, match="waits for the device"):
        torch.ones(()).item()


@pytest.mark.parametrize(("make", "shape"), [(mlp, (6,)), (mlp, (2, 6, 6)), (cnn, (3, 16, 16)), (densenet, (1, 9))])
def test_input_dropout_of_all_dense_layers_but_the_first(make: Any, shape: tuple[int, ...]) -> None:
    module = to_module(make(shape, 3, width=32))
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    inputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, _: inputs[layer].append(args[0].detach()))
    x = torch.randn(64, *shape, generator=seeded())
    module(x)
    before = copy.deepcopy(module.state_dict())
    with input_dropout(module, 0.25):
        module.load_state_dict(before)  # batch norms of the first pass have moved
        module(x)
    for layer in layers:
        share, share_with_dropout = ((values != 0).double().mean().item() for values in inputs[layer])
        has_dropout = isinstance(layer, nn.Linear) and layer is not layers[0]
        assert share_with_dropout == pytest.approx(share * (0.75 if has_dropout else 1.0), abs=0.07)
        assert not layer._forward_pre_hooks
    if isinstance(second := layers[1], nn.Linear):
        without_dropout, with_dropout = inputs[second]
        assert torch.allclose(with_dropout[with_dropout != 0], without_dropout[with_dropout != 0] / 0.75)


def test_trained_network_has_no_dropout() -> None:
    module, task = to_module(mlp((2, 4, 4), 3, width=16)), image_task(64, 16, (2, 4, 4))
    assert train(module, task, Recipe(epochs=2, dropout=0.5), NEVER, seeded()).status == "finished"
    x = task.normalised(task.train.x)
    module.train()
    module(x)
    with torch.no_grad():
        one, other = module(x), module(x)
    assert torch.equal(one, other)


@pytest.mark.parametrize("recorded", [False, True])
def test_frozen_batch_norms_keep_and_use_running_statistics(recorder: Recorder, recorded: bool) -> None:
    """Their weights are trained all the same; in evaluation and in training mode the network computes the same."""
    task = image_task()
    module = to_module(cnn((2, 8, 8), 3, width=4))
    before = copy_state(module)
    recipe = replace(RECIPE, freeze_norms=True, optimizer="adamw", average=0.0, cuda_graphs=recorded)
    train(module, task, recipe, NEVER, seeded())
    assert bool(recorder.lengths) == recorded
    after = copy_state(module)
    kept = [name for name in after if torch.equal(after[name], before[name])]
    assert kept == [
        name for name in after if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    ]
    set_training_mode(module, recipe)
    inputs = task.normalised(task.train.x)
    assert torch.equal(module(inputs), module.eval()(inputs))
