"""Tests of `work`: morphs and the check of their outputs, training, measurements, and errors that become outcomes."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from morphnas.graph import (
    MIN_MICRO_BATCH,
    AddSkip,
    ConcatSkip,
    Deeper,
    Graph,
    Morph,
    Network,
    Weights,
    Wider,
    WiderAll,
    cnn,
    fresh_weights,
    mlp,
    neighbours,
    resnet,
    to_module,
    weights_of,
)
from morphnas.run import work as work_module
from morphnas.run.jobs import DeviceLost, Job, micro_batch
from morphnas.run.work import MAX_MORPH_ERROR, grow_network, work
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Task
from morphnas.train.deadline import NEVER, Deadline, OutOfTime
from morphnas.train.goal import CustomGoal
from morphnas.train.predict import evaluate, predict
from morphnas.train.recipe import Augment, Outcome, Recipe
from morphnas.train.whitening import whitening
from tests.run.doubles import GRAPH, RECIPE, weights
from tests.run.failing_morph import FailingMorph
from tests.train.tasks import Clock, blob_task, image_task, seeded, states_equal

TASK = image_task()
MIRRORED = replace(TASK.evaluation_set, x=TASK.evaluation_set.x.flip(-1))
GRAPHS = {"cnn": cnn((2, 8, 8), 3, width=4, depth=3), "resnet": resnet((2, 8, 8), 3, width=4, depth=2)}
SHORT = Recipe(epochs=2, batch_size=16, lr=0.1)


def untrained_network(graph: Graph) -> Network:
    return Network(graph, fresh_weights(graph, seeded()))


def trained_network(name: str) -> Network:
    outcome, trained = work(Job(GRAPHS[name], (), SHORT, 600, 1), TASK)
    assert outcome.status == "finished"
    assert outcome.morph_error is None
    assert trained is not None
    return Network(GRAPHS[name], trained)


def one_morph_of_each_kind(graph: Graph) -> list[Morph]:
    return list({morph.tag: morph for morph in neighbours(graph)}.values())


def first_deeper(graph: Graph) -> Deeper:
    return next(morph for morph in neighbours(graph) if isinstance(morph, Deeper))


def same_weights(one: Weights | None, other: Weights | None) -> bool:
    assert one is not None
    assert other is not None
    return states_equal(one, other)


# -- inherited weights


@pytest.mark.parametrize("name", GRAPHS)
def test_child_has_outputs_of_parent(name: str) -> None:
    start = trained_network(name)
    expected = predict(start.to_module(), TASK.evaluation_set.x, TASK)
    morphs = one_morph_of_each_kind(start.graph)
    assert {type(morph) for morph in morphs} == {Deeper, Wider, WiderAll, AddSkip, ConcatSkip}
    for morph in morphs:
        child, difference = grow_network(Job(start, (morph,), SHORT, 600, 2), TASK)
        assert difference is not None
        assert difference <= 1e-4
        Network(morph.grow(start.graph), weights_of(child))
        torch.testing.assert_close(predict(child, TASK.evaluation_set.x, TASK), expected, rtol=1e-3, atol=1e-4)


def test_morphs_are_checked_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    full_precision, in_full_precision = False, list[bool]()

    @contextmanager
    def fake_full_precision(device: torch.device) -> Iterator[None]:
        nonlocal full_precision
        assert device == TASK.device
        full_precision = True
        yield
        full_precision = False

    def fake_predict(*args: Any) -> Tensor:
        in_full_precision.append(full_precision)
        return predict(*args)

    monkeypatch.setattr(work_module, "full_precision", fake_full_precision)
    monkeypatch.setattr(work_module, "predict", fake_predict)
    grow_network(Job(trained_network("cnn"), (Wider("conv_1", 7),), SHORT, 600, 1), TASK)
    assert in_full_precision == [True, True]


def test_morphs_are_applied_in_order() -> None:
    start, graph = trained_network("cnn"), GRAPHS["cnn"]
    deeper = first_deeper(graph)
    graph = deeper.grow(graph)
    wider = [morph for morph in neighbours(graph) if isinstance(morph, Wider)][1]  # of the layer that `deeper` adds
    graph = wider.grow(graph)
    outcome, found = work(Job(start, (deeper, wider), SHORT, 600, 2), TASK)
    assert outcome.status == "finished"
    assert outcome.morph_error is not None
    assert outcome.morph_error <= 1e-4
    Network(graph, found or {})  # checks that the weights fit


def test_score_is_that_of_returned_weights() -> None:
    start = trained_network("resnet")
    morph = one_morph_of_each_kind(start.graph)[0]
    outcome, found = work(Job(start, (morph,), SHORT, 600, 2), TASK)
    assert outcome.score is not None
    child = to_module(morph.grow(start.graph), found)
    assert outcome.score == pytest.approx(evaluate(child, TASK.evaluation_set, TASK)[0], abs=1e-6)


def test_job_without_morphs_begins_with_unchanged_network() -> None:
    start = trained_network("cnn")
    network, difference = grow_network(Job(start, (), SHORT, 600, 2), TASK)
    assert difference is None
    assert torch.equal(
        predict(network, TASK.evaluation_set.x, TASK), predict(start.to_module(), TASK.evaluation_set.x, TASK)
    )


def test_work_does_not_change_weights_of_parent() -> None:
    start = trained_network("cnn")
    before = {name: value.clone() for name, value in start.weights.items()}
    work(Job(start, tuple(one_morph_of_each_kind(start.graph)[:1]), SHORT, 600, 2), TASK)
    assert same_weights(before, dict(start.weights))


def test_fresh_weights_are_determined_by_seed_of_job() -> None:
    found = [work(Job(GRAPH, (), RECIPE, 0, seed), blob_task())[1] for seed in (1, 1, 2)]
    assert same_weights(found[0], found[1])
    assert same_weights(found[0], fresh_weights(GRAPH, seeded(1)))
    assert not same_weights(found[0], found[2])


# -- reproducibility


@pytest.mark.parametrize("graph", [GRAPHS["cnn"], cnn((2, 8, 8), 3, width=4, depth=2, dropout=0.5)])
@pytest.mark.parametrize("grown", [False, True])
def test_equal_jobs_have_equal_outcomes(graph: Graph, grown: bool) -> None:
    """Including dropout, whatever torch's global random state, which is not changed."""
    recipe = replace(SHORT, augment=Augment(0.2, True, 0.3))
    start = untrained_network(graph) if grown else graph
    job = Job(start, tuple(one_morph_of_each_kind(graph)[:2]) if grown else (), recipe, 600, 3)
    before = torch.get_rng_state()
    results = []
    for _ in range(2):
        results.append(work(job, TASK))
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(3)
        before = torch.get_rng_state()
    (one, first), (two, second) = results
    assert one.status == "finished"
    assert one.score == two.score
    assert one.morph_error == two.morph_error
    assert same_weights(first, second)
    other, third = work(replace(job, seed=4), TASK)
    assert other.status == "finished"
    assert not same_weights(first, third)


