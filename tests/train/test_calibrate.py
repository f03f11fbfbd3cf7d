"""Calibration: morphs keep a network's function in training mode too, so that a child starts at its parent's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from morphnas.graph import (
    AddSkip,
    BatchNorm,
    Deeper,
    Graph,
    Limits,
    Morph,
    Network,
    Weights,
    cnn,
    fresh_weights,
    neighbours,
    resnet,
    to_module,
    weights_of,
)
from morphnas.run.jobs import Job
from morphnas.run.work import grow_network
from morphnas.train.calibrate import calibrate
from morphnas.train.data import ShuffledIndices, Task
from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Recipe
from morphnas.train.step import make_optimizer
from morphnas.train.trainer import Schedule, train
from tests.strategies import random_inputs, random_weights
from tests.train.tasks import copy_state, image_task, seeded, states_equal

FAMILIES: dict[str, Callable[..., Graph]] = {"cnn": cnn, "resnet": resnet}
RECIPE = Recipe(epochs=4, batch_size=32, lr=0.1)


def grow_child(graph: Graph, weights: Weights, morphs: Sequence[Morph]) -> tuple[Graph, Weights, list[str]]:
    """A network grown by the morphs, its weights, and the names of its new batch norms."""
    old, generator = graph, seeded(5)
    for morph in morphs:
        weights = morph.carry(graph, weights, generator)
        graph = morph.grow(graph)
    new = [node.name for node in graph.nodes if isinstance(node.op, BatchNorm) and node.name not in old]
    return graph, weights, new


def spaced_morphs(graph: Graph, tag: str, n: int) -> list[Morph]:
    """Up to n morphs of a kind, from the first site to the last."""
    found = [morph for morph in neighbours(graph) if morph.tag == tag]
    n = min(n, len(found))
    return [found[round(i * (len(found) - 1) / max(1, n - 1))] for i in range(n)]


def insertions(graph: Graph) -> list[Morph]:
    """Morphs that add a batch norm."""
    return spaced_morphs(graph, "deeper", 2) + spaced_morphs(graph, "add_skip", 2)


def relative_difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(2, 9), (2, 8, 8), (1, 6, 6, 6)])
def test_calibration_keeps_function(family: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    graph = FAMILIES[family](shape, 3, width=4, depth=3)
    weights = random_weights(graph, 1)
    x = random_inputs(graph, 2, n=24).to(dtype)
    parent = to_module(graph, weights).to(dtype).eval()
    for morph in insertions(graph):
        grown, carried, new = grow_child(graph, weights, [morph])
        module = to_module(grown, carried).to(dtype)
        calibrate(module, new, x)
        module.eval()
        for probe in (x, random_inputs(graph, 3, n=24).to(dtype)):
            assert relative_difference(parent(probe), module(probe)) < tolerance
        assert new
        names = {f"{name}.running_mean" for name in new}
        assert all(not torch.equal(copy_state(module)[name], carried[name].to(dtype)) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_child_matches_parent_in_training_mode(family: str) -> None:
    """On the calibration batch the outputs are equal; without calibration they are not."""
    graph = FAMILIES[family]((2, 8, 8), 3, width=4, depth=2)
    weights, x = random_weights(graph, 1), random_inputs(graph, 2, n=48)
    expected = to_module(graph, weights).train()(x)
    for morph in insertions(graph):
        grown, carried, new = grow_child(graph, weights, [morph])
        module = to_module(grown, carried).train()
        before = relative_difference(expected, module(x))
        module.load_state_dict(carried)
        calibrate(module, new, x)
        assert module.training
        assert relative_difference(expected, module(x)) < 1e-9
        if isinstance(morph, Deeper):
            assert before > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_several_morphs_are_calibrated_together(family: str) -> None:
    graph = FAMILIES[family]((2, 8, 8), 3, width=4, depth=3)
    weights, x = random_weights(graph, 1), random_inputs(graph, 2, n=48)
    deeper = [morph for morph in neighbours(graph) if isinstance(morph, Deeper)]
    skip = next(morph for morph in neighbours(graph) if isinstance(morph, AddSkip))
    grown, carried, new = grow_child(graph, weights, [*deeper, skip, deeper[0]])
    assert len(new) == len(deeper) + 2
    module = to_module(grown, carried)
    calibrate(module, new, x)
    for mode in (False, True):  # training mode last, since it moves the statistics
        assert relative_difference(to_module(graph, weights).train(mode)(x), module.train(mode)(x)) < 1e-9


def test_calibration_changes_only_new_batch_norms() -> None:
    graph = resnet((2, 8, 8), 3, width=4, depth=2)
    weights, x = random_weights(graph, 1), random_inputs(graph, 2, n=48)
    grown, carried, new = grow_child(graph, weights, insertions(graph)[:1])
    module = to_module(grown, carried)
    momenta = [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = copy_state(module)
    calibrate(module, new, x)
    after = copy_state(module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"{name}.{tensor}" for name in new for tensor in ("weight", "bias", "running_mean", "running_var")
    }
    assert [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)] == momenta
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_module_is_restored_after_an_error() -> None:
    graph = cnn((2, 8, 8), 3, width=4, depth=2)
    module = to_module(graph)
    before = copy_state(module)
    name = next(node.name for node in graph.nodes if isinstance(node.op, BatchNorm))
    with pytest.raises(RuntimeError):
        calibrate(module, [name], torch.zeros(4, 3, 8, 8))
    with pytest.raises(KeyError, match="nothing"):
        calibrate(module, [name, "nothing"], torch.zeros(4, 2, 8, 8))
    assert states_equal(before, copy_state(module))
    assert all(layer.momentum == 0.1 for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_calibrated_skip_keeps_scale_0() -> None:
    graph = cnn((2, 8, 8), 3, width=4, depth=3)
    skip = next(morph for morph in neighbours(graph) if isinstance(morph, AddSkip))
    grown, carried, new = grow_child(graph, random_weights(graph, 1), [skip])
    module = to_module(grown, carried)
    calibrate(module, new, random_inputs(graph, 2, n=48))
    (name,) = new
    for tensor in ("weight", "bias"):
        assert not module.state_dict()[f"{name}.{tensor}"].any()
    assert (module.state_dict()[f"{name}.running_var"] != 1).all()


def test_calibration_keeps_the_function_of_constant_channels() -> None:
    """A relu that never fires has variance 0 on every batch."""
    graph = cnn((2, 8, 8), 3, width=4, depth=2)
    weights = random_weights(graph, 1)
    relu = next(morph for morph in neighbours(graph) if isinstance(morph, Deeper)).after
    norm = graph[relu].inputs[0]
    weights[f"{norm}.bias"][0] = -1e3
    x = random_inputs(graph, 2, n=48)
    grown, carried, new = grow_child(graph, weights, [Deeper(relu)])
    module = to_module(grown, carried)
    calibrate(module, new, x)
    for mode in (False, True):
        expected, found = to_module(graph, weights).train(mode)(x), module.train(mode)(x)
        assert found.isfinite().all()
        assert relative_difference(expected, found) < 1e-9


# -- the first steps of a child


@cache
def trained(family: str) -> tuple[Network, Task]:
    """A network after a brief training, as parents are."""
    task = image_task(192, 48)
    graph = FAMILIES[family]((2, 8, 8), 3, width=6, depth=3)
    module = to_module(graph, fresh_weights(graph, seeded(1)))
    outcome = train(module, task, RECIPE, Deadline.after(600), seeded(2))
    assert outcome.metric is not None
    assert outcome.metric > 0.8
    return Network(graph, weights_of(module)), task


def first_losses(start: Network, morphs: tuple[Morph, ...], task: Task, steps: int = 3) -> list[float]:
    """Training-mode losses of the first steps of a training, as `train` takes them."""
    module, _ = grow_network(Job(start, morphs, RECIPE, 60, 7), task)
    optimizer, schedule = make_optimizer(module, RECIPE), Schedule(RECIPE.warmup)
    module.train()
    losses: list[float] = []
    total = RECIPE.epochs * len(task.train) // RECIPE.batch_size
    order = next(ShuffledIndices(len(task.train), len(task.train), seeded(3)))
    for step, index in enumerate(order.split(RECIPE.batch_size)[:steps]):
        for group in optimizer.param_groups:
            group["lr"].fill_(RECIPE.lr * schedule.rate(step / total))
        batch = task.train[index]
        logits = module(task.normalised(batch.x))
        loss = nn.functional.cross_entropy(logits, batch.y, label_smoothing=RECIPE.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tag", sorted(Limits.morphs))
@pytest.mark.parametrize("family", FAMILIES)
def test_first_losses_of_child_are_close_to_parents(family: str, tag: str) -> None:
    start, task = trained(family)
    parent_losses = first_losses(start, (), task)
    morphs = spaced_morphs(start.graph, tag, 4)
    assert morphs
    for morph in morphs:
        for child_loss, parent_loss in zip(first_losses(start, (morph,), task), parent_losses, strict=True):
            assert child_loss < 1.05 * parent_loss, morph


@pytest.mark.parametrize("family", FAMILIES)
def test_first_losses_of_child_of_several_morphs(family: str) -> None:
    start, task = trained(family)
    parent_losses = first_losses(start, (), task)
    deeper = [morph for morph in neighbours(start.graph) if isinstance(morph, Deeper)]
    assert all(a.after != b.after for a, b in pairwise(deeper))
    for child_loss, parent_loss in zip(first_losses(start, tuple(deeper[:3]), task), parent_losses, strict=True):
        assert child_loss < 1.05 * parent_loss
