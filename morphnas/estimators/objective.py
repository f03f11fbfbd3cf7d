"""The user-defined `metric` and `loss` of an estimator: their checks, and the goal that they define."""

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

CONFIDENT_LOGIT = 20.0
"""Logit of a prediction without any doubt."""
LOSS_EXAMPLES = 512
"""Maximum number of training examples on which a loss is checked."""
ROUNDING = 1e-6
"""Standard deviations below which decoded values of y count as 0: networks learn y as float32."""
METRIC_SHARE = 0.02
"""Share of the time left for checking a metric on wrong predictions."""
MAX_METRIC = 1e100
"""Bound on the absolute value of a metric: the square of a much larger one would overflow."""
RESERVED_NAMES = ("accuracy", "R2", LOG_LOSS)
"""Names of the standard metrics and losses, which a user-defined function must not be shown under."""
_CPU = torch.device("cpu")

Metric = str | Callable[..., float] | None
"""The name of a scikit-learn scorer, or a function (estimator, x, y) like these scorers."""
Loss = Callable[[Tensor, Tensor], Tensor] | None
"""A function or module (outputs, y)."""


def check_metric(metric: Metric) -> None:
    """ValueError for an invalid metric."""
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
    except ValueError:  # it has no signature; calls of it will tell
        pass


def check_loss(loss: Loss) -> None:
    """ValueError for an invalid loss."""
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        hint = f": use {loss.__name__}()" if isinstance(loss, type) else ""
        raise ValueError(f"loss must be None, or a function (outputs, y) or a module like it, not {loss!r:.100}{hint}")


def check_functions_given(settings: Any, metric: Metric, loss: Loss) -> None:
    """ValueError if the fit had a function as metric or loss, which run.json does not store, and none is given now.

    settings: those in run.json.
    """
    for name, function in (("metric", metric), ("loss", loss)):
        stored = settings.get(name) if isinstance(settings, dict) else None
        if function is None and stored is not None and stored not in get_scorer_names():
            raise ValueError(f"the fit had {name}={stored:.100}, which a run does not store: set {name} again")


