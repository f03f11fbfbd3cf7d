"""What a network's outputs are to say of examples: which class each is of, which tags or which amounts it has."""

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
"""Mean squared error that counts as none."""
SQUARED_ERROR_SCALE = 0.125
"""What squared errors are multiplied by. Their loss is then as curved as that of two classes is in one logit at most, a
quarter, and goes with the same learning rates: eight times as curved, many trainings diverge (`benchmarks/amounts.py`).
"""

DISTILLATION_TEMPERATURE = 2.0
"""What a teacher's logits and the network's are divided by, to see what it holds for likely beside the likeliest."""

Weights = Tensor | None
"""What examples count for, (n,) float; None: all alike."""


class Goal(Protocol):
    """What trainings lower, and what tells how good a network is. Outputs are (n, outputs) float, y is as long."""

    @property
    def outputs(self) -> int:
        """That a network has for an example."""
        ...

    @property
    def measure(self) -> str:
        """What the metric is."""
        ...

    @property
    def baseline_loss(self) -> float:
        """The loss of a network that knows nothing of an example."""
        ...

    @property
    def standard(self) -> Goal:
        """It without what is a user's own."""
        ...

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The mean over examples, times their weights, to be lowered. smoothing: see `Recipe.label_smoothing`."""
        ...

    def distillation_loss(self, outputs: Tensor, said: Tensor, weights: Weights = None) -> Tensor:
        """The loss against what a teacher's outputs are, `said` (n, outputs), as steep as `loss`."""
        ...

    @property
    def objective(self) -> str:
        """What the score is of: "log loss", or the name of a metric or a loss of the user's own."""
        ...

    @property
    def display_scale(self) -> float:
        """What losses of trainings are to be multiplied by to be those that people know."""
        ...

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """The score, minus the mean loss, or a metric of the user's own, and the metric that people read; higher is
        better for both."""
        ...

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """How wrong every output is, (n), whatever the user is after."""
        ...

    def objective_errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """How wrong every output is, (n), as far as that is known for what the user is after."""
        ...

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        """What outputs are to be divided by to be as sure as these examples say that they may be.

        cautious: whether they are too few to say that there is no mistake, as `best_temperature` has it.
        """
        ...

    def chance(self, y: Tensor, weights: Weights = None) -> float:
        """The metric of saying the same of every example."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What kind it is of, and how many outputs it has."""
        ...


class _StandardGoal(ABC):
    """A goal with nothing of a user's own."""

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
    """Each example is of one of `outputs` classes: outputs are logits, y are indices (n,) int64."""

    outputs: int
    measure: ClassVar[str] = "accuracy"

    @property
    def baseline_loss(self) -> float:
        return math.log(self.outputs)

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        if weights is None:
            return F.cross_entropy(outputs, y, label_smoothing=smoothing)
        return (F.cross_entropy(outputs, y, label_smoothing=smoothing, reduction="none") * weights).mean()

    def distillation_loss(self, outputs: Tensor, said: Tensor, weights: Weights = None) -> Tensor:
        """Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2."""
        losses = (
            F.cross_entropy(
                outputs / DISTILLATION_TEMPERATURE, (said / DISTILLATION_TEMPERATURE).softmax(1), reduction="none"
            )
            * DISTILLATION_TEMPERATURE**2
        )
        return (losses if weights is None else losses * weights).mean()

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        losses = F.cross_entropy(outputs.double(), y, reduction="none")
        return -_mean(losses, weights), _mean(outputs.argmax(1) == y, weights)

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """1 where the likeliest class is another one, else 0."""
        return (outputs.argmax(1) != y).double()

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        doubt = cautious * min(1.0, self.outputs / (max(1, self.outputs - 1) * (len(y) + 2)))
        return best_temperature(outputs, lambda cooled: self.loss(cooled, y, weights, doubt))

    def chance(self, y: Tensor, weights: Weights = None) -> float:
        counts = torch.bincount(y, weights)
        return float(counts.max() / counts.sum())

    def to_json(self) -> dict[str, Any]:
        return {"classes": self.outputs}


