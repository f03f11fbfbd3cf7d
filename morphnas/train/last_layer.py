"""Fitting only a network's last layer, on what the layers before it compute: for networks trained on other data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphnas.train.data import Examples, Task, moments
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.goal import Goal, UndefinedMetric
from morphnas.train.predict import Diverged, predict
from morphnas.train.recipe import LAST_LAYER_EPOCHS, Epoch, Outcome, Recipe
from morphnas.train.step import training_loss

STRENGTHS = tuple(10 ** (-k / 2) for k in range(LAST_LAYER_EPOCHS))
"""Strengths of the L2 regularisation, from the strongest to the weakest: factors on half the sum of the squared weights
for features of unit variance, which is added to the mean loss."""
MAX_ITERATIONS = 100
"""Iterations of L-BFGS for one strength, from the weights that were best for the one before."""
MIN_DEVIATION = 0.1
"""Standard deviation, as a share of the mean of those of all features, with which features that vary less are scaled:
they would be amplified otherwise."""
PART_BYTES = 2**27
"""Bytes of training examples that are gathered at a time: they are copied, and may be larger than memory."""
MAX_FEATURE_BYTES = 2**30
"""Memory for the features of the training examples; of more examples a random part is used."""


def train_last_layer(
    module: nn.Module,
    name: str,
    task: Task,
    recipe: Recipe,
    deadline: Deadline,
    generator: torch.Generator,
    each_epoch: Callable[[Outcome], None] | None = None,
    scored: bool = True,
    batch_size: int = 512,
) -> Outcome:
    """Fit the layer `name` of the module, a `nn.Linear` that makes its outputs, in place; nothing else changes.

    The features, which are the layer's inputs, are computed once, without augmentation, of as many training examples as
    half of the time and `MAX_FEATURE_BYTES` allow. On these the usual losses have a single minimum, which L-BFGS finds
    for one strength of regularisation after the other. An epoch is a strength, and the number of epochs says how many
    of `STRENGTHS` there are, at most all. The weights with the best score are kept; if not `scored`, the last ones.
    This is the first step of Kumar et al. 2022, arXiv:2202.10054, section 4. batch_size: of the forward passes.

    If the deadline comes before there are features, the weights stay as they are, without a score. Diverged if features
    or losses are NaN or infinite; TypeError if the layer is not dense.
    """
    clock, start = deadline.clock, deadline.clock()
    layer, goal = module.get_submodule(name), task.goal
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"only a dense last layer can be trained alone, not {layer}")
    best = Outcome(
        "finished",
        examples=task.evaluation_set.effective_size if scored else 0,
        held_out=task.valid is not None,
        measure=goal.measure,
        objective=goal.objective,
    )
    evaluated: Examples | None = None
    if scored and task.valid is not None:
        features = _features(module, name, task.valid.x, task, batch_size, deadline)
        if len(features) < len(task.valid):
            return replace(best, status="truncated", seconds=clock() - start)
        evaluated = replace(task.valid, x=features)
    half = replace(deadline, at=clock() + 0.5 * deadline.left)
    train = _training_features(module, name, task, batch_size, half, generator)
    if len(train) < 2:
        return replace(best, status="truncated", seconds=clock() - start)

    if not (train.x.isfinite().all() and (evaluated is None or evaluated.x.isfinite().all())):
        raise Diverged("what the layers before the last one compute is NaN or infinite")
    mean, std = moments(train.x, train.weights)
    std = std.clamp(min=MIN_DEVIATION * std.mean().item())
    if layer.bias is None:  # nothing could undo the shift
        mean = torch.zeros_like(mean)
    weights = [layer.weight.detach() * std]
    if layer.bias is not None:
        weights.append(layer.bias.detach() + layer.weight.detach() @ mean)
    train = replace(train, x=(train.x - mean) / std)
    if evaluated is not None:
        evaluated = replace(evaluated, x=(evaluated.x - mean) / std)
    elif scored:
        evaluated = train

    kept = weights
    for epoch, strength in enumerate(STRENGTHS[: recipe.epochs], start=1):
        weights, complete = _minimum(weights, strength, train, goal, recipe.label_smoothing, deadline)
        if not complete:
            best = replace(best, status="truncated")
            if best.epochs:
                break
        loss = goal.display_scale * _loss(weights, train, goal, recipe.label_smoothing).item()
        if not (math.isfinite(loss) and all(value.isfinite().all() for value in weights)):
            raise Diverged("the loss of the last layer is NaN or infinite")
        score: float | None = None
        metric: float | None = None
        if evaluated is not None:
            try:
                score, metric = goal.score_and_metric(F.linear(evaluated.x, *weights), evaluated.y, evaluated.weights)
            except UndefinedMetric as error:
                if best.score is None:
                    best = replace(best, error=f"after epoch {epoch} {error}")
            point = Epoch(clock() - start, loss, score, metric)
            best = replace(best, curve=(*best.curve, point))
        if best.score is None or (score is not None and score > best.score):
            kept = weights
            error_message = best.error if score is None else None
            best = replace(best, score=score, metric=metric, best_epoch=epoch, error=error_message)
        best = replace(best, training_loss=loss, epochs=epoch, seconds=clock() - start)
        if each_epoch:
            each_epoch(best)
        if not complete:
            break
    with torch.no_grad():
        layer.weight.copy_(kept[0] / std)
        if layer.bias is not None:
            layer.bias.copy_(kept[1] - layer.weight @ mean)
    return replace(best, seconds=clock() - start)


def _features(module: nn.Module, name: str, x: Tensor, task: Task, batch_size: int, deadline: Deadline) -> Tensor:
    """The inputs of the layer `name`, (n, features), for raw examples: for the first ones, as many as there is time
    for."""
    layer = module.get_submodule(name)
    module.set_submodule(name, nn.Identity())
    try:
        return predict(module, x, task, batch_size, deadline)
    finally:
        module.set_submodule(name, layer)


def _training_features(
    module: nn.Module, name: str, task: Task, batch_size: int, deadline: Deadline, generator: torch.Generator
) -> Examples:
    """Training examples with their features as x, in random order, as many as fit into the time and into memory."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    n = max(2, min(len(task.train), MAX_FEATURE_BYTES // (4 * layer.in_features)))
    order = torch.randperm(len(task.train), generator=generator)[:n]
    parts: list[Tensor] = []
    size = task.train.x.nbytes // max(1, len(task.train))  # of an example
    for index in order.split(max(1, min(8 * batch_size, PART_BYTES // max(1, size)))):
        parts.append(_features(module, name, task.train[index].x, task, batch_size, deadline))
        if len(parts[-1]) < len(index):
            break
    features = torch.cat([part for part in parts if len(part)] or parts)
    without_x = replace(task.train, x=task.train.x.new_empty(len(task.train), 0))
    return replace(without_x[order[: len(features)]], x=features)


def _loss(weights: list[Tensor], examples: Examples, goal: Goal, label_smoothing: float) -> Tensor:
    return training_loss(F.linear(examples.x, *weights), examples, goal, label_smoothing)


def _minimum(
    start: list[Tensor], strength: float, examples: Examples, goal: Goal, label_smoothing: float, deadline: Deadline
) -> tuple[list[Tensor], bool]:
    """The weights with the least regularised loss; False if the deadline came before they were found."""
    weights = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(weights, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        if deadline.passed:
            raise OutOfTime
        optimizer.zero_grad()
        loss = _loss(weights, examples, goal, label_smoothing) + 0.5 * strength * weights[0].square().sum()
        loss.backward()
        return loss

    try:
        optimizer.step(evaluate)
        complete = True
    except OutOfTime:
        complete = False
    return [value.detach() for value in weights], complete
