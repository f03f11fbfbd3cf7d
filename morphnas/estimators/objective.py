"""What networks are chosen by and trained on where that is the user's own: `metric` and `loss` of an estimator."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from inspect import signature
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names
from torch import Tensor, nn
from torch.nn import functional as F

from morphnas.estimators.inputs import Problem
from morphnas.estimators.labels import Labels
from morphnas.estimators.targets import Indicators, Target, Values
from morphnas.train.data import Examples
from morphnas.train.goal import Goal, Own, Unmeasured, Weights

SURE = 20.0
"""Logit of an answer that there is no doubt about."""
TRIED = 512
"""Examples that a loss is tried with."""

Metric = str | Callable[..., float] | None
"""A name of scikit-learn's scorers, or a function (estimator, x, y) like these."""
Loss = Callable[[Tensor, Tensor], Tensor] | None
"""A function (outputs, y), or a module."""


def check_metric(metric: Metric) -> None:
    """ValueError for what is no metric."""
    if metric is None or (isinstance(metric, str) and metric in get_scorer_names()):
        return
    names = "one of scikit-learn's scorers (sklearn.metrics.get_scorer_names() lists them)"
    if isinstance(metric, str):
        raise ValueError(f"metric must be {names}, or a function, not {metric!r:.100}")
    if not callable(metric):
        raise ValueError(f"metric must be None, {names}, or a function (estimator, x, y), not {metric!r:.100}")
    try:
        signature(metric).bind(None, None, None)
    except TypeError:
        name = getattr(metric, "__name__", "f")
        raise ValueError(
            f"metric must be a function (estimator, x, y), {name} is none: sklearn.metrics.make_scorer({name}, "
            "greater_is_better=...) makes one of a function (y_true, y_pred)"
        ) from None
    except ValueError:  # it does not say what it takes: it is tried
        pass


def check_loss(loss: Loss) -> None:
    """ValueError for what is no loss."""
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        hint = f": {loss.__name__}() makes one" if isinstance(loss, type) else ""
        raise ValueError(f"loss must be None, or a function (outputs, y) or a module like it, not {loss!r:.100}{hint}")