@dataclass(frozen=True)
class MultiLabel(_StandardGoal):
    """Each example has some of `outputs` tags, or none: outputs are a logit for each, y (n, outputs) float32, 0, 1."""

    outputs: int
    measure: ClassVar[str] = "accuracy"

    @property
    def baseline_loss(self) -> float:
        return math.log(2)

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The mean over tags as well."""
        losses = F.binary_cross_entropy_with_logits(outputs, y * (1 - smoothing) + smoothing / 2, reduction="none")
        return (losses if weights is None else losses * weights[:, None]).mean()

    def distillation_loss(self, outputs: Tensor, said: Tensor, weights: Weights = None) -> Tensor:
        return (
            self.loss(outputs / DISTILLATION_TEMPERATURE, (said / DISTILLATION_TEMPERATURE).sigmoid(), weights)
            * DISTILLATION_TEMPERATURE**2
        )

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """The metric is the share of examples all of whose tags are right."""
        losses = F.binary_cross_entropy_with_logits(outputs.double(), y.double(), reduction="none").mean(1)
        return -_mean(losses, weights), _mean(self.errors(outputs, y) == 0, weights)

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The share of tags that are wrong."""
        return ((outputs >= 0) != (y > 0.5)).double().mean(1)

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        truth, doubt = y.double(), cautious * 2 / (len(y) + 2)
        return best_temperature(outputs, lambda cooled: self.loss(cooled, truth, weights, doubt))

    def chance(self, y: Tensor, weights: Weights = None) -> float:
        _, which = torch.unique(y, dim=0, return_inverse=True)
        counts = torch.bincount(which, weights)
        return float(counts.max() / counts.sum())

    def to_json(self) -> dict[str, Any]:
        return {"tags": self.outputs}


@dataclass(frozen=True)
class Regression(_StandardGoal):
    """`outputs` amounts belong to each example: y is (n, outputs) float32, of mean 0 and deviation 1 as a whole."""

    outputs: int
    measure: ClassVar[str] = "R2"

    @property
    def baseline_loss(self) -> float:
        return self.outputs * SQUARED_ERROR_SCALE

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """The squared error, `SQUARED_ERROR_SCALE` times, summed over amounts; there is nothing to smooth."""
        squares = F.mse_loss(outputs, y, reduction="none")
        squares = squares if weights is None else squares * weights[:, None]
        return squares.mean() * (self.outputs * SQUARED_ERROR_SCALE)

    def distillation_loss(self, outputs: Tensor, said: Tensor, weights: Weights = None) -> Tensor:
        return self.loss(outputs, said, weights)

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        """Log losses are those of normal distributions around the outputs, as wide as their errors: so a score tells
        half an error from another as well among small ones as among large ones. The metric is the coefficient of
        determination, the mean over amounts; of amounts that are all the same, relative to a variance of 1.
        """
        truth = y.double()
        counts = torch.ones_like(truth[:, 0]) if weights is None else weights.double()
        shares = (counts / counts.sum())[:, None]
        squares = ((outputs.double() - truth).square() * shares).sum(0)
        variances = ((truth - (truth * shares).sum(0)).square() * shares).sum(0)
        counted = truth[counts > 0]
        constant = counted.amax(0) == counted.amin(0)  # whose variance is what rounding leaves
        r2 = 1 - (squares / torch.where(constant, torch.ones_like(variances), variances)).mean().item()
        return -0.5 * (1 + math.log(2 * math.pi * max(SMALLEST_ERROR, squares.mean().item()))), r2

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Squared ones, the mean over amounts."""
        return (outputs.double() - y.double()).square().mean(1)

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        """1: they do not say how sure they are."""
        return 1.0

    def chance(self, y: Tensor, weights: Weights = None) -> float:
        return 0.0

    def to_json(self) -> dict[str, Any]:
        return {"amounts": self.outputs}


class UndefinedMetric(ArithmeticError, ValueError):
    """A metric of a user's own is no finite number."""


