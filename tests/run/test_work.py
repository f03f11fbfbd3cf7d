"""Tests of `work`: morphs, the check of their outputs, training, and errors that become outcomes."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping
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
from morphnas.run import work as module
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
from tests.train.tasks import Clock, blobs, images, seeded

TASK = images()
GRAPHS = {"cnn": cnn((2, 8, 8), 3, width=4, depth=3), "resnet": resnet((2, 8, 8), 3, width=4, depth=2)}
SHORT = Recipe(epochs=2, batch_size=16, lr=0.1)


def parent(name: str) -> Network:
    """A network trained from fresh weights."""
    outcome, trained = work(Job(GRAPHS[name], (), SHORT, 600, 1), TASK)
    assert outcome.status == "finished"
    assert outcome.morph_error is None
    assert trained is not None
    return Network(GRAPHS[name], trained)


def one_of_each(graph: Graph) -> list[Morph]:
    """The last morph of every kind."""
    return list({morph.tag: morph for morph in neighbours(graph)}.values())


def same(one: Weights | None, other: Weights | None) -> bool:
    assert one is not None
    assert other is not None
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# -- inherited weights


@pytest.mark.parametrize("name", GRAPHS)
def test_a_child_begins_as_its_parent(name: str) -> None:
    start = parent(name)
    expected = predict(start.to_module(), TASK.evaluation_set.x, TASK)
    morphs = one_of_each(start.graph)
    assert {type(morph) for morph in morphs} == {Deeper, Wider, WiderAll, AddSkip, ConcatSkip}
    for morph in morphs:
        child, difference = grow_network(Job(start, (morph,), SHORT, 600, 2), TASK)
        assert difference is not None
        assert difference <= 1e-4
        Network(morph.grow(start.graph), weights_of(child))
        torch.testing.assert_close(predict(child, TASK.evaluation_set.x, TASK), expected, rtol=1e-3, atol=1e-4)


def test_morphs_are_proved_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, seen = [False], []

    @contextmanager
    def noted(device: torch.device) -> Iterator[None]:
        assert device == TASK.device
        inside[0] = True
        yield
        inside[0] = False

    def noted_predict(*args: Any) -> Tensor:
        seen.append(inside[0])
        return predict(*args)

    monkeypatch.setattr(module, "full_precision", noted)
    monkeypatch.setattr(module, "predict", noted_predict)
    grow_network(Job(parent("cnn"), (Wider("conv_1", 7),), SHORT, 600, 1), TASK)
    assert seen == [True, True]


def test_several_morphs_are_carried_out_in_order() -> None:
    start, graph = parent("cnn"), GRAPHS["cnn"]
    deeper = next(morph for morph in neighbours(graph) if isinstance(morph, Deeper))
    graph = deeper.grow(graph)
    wider = [morph for morph in neighbours(graph) if isinstance(morph, Wider)][1]  # of the layer that `deeper` adds
    graph = wider.grow(graph)
    outcome, found = work(Job(start, (deeper, wider), SHORT, 600, 2), TASK)
    assert outcome.status == "finished"
    assert outcome.morph_error is not None
    assert outcome.morph_error <= 1e-4
    Network(graph, found or {})


def test_the_score_is_that_of_the_weights_returned() -> None:
    start = parent("resnet")
    outcome, found = work(Job(start, (one_of_each(start.graph)[0],), SHORT, 600, 2), TASK)
    assert outcome.score is not None
    child = to_module(one_of_each(start.graph)[0].grow(start.graph), found)
    assert outcome.score == pytest.approx(evaluate(child, TASK.evaluation_set, TASK)[0], abs=1e-6)


def test_training_on_has_nothing_to_prove() -> None:
    start = parent("cnn")
    module, difference = grow_network(Job(start, (), SHORT, 600, 2), TASK)
    assert difference is None
    assert torch.equal(
        predict(module, TASK.evaluation_set.x, TASK), predict(start.to_module(), TASK.evaluation_set.x, TASK)
    )


def test_the_parents_weights_stay_as_they_are() -> None:
    start = parent("cnn")
    before = {name: value.clone() for name, value in start.weights.items()}
    work(Job(start, tuple(one_of_each(start.graph)[:1]), SHORT, 600, 2), TASK)
    assert same(before, dict(start.weights))


def test_fresh_weights_are_of_the_jobs_seed() -> None:
    found = [work(Job(GRAPH, (), RECIPE, 0, seed), blobs())[1] for seed in (1, 1, 2)]
    assert same(found[0], found[1])
    assert same(found[0], fresh_weights(GRAPH, seeded(1)))
    assert not same(found[0], found[2])


# -- reproducibility


@pytest.mark.parametrize("graph", [GRAPHS["cnn"], cnn((2, 8, 8), 3, width=4, depth=2, dropout=0.5)])
@pytest.mark.parametrize("grown", [False, True])
def test_equal_jobs_have_equal_outcomes(graph: Graph, grown: bool) -> None:
    """Including dropout, and without changing torch's global random state."""
    recipe = replace(SHORT, augment=Augment(0.2, True, 0.3))
    start = Network(graph, fresh_weights(graph, seeded())) if grown else graph
    job = Job(start, tuple(one_of_each(graph)[:2]) if grown else (), recipe, 600, 3)
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
    assert same(first, second)
    other, third = work(replace(job, seed=4), TASK)
    assert other.status == "finished"
    assert not same(first, third)