# -- errors


@dataclass(frozen=True)
class Broken(Deeper):
    """A morph that changes the outputs, by scaling one of the weights it adds."""

    factor: float = 1.5
    tag = "broken"

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        carried = super().carry(graph, weights, generator)
        name = next(name for name in carried if name.split(".")[0] not in graph and name.endswith("weight"))
        carried[name] = carried[name] * self.factor
        return carried


@pytest.mark.parametrize("factor", [1.5, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("family", [cnn, mlp])
def test_morph_that_changes_outputs_fails_without_training(family: type, factor: float) -> None:
    graph = family((2, 8, 8), 3, width=4, depth=2)
    epochs: list[Outcome] = []
    broken = Broken(first_deeper(graph).after, 3, factor)
    outcome, found = work(Job(untrained_network(graph), (broken,), SHORT, 600, 1), TASK, epochs.append)
    assert outcome.status == "failed"
    assert outcome.score is None
    assert found is None
    assert not epochs
    assert outcome.error is not None
    assert "the morphs broken(" in outcome.error
    assert "changed the network's outputs by" in outcome.error
    assert json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    if math.isfinite(factor):
        assert outcome.morph_error is not None
        assert outcome.morph_error > MAX_MORPH_ERROR


def test_error_becomes_failed_outcome_with_traceback() -> None:
    outcome, found = work(Job(Network(GRAPH, weights()), (FailingMorph("raise"),), RECIPE, 600, 1), blob_task())
    assert outcome.status == "failed"
    assert found is None
    assert outcome.error is not None
    assert outcome.error.startswith("Traceback")
    assert outcome.error.rstrip().endswith("LookupError: weights not carried")


def test_work_frees_its_tensors() -> None:
    """On a GPU the remains of many trainings would fill the memory."""
    start = trained_network("cnn")
    job = Job(start, (one_morph_of_each_kind(start.graph)[0],), replace(SHORT, average=1.0), 600, 2)

    def count_tensors() -> int:
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    work(job, TASK)
    gc.collect()
    gc.disable()
    try:
        before = count_tensors()
        work(job, TASK)
        assert count_tensors() == before
    finally:
        gc.enable()


def test_graph_that_does_not_fit_the_task_fails() -> None:
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blob_task(features=7))
    assert (outcome.status, found) == ("failed", None)


def callback_raising(error: BaseException) -> Callable[[Outcome], None]:
    def each_epoch(_: Outcome) -> None:
        raise error

    return each_epoch


OUT_OF_MEMORY = [
    MemoryError("no room"),
    torch.OutOfMemoryError("CUDA out of memory, no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:120] data. DefaultCPUAllocator: not enough memory: no room"),
    RuntimeError("CUDA error: out of memory, no room"),
    RuntimeError("CUDA driver error: out of memory, no room"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, no room"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`, no room"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED, no room"),
    RuntimeError("GET was unable to find an engine to execute this computation, no room"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_error_becomes_oom_outcome(error: BaseException) -> None:
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blob_task(), callback_raising(error))
    assert (outcome.status, found) == ("oom", None)
    assert outcome.error is not None
    assert "no room" in outcome.error


def test_error_on_lost_device_raises_device_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is an out-of-memory error."""
    monkeypatch.setattr(work_module, "is_device_lost", lambda _: True)
    with pytest.raises(DeviceLost, match=r"cpu has failed, so this process can no longer use it \(launch failure\)"):
        work(Job(GRAPH, (), RECIPE, 600, 1), blob_task(), callback_raising(RuntimeError("launch failure\nand more")))
    for error in OUT_OF_MEMORY:
        assert work(Job(GRAPH, (), RECIPE, 600, 1), blob_task(), callback_raising(error))[0].status == "oom"


def test_out_of_memory_message_of_torch_on_cpu() -> None:
    """The message is not documented."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_propagates(error: type[BaseException]) -> None:
    with pytest.raises(error):
        work(Job(GRAPH, (), RECIPE, 600, 1), blob_task(), callback_raising(error()))


def test_diverged_training_returns_finite_weights() -> None:
    outcome, found = work(Job(GRAPH, (), replace(RECIPE, lr=1e6, epochs=8, warmup=0.0), 600, 1), task_with_nan())
    assert outcome.status == "diverged"
    assert found is not None
    assert all(value.isfinite().all() for value in found.values())


def task_with_nan() -> Task:
    task = blob_task()
    x = task.train.x.clone()
    x[0, 0] = math.nan
    return replace(task, train=replace(task.train, x=x))


# -- measurements after the training


@pytest.mark.parametrize("examples", [1, 30, 200])
def test_mirrored_metric_is_measured_while_flip_is_undecided(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position of the stripe is the class, so mirrored images are classified wrongly."""
    monkeypatch.setattr(work_module, "MIN_MIRRORED", examples)
    recipe = Recipe(epochs=6, batch_size=16, lr=0.1, augment=Augment(flip=None))
    outcome, found = work(Job(GRAPHS["cnn"], (), recipe, 600, 1), TASK)
    assert outcome.metric is not None
    assert outcome.mirrored is not None
    assert outcome.metric > 0.9
    assert outcome.mirrored < 0.5
    held_out = len(TASK.evaluation_set) >= min(examples, len(TASK.train))
    compared = TASK.evaluation_set if held_out else TASK.train[:: math.ceil(len(TASK.train) / examples)]
    mirrored = replace(compared, x=compared.x.flip(-1))
    assert outcome.mirrored == pytest.approx(evaluate(to_module(GRAPHS["cnn"], found), mirrored, TASK)[1], abs=1e-6)


@pytest.mark.parametrize("flip", [True, False])
def test_mirrored_metric_is_not_measured_if_flip_is_decided(flip: bool) -> None:
    recipe = replace(SHORT, augment=Augment(flip=flip))
    assert work(Job(GRAPHS["cnn"], (), recipe, 600, 1), TASK)[0].mirrored is None


def test_flat_features_have_no_mirrored_metric() -> None:
    recipe = replace(RECIPE, augment=Augment(flip=None))
    outcome, _ = work(Job(GRAPH, (), recipe, 600, 1), blob_task())
    assert outcome.status == "finished"
    assert outcome.mirrored is None


def test_mirrored_metric_is_the_standard_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user-defined metric may be on another scale."""
    monkeypatch.setattr(work_module, "MIN_MIRRORED", 1)

    class UserMetric:
        name = "own"

        def __call__(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
            return -30.0

    network, task = to_module(GRAPHS["cnn"]), replace(TASK, goal=CustomGoal(TASK.goal, UserMetric()))
    outcome = Outcome("finished", -30.0, -30.0, measure="own", objective="own")
    found = work_module.measure_mirrored(outcome, network, task, 64, NEVER)
    expected = [evaluate(network, examples, TASK)[1] for examples in (TASK.evaluation_set, MIRRORED)]
    assert [found.upright, found.mirrored] == expected


@pytest.mark.parametrize(("max_latency", "slow"), [(None, False), (100.0, False), (1e-9, True)])
def test_latency_is_measured_if_scored(max_latency: float | None, slow: bool) -> None:
    outcome, _ = work(Job(GRAPH, (), RECIPE, 600, 1, max_latency=max_latency), blob_task())
    assert outcome.latency is not None
    assert 0 < outcome.latency < 1
    assert outcome.slow is slow
    assert work(Job(GRAPH, (), RECIPE, 600, 1, scored=False, max_latency=max_latency), blob_task())[0].latency is None


@pytest.mark.parametrize("measurement", ["latency", "measure_mirrored"])
def test_network_is_kept_if_a_measurement_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, measurement: str
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no room")

    recipe = replace(RECIPE, augment=Augment(flip=None))
    monkeypatch.setattr(work_module, measurement, failing)
    outcome, found = work(Job(GRAPH, (), recipe, 600, 1, max_latency=1e-9), blob_task())
    assert (outcome.status, outcome.slow, outcome.latency) == ("finished", False, None)
    assert outcome.score is not None
    assert found is not None
    assert "further measurements of it failed: no room" in caplog.text
    monkeypatch.setattr(work_module, "is_device_lost", lambda _: True)
    with pytest.raises(DeviceLost):
        work(Job(GRAPH, (), recipe, 600, 1), blob_task())


def test_unscored_training_has_no_metrics() -> None:
    recipe = replace(RECIPE, augment=Augment(flip=None))
    outcome, found = work(Job(Network(GRAPH, weights()), (), recipe, 600, 1, scored=False), blob_task())
    assert outcome.status == "finished"
    assert (outcome.score, outcome.metric, outcome.mirrored, outcome.curve) == (None, None, None, ())
    assert not same_weights(found, weights())


def test_returned_weights_are_contiguous_on_cpu() -> None:
    """Whatever memory format the trainer uses."""
    _, found = work(Job(GRAPHS["cnn"], (), SHORT, 600, 1), TASK)
    assert found is not None
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in found.values())


# -- a second training at a lower learning rate


@dataclass
class FakeTrain:
    """Replaces `train`: returns the given outcomes in turn, and records the learning rates."""

    outcomes: list[Outcome]
    rates: list[float] = field(default_factory=list)

    def __call__(self, network: nn.Module, task: Task, recipe: Recipe, *args: object, **_: object) -> Outcome:
        self.rates.append(recipe.lr)
        return self.outcomes[len(self.rates) - 1]


DIVERGED = Outcome("diverged", -0.9, 0.5, epochs=2, best_epoch=1, error="the loss went up")
FINISHED = Outcome("finished", -0.4, 0.9, epochs=2, best_epoch=2)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([FINISHED], FINISHED),
        ([DIVERGED, FINISHED], replace(FINISHED, retries=1, error="the loss went up")),
        ([DIVERGED, replace(DIVERGED, score=-0.8)], replace(DIVERGED, score=-0.8, retries=1)),
        ([DIVERGED, replace(FINISHED, score=-1.5)], replace(DIVERGED, retries=1)),  # the better of the two
        ([DIVERGED, Outcome("truncated")], replace(DIVERGED, retries=1)),
        (
            [replace(DIVERGED, score=None), Outcome("finished")],
            Outcome("finished", retries=1, error="the loss went up"),
        ),
    ],
)
def test_diverged_training_is_repeated_at_lower_learning_rate(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Outcome], expected: Outcome
) -> None:
    fake_train = FakeTrain(outcomes)
    monkeypatch.setattr(work_module, "train", fake_train)
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blob_task())
    assert replace(outcome, latency=None) == expected
    assert found is not None
    assert fake_train.rates == [RECIPE.lr, RECIPE.lr / 4][: len(outcomes)]