class Metric(Protocol):
    """How good outputs are, in a user's own sense; higher is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> float:
        """Unmeasured where that is no finite number."""
        ...


class Criterion(Protocol):
    """What trainings lower, in a user's own sense."""

    @property
    def name(self) -> str: ...

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Of each example, (n,), or the mean, ()."""
        ...


@dataclass(frozen=True)
class CustomGoal:
    """A goal of the usual kind with a metric, a loss, or both, of the user's own.

    The metric is the score; without one the score is minus the loss. All else, as how sure outputs may be, is as usual.

    scale: what the loss is multiplied by for trainings, so that its gradients are as large as those of the usual one
    and go with the same learning rates. ignorance: of the loss, so multiplied.
    """

    standard: Goal
    metric: Metric | None = None
    criterion: Criterion | None = None
    scale: float = 1.0
    baseline_loss: float = 1.0

    @property
    def outputs(self) -> int:
        return self.standard.outputs

    @property
    def measure(self) -> str:
        return self.standard.measure if self.metric is None else self.metric.name

    @property
    def objective(self) -> str:
        named = self.criterion if self.metric is None else self.metric
        return self.standard.objective if named is None else named.name

    @property
    def display_scale(self) -> float:
        return 1.0 if self.criterion is None else 1 / self.scale

    def loss(self, outputs: Tensor, y: Tensor, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
        """Labels are smoothed for the usual loss alone."""
        if self.criterion is None:
            return self.standard.loss(outputs, y, weights, smoothing)
        losses = self.criterion(outputs, y)
        return ((losses if weights is None else losses * weights).mean() * self.scale).float()

    def distillation_loss(self, outputs: Tensor, said: Tensor, weights: Weights = None) -> Tensor:
        return self.standard.distillation_loss(outputs, said, weights)

    def score_and_metric(self, outputs: Tensor, y: Tensor, weights: Weights = None) -> tuple[float, float]:
        score, metric = self.standard.score_and_metric(outputs, y, weights)
        if self.criterion is not None:
            score = -_mean(self.criterion(outputs, y), weights)
        if self.metric is not None:
            score = metric = self.metric(outputs, y, weights)
        return score, metric

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.standard.errors(outputs, y)

    def objective_errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """By a loss of the user's own, where it gives one for each example; else as usual."""
        losses = None if self.criterion is None else self.criterion(outputs, y)
        return self.standard.objective_errors(outputs, y) if losses is None or losses.ndim == 0 else losses

    def temperature(self, outputs: Tensor, y: Tensor, weights: Weights = None, cautious: bool = True) -> float:
        return self.standard.temperature(outputs, y, weights, cautious)

    def chance(self, y: Tensor, weights: Weights = None) -> float:
        """Of the usual metric."""
        return self.standard.chance(y, weights)

    def to_json(self) -> dict[str, Any]:
        return self.standard.to_json()


def _mean(values: Tensor, weights: Weights) -> float:
    if weights is None:
        return values.double().mean().item()
    return ((values.double() * weights).sum() / weights.double().sum()).item()


def best_temperature(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """What logits are to be divided by for the least loss, from 1/4 to 4 (Guo et al. 2017, arXiv:1706.04599). Makes up
    for label smoothing, which leaves a network too doubtful.

    loss: of such logits, float64. It is to take a label as right with probability (n + 1) / (n + 2), Laplace's rule: n
    examples without a mistake do not say that there will be none (Platt 1999, "Probabilistic outputs for support vector
    machines", section 2.2).
    """
    from scipy.optimize import minimize_scalar  # slow to load, and trainings do not need it

    values = logits.double()

    def lost(log_temperature: float) -> float:
        return loss(values * math.exp(-log_temperature)).item()

    found = minimize_scalar(lost, bounds=(-math.log(4), math.log(4)), method="bounded", options={"xatol": 1e-3})
    return math.exp(found.x)
