"""Goals: the loss, score, metric and calibration of classification, multi-label classification and regression."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from morphnas.train.recipe import LOG_LOSS

SMALLEST_ERROR = 1e-12
"""Mean squared errors below this count as this, so that scores stay finite."""
SQUARED_ERROR_SCALE = 0.125
"""Factor on squared errors. The largest curvature of the loss is then 1/4, as that of two-class cross-entropy in one
logit, so that the same learning rates suit both: with eight times the curvature many trainings diverge
(`benchmarks/amounts.py`).
"""

DISTILLATION_TEMPERATURE = 2.0
"""Temperature of distillation: the logits of both teacher and network are divided by it."""

Weights = Tensor | None
"""Sample weights (n,), float; None: equal."""


class Goal(Protocol):
    """What a network is trained for: loss, score, metric and calibration.

    In all methods `outputs` are a network's outputs (n, outputs), float, `y` the targets of the same n examples (their
    shape and dtype depend on the goal), and `weights` their sample weights.
    """

    @property
    def outputs(self) -> int:
        """Number of outputs per example: classes, labels, or regression targets."""
        ...

    @property
    def measure(self) -> str:
        """Name of the metric, such as "accuracy" or "R2"."""
        ...

    @property
    def baseline_loss(self) -> float:
        """The `loss` of an uninformed network: one that predicts the same for every example."""
        ...

    @property
    def standard(self) -> Goal:
        """The goal without user-defined metric and loss."""
        ...

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The training loss, a scalar: the mean over examples of their losses times their weights.

        smoothing: see `Recipe.label_smoothing`.
        """
        ...

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, weights: Weights = None) -> Tensor:
        """The loss against a teacher's outputs (n, outputs), with gradients of about the size of those of `loss`."""
        ...

    @property
    def objective(self) -> str:
        """What the score is based on: "log loss", or the name of the user-defined metric or loss."""
        ...

    @property
    def display_scale(self) -> float:
        """Factor from values of `loss` to those shown to users: it undoes the scaling of a user-defined loss."""
        ...

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """The score and the metric; higher is better for both.

        Networks and epochs are compared by the score: the user-defined metric; else minus the mean user-defined loss;
        else minus the mean log loss (for regression, the mean log-likelihood). The metric is what users are shown.
        """
        ...

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Error of each example, (n,), by the standard goal, whatever the user-defined metric or loss."""
        ...

    def objective_errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Error of each example, (n,), by the user-defined loss where it has one per example; otherwise `errors`."""
        ...

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        """The calibration temperature: outputs divided by it have the least loss on these examples.

        cautious: allow for mistakes that did not occur among so few examples, see `best_temperature`.
        """
        ...

    def baseline_metric(self, y: Tensor, weights: Weights = None) -> float:
        """The standard goal's metric of the best constant prediction: chance level."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The kind of goal and its number of outputs."""
        ...


class _StandardGoal(ABC):
    """A goal without user-defined metric or loss."""

    objective: ClassVar[str] = LOG_LOSS
    display_scale: ClassVar[float] = 1.0

    @property
    def standard(self) -> Self:
        return self

    @abstractmethod
    def errors(self, outputs: Tensor, y: Tensor) -> Tensor: ...

    def objective_errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.errors(outputs, y)