def is_capturable(loss: Loss) -> bool:
    """Whether steps with this loss may be captured as CUDA graphs.

    Only with PyTorch's own losses: a user-defined one may do something else in each call, which a replay would not.
    """
    return loss is None or (getattr(loss, "__module__", None) or "").partition(".")[0] == "torch"


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A fitted classifier for scorers, whose x are the outputs of a network."""

    def __init__(self, target: ClassTarget | MultiLabelTarget, classes: Any) -> None:
        self.target = target
        self.classes_ = classes

    def predict_proba(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.target.probabilities(torch.from_numpy(x))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        probabilities = self.predict_proba(x)
        if isinstance(self.target, MultiLabelTarget):
            return self.target.most_probable(probabilities)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return labels


class _Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A fitted regressor for scorers, whose x are the outputs of a network."""

    def __init__(self, target: RegressionTarget) -> None:
        self.target = target

    def predict(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return self.target.predictions(x)


@dataclass(frozen=True, eq=False)
class Scorer:
    """A user-defined metric as a function of outputs and encoded y, which it decodes for the user's scorer.

    Labels of kinds that scikit-learn's metrics do not take, such as tuples, are replaced by their class indices.
    """

    metric: str | Callable[..., float]
    target: Target

    @property
    def name(self) -> str:
        """The name of the scorer or the function."""
        if isinstance(self.metric, str):
            return self.metric
        prefix = "neg_" if getattr(self.metric, "_sign", 1) < 0 else ""
        return prefix + _display_name(getattr(self.metric, "_score_func", self.metric))

    @cached_property
    def _classes(self) -> Any:
        if isinstance(self.target, MultiLabelTarget):
            return [np.array([0, 1])] * self.target.k
        classes = self.target.classes if isinstance(self.target, ClassTarget) else np.empty(0)
        return np.arange(len(classes)) if classes.dtype.kind in "OS" else classes

    @cached_property
    def _estimator(self) -> _Classifier | _Regressor:
        return (
            _Regressor(self.target)
            if isinstance(self.target, RegressionTarget)
            else _Classifier(self.target, self._classes)
        )

    def _decode(self, y: NDArray[Any]) -> NDArray[Any]:
        """y as the user gave it."""
        if isinstance(self.target, RegressionTarget):
            std = self.target.std[0] if self.target.single_output else self.target.std
            values = self.target.predictions(y)
            return np.where(np.abs(values) < ROUNDING * std, 0.0, values)
        labels: NDArray[Any] = self._classes[y] if isinstance(self.target, ClassTarget) else y.astype(np.int64)
        return labels

    def __call__(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> float:
        scorer = get_scorer(self.metric)  # returns a function unchanged
        sample_weight = {} if weights is None else {"sample_weight": weights.cpu().numpy()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # such as that a class is not predicted yet, in each epoch
                x = outputs.detach().cpu().numpy()
                value = float(scorer(self._estimator, x, self._decode(y.cpu().numpy()), **sample_weight))
        except Exception as error:
            raise UndefinedMetric(
                f"the metric {self.name} cannot be computed: {type(error).__name__}: {error}"
            ) from error
        if not abs(value) < MAX_METRIC:
            raise UndefinedMetric(f"the metric {self.name} is {value}")
        return value


def _display_name(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return f"{name} (own)" if name in RESERVED_NAMES else name


@dataclass(frozen=True, eq=False)
class UserLoss:
    """A user-defined loss as a function of outputs and encoded y.

    The user's function gets logits and class indices (for multi-label data 0 and 1) or, for regression, predictions and
    y in the units of y.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    target: Target

    def __getstate__(self) -> dict[str, Any]:
        """The state with a module moved to the CPU: other processes may not have its device."""
        loss = copy.deepcopy(self.loss).to(_CPU) if isinstance(self.loss, nn.Module) else self.loss
        return {"loss": loss, "target": self.target}

    @property
    def name(self) -> str:
        """The name of the function or the module's class."""
        return _display_name(self.loss)

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The losses (n,) or their mean. The function gets copies, so that it cannot change outputs and y."""
        if isinstance(self.target, RegressionTarget):
            mean, std = (_constant(tuple(v.tolist()), outputs.device) for v in (self.target.mean, self.target.std))
            outputs, y = (values.double() * std + mean for values in (outputs, y))
            y = torch.where(y.abs() < ROUNDING * std, 0.0, y)
            if self.target.single_output:
                outputs, y = outputs[:, 0], y[:, 0]
        else:
            outputs, y = outputs.float().clone(), y.clone()  # float32, like the tensors that a loss may hold
        if isinstance(self.loss, nn.Module):
            self.loss.to(outputs.device)
        losses: Any = self.loss(outputs, y)
        if not isinstance(losses, Tensor):
            raise TypeError(f"it must return a tensor, not {losses!r:.100}")
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


@lru_cache(16)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a float64 tensor, cached, as nothing can be copied to the device during CUDA graph capture."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def with_objective(
    problem: Problem, metric: Metric, loss: Loss, deadline: Deadline = NEVER, other_processes: bool = False
) -> Problem:
    """The problem with a user-defined metric and loss as its goal, after a check of both on its examples.

    The metric is checked for about `METRIC_SHARE` of the time left. other_processes: whether the goal will be sent to
    other processes. ValueError if a metric or loss cannot be computed, does not fit the kind of y, is better for wrong
    outputs than for right ones, or cannot be sent.
    """
    if metric is None and loss is None:
        return problem
    task, target = problem.task, problem.target
    goal = CustomGoal(task.goal)
    if metric is not None:
        goal = replace(goal, metric=Scorer(metric, target))
        _try_metric(goal, task.evaluation_set, Deadline.after(METRIC_SHARE * deadline.left, deadline.clock))
    if isinstance(target, RegressionTarget) and isinstance(
        loss, (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss)
    ):
        raise ValueError(f"loss: {loss} is for classification; for regression use torch.nn.MSELoss() or L1Loss()")
    if loss is not None:
        frozen = copy.deepcopy(loss).requires_grad_(requires_grad=False) if isinstance(loss, nn.Module) else loss
        goal = _with_loss_scale(replace(goal, criterion=UserLoss(frozen, target)), task.train[:LOSS_EXAMPLES])
    if other_processes:
        for function in (metric, loss):
            send_by_value(function)
        try:
            cloudpickle.dumps(goal)
        except Exception as error:
            raise ValueError(f"metric and loss must be picklable, to be sent to other processes: {error}") from error
    return replace(problem, task=replace(task, goal=goal))


def _correct_outputs(goal: CustomGoal, y: Tensor) -> Tensor:
    """Outputs that predict y."""
    if y.dtype == torch.int64:
        return CONFIDENT_LOGIT * F.one_hot(y, goal.outputs).float()
    return CONFIDENT_LOGIT * (2 * y - 1) if isinstance(goal.standard, MultiLabel) else y.clone()


def _wrong_outputs(correct: Tensor) -> Iterator[Tensor]:
    """Outputs that predict something else: first the y of other examples, then the same for all examples."""
    distinct = correct.unique(dim=0)
    constants = (row.expand_as(correct) for row in distinct[:: max(1, len(distinct) // 8)])
    for wrong in (correct.roll(1, 0), *constants):
        if not torch.equal(wrong, correct):
            yield wrong


def _try_metric(goal: CustomGoal, examples: Examples, until: Deadline) -> None:
    """Try the metric on outputs that predict y, and on others that do not.

    ValueError if it is undefined for all, lower for the correct ones than for some wrong ones, or the same for all.
    """
    metric, y = goal.metric, examples.y.cpu()
    assert metric is not None
    weights, correct = None if examples.weights is None else examples.weights.cpu(), _correct_outputs(goal, y)
    wrong_values, errors = list[float](), list[str]()
    value = None
    try:
        value = metric(correct, y, weights)
    except UndefinedMetric as error:
        errors.append(str(error))
    for outputs in _wrong_outputs(correct):
        if wrong_values and until.passed:
            break
        try:
            wrong_values.append(metric(outputs, y, weights))
        except UndefinedMetric as error:
            errors.append(str(error))
    if value is None and not wrong_values:
        (kind,) = goal.standard.to_json()
        what = {"classes": "labels", "tags": "multi-label y", "amounts": "numeric y"}[kind]
        hint = "; it must take a sample_weight, as examples have weights" if "sample_weight" in errors[0] else ""
        message = f"metric: {metric.name} does not work for {what}: on the validation examples"
        raise ValueError(f"{message}, {errors[0]}{hint}")
    if value is None or not wrong_values:
        return
    best_wrong = max(wrong_values)
    if value < best_wrong and not math.isclose(value, best_wrong):
        raise ValueError(
            f"metric: {metric.name} is {value:.4g} for right answers and {best_wrong:.4g} for wrong ones, but higher "
            "must be better: make_scorer(..., greater_is_better=False) negates it"
        )
    if value == min(wrong_values) and not errors:
        raise ValueError(f"metric: {metric.name} is {value:.4g} for right and wrong answers alike")


def _with_loss_scale(goal: CustomGoal, subset: Examples) -> CustomGoal:
    """The goal with the scale of its loss and its baseline, both measured on random outputs.

    On the CPU: an invalid value, such as a probability above 1, raises an error there, but on a GPU aborts all further
    work of the process. On the device of the examples only if the loss has tensors there.
    """
    try:
        return _measure_loss_scale(goal, subset.to(_CPU, x=False))
    except ValueError as error:
        if subset.y.device == _CPU or "device" not in str(error):
            raise
    return _measure_loss_scale(goal, subset)


def _measure_loss_scale(goal: CustomGoal, subset: Examples) -> CustomGoal:
    """See `_with_loss_scale`; ValueError for a loss that cannot be trained with."""
    criterion, standard, y = goal.criterion, goal.standard, subset.y
    assert criterion is not None
    outputs = torch.randn(len(subset), goal.outputs, generator=torch.Generator().manual_seed(0)).to(y.device)

    def loss_and_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        """The mean loss of the random outputs, and the root mean square of its gradient."""
        leaf = outputs.clone().requires_grad_()
        mean = loss(leaf, y).mean()
        mean.backward()
        return mean.item(), 0.0 if leaf.grad is None else leaf.grad.double().square().mean().sqrt().item()

    def loss_of_correct(factor: float) -> float:
        """The mean loss of the correct outputs times a factor."""
        return criterion(factor * _correct_outputs(goal, y), y).mean().item()

    try:
        with torch.random.fork_rng([y.device] if y.device.type == "cuda" else []):
            torch.manual_seed(0)  # for a loss that draws random numbers
            _check_losses(criterion(outputs, y), len(subset), subset.weights is not None)
            value, gradient = loss_and_gradient(criterion)
            with torch.no_grad():
                correct, wrong, confident = (loss_of_correct(factor) for factor in (1, -1, 10))
                is_multi_label = isinstance(standard, MultiLabel)
                raised = criterion(outputs + CONFIDENT_LOGIT, y).mean().item() if is_multi_label else math.nan
    except Exception as error:
        raise ValueError(f"loss: it failed on training examples: {type(error).__name__}: {error}") from error
    if not (math.isfinite(value) and 0 < gradient < math.inf):
        raise ValueError(
            f"loss: for random outputs, negative ones too, it is {value:.4g}, with gradient {gradient:.4g}: the "
            "loss must be finite, its gradient also above 0"
        )
    if not correct < wrong:
        values = f"{correct:.4g} for right outputs and {wrong:.4g} for wrong ones"
        raise ValueError(f"loss: it is {values}, but lower must be better")
    if correct - confident > (wrong - correct) / 2:
        raise ValueError(
            f"loss: it falls without bound, from {correct:.4g} to {confident:.4g} if right outputs are ten times as "
            "large: outputs are logits, as for CrossEntropyLoss, not probabilities or their logarithms"
        )
    if math.isclose(raised, value, rel_tol=1e-4):
        raise ValueError(
            "loss: it does not change if the same number is added to all logits of an example, so it is for a single "
            "label: multi-label data needs one that treats each label separately, such as torch.nn.BCEWithLogitsLoss()"
        )
    scale = loss_and_gradient(standard.loss)[1] / gradient
    return replace(goal, scale=scale, criterion_baseline=max(standard.baseline_loss, abs(scale * value)))


def _check_losses(losses: Tensor, n: int, weighted: bool) -> None:
    if losses.shape not in ((n,), *([] if weighted else [()])):
        per_example = f'a loss for each, ({n},), as they have weights (as with reduction="none")'
        expected = per_example if weighted else f"a loss for each, ({n},), or their mean"
        raise ValueError(f"for {n} examples it must return {expected}, not {tuple(losses.shape)}")
