"""Training settings and results: immutable values, which the search reads too."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeGuard, get_args

import numpy as np

Status = Literal["finished", "truncated", "diverged", "oom", "failed"]
"""finished: all epochs. truncated: stopped by the deadline. diverged: the loss exploded, or a value became NaN or
infinite. oom: out of memory. failed: an error. In the first three cases the best weights so far are kept and scored."""


Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["sgd", "adamw", "muon"]
Layers = Literal["all", "last"]

LOG_LOSS = "log loss"
"""The objective without a user-defined metric or loss."""
MIN_LEARNING_RATE = 1e-12
"""The lowest learning rate that a recipe may have."""
LAST_LAYER_EPOCHS = 6
"""Epochs of a training of the last layer alone: the number of strengths of its regularisation."""
MAX_EPOCHS = 100_000
"""The most epochs that a recipe may have."""
MUON_FULL_RATE_EXAMPLES, SMALL_TRAINING_SET = 75_000, 10_000
"""Examples seen in a training, counting repetitions, and size of the training set beyond which Muon's learning rate is
lower: small training sets that are seen many times are memorised less at a high rate (`benchmarks/rates.py`)."""
DEFAULT_SHIFT = 0.03
"""Default for `Augment.shift` where shifts are used: one pixel of 32."""


@dataclass(frozen=True)
class Augment:
    """Data augmentation: random transformations of training images, drawn anew for every image and epoch.

    In `fit`, shift and flip are None by default.

    shift: largest shift along each spatial axis, as a fraction of its size, rounded up to whole pixels (edge pixels
        fill the gap); None: no shift, unless the final trainings find that one is better (`morphnas.run.final`).
    flip: horizontal flip of every image each second time it is seen, starting with a random half of the images (Jordan
        2024, arXiv:2404.00498, section 3.6); None: decided with the first network, see
        `morphnas.run.search.decide_flip`.
    cutout: side of a square (cube, interval) set to the mean, as a fraction of each axis (DeVries and Taylor 2017,
        arXiv:1708.04552); 0: none.
    rotate: largest rotation angle in degrees, of two-dimensional images.
    flip_vertical: vertical flip of a random half of the images: for views from above or through a microscope, which
        have no upside.
    zoom: largest relative change of size, of two-dimensional images: with 0.25, by a factor from 0.8 to 1.25.
    brightness: values are multiplied by a random factor from 1 - brightness to 1 + brightness.
    contrast: deviations of values from the image's mean are multiplied by a random factor from 1 - contrast to
        1 + contrast. Integers stay within the range of their dtype with both.
    """

    shift: float | None = 0.0
    flip: bool | None = False
    cutout: float = 0.0
    rotate: float = 0.0
    flip_vertical: bool = False
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        _make_plain(self)
        fraction_of = {"shift": "the image", "cutout": "the image", "zoom": "its size"}
        fraction_of |= dict.fromkeys(("brightness", "contrast"), "the values")
        for name, whole in fraction_of.items():
            value = getattr(self, name)
            if not (name == "shift" and value is None) and not (is_number(value) and 0 <= value < 1):
                raise ValueError(f"augment: {name} is a fraction of {whole}, at least 0 and below 1, not {value!r}")
        if not (is_number(self.rotate) and 0 <= self.rotate <= 180):
            raise ValueError(f"augment: rotate is in degrees, from 0 to 180, not {self.rotate!r}")
        if self.flip is not None and not isinstance(self.flip, bool):
            raise ValueError(f"augment: flip must be True, False or None, not {self.flip!r}")
        if not isinstance(self.flip_vertical, bool):
            raise ValueError(f"augment: flip_vertical must be True or False, not {self.flip_vertical!r}")


@dataclass(frozen=True)
class Recipe:
    """Training settings. The defaults of `fit` depend on the data: see `ImageClassifier.search_space_summary`.

    epochs: number of epochs, after each of which the network is scored; the learning rate schedule ends with the last.
    examples: examples per epoch, in an endless random order that continues across epochs; None: the whole training set.
    batch_size: most examples per step; 1 counts as 2, as batch norm cannot train on one. The batches of an epoch have
        one length, and left-over examples come in the next epoch.
    optimizer: "sgd" (with Nesterov momentum), "adamw", or "muon" (see `morphnas.train.muon`).
    precision: of the forward and backward passes; weights, scores and predictions are float32 in any case.
    cuda_graphs: whether a GPU replays steps as CUDA graphs (see `morphnas.train.step`).
    lr: peak learning rate, for a batch's mean loss; it rises over `warmup` of the schedule and falls linearly to 0.
    lr_examples: examples that a training may see at that rate. On a training set of n > `SMALL_TRAINING_SET` examples,
        the rate of a training that sees more is multiplied by sqrt(max(lr_examples / seen, `SMALL_TRAINING_SET` / n)).
        None: no such factor.
    momentum: of SGD; with muon, of all parameters except the convolutions that Muon trains (see
        `morphnas.train.step.make_optimizer`), whose momentum is `muon.MOMENTUM`.
    weight_decay: on weights of two or more axes; coupled for sgd, decoupled for adamw. Convolutions that Muon trains,
        whose weights keep their norm, have none.
    dropout: probability with which inputs of dense layers are set to 0 in training; not of a dense first layer, which
        reads the examples (Srivastava et al. 2014, JMLR 15, 1929-1958).
    label_smoothing: probability mass spread over all classes, for classification; multi-label: over present and absent.
    whiten: the first convolution, on images of at least 16 x 16 pixels, has filters that whiten patches (see
        `morphnas.train.whitening`). They are not trained, nor are those that a network inherits.
    layers: "all", or only the "last", which must be dense: it is fitted to what the layers before it compute, see
        `morphnas.train.last_layer`, where an epoch is a strength of regularisation. Of the other settings only
        `epochs` and `label_smoothing` have an effect then.
    freeze_norms: whether batch norms use their running statistics in training as well, and do not update them, as suits
        networks that were trained on other data: the statistics of a few batches are worse.
    bias_rate: factor on the learning rate of batch norm biases (Jordan 2024, arXiv:2404.00498, section 3.4).
    average: epochs over which weights are averaged exponentially; the averages are scored and kept. 0: no averaging
        (Polyak and Juditsky 1992, SIAM J. Control Optim. 30, 838-855).
    warmup: fraction of the schedule over which the learning rate rises to `lr`.
    patience: epochs after the warm-up without a better score after which the final decay of the learning rate begins
        (half the epochs so far, at least 3); None: never. Schedules of 12 epochs or fewer have no patience.
    """

    epochs: int = 8
    examples: int | None = None
    batch_size: int = 128
    precision: Precision = "float32"
    cuda_graphs: bool = False
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    lr_examples: int | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dropout: float = 0.0
    label_smoothing: float = 0.1
    whiten: bool = False
    layers: Layers = "all"
    freeze_norms: bool = False
    bias_rate: float = 1.0
    average: float = 0.0
    warmup: float = 0.2
    patience: int | None = None
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _make_plain(self)
        for name, low, high in (
            ("epochs", 1, MAX_EPOCHS), ("examples", 2, 10**12), ("batch_size", 1, 1_000_000),
            ("lr", MIN_LEARNING_RATE, 1e6),
            ("lr_examples", 1, 10**12),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1e6), ("dropout", 0, 0.99), ("label_smoothing", 0, 0.999), ("bias_rate", 1e-3, 1e3),
            ("average", 0, 1e6), ("warmup", 0, 1), ("patience", 1, 100_000),
        ):  # fmt: skip
            value = getattr(self, name)
            if name in ("patience", "examples", "lr_examples") and value is None:
                continue
            integer = name in ("epochs", "examples", "lr_examples", "batch_size", "patience")
            if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
                raise ValueError(f"recipe: {name} must be {'an integer' if integer else 'a number'}, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"recipe: {name} must be from {low} to {high:,}, not {value!r}")
        for name, literal in (("optimizer", Optimizer), ("precision", Precision), ("layers", Layers)):
            if getattr(self, name) not in get_args(literal):
                choices = " or ".join(f'"{choice}"' for choice in get_args(literal))
                raise ValueError(f"recipe: {name} must be {choices}, not {getattr(self, name)!r}")
        for name in ("whiten", "cuda_graphs", "freeze_norms"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"recipe: {name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.augment, Augment):
            raise ValueError(f"recipe: augment must be an Augment, not {self.augment!r:.100}")

    @property
    def with_undecided_flip(self) -> Recipe:
        """The recipe with `flip` None, as it is before a run decides whether to flip images."""
        return replace(self, augment=replace(self.augment, flip=None))

    def lr_factor(self, seen: float, n: int) -> float:
        """Factor on `lr` for a training on n examples that sees `seen` with repetitions, see `lr_examples`."""
        if self.lr_examples is None:
            return 1.0
        return math.sqrt(min(1.0, max(self.lr_examples / max(1.0, seen), SMALL_TRAINING_SET / n)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Recipe:
        """The inverse of `to_json`; ValueError if a value is invalid."""
        return Recipe(
            **known_fields(Recipe, data) | {"augment": Augment(**known_fields(Augment, data.get("augment", {})))}
        )


def default_learning_rate(optimizer: Optimizer, batch_size: int) -> float:
    """The default learning rate, proportional to the square root of the batch size: 0.1 for batches of 64.

    AdamW's is a fifth of that (`benchmarks/ablation_recipe.py`).
    """
    return (0.02 if optimizer == "adamw" else 0.1) * math.sqrt(batch_size / 64)


def with_default_learning_rate(recipe: Recipe) -> Recipe:
    """The recipe with the default learning rate for its optimizer and batch size.

    With Muon, `lr_examples` lowers it in long trainings on many examples.
    """
    lr_examples = MUON_FULL_RATE_EXAMPLES if recipe.optimizer == "muon" else None
    return replace(recipe, lr=default_learning_rate(recipe.optimizer, recipe.batch_size), lr_examples=lr_examples)


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve: seconds since the training began, training loss, validation score and metric.

    Score and metric are None if a user-defined metric is undefined there.
    """

    seconds: float
    loss: float
    score: float | None
    metric: float | None

    def __post_init__(self) -> None:
        scores = () if self.score is None and self.metric is None else (self.score, self.metric)
        if invalid := [value for value in (self.seconds, self.loss, *scores) if not is_number(value)]:
            raise ValueError(f"epoch: {invalid} are not all finite numbers")


