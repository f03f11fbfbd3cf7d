"""What networks are chosen by and trained on where that is the user's own: `metric` and `loss` of an estimator."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.targets import MultiLabelTarget, RegressionTarget, Target
from morphnas.run.transport import send_by_value
from morphnas.train.data import Examples
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.goal import CustomGoal, MultiLabel, UndefinedMetric, Weights
from morphnas.train.recipe import LOG_LOSS

SURE = 20.0
"""Logit of an answer that there is no doubt about."""
TRIED = 512
"""Examples that a loss is tried with."""
NOTHING = 1e-6
"""Deviations of an amount that are the rounding of 0: networks learn y as float32."""
SHARE = 0.02
"""Of the time left, for wrong answers that a metric is tried with."""
LARGEST = 1e100
"""Of a metric, either way: more has no square."""
USUAL = ("accuracy", "R2", LOG_LOSS)
"""Names that mean something else than a function of a user's."""
_CPU = torch.device("cpu")

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
            f"metric must be a function (estimator, x, y), but {name} is not: sklearn.metrics.make_scorer({name}, "
            "greater_is_better=...) makes one from a function (y_true, y_pred)"
        ) from None
    except ValueError:  # it does not say what it takes: it is tried
        pass


def check_loss(loss: Loss) -> None:
    """ValueError for what is no loss."""
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        hint = f": use {loss.__name__}()" if isinstance(loss, type) else ""
        raise ValueError(f"loss must be None, or a function (outputs, y) or a module like it, not {loss!r:.100}{hint}")


def check_said(settings: Any, metric: Metric, loss: Loss) -> None:
    """ValueError where a run was for a function, which its folder does not hold, and none is given.

    settings: as run.json keeps them.
    """
    for name, given in (("metric", metric), ("loss", loss)):
        had = settings.get(name) if isinstance(settings, dict) else None
        if given is None and had is not None and had not in get_scorer_names():
            raise ValueError(f"the fit had {name}={had:.100}, which a run does not store: set {name} again")