# -- morphs that do not preserve the network's function


@dataclass(frozen=True)
class Broken(Deeper):
    """Scales one of the weights it has added, so that outputs change."""

    factor: float = 1.5
    tag = "broken"

    def carry(self, graph: Graph, weights: Mapping[str, Tensor], generator: torch.Generator) -> Weights:
        carried = super().carry(graph, weights, generator)
        name = next(name for name in carried if name.split(".")[0] not in graph and name.endswith("weight"))
        carried[name] = carried[name] * self.factor
        return carried


@pytest.mark.parametrize("factor", [1.5, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("family", [cnn, mlp])
def test_a_broken_morph_fails_and_is_not_trained(family: type, factor: float) -> None:
    graph = family((2, 8, 8), 3, width=4, depth=2)
    relu = next(morph.after for morph in neighbours(graph) if isinstance(morph, Deeper))
    epochs: list[Outcome] = []
    start = Network(graph, fresh_weights(graph, seeded()))
    outcome, found = work(Job(start, (Broken(relu, 3, factor),), SHORT, 600, 1), TASK, epochs.append)
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


@dataclass(frozen=True)
class Raising(Deeper):
    tag = "raising"

    def carry(self, *args: object, **kwargs: object) -> Weights:
        raise LookupError("these weights are nowhere")


def test_an_error_is_an_outcome_with_its_trace() -> None:
    start = Network(GRAPH, weights())
    relu = next(morph.after for morph in neighbours(GRAPH) if isinstance(morph, Deeper))
    outcome, found = work(Job(start, (Raising(relu),), RECIPE, 600, 1), blobs())
    assert outcome.status == "failed"
    assert found is None
    assert outcome.error is not None
    assert outcome.error.startswith("Traceback")
    assert outcome.error.rstrip().endswith("LookupError: these weights are nowhere")


def test_nothing_of_a_training_is_left_in_memory() -> None:
    """Except for its result; on a GPU the remains of many trainings would fill the memory."""
    start = parent("cnn")
    job = Job(start, (one_of_each(start.graph)[0],), replace(SHORT, average=1.0), 600, 2)

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    work(job, TASK)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        work(job, TASK)
        assert tensors() == before
    finally:
        gc.enable()


def test_a_graph_that_does_not_fit_the_task_fails() -> None:
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blobs(features=7))
    assert (outcome.status, found) == ("failed", None)


def raising(error: BaseException) -> object:
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
def test_no_memory_is_an_outcome(error: BaseException) -> None:
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blobs(), raising(error))  # type: ignore[arg-type]
    assert (outcome.status, found) == ("oom", None)
    assert outcome.error is not None
    assert "no room" in outcome.error