@dataclass(frozen=True)
class Classification(_StandardGoal):
    """One of `outputs` classes per example: outputs are logits, y class indices (n,) int64."""

    outputs: int
    measure: ClassVar[str] = "accuracy"

    @property
    def baseline_loss(self) -> float:
        """The cross-entropy of uniform probabilities."""
        return math.log(self.outputs)

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy."""
        if weights is None:
            return F.cross_entropy(outputs, y, label_smoothing=smoothing)
        return (F.cross_entropy(outputs, y, label_smoothing=smoothing, reduction="none") * weights).mean()

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, weights: Weights = None) -> Tensor:
        """Cross-entropy at `DISTILLATION_TEMPERATURE` (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2)."""
        targets = (teacher_outputs / DISTILLATION_TEMPERATURE).softmax(1)
        losses = F.cross_entropy(outputs / DISTILLATION_TEMPERATURE, targets, reduction="none")
        losses = losses * DISTILLATION_TEMPERATURE**2
        return (losses if weights is None else losses * weights).mean()

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """Minus the log loss, and the accuracy."""
        losses = F.cross_entropy(outputs.double(), y, reduction="none")
        return -_weighted_mean(losses, weights), _weighted_mean(outputs.argmax(1) == y, weights)

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """1 where the most likely class is wrong, else 0."""
        return (outputs.argmax(1) != y).double()

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        smoothing = cautious * min(1.0, self.outputs / (max(1, self.outputs - 1) * (len(y) + 2)))
        return best_temperature(outputs, lambda scaled: self.loss(scaled, y, weights, smoothing))

    def baseline_metric(self, y: Tensor, weights: Weights = None) -> float:
        """The share of the most frequent class."""
        counts = torch.bincount(y, weights)
        return float(counts.max() / counts.sum())

    def to_json(self) -> dict[str, Any]:
        return {"classes": self.outputs}


@dataclass(frozen=True)
class MultiLabel(_StandardGoal):
    """Any number of `outputs` labels per example: outputs are a logit per label, y (n, outputs) float32 of 0 and 1."""

    outputs: int
    measure: ClassVar[str] = "accuracy"

    @property
    def baseline_loss(self) -> float:
        """The binary cross-entropy of probabilities of 1/2."""
        return math.log(2)

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy, the mean over labels; smoothing moves targets towards 1/2."""
        losses = F.binary_cross_entropy_with_logits(outputs, y * (1 - smoothing) + smoothing / 2, reduction="none")
        return (losses if weights is None else losses * weights[:, None]).mean()

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, weights: Weights = None) -> Tensor:
        """Binary cross-entropy at `DISTILLATION_TEMPERATURE`."""
        targets = (teacher_outputs / DISTILLATION_TEMPERATURE).sigmoid()
        return self.loss(outputs / DISTILLATION_TEMPERATURE, targets, weights) * DISTILLATION_TEMPERATURE**2

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """Minus the log loss, the mean over labels, and the subset accuracy: the share of examples with all labels
        right."""
        losses = F.binary_cross_entropy_with_logits(outputs.double(), y.double(), reduction="none").mean(1)
        return -_weighted_mean(losses, weights), _weighted_mean(self.errors(outputs, y) == 0, weights)

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The share of labels that are wrong (Hamming loss), predicted at a probability of 1/2 or more."""
        return ((outputs >= 0) != (y > 0.5)).double().mean(1)

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        targets, smoothing = y.double(), cautious * 2 / (len(y) + 2)
        return best_temperature(outputs, lambda scaled: self.loss(scaled, targets, weights, smoothing))

    def baseline_metric(self, y: Tensor, weights: Weights = None) -> float:
        """The share of the most frequent combination of labels."""
        _, combination = torch.unique(y, dim=0, return_inverse=True)
        counts = torch.bincount(combination, weights)
        return float(counts.max() / counts.sum())

    def to_json(self) -> dict[str, Any]:
        return {"tags": self.outputs}


@dataclass(frozen=True)
class Regression(_StandardGoal):
    """`outputs` regression targets per example: y is (n, outputs) float32.

    Over the whole data set y is standardised, to mean 0 and standard deviation 1.
    """

    outputs: int
    measure: ClassVar[str] = "R2"

    @property
    def baseline_loss(self) -> float:
        """The loss of predicting the mean."""
        return self.outputs * SQUARED_ERROR_SCALE

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The squared error times `SQUARED_ERROR_SCALE`, summed over targets; smoothing has no effect."""
        squares = F.mse_loss(outputs, y, reduction="none")
        squares = squares if weights is None else squares * weights[:, None]
        return squares.mean() * (self.outputs * SQUARED_ERROR_SCALE)

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, weights: Weights = None) -> Tensor:
        """The `loss` with the teacher's outputs for y."""
        return self.loss(outputs, teacher_outputs, weights)

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """The mean log-likelihood, and the coefficient of determination R2, the mean over targets.

        The likelihood is of normal distributions around the outputs whose variance is the mean squared error: so
        halving all errors raises the score by the same amount whether they are small or large. The R2 of a constant
        target is relative to a variance of 1.
        """
        targets = y.double()
        counts = torch.ones_like(targets[:, 0]) if weights is None else weights.double()
        shares = (counts / counts.sum())[:, None]
        squares = ((outputs.double() - targets).square() * shares).sum(0)
        variances = ((targets - (targets * shares).sum(0)).square() * shares).sum(0)
        counted = targets[counts > 0]
        constant = counted.amax(0) == counted.amin(0)  # their variance is a rounding error
        r2 = 1 - (squares / torch.where(constant, torch.ones_like(variances), variances)).mean().item()
        return -0.5 * (1 + math.log(2 * math.pi * max(SMALLEST_ERROR, squares.mean().item()))), r2

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Squared errors, the mean over targets."""
        return (outputs.double() - y.double()).square().mean(1)

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        """1: outputs carry no confidence to calibrate."""
        return 1.0

    def baseline_metric(self, y: Tensor, weights: Weights = None) -> float:
        """0, the R2 of predicting the mean."""
        return 0.0

    def to_json(self) -> dict[str, Any]:
        return {"amounts": self.outputs}


class UndefinedMetric(ArithmeticError, ValueError):
    """A user-defined metric failed, or returned NaN or an infinite value."""


class Metric(Protocol):
    """A user-defined metric; higher is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> float:
        """The metric; UndefinedMetric where it has no finite value."""
        ...