def recordable(loss: Loss) -> bool:
    """Whether steps with it may be replayed on a GPU: PyTorch's own do the same each time, a user's may not."""
    return loss is None or (getattr(loss, "__module__", None) or "").partition(".")[0] == "torch"


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What a scorer takes for a fitted classifier: its x are the outputs of a network."""

    def __init__(self, target: Labels | Indicators) -> None:
        self.target = target
        self.classes_ = [np.array([0, 1])] * target.k if isinstance(target, Indicators) else target.classes

    def predict_proba(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.target.probabilities(torch.from_numpy(x))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        return self.target.likeliest(self.predict_proba(x))


class _Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The same for a regressor."""

    def __init__(self, target: Values) -> None:
        self.target = target

    def predict(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return _flat(self.target, self.target.decode(x))


def _flat(target: Values, amounts: NDArray[Any]) -> NDArray[Any]:
    return amounts[:, 0] if target.flat else amounts


@dataclass(frozen=True, eq=False)
class Scorer:
    """A metric of examples' y as the user gave it, and of what a network predicts."""

    metric: str | Callable[..., float]
    target: Target

    @property
    def name(self) -> str:
        """The scorer's, or the function's."""
        if isinstance(self.metric, str):
            return self.metric
        function = getattr(self.metric, "_score_func", self.metric)
        return str(getattr(function, "__name__", type(function).__name__))

    @cached_property
    def _estimator(self) -> _Classifier | _Regressor:
        return _Regressor(self.target) if isinstance(self.target, Values) else _Classifier(self.target)

    def _truth(self, y: NDArray[Any]) -> NDArray[Any]:
        if isinstance(self.target, Values):
            return _flat(self.target, self.target.decode(y))
        return self.target.classes[y] if isinstance(self.target, Labels) else y.astype(np.int64)

    def __call__(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> float:
        scorer = get_scorer(self.metric)  # a function as it is
        counted = {} if weights is None else {"sample_weight": weights.cpu().numpy()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # as where a class is not predicted yet, at every epoch
                said = outputs.detach().cpu().numpy()
                value = float(scorer(self._estimator, said, self._truth(y.cpu().numpy()), **counted))
        except Exception as error:
            raise Unmeasured(f"the metric {self.name} cannot be computed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise Unmeasured(f"the metric {self.name} is {value}")
        return value


@dataclass(frozen=True, eq=False)
class Lost:
    """A loss of outputs and y as the user knows them: of labels logits and indices of classes, of amounts both in the
    units of y."""

    loss: Callable[[Tensor, Tensor], Tensor]
    target: Target
    _there: dict[torch.device, Any] = field(default_factory=dict)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        if isinstance(self.target, Values):
            mean, std = (_number(tuple(each.tolist()), outputs.device) for each in (self.target.mean, self.target.std))
            outputs, y = (each.double() * std + mean for each in (outputs, y))
            if self.target.flat:
                outputs, y = outputs[:, 0], y[:, 0]
        losses: Any = self._on(outputs.device)(outputs, y)
        if not isinstance(losses, Tensor):
            raise TypeError(f"it must give a tensor, not {losses!r:.100}")
        return losses.flatten(1).mean(1).float() if losses.ndim > 1 else losses.float()

    def _on(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss; of a module a copy, where its tensors are on the device."""
        if not isinstance(self.loss, nn.Module):
            return self.loss
        if device not in self._there:
            self._there[device] = copy.deepcopy(self.loss).requires_grad_(requires_grad=False).to(device)
        there: nn.Module = self._there[device]
        return there

    def __getstate__(self) -> dict[str, Any]:
        return {"loss": self.loss, "target": self.target, "_there": {}}


@lru_cache(16)
def _number(values: tuple[float, ...], device: torch.device) -> Tensor:
    """As a tensor that is made once, since a recorded step cannot copy anything to its device."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def aimed(problem: Problem, metric: Metric, loss: Loss) -> Problem:
    """The problem with a goal of the user's own, tried on its examples.

    ValueError where a metric or a loss cannot be computed of them, or is better for wrong answers than for right ones.
    """
    if metric is None and loss is None:
        return problem
    task, target = problem.task, problem.target
    goal = Own(task.goal)
    if metric is not None:
        goal = replace(goal, metric=Scorer(metric, target))
        for part in (task.judge, problem.chooser):
            if part is not None:
                _try_metric(goal, part)
    if loss is not None:
        goal = _scaled(replace(goal, criterion=Lost(loss, target)), task.train[:TRIED])
    try:
        cloudpickle.dumps(goal)
    except Exception as error:
        raise ValueError(f"metric and loss must be such that other processes can have them: {error}") from error
    return replace(problem, task=replace(task, goal=goal))


def _right(goal: Goal, y: Tensor) -> Tensor:
    """Outputs that say what is true."""
    if y.dtype == torch.int64:
        return SURE * F.one_hot(y, goal.outputs).float()
    return SURE * (2 * y - 1) if isinstance(goal, Own) and goal.usual.measure == "accuracy" else y.clone()


def _try_metric(goal: Own, part: Examples) -> None:
    metric = goal.metric
    assert metric is not None
    y, weights = part.y.cpu(), None if part.weights is None else part.weights.cpu()
    right = _right(goal, y)
    distinct = right.unique(dim=0)
    others = [right.roll(1, 0), *(one.expand_as(right) for one in distinct[:: max(1, len(distinct) // 8)])]
    try:
        best, rest = metric(right, y, weights), [metric(other, y, weights) for other in others]
    except Unmeasured as error:
        hint = "; it must take a sample_weight, as examples have weights" if "sample_weight" in str(error) else ""
        raise ValueError(f"metric: tried on the validation examples, {error}{hint}") from error
    if best < max(rest):
        raise ValueError(
            f"metric: {metric.name} is {best:.4g} for right answers and {max(rest):.4g} for wrong ones, but more must "
            "be better: make_scorer(..., greater_is_better=False) turns it round"
        )
    if best == min(rest):
        raise ValueError(f"metric: {metric.name} is {best:.4g} for right answers and for wrong ones")


def _scaled(goal: Own, some: Examples) -> Own:
    """The goal with the scale of its loss, found out from what it says of random outputs, and its ignorance."""
    criterion, usual, y = goal.criterion, goal.usual, some.y
    assert criterion is not None
    outputs = torch.randn(len(some), goal.outputs, generator=torch.Generator().manual_seed(0)).to(y.device)

    def asked(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        """The mean of random outputs, and how steep it is."""
        said = outputs.clone().requires_grad_()
        mean = loss(said, y)
        mean.backward()
        return mean.item(), 0.0 if said.grad is None else said.grad.square().mean().sqrt().item()

    try:
        _check_losses(criterion(outputs, y), len(some), some.weights is not None)
        value, steep = asked(goal.loss)
        with torch.no_grad():
            right, wrong = (goal.loss(sign * _right(goal, y), y).item() for sign in (1, -1))
    except Exception as error:
        raise ValueError(f"loss: tried on training examples it failed: {type(error).__name__}: {error}") from error
    if not (math.isfinite(value) and 0 < steep < math.inf):
        raise ValueError(f"loss: of random outputs it is {value:.4g}, and its gradient {steep:.4g}")
    if not right < wrong:
        raise ValueError(
            f"loss: it is {right:.4g} for right outputs and {wrong:.4g} for wrong ones, but less must be better"
        )
    scale = asked(usual.loss)[1] / steep
    return replace(goal, scale=scale, ignorance=max(usual.ignorance, abs(scale * value)))


def _check_losses(losses: Tensor, n: int, weighted: bool) -> None:
    if losses.shape not in ((n,), *([] if weighted else [()])):
        words = f"a loss for each, ({n},)" + (", as they have weights" if weighted else ", or their mean")
        raise ValueError(f"of {n} examples it must give {words}, not {tuple(losses.shape)}")