def test_a_device_that_is_gone_is_no_failure_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_device_lost", lambda _: True)
    with pytest.raises(DeviceLost, match=r"cpu does nothing any more for this process \(launch failure\)"):
        work(Job(GRAPH, (), RECIPE, 600, 1), blobs(), raising(RuntimeError("launch failure\nand more")))  # type: ignore[arg-type]
    for error in OUT_OF_MEMORY:
        assert work(Job(GRAPH, (), RECIPE, 600, 1), blobs(), raising(error))[0].status == "oom"  # type: ignore[arg-type]


def test_torch_says_no_memory_as_expected() -> None:
    """The message of a CPU that is out of memory is not documented."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_passes(error: type[BaseException]) -> None:
    with pytest.raises(error):
        work(Job(GRAPH, (), RECIPE, 600, 1), blobs(), raising(error()))  # type: ignore[arg-type]


def test_divergence_keeps_weights_that_are_numbers() -> None:
    outcome, found = work(Job(GRAPH, (), replace(RECIPE, lr=1e6, epochs=8, warmup=0.0), 600, 1), _poisoned())
    assert outcome.status == "diverged"
    assert found is not None
    assert all(value.isfinite().all() for value in found.values())


def _poisoned() -> Task:
    task = blobs()
    x = task.train.x.clone()
    x[0, 0] = math.nan
    return replace(task, train=replace(task.train, x=x))


# -- mirrored images


def test_mirrored_images_are_asked_about_when_flips_are_undecided() -> None:
    """The position of the stripe is the class, so mirrored images are classified wrongly."""
    recipe = Recipe(epochs=6, batch_size=16, lr=0.1, augment=Augment(flip=None))
    outcome, found = work(Job(GRAPHS["cnn"], (), recipe, 600, 1), TASK)
    assert outcome.metric is not None
    assert outcome.mirrored is not None
    assert outcome.metric > 0.9
    assert outcome.mirrored < 0.5
    turned = replace(TASK.evaluation_set, x=TASK.evaluation_set.x.flip(-1))
    assert outcome.mirrored == pytest.approx(evaluate(to_module(GRAPHS["cnn"], found), turned, TASK)[1], abs=1e-6)


@pytest.mark.parametrize("flip", [True, False])
def test_mirrored_images_are_not_asked_about_otherwise(flip: bool) -> None:
    recipe = replace(SHORT, augment=Augment(flip=flip))
    assert work(Job(GRAPHS["cnn"], (), recipe, 600, 1), TASK)[0].mirrored is None


def test_flat_features_have_no_mirror_image() -> None:
    recipe = replace(RECIPE, augment=Augment(flip=None))
    outcome, _ = work(Job(GRAPH, (), recipe, 600, 1), blobs())
    assert outcome.status == "finished"
    assert outcome.mirrored is None


# -- trainings that are not scored


def test_nobody_judges_where_none_is_asked() -> None:
    recipe = replace(RECIPE, augment=Augment(flip=None))
    outcome, found = work(Job(Network(GRAPH, weights()), (), recipe, 600, 1, scored=False), blobs())
    assert outcome.status == "finished"
    assert (outcome.score, outcome.metric, outcome.mirrored, outcome.curve) == (None, None, None, ())
    assert not same(found, weights())


def test_a_module_on_the_device_is_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are returned on the CPU and contiguous, whatever memory format the trainer uses."""
    _, found = work(Job(GRAPHS["cnn"], (), SHORT, 600, 1), TASK)
    assert found is not None
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in found.values())
    assert isinstance(to_module(GRAPHS["cnn"], found), nn.Module)
    assert module.work is work


# -- a second training at a lower learning rate


@dataclass
class Trainings:
    """Replaces `train`: returns the given outcomes in turn, and records the learning rates."""

    ends: list[Outcome]
    rates: list[float] = field(default_factory=list)

    def __call__(self, module: nn.Module, task: Task, recipe: Recipe, *args: object, **_: object) -> Outcome:
        self.rates.append(recipe.lr)
        return self.ends[len(self.rates) - 1]