@dataclass(frozen=True)
class Outcome:
    """The result of a training. Score and metric are those of the best weights, which are kept; higher is better.

    score: minus the mean log loss on the validation set, or by the user-defined objective (see `morphnas.train.goal`);
        None if no epoch could be scored.
    metric: the metric that users are shown. measure: its name: "accuracy", "R2", or that of the user-defined metric.
    objective: what the score is based on: "log loss", or the name of the user-defined metric or loss.
    seconds: of training and validation. images_per_second: examples trained on per second of training; 0: unknown.
    epochs: epochs started; best_epoch: the one whose weights are kept, from 1; 0: none.
    curve: one entry per evaluated epoch. examples: number that the score is based on; if weighted, the effective sample
        size. held_out: whether these are held-out examples. False if there are too few to hold any out: then the score
        is that of the training set.
    morph_error: largest difference of outputs between parent and child before training, relative to the largest output.
    upright, mirrored: accuracy or R2 on the validation images as they are, and on mirrored images, if measured (see
        `morphnas.run.work.measure_mirrored`).
    peak_bytes: peak device memory that the training took; 0: unknown, as on a CPU.
    error: error message.
    micro_batch: examples in memory at a time in the last steps; 0: there were no steps.
    retries: number of repetitions of the training because it diverged.
    latency: seconds from a single example to its outputs, on the device that trained; None: not measured.
    slow: whether the latency exceeds the limit.
    training_loss, lr: mean loss of the last epoch that ended without an error, also if the deadline ended it, and the
        learning rate of its last step.
    """

    status: Status
    score: float | None = None
    metric: float | None = None
    seconds: float = 0.0
    epochs: int = 0
    best_epoch: int = 0
    curve: tuple[Epoch, ...] = ()
    examples: int = 0
    images_per_second: float = 0.0
    peak_bytes: int = 0
    morph_error: float | None = None
    mirrored: float | None = None
    error: str | None = None
    micro_batch: int = 0
    retries: int = 0
    training_loss: float | None = None
    lr: float | None = None
    measure: str = "accuracy"
    latency: float | None = None
    slow: bool = False
    held_out: bool = True
    objective: str = LOG_LOSS
    upright: float | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"outcome: status must be one of {', '.join(get_args(Status))}, not {self.status!r}")
        for name in ("measure", "objective"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise ValueError(f"outcome: {name} must be a name, not {getattr(self, name)!r:.100}")
        for name in ("score", "metric", "morph_error", "upright", "mirrored", "training_loss", "lr", "latency"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise ValueError(f"outcome: {name} must be a finite number or None, not {value!r}")
        for name in ("seconds", "images_per_second"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise ValueError(f"outcome: {name} must be a finite number from 0 on, not {value!r}")
        for name in ("epochs", "best_epoch", "examples", "peak_bytes", "micro_batch", "retries"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"outcome: {name} must be an integer from 0 on, not {value!r}")
        for name in ("slow", "held_out"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"outcome: {name} must be True or False, not {getattr(self, name)!r:.100}")
        if self.error is not None and not isinstance(self.error, str):
            raise ValueError(f"outcome: error must be text or None, not {self.error!r:.100}")

    @property
    def by_metric(self) -> bool:
        """Whether the score is the metric."""
        return self.objective == self.measure

    @property
    def loss(self) -> float | None:
        """Mean log loss on the validation set, or the user-defined loss; None if the score is a metric."""
        return None if self.score is None or self.by_metric else -self.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % confidence interval of an accuracy on held-out examples (Wilson 1927, JASA 22, 209-212)."""
        if not (self.held_out and self.examples and self.measure == "accuracy"):
            return None
        if self.metric is None or not 0 <= self.metric <= 1:
            return None
        z2 = 1.959964**2 / self.examples
        centre, half_width = self.metric + z2 / 2, math.sqrt(z2 * (self.metric * (1 - self.metric) + z2 / 4))
        return max(0.0, (centre - half_width) / (1 + z2)), min(1.0, (centre + half_width) / (1 + z2))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Outcome:
        """The inverse of `to_json`; ValueError if a value is invalid."""
        entries = known_fields(Outcome, data)
        if not isinstance(curve := entries.get("curve", ()), (list, tuple)):
            raise ValueError(f"outcome: curve must be a list, not {curve!r:.100}")
        return Outcome(**entries | {"curve": tuple(Epoch(**known_fields(Epoch, entry)) for entry in curve)})


def _make_plain(settings: Any) -> None:
    """Convert NumPy scalars in a dataclass's fields to Python's, which JSON can hold."""
    for f in fields(settings):
        if isinstance(value := getattr(settings, f.name), np.generic):
            object.__setattr__(settings, f.name, value.item())


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an int or float, not a bool, and finite as a float: integers in JSON may be larger."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def known_fields(cls: type, data: Any) -> dict[str, Any]:
    """The entries of a JSON object for a dataclass; ValueError if one is no field, or a required field is missing."""
    names = [f.name for f in fields(cls)]
    if not isinstance(data, Mapping) or (unknown := [name for name in data if name not in names]):
        invalid = unknown if isinstance(data, Mapping) else repr(data)[:100]
        raise ValueError(f"{cls.__name__.lower()}: unknown field {invalid}, it has {', '.join(names)}")
    required = (f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in required if name not in data]:
        raise ValueError(f"{cls.__name__.lower()}: {', '.join(missing)} missing")
    return dict(data)