def test_diverged_training_is_not_repeated_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "train", FakeTrain([DIVERGED]))
    assert replace(work(Job(GRAPH, (), RECIPE, 0, 1), blob_task())[0], latency=None) == DIVERGED


# -- memory


def limit_memory(monkeypatch: pytest.MonkeyPatch, max_examples: int) -> None:
    """Simulate running out of memory with more than `max_examples` examples in training mode."""

    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and len(inputs[0]) > max_examples:
            raise torch.OutOfMemoryError(f"no room for {len(inputs[0])}")

    def fake_to_module(graph: Graph, weights: Weights) -> nn.Module:
        network = to_module(graph, weights)
        network.register_forward_pre_hook(check)
        return network

    monkeypatch.setattr(work_module, "to_module", fake_to_module)


@pytest.mark.parametrize(
    ("max_examples", "status"), [(20, "finished"), (MIN_MICRO_BATCH, "finished"), (MIN_MICRO_BATCH - 1, "oom")]
)
def test_calibration_takes_as_many_examples_as_fit(
    monkeypatch: pytest.MonkeyPatch, max_examples: int, status: str
) -> None:
    graph = cnn((2, 8, 8), 3, width=4)
    limit_memory(monkeypatch, max_examples)
    outcome, found = work(Job(untrained_network(graph), (first_deeper(graph),), RECIPE, 600, 1), image_task())
    assert (outcome.status, found is None) == (status, status == "oom")
    if found:
        assert outcome.morph_error is not None
        assert outcome.morph_error < MAX_MORPH_ERROR