BAD = Outcome("diverged", -0.9, 0.5, epochs=2, best_epoch=1, error="the loss went up")
FINE = Outcome("finished", -0.4, 0.9, epochs=2, best_epoch=2)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([FINE], FINE),
        ([BAD, FINE], replace(FINE, retries=1, error="the loss went up")),
        ([BAD, replace(BAD, score=-0.8)], replace(BAD, score=-0.8, retries=1)),
        ([BAD, replace(FINE, score=-1.5)], replace(BAD, retries=1)),  # the better one of the two
        ([BAD, Outcome("truncated")], replace(BAD, retries=1)),
        ([replace(BAD, score=None), Outcome("finished")], Outcome("finished", retries=1, error="the loss went up")),
    ],
)
def test_divergence_is_tried_again_at_a_lower_rate(
    monkeypatch: pytest.MonkeyPatch, ends: list[Outcome], expected: Outcome
) -> None:
    trainings = Trainings(ends)
    monkeypatch.setattr(module, "train", trainings)
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blobs())
    assert replace(outcome, latency=None) == expected
    assert found is not None
    assert trainings.rates == [RECIPE.lr, RECIPE.lr / 4][: len(ends)]


@pytest.mark.parametrize(("most", "slow"), [(None, False), (100.0, False), (1e-9, True)])
def test_how_long_an_example_takes_is_measured(most: float | None, slow: bool) -> None:
    outcome, _ = work(Job(GRAPH, (), RECIPE, 600, 1, max_latency=most), blobs())
    assert outcome.latency is not None
    assert 0 < outcome.latency < 1
    assert outcome.slow is slow
    assert work(Job(GRAPH, (), RECIPE, 600, 1, scored=False, max_latency=most), blobs())[0].latency is None


@pytest.mark.parametrize("question", ["latency", "measure_mirrored"])
def test_a_network_that_cannot_be_asked_more_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, question: str
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no room")

    recipe = replace(RECIPE, augment=Augment(flip=None))
    monkeypatch.setattr(module, question, failing)
    outcome, found = work(Job(GRAPH, (), recipe, 600, 1, max_latency=1e-9), blobs())
    assert (outcome.status, outcome.slow, outcome.latency) == ("finished", False, None)
    assert outcome.score is not None
    assert found is not None
    assert "further measurements of it failed: no room" in caplog.text
    monkeypatch.setattr(module, "is_device_lost", lambda _: True)
    with pytest.raises(DeviceLost):
        work(Job(GRAPH, (), recipe, 600, 1), blobs())


def test_there_is_no_second_try_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings([BAD])
    monkeypatch.setattr(module, "train", trainings)
    assert replace(work(Job(GRAPH, (), RECIPE, 0, 1), blobs())[0], latency=None) == BAD


# -- memory