class Criterion(Protocol):
    """A user-defined training loss."""

    @property
    def name(self) -> str: ...

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each example (n,), or their mean ()."""
        ...


@dataclass(frozen=True)
class CustomGoal:
    """A standard goal with a user-defined metric, a user-defined loss, or both.

    The score is the metric; without one, minus the user-defined loss. All else, such as calibration and distillation,
    is that of the standard goal.

    scale: factor on the user-defined loss in training, so that its gradients are as large as those of the standard loss
    and the same learning rates suit it. criterion_baseline: the baseline of the user-defined loss times `scale`.
    """

    standard: Goal
    metric: Metric | None = None
    criterion: Criterion | None = None
    scale: float = 1.0
    criterion_baseline: float = 1.0

    @property
    def baseline_loss(self) -> float:
        return self.standard.baseline_loss if self.criterion is None else self.criterion_baseline

    @property
    def outputs(self) -> int:
        return self.standard.outputs

    @property
    def measure(self) -> str:
        return self.standard.measure if self.metric is None else self.metric.name

    @property
    def objective(self) -> str:
        custom = self.criterion if self.metric is None else self.metric
        return self.standard.objective if custom is None else custom.name

    @property
    def display_scale(self) -> float:
        return 1.0 if self.criterion is None else 1 / self.scale

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The user-defined loss times `scale`, or the standard loss. Only the latter uses label smoothing."""
        if self.criterion is None:
            return self.standard.loss(outputs, y, weights, smoothing)
        losses = self.criterion(outputs, y)
        return ((losses if weights is None else losses * weights).mean() * self.scale).float()

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, weights: Weights = None) -> Tensor:
        return self.standard.distillation_loss(outputs, teacher_outputs, weights)

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        score, metric = self.standard.score_and_metric(outputs, y, weights)
        if self.criterion is not None:
            score = -_weighted_mean(self.criterion(outputs, y), weights)
        if self.metric is not None:
            score = metric = self.metric(outputs, y, weights)
        return score, metric

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.standard.errors(outputs, y)

    def objective_errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The user-defined loss, if it has a value for each example; otherwise the standard goal's errors."""
        losses = None if self.criterion is None else self.criterion(outputs, y)
        return self.standard.objective_errors(outputs, y) if losses is None or losses.ndim == 0 else losses

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        return self.standard.temperature(outputs, y, weights, cautious)

    def baseline_metric(self, y: Tensor, weights: Weights = None) -> float:
        """Chance level of the standard metric."""
        return self.standard.baseline_metric(y, weights)

    def to_json(self) -> dict[str, Any]:
        return self.standard.to_json()


def _weighted_mean(values: Tensor, weights: Weights) -> float:
    if weights is None:
        return values.double().mean().item()
    return ((values.double() * weights).sum() / weights.double().sum()).item()


def best_temperature(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """The temperature from 1/4 to 4 at which logits have the least loss (Guo et al. 2017, arXiv:1706.04599).

    It makes up for label smoothing, which leaves a network underconfident.

    loss: of float64 logits divided by a temperature. To be cautious, its targets should give the true label the
    probability (n + 1) / (n + 2), Laplace's rule of succession: n examples without a mistake do not show that there
    will be none (Platt 1999, "Probabilistic outputs for support vector machines", section 2.2).
    """
    from scipy.optimize import minimize_scalar  # slow to load, and trainings do not need it

    values = logits.double()

    def loss_at(log_temperature: float) -> float:
        return loss(values * math.exp(-log_temperature)).item()

    result = minimize_scalar(loss_at, bounds=(-math.log(4), math.log(4)), method="bounded", options={"xatol": 1e-3})
    return math.exp(result.x)