@pytest.mark.parametrize(
    ("max_examples", "status"), [(99, "finished"), (MIN_MICRO_BATCH, "finished"), (MIN_MICRO_BATCH - 1, "oom")]
)
def test_training_uses_micro_batches_that_fit(monkeypatch: pytest.MonkeyPatch, max_examples: int, status: str) -> None:
    limit_memory(monkeypatch, max_examples)
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blob_task())
    assert outcome.status == status
    assert (found is None) == (status == "oom")
    assert outcome.micro_batch == {"oom": 0}.get(status, min(16, max_examples))


def test_micro_batch_is_the_largest_that_fits() -> None:
    graph = GRAPHS["cnn"]
    assert micro_batch(graph, 64, None, []) is None
    assert micro_batch(graph, 64, graph.peak_bytes(64), []) is None
    assert micro_batch(graph, 64, graph.peak_bytes(64) - 1, []) == 32
    assert micro_batch(graph, 64, graph.peak_bytes(16), []) == 16
    assert micro_batch(graph, 64, 1, []) == MIN_MICRO_BATCH
    assert micro_batch(graph, 4, 1, []) is None
    measured = Outcome("finished", peak_bytes=2 * graph.peak_bytes(64), micro_batch=64)
    trials = [Trial(0, Proposal(graph, (), SHORT), graph, measured)]
    assert micro_batch(graph, 64, 2 * graph.peak_bytes(16), trials) == 16
    assert micro_batch(graph, 64, graph.peak_bytes(16), trials) == MIN_MICRO_BATCH