def small(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Simulate running out of memory above `most` examples in training mode."""

    def check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and len(inputs[0]) > most:
            raise torch.OutOfMemoryError(f"no room for {len(inputs[0])}")

    def made(graph: Graph, weights: Weights) -> nn.Module:
        network = to_module(graph, weights)
        network.register_forward_pre_hook(check)
        return network

    monkeypatch.setattr(module, "to_module", made)


@pytest.mark.parametrize(
    ("most", "status"), [(20, "finished"), (MIN_MICRO_BATCH, "finished"), (MIN_MICRO_BATCH - 1, "oom")]
)
def test_new_norms_get_the_statistics_of_as_many_examples_as_fit(
    monkeypatch: pytest.MonkeyPatch, most: int, status: str
) -> None:
    graph = cnn((2, 8, 8), 3, width=4)
    deeper = next(m for m in neighbours(graph) if isinstance(m, Deeper))
    small(monkeypatch, most)
    outcome, found = work(Job(Network(graph, weights(0, graph)), (deeper,), RECIPE, 600, 1), images())
    assert (outcome.status, found is None) == (status, status == "oom")
    if found:
        assert outcome.morph_error is not None
        assert outcome.morph_error < MAX_MORPH_ERROR


@pytest.mark.parametrize(
    ("most", "status"), [(99, "finished"), (MIN_MICRO_BATCH, "finished"), (MIN_MICRO_BATCH - 1, "oom")]
)
def test_a_network_is_out_of_memory_when_the_smallest_parts_are_too_large(
    monkeypatch: pytest.MonkeyPatch, most: int, status: str
) -> None:
    small(monkeypatch, most)
    outcome, found = work(Job(GRAPH, (), RECIPE, 600, 1), blobs())
    assert outcome.status == status
    assert (found is None) == (status == "oom")
    assert outcome.micro_batch == {"oom": 0}.get(status, min(16, most))


def test_the_micro_batch_is_what_fits() -> None:
    graph = GRAPHS["cnn"]
    assert micro_batch(graph, 64, None, []) is None
    assert micro_batch(graph, 64, graph.peak_bytes(64), []) is None
    assert micro_batch(graph, 64, graph.peak_bytes(64) - 1, []) == 32
    assert micro_batch(graph, 64, graph.peak_bytes(16), []) == 16
    assert micro_batch(graph, 64, 1, []) == MIN_MICRO_BATCH
    assert micro_batch(graph, 4, 1, []) is None
    measured = Outcome("finished", peak_bytes=2 * graph.peak_bytes(64), micro_batch=64)
    seen = [Trial(0, Proposal(graph, (), SHORT), graph, measured)]
    assert micro_batch(graph, 64, 2 * graph.peak_bytes(16), seen) == 16
    assert micro_batch(graph, 64, graph.peak_bytes(16), seen) == MIN_MICRO_BATCH


def test_a_job_keeps_to_its_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 8)
    start = parent_of(GRAPHS["cnn"])
    morph = next(morph for morph in neighbours(start.graph) if isinstance(morph, Deeper))
    assert Job(start, (morph,), SHORT, 600, 1, micro=2).evaluation_batch_size == 8
    outcome, _ = work(Job(start, (morph,), SHORT, 600, 1, micro=2), TASK)  # calibrated within it, too
    assert outcome.status == "finished"
    assert outcome.micro_batch == 2


def parent_of(graph: Graph) -> Network:
    return Network(graph, fresh_weights(graph, seeded()))


# -- the deadline before the training


def test_growing_stops_at_the_deadline() -> None:
    start = parent_of(GRAPHS["cnn"])
    morph = next(morph for morph in neighbours(start.graph) if isinstance(morph, Deeper))
    job = Job(start, (morph,), SHORT, 0, 1)
    outcome, found = work(job, TASK)
    assert (outcome.status, found) == ("truncated", None)
    assert outcome.error == "the deadline came before the network was grown"
    for looks in range(2, 12):  # a second passes at every reading of the clock
        clock = Clock(tick=1.0)
        with pytest.raises(OutOfTime, match="the deadline came before the network was"):
            grow_network(job, TASK, Deadline(clock.now + looks, clock))
    assert grow_network(job, TASK, Clock(tick=1.0).deadline(1e6))[1] is not None


def test_calibration_takes_fewer_examples_when_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    clock = Clock()
    monkeypatch.setattr(module, "calibrate", lambda layer, names, x: sizes.append(len(x)))

    def slow(*args: object, **kwargs: object) -> Tensor:
        clock.now += 4.8  # for 48 probes
        return predict(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "predict", slow)
    start = parent_of(GRAPHS["cnn"])
    morph = next(morph for morph in neighbours(start.graph) if isinstance(morph, Deeper))
    grow_network(Job(start, (morph,), SHORT, 0, 1), TASK, clock.deadline(14.8))
    assert sizes == [50]


# -- first filters that whiten

LARGE = images(40, 20, (3, 16, 16))
WHITE = replace(SHORT, whiten=True)


@pytest.mark.parametrize("shape", [(3, 15, 16), (3, 20), (3, 16, 16, 16), (5,)])
def test_patches_are_whitened_of_images_of_some_size(shape: tuple[int, ...]) -> None:
    graph = mlp(shape, 3, width=4) if len(shape) == 1 else cnn(shape, 3, width=4)
    assert module.first_filters(graph) == []


def test_only_what_reads_patches_of_the_input_whitens() -> None:
    assert module.first_filters(resnet((3, 16, 16), 3, width=4)) == ["conv_1.weight"]
    assert module.first_filters(mlp((3, 16, 16), 3, width=4)) == []


def test_first_filters_are_the_training_images_and_stay_while_all_else_learns() -> None:
    graph = cnn((3, 16, 16), 3, width=60)
    begun, _ = grow_network(Job(graph, (), WHITE, 600, 1), LARGE)
    before = weights_of(begun)
    outcome, after = work(Job(graph, (), WHITE, 600, 1), LARGE)
    assert (outcome.status, outcome.epochs) == ("finished", WHITE.epochs)
    assert after is not None
    assert {name for name, value in begun.named_parameters() if torch.equal(before[name], after[name])} == {
        "conv_1.weight"
    }
    filters = after["conv_1.weight"][:27].flatten(1)  # as many as directions, then their negatives
    assert torch.equal(filters, -after["conv_1.weight"][27:54].flatten(1))
    patches = LARGE.normalised(LARGE.train.x).unfold(2, 3, 1).unfold(3, 3, 1)
    seen = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 27) @ filters.T
    found = seen.T @ seen / len(seen)
    assert torch.allclose(found / found.diagonal().mean(), torch.eye(27), atol=0.05), "uncorrelated, equally strong"


@pytest.mark.parametrize(
    "morphs", [(Wider("conv_1", 12),), (WiderAll(), WiderAll(120)), (Deeper("relu_3"), WiderAll())]
)
def test_children_keep_them_and_start_from_what_their_parents_compute(morphs: tuple[Morph, ...]) -> None:
    """Widening adds filters along further directions: copies would stay identical, since they are not trained."""
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


def test_without_that_first_filters_learn() -> None:
    begun, _ = grow_network(Job(cnn((3, 16, 16), 3, width=8), (), SHORT, 600, 1), LARGE)
    assert all(p.requires_grad for p in begun.parameters())


def test_of_large_images_fewer_patches_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the filters are nearly those of all patches: neighbouring patches are similar."""
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 42, 42, generator=seeded(1)), 3, 1)
    like, looked_at = torch.randn(27, 3, 3, 3, generator=seeded(2)), list[int]()
    all_of_them = whitening(smooth, like)
    unfold = Tensor.unfold

    def counted(x: Tensor, axis: int, size: int, step: int) -> Tensor:
        found = unfold(x, axis, size, step)
        looked_at.append(len(found) * found.shape[2] * found.shape[3] if axis == 3 else 0)
        return found

    monkeypatch.setattr(Tensor, "unfold", counted)
    monkeypatch.setattr("morphnas.train.whitening.MAX_PATCHES", 40_000)
    of_sample = whitening(smooth, like)
    assert 10_000 < looked_at[-1] <= 40_000 < 64 * 38 * 38
    patches = smooth.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    for filters in (all_of_them, of_sample):
        seen = patches @ filters.flatten(1)[:13].T
        found = seen.T @ seen / len(seen)
        assert torch.allclose(found / found.diagonal().mean(), torch.eye(13), atol=0.15)