def recordable(loss: Loss) -> bool:
    """Whether steps with it may be replayed on a GPU: PyTorch's own do the same each time, a user's may not."""
    return loss is None or (getattr(loss, "__module__", None) or "").partition(".")[0] == "torch"


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What a scorer takes for a fitted classifier: its x are the outputs of a network."""

    def __init__(self, target: ClassTarget | MultiLabelTarget, classes: Any) -> None:
        self.target = target
        self.classes_ = classes

    def predict_proba(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.target.probabilities(torch.from_numpy(x))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        chances = self.predict_proba(x)
        tags = isinstance(self.target, MultiLabelTarget)
        said: NDArray[Any] = self.target.likeliest(chances) if tags else self.classes_[chances.argmax(1)]
        return said


class _Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The same for a regressor."""

    def __init__(self, target: RegressionTarget) -> None:
        self.target = target

    def predict(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.target.amounts(x)


@dataclass(frozen=True, eq=False)
class Scorer:
    """A metric of examples' y as the user gave it, and of what a network predicts.

    Labels that scikit-learn's metrics do not take, as tuples, are their indices there.
    """

    metric: str | Callable[..., float]
    target: Target

    @property
    def name(self) -> str:
        """The scorer's, or the function's."""
        if isinstance(self.metric, str):
            return self.metric
        turned = "neg_" if getattr(self.metric, "_sign", 1) < 0 else ""
        return turned + _name(getattr(self.metric, "_score_func", self.metric))

    @cached_property
    def _classes(self) -> Any:
        if isinstance(self.target, MultiLabelTarget):
            return [np.array([0, 1])] * self.target.k
        kept = self.target.classes if isinstance(self.target, ClassTarget) else np.empty(0)
        return np.arange(len(kept)) if kept.dtype.kind in "OS" else kept

    @cached_property
    def _estimator(self) -> _Classifier | _Regressor:
        return (
            _Regressor(self.target)
            if isinstance(self.target, RegressionTarget)
            else _Classifier(self.target, self._classes)
        )

    def _truth(self, y: NDArray[Any]) -> NDArray[Any]:
        if isinstance(self.target, RegressionTarget):
            units = self.target.std[0] if self.target.flat else self.target.std
            amounts = self.target.amounts(y)
            return np.where(np.abs(amounts) < NOTHING * units, 0.0, amounts)
        truth: NDArray[Any] = self._classes[y] if isinstance(self.target, ClassTarget) else y.astype(np.int64)
        return truth

    def __call__(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> float:
        scorer = get_scorer(self.metric)  # a function as it is
        counted = {} if weights is None else {"sample_weight": weights.cpu().numpy()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # as where a class is not predicted yet, at every epoch
                said = outputs.detach().cpu().numpy()
                value = float(scorer(self._estimator, said, self._truth(y.cpu().numpy()), **counted))
        except Exception as error:
            raise UndefinedMetric(
                f"the metric {self.name} cannot be computed: {type(error).__name__}: {error}"
            ) from error
        if not abs(value) < LARGEST:
            raise UndefinedMetric(f"the metric {self.name} is {value}")
        return value


def _name(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return f"{name} (own)" if name in USUAL else name


@dataclass(frozen=True, eq=False)
class UserLoss:
    """A loss of outputs and y as the user knows them: of labels logits and indices of classes, of amounts both in the
    units of y."""

    loss: Callable[[Tensor, Tensor], Tensor]
    target: Target

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which may not have the device that a module is on."""
        loss = copy.deepcopy(self.loss).to(_CPU) if isinstance(self.loss, nn.Module) else self.loss
        return {"loss": loss, "target": self.target}

    @property
    def name(self) -> str:
        """The function's, or the module's."""
        return _name(self.loss)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Neither is changed, whatever the loss does."""
        if isinstance(self.target, RegressionTarget):
            mean, std = (_number(tuple(each.tolist()), outputs.device) for each in (self.target.mean, self.target.std))
            outputs, y = (each.double() * std + mean for each in (outputs, y))
            y = torch.where(y.abs() < NOTHING * std, 0.0, y)
            if self.target.flat:
                outputs, y = outputs[:, 0], y[:, 0]
        else:
            outputs, y = outputs.float().clone(), y.clone()  # as the tensors of a loss are
        if isinstance(self.loss, nn.Module):
            self.loss.to(outputs.device)
        losses: Any = self.loss(outputs, y)
        if not isinstance(losses, Tensor):
            raise TypeError(f"it must return a tensor, not {losses!r:.100}")
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


@lru_cache(16)
def _number(values: tuple[float, ...], device: torch.device) -> Tensor:
    """As a tensor that is made once, since a recorded step cannot copy anything to its device."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def aimed(problem: Problem, metric: Metric, loss: Loss, deadline: Deadline = NEVER, apart: bool = False) -> Problem:
    """The problem with a goal of the user's own, tried on its examples: a metric for hardly longer than `SHARE` of the
    time left. apart: whether other processes are to have it.

    ValueError where a metric or a loss cannot be computed of them, or is better for wrong answers than for right ones.
    """
    if metric is None and loss is None:
        return problem
    task, target = problem.task, problem.target
    goal = CustomGoal(task.goal)
    if metric is not None:
        goal = replace(goal, metric=Scorer(metric, target))
        _try_metric(goal, task.evaluation_set, Deadline.after(SHARE * deadline.left, deadline.clock))
    if isinstance(target, RegressionTarget) and isinstance(
        loss, (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss)
    ):
        raise ValueError(f"loss: {loss} is for classification; for regression use torch.nn.MSELoss() or L1Loss()")
    if loss is not None:
        own = copy.deepcopy(loss).requires_grad_(requires_grad=False) if isinstance(loss, nn.Module) else loss
        goal = _scaled(replace(goal, criterion=UserLoss(own, target)), task.train[:TRIED])
    if apart:
        for theirs in (metric, loss):
            send_by_value(theirs)
        try:
            cloudpickle.dumps(goal)
        except Exception as error:
            raise ValueError(f"metric and loss must be picklable, to be sent to other processes: {error}") from error
    return replace(problem, task=replace(task, goal=goal))


def _right(goal: CustomGoal, y: Tensor) -> Tensor:
    """Outputs that say what is true."""
    if y.dtype == torch.int64:
        return SURE * F.one_hot(y, goal.outputs).float()
    return SURE * (2 * y - 1) if isinstance(goal.standard, MultiLabel) else y.clone()


def _wrong(right: Tensor) -> Iterator[Tensor]:
    """Outputs that say something else: what is true of others, and the same of all."""
    kinds = right.unique(dim=0)
    for other in (right.roll(1, 0), *(kind.expand_as(right) for kind in kinds[:: max(1, len(kinds) // 8)])):
        if not torch.equal(other, right):
            yield other


def _try_metric(goal: CustomGoal, part: Examples, until: Deadline) -> None:
    """ValueError where no answer can be measured, or a wrong one is better than the right one."""
    metric, y = goal.metric, part.y.cpu()
    assert metric is not None
    weights, right = None if part.weights is None else part.weights.cpu(), _right(goal, part.y.cpu())
    values, problems = list[float](), list[str]()
    best = None
    try:
        best = metric(right, y, weights)
    except UndefinedMetric as error:
        problems.append(str(error))
    for other in _wrong(right):
        if values and until.passed:
            break
        try:
            values.append(metric(other, y, weights))
        except UndefinedMetric as error:
            problems.append(str(error))
    if best is None and not values:
        (kind,) = goal.standard.to_json()
        what = "labels" if kind == "classes" else kind
        hint = "; it must take a sample_weight, as examples have weights" if "sample_weight" in problems[0] else ""
        words = f"metric: {metric.name} cannot score these {what}: tried on the validation examples"
        raise ValueError(f"{words}, {problems[0]}{hint}")
    if best is None or not values:
        return
    if best < max(values) and not math.isclose(best, max(values)):
        raise ValueError(
            f"metric: {metric.name} is {best:.4g} for right answers and {max(values):.4g} for wrong ones, but higher "
            "must be better: make_scorer(..., greater_is_better=False) negates it"
        )
    if best == min(values) and not problems:
        raise ValueError(f"metric: {metric.name} is {best:.4g} for right and wrong answers alike")


def _scaled(goal: CustomGoal, some: Examples) -> CustomGoal:
    """The goal with the scale of its loss, found out from what it says of random outputs, and its `baseline_loss`.

    On the CPU: what is an error there, as a probability above 1, is the end of a GPU for the whole process. On the
    examples' device only where the loss has tensors there.
    """
    try:
        return _scaled_here(goal, some.to(_CPU, x=False))
    except ValueError as error:
        if some.y.device == _CPU or "device" not in str(error):
            raise
    return _scaled_here(goal, some)


def _scaled_here(goal: CustomGoal, some: Examples) -> CustomGoal:
    """See `_scaled`."""
    criterion, usual, y = goal.criterion, goal.standard, some.y
    assert criterion is not None
    outputs = torch.randn(len(some), goal.outputs, generator=torch.Generator().manual_seed(0)).to(y.device)

    def asked(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        """The mean of random outputs, and how steep it is."""
        said = outputs.clone().requires_grad_()
        mean = loss(said, y).mean()
        mean.backward()
        return mean.item(), 0.0 if said.grad is None else said.grad.double().square().mean().sqrt().item()

    try:
        with torch.random.fork_rng([y.device] if y.device.type == "cuda" else []):
            torch.manual_seed(0)  # of a loss that draws
            _check_losses(criterion(outputs, y), len(some), some.weights is not None)
            value, steep = asked(criterion)
            with torch.no_grad():
                right, wrong, surer = (criterion(by * _right(goal, y), y).mean().item() for by in (1, -1, 10))
                raised = criterion(outputs + SURE, y).mean().item() if isinstance(usual, MultiLabel) else math.nan
    except Exception as error:
        raise ValueError(f"loss: it failed on training examples: {type(error).__name__}: {error}") from error
    if not (math.isfinite(value) and 0 < steep < math.inf):
        raise ValueError(
            f"loss: for random outputs, negative ones too, it is {value:.4g}, with gradient {steep:.4g}: the "
            "loss must be finite, its gradient also above 0"
        )
    if not right < wrong:
        words = f"{right:.4g} for right outputs and {wrong:.4g} for wrong ones"
        raise ValueError(f"loss: it is {words}, but lower must be better")
    if right - surer > (wrong - right) / 2:
        raise ValueError(
            f"loss: it falls without bound, from {right:.4g} to {surer:.4g} if right outputs are ten times as large: "
            "outputs are logits, as for CrossEntropyLoss, not probabilities or their logarithms"
        )
    if math.isclose(raised, value, rel_tol=1e-4):
        raise ValueError(
            "loss: it does not change if all logits of an example are raised alike, so it is for a single right label: "
            "multi-label data needs one that treats each label separately, such as torch.nn.BCEWithLogitsLoss()"
        )
    scale = asked(usual.loss)[1] / steep
    return replace(goal, scale=scale, baseline_loss=max(usual.baseline_loss, abs(scale * value)))


def _check_losses(losses: Tensor, n: int, weighted: bool) -> None:
    if losses.shape not in ((n,), *([] if weighted else [()])):
        each = f'a loss for each, ({n},), as they have weights (as with reduction="none")'
        words = each if weighted else f"a loss for each, ({n},), or their mean"
        raise ValueError(f"for {n} examples it must return {words}, not {tuple(losses.shape)}")