def test_job_keeps_to_its_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the calibration of its morph, too."""
    limit_memory(monkeypatch, 8)
    job = Job(untrained_network(GRAPHS["cnn"]), (first_deeper(GRAPHS["cnn"]),), SHORT, 600, 1, micro=2)
    assert job.evaluation_batch_size == 8
    outcome, _ = work(job, TASK)
    assert outcome.status == "finished"
    assert outcome.micro_batch == 2


# -- the deadline before the training


def test_grow_network_stops_at_deadline() -> None:
    job = Job(untrained_network(GRAPHS["cnn"]), (first_deeper(GRAPHS["cnn"]),), SHORT, 0, 1)
    outcome, found = work(job, TASK)
    assert (outcome.status, found) == ("truncated", None)
    assert outcome.error == "the deadline came before the network was grown"
    for seconds in range(2, 12):  # a second passes at every reading of the clock
        clock = Clock(tick=1.0)
        with pytest.raises(OutOfTime, match="the deadline came before the network was"):
            grow_network(job, TASK, Deadline(clock.now + seconds, clock))
    assert grow_network(job, TASK, Clock(tick=1.0).deadline(1e6))[1] is not None


def test_calibration_takes_fewer_examples_if_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    clock = Clock()
    monkeypatch.setattr(work_module, "calibrate", lambda layer, names, x: sizes.append(len(x)))

    def slow(*args: object, **kwargs: object) -> Tensor:
        clock.now += 4.8  # for 48 probes
        return predict(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(work_module, "predict", slow)
    job = Job(untrained_network(GRAPHS["cnn"]), (first_deeper(GRAPHS["cnn"]),), SHORT, 0, 1)
    grow_network(job, TASK, clock.deadline(14.8))
    assert sizes == [50]


# -- the last layer alone


def test_last_layer_alone_keeps_all_other_weights() -> None:
    start, recipe = trained_network("resnet"), replace(SHORT, layers="last", epochs=3)
    reports: list[Outcome] = []
    outcome, after = work(Job(start, (), recipe, 600, 3), TASK, reports.append)
    assert (outcome.status, outcome.epochs, outcome.retries) == ("finished", 3, 0)
    assert [report.epochs for report in reports] == [1, 2, 3]
    assert outcome.latency is not None
    assert after is not None
    assert {name for name in after if not torch.equal(after[name], start.weights[name])} == {
        f"{start.graph.output.name}.{name}" for name in ("weight", "bias")
    }
    score, metric = evaluate(to_module(start.graph, after), TASK.evaluation_set, TASK)
    assert outcome.score == pytest.approx(score, abs=1e-4)
    assert outcome.metric == metric


def test_last_layer_alone_after_morphs() -> None:
    start, recipe = trained_network("cnn"), replace(SHORT, layers="last")
    outcome, after = work(Job(start, (WiderAll(),), recipe, 600, 3), TASK)
    assert outcome.status == "finished"
    assert outcome.morph_error is not None
    assert after is not None
    Network(WiderAll().grow(start.graph), after)


def test_last_layer_alone_with_weights_that_are_nan_fails() -> None:
    broken = {name: value * torch.nan for name, value in weights(0, GRAPHS["cnn"]).items()}
    outcome, after = work(Job(Network(GRAPHS["cnn"], broken), (), replace(SHORT, layers="last"), 600, 3), TASK)
    assert (outcome.status, after) == ("failed", None)
    assert outcome.error == "what the layers before the last one compute is NaN or infinite"


def test_last_layer_alone_without_time_is_truncated() -> None:
    start = trained_network("cnn")
    outcome, after = work(Job(start, (), replace(SHORT, layers="last"), 0.0, 3), TASK)
    assert (outcome.status, outcome.epochs) == ("truncated", 0)
    assert same_weights(after, dict(start.weights))


# -- whitening filters

LARGE = image_task(40, 20, (3, 16, 16))
WHITE = replace(SHORT, whiten=True)


@pytest.mark.parametrize("shape", [(3, 15, 16), (3, 20), (3, 16, 16, 16), (5,)])
def test_no_whitening_of_small_images_or_other_shapes(shape: tuple[int, ...]) -> None:
    graph = mlp(shape, 3, width=4) if len(shape) == 1 else cnn(shape, 3, width=4)
    assert work_module.first_filters(graph) == []


def test_first_filters_are_those_of_convolutions_of_the_input() -> None:
    assert work_module.first_filters(resnet((3, 16, 16), 3, width=4)) == ["conv_1.weight"]
    assert work_module.first_filters(mlp((3, 16, 16), 3, width=4)) == []


def test_first_filters_whiten_training_images_and_stay_fixed() -> None:
    graph = cnn((3, 16, 16), 3, width=60)
    network, _ = grow_network(Job(graph, (), WHITE, 600, 1), LARGE)
    before = weights_of(network)
    outcome, after = work(Job(graph, (), WHITE, 600, 1), LARGE)
    assert (outcome.status, outcome.epochs) == ("finished", WHITE.epochs)
    assert after is not None
    assert [name for name, _ in network.named_parameters() if torch.equal(before[name], after[name])] == [
        "conv_1.weight"
    ]
    filters = after["conv_1.weight"][:27].flatten(1)  # one for every direction; their negatives follow
    assert torch.equal(filters, -after["conv_1.weight"][27:54].flatten(1))
    patches = LARGE.normalised(LARGE.train.x).unfold(2, 3, 1).unfold(3, 3, 1)
    outputs = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 27) @ filters.T
    covariance = outputs.T @ outputs / len(outputs)
    assert torch.allclose(covariance / covariance.diagonal().mean(), torch.eye(27), atol=0.05)


@pytest.mark.parametrize(
    "morphs", [(Wider("conv_1", 12),), (WiderAll(), WiderAll(120)), (Deeper("relu_3"), WiderAll())]
)
def test_children_keep_whitening_filters_and_outputs(morphs: tuple[Morph, ...]) -> None:
    """Filters are added along further directions: copies would stay identical, since they are not trained."""
    graph = cnn((3, 16, 16), 3, width=8)
    _, trained = work(Job(graph, (), WHITE, 600, 1), LARGE)
    assert trained is not None
    outcome, after = work(Job(Network(graph, trained), morphs, WHITE, 600, 2), LARGE)
    assert outcome.status == "finished", outcome.error
    assert outcome.morph_error is not None
    assert outcome.morph_error < MAX_MORPH_ERROR
    assert after is not None
    filters = after["conv_1.weight"]
    assert torch.equal(filters[:8], trained["conv_1.weight"])
    assert len(filters) > 8
    lengths = filters.flatten(1).norm(dim=1)
    similarity = (filters.flatten(1) @ filters.flatten(1).T) / (lengths[:, None] * lengths)
    assert (similarity - torch.eye(len(filters))).abs().max() < 0.4
    assert lengths[8:].min() > lengths[:8].min() / 3


def test_first_filters_are_trained_without_whitening() -> None:
    network, _ = grow_network(Job(cnn((3, 16, 16), 3, width=8), (), SHORT, 600, 1), LARGE)
    assert all(p.requires_grad for p in network.parameters())


def test_whitening_takes_a_sample_of_many_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters are nearly those of all patches, since neighbouring patches are similar."""
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 42, 42, generator=seeded(1)), 3, 1)
    like, counts = torch.randn(27, 3, 3, 3, generator=seeded(2)), list[int]()
    of_all_patches = whitening(smooth, like)
    unfold = Tensor.unfold

    def counting_unfold(x: Tensor, axis: int, size: int, step: int) -> Tensor:
        found = unfold(x, axis, size, step)
        counts.append(len(found) * found.shape[2] * found.shape[3] if axis == 3 else 0)
        return found

    monkeypatch.setattr(Tensor, "unfold", counting_unfold)
    monkeypatch.setattr("morphnas.train.whitening.MAX_PATCHES", 40_000)
    of_sample = whitening(smooth, like)
    assert 10_000 < counts[-1] <= 40_000 < 64 * 38 * 38
    patches = smooth.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    for filters in (of_all_patches, of_sample):
        outputs = patches @ filters.flatten(1)[:13].T
        covariance = outputs.T @ outputs / len(outputs)
        assert torch.allclose(covariance / covariance.diagonal().mean(), torch.eye(13), atol=0.15)


@given(st.integers(1, 80), st.sampled_from([1, 3, 5]), st.integers(0, 100))
def test_whitening_keeps_shape_and_norm_of_replaced_filters(filters: int, kernel: int, seed: int) -> None:
    like = torch.randn(filters, 2, kernel, kernel, generator=seeded(seed))
    found = whitening(torch.zeros(3, 2, 8, 8) if seed % 5 == 0 else torch.randn(3, 2, 8, 8), like)
    assert (found.shape, found.dtype) == (like.shape, like.dtype)
    assert torch.isclose(found.norm(), like.norm())