@given(st.integers(1, 80), st.sampled_from([1, 3, 5]), st.integers(0, 100))
def test_whitening_filters_are_as_long_as_those_they_replace(filters: int, kernel: int, seed: int) -> None:
    like = torch.randn(filters, 2, kernel, kernel, generator=seeded(seed))
    found = whitening(torch.zeros(3, 2, 8, 8) if seed % 5 == 0 else torch.randn(3, 2, 8, 8), like)
    assert (found.shape, found.dtype) == (like.shape, like.dtype)
    assert torch.isclose(found.norm(), like.norm())


def test_mirrored_images_are_asked_about_by_the_usual_metric() -> None:
    """A user-defined metric may be on another scale."""

    class Mine:
        name = "own"

        def __call__(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
            return -30.0

    network = to_module(GRAPHS["cnn"])
    outcome = Outcome("finished", -30.0, -30.0, measure="own", objective="own")
    found = module.measure_mirrored(outcome, network, replace(TASK, goal=CustomGoal(TASK.goal, Mine())), 64, NEVER)
    turned = replace(TASK.evaluation_set, x=TASK.evaluation_set.x.flip(-1))
    expected = [evaluate(network, examples, TASK)[1] for examples in (TASK.evaluation_set, turned)]
    assert [found.upright, found.mirrored] == expected
