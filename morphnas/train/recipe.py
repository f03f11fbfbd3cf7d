"""How a network is trained, and what came of it: pure values, which the search reads too."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeGuard, get_args

import numpy as np

Status = Literal["finished", "truncated", "diverged", "oom", "failed"]
"""finished: all epochs. truncated: stopped by the deadline. diverged: the loss exploded or was NaN. oom: out of
memory. failed: an error. Whatever was trained before is kept and scored in the first three."""


Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["sgd", "adamw", "muon"]

LOG_LOSS = "log loss"
"""What scores are of, unless a user has another metric or loss."""
LEAST_RATE = 1e-12
"""The lowest learning rate."""
MAX_EPOCHS = 100_000
"""That a training may have."""
LONG, FEW = 75_000, 10_000
"""Examples seen in a training, and examples that there are to learn from, from which on Muon's learning rate is lower:
few that are seen again and again are less learned by heart at a high one (`benchmarks/rates.py`)."""
SHIFT = 0.03
"""How far images are moved, as a share of their size, where that helps: a pixel of 32."""


@dataclass(frozen=True)
class Augment:
    """Data augmentation: random changes of training images, drawn anew for every image and epoch.

    `fit` begins with shift and flip None.

    shift: largest displacement along each spatial axis, as a fraction of its size, rounded up to whole pixels (edge
        values fill the gap); None: none, until the final trainings find out what is better (`morphnas.run.final`).
    flip: mirror left and right, every image every second time, half of them at first (Jordan 2024, arXiv:2404.00498,
        section 3.6); None: decided by the first network, see `morphnas.run.search.decide_flip`.
    rotate: largest angle in degrees by which an image is rotated, in the plane.
    cutout: side of a square (cube, interval) set to the mean, as a fraction of each axis (DeVries and Taylor 2017,
        arXiv:1708.04552); 0: none.
    flip_vertical: mirror top and bottom of a random half of the images: for what has no upside, seen from above or
        through a microscope.
    zoom: largest relative change of size, in the plane: with 0.25, images are enlarged by a factor of 0.8 to 1.25.
    brightness: values are multiplied by a factor between 1 - brightness and 1 + brightness.
    contrast: deviations of values from the image's mean, likewise. Both keep integers within the range of their type.
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
        wholes = {"shift": "the image", "cutout": "the image", "zoom": "its size"}
        wholes |= dict.fromkeys(("brightness", "contrast"), "the values")
        for name, whole in wholes.items():
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
    """Settings of a training. What `fit` begins with depends on the data: see `ImageClassifier.search_space_summary`.

    epochs: how often the network is scored; the learning rate schedule ends with the last.
    examples: number per epoch, the next ones of an endless random order; None: all of the training data.
    batch_size: most examples per step; 1 counts as 2, as batch norm cannot train on one. The batches of an epoch have
        one length, and what is left over comes in the next.
    optimizer: "sgd" (Nesterov momentum), "adamw", or "muon" (see `morphnas.train.muon`).
    precision: of the forward and backward passes; weights, scores and predictions are float32 in any case.
    cuda_graphs: whether a GPU replays steps as CUDA graphs (see `morphnas.train.step`).
    lr: peak learning rate, for a batch's mean loss; it rises over `warmup` of the schedule and falls linearly to 0.
    lr_examples: number that a training may see at that rate. With n > `FEW` examples to learn from, a training that
        sees more has a lower rate: times sqrt(max(lr_examples / seen, `FEW` / n)). None: always the same rate.
    momentum: of sgd, and of what muon leaves to it: all except convolutions, whose momentum is `muon.MOMENTUM`.
    weight_decay: on weights of two or more axes; coupled for sgd, decoupled for adamw. Muon's convolutions, whose
        weights keep their length, have none.
    dropout: share of the inputs of dense layers set to 0 in training, except for a dense first layer, which reads the
        examples (Srivastava et al. 2014, JMLR 15, 1929-1958).
    label_smoothing: probability mass spread over all classes, for classification.
    whiten: the first convolution of images of at least 16 x 16 pixels has filters that whiten their patches (see
        `morphnas.train.whitening`) and are not trained, nor in networks that inherit them.
    bias_rate: factor on the learning rate of batch norm biases (Jordan 2024, arXiv:2404.00498, section 3.4).
    average: epochs over which the weights that are scored and kept are averaged, exponentially; 0: none (Polyak
        and Juditsky 1992, SIAM J. Control Optim. 30, 838-855).
    patience: epochs after the warm-up without a better score after which the final decay begins (half the epochs so
        far, at least 3); None: never. Schedules of 12 epochs or fewer have none.
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
    bias_rate: float = 1.0
    average: float = 0.0
    warmup: float = 0.2
    patience: int | None = None
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _make_plain(self)
        for name, low, high in (
            ("epochs", 1, MAX_EPOCHS), ("examples", 2, 10**12), ("batch_size", 1, 1_000_000), ("lr", LEAST_RATE, 1e6),
            ("lr_examples", 1, 10**12),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1e6), ("dropout", 0, 0.99), ("label_smoothing", 0, 0.999), ("bias_rate", 1e-3, 1e3),
            ("average", 0, 1e6), ("warmup", 0, 1), ("patience", 1, 100_000),
        ):  # fmt: skip
            value = getattr(self, name)
            if name in ("patience", "examples", "lr_examples") and value is None:
                continue
            whole = name in ("epochs", "examples", "lr_examples", "batch_size", "patience")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"recipe: {name} must be {'an integer' if whole else 'a number'}, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"recipe: {name} must be from {low} to {high:,}, not {value!r}")
        for name, kind in (("optimizer", Optimizer), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                words = " or ".join(f'"{word}"' for word in get_args(kind))
                raise ValueError(f"recipe: {name} must be {words}, not {getattr(self, name)!r}")
        for name in ("whiten", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"recipe: {name} must be True or False, not {getattr(self, name)!r}")
        if not isinstance(self.augment, Augment):
            raise ValueError(f"recipe: augment must be an Augment, not {self.augment!r:.100}")

    @property
    def with_open_flip(self) -> Recipe:
        """With `flip` left open: as a recipe was before a run found out whether images are to be mirrored."""
        return replace(self, augment=replace(self.augment, flip=None))

    def lr_factor(self, seen: float, n: int) -> float:
        """Share of `lr` that a training on n examples has at most, if it sees `seen` in all, counting repetitions."""
        if self.lr_examples is None:
            return 1.0
        return math.sqrt(min(1.0, max(self.lr_examples / max(1.0, seen), FEW / n)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Recipe:
        """The recipe that `to_json` described; ValueError if it is invalid."""
        return Recipe(
            **known_fields(Recipe, data) | {"augment": Augment(**known_fields(Augment, data.get("augment", {})))}
        )


def usual_rate(optimizer: Optimizer, batch_size: int) -> float:
    """The learning rate for batches of 64, times the square root of how many times as large they are.

    AdamW's is a fifth of the others' (`benchmarks/ablation_recipe.py`).
    """
    return (0.02 if optimizer == "adamw" else 0.1) * math.sqrt(batch_size / 64)


def at_usual_rate(recipe: Recipe) -> Recipe:
    """The recipe with the learning rate that is usual for its optimizer and batches.

    Muon's is lower in long trainings on many examples.
    """
    long = LONG if recipe.optimizer == "muon" else None
    return replace(recipe, lr=usual_rate(recipe.optimizer, recipe.batch_size), lr_examples=long)


@dataclass(frozen=True)
class Epoch:
    """One line of a learning curve: seconds since the training began, training loss, validation score and metric.

    Score and metric are None if the user's own metric is undefined there.
    """

    seconds: float
    loss: float
    score: float | None
    metric: float | None

    def __post_init__(self) -> None:
        scored = () if self.score is None and self.metric is None else (self.score, self.metric)
        if wrong := [value for value in (self.seconds, self.loss, *scored) if not is_number(value)]:
            raise ValueError(f"epoch: {wrong} are not all finite numbers")


@dataclass(frozen=True)
class Outcome:
    """The result of a training. Scores are higher for better networks, and are of the weights that are kept.

    score: minus the mean log loss on the validation examples, or the user's own objective (see `morphnas.train.goal`);
        None if nothing could be scored.
    metric: the figure to show. measure: its name: "accuracy", "R2", or that of the user's own metric.
    objective: what the score is based on: "log loss", or the name of the user's own metric or loss.
    seconds: of training and validation. epochs: begun ones; best_epoch: the one whose weights are kept, from 1.
    curve: one entry per epoch. examples: number that the score is based on; if weighted, the effective sample size.
    held_out: whether these were not trained on. False if there are too few examples to hold any out.
    morph_error: largest difference of outputs between start and child before training, relative to the largest output.
    upright, mirrored: accuracy or R2 on the validation images as they are, and mirrored, if that was measured.
    peak_bytes: peak memory of the device during the training; 0: unknown, as on a CPU.
    error: what went wrong, in words.
    micro_batch: examples in memory at a time in the last steps; 0: there were none.
    retries: additional trainings, because one of them diverged.
    latency: seconds from a single example to its outputs, on the device that trained; None: not measured.
    slow: whether that exceeds the limit.
    training_loss, lr: mean loss of the last complete epoch, and the learning rate of its last step.
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
        """Mean log loss on the validation examples, or the user's own loss; None if the score is a metric."""
        return None if self.score is None or self.by_metric else -self.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of a metric that is a share of held-out examples (Wilson 1927, JASA 22, 209-212)."""
        if not (self.held_out and self.examples and self.measure == "accuracy"):
            return None
        if self.metric is None or not 0 <= self.metric <= 1:
            return None
        z2 = 1.959964**2 / self.examples
        centre, spread = self.metric + z2 / 2, math.sqrt(z2 * (self.metric * (1 - self.metric) + z2 / 4))
        return max(0.0, (centre - spread) / (1 + z2)), min(1.0, (centre + spread) / (1 + z2))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Outcome:
        """The outcome that `to_json` described; ValueError if it is invalid."""
        known = known_fields(Outcome, data)
        if not isinstance(curve := known.get("curve", ()), (list, tuple)):
            raise ValueError(f"outcome: curve must be a list, not {curve!r:.100}")
        return Outcome(**known | {"curve": tuple(Epoch(**known_fields(Epoch, entry)) for entry in curve)})


def _make_plain(settings: Any) -> None:
    """NumPy's numbers among a dataclass's fields as Python's, which JSON can hold."""
    for f in fields(settings):
        if isinstance(value := getattr(settings, f.name), np.generic):
            object.__setattr__(settings, f.name, value.item())


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number, and a finite one as a float, too: whole ones in JSON may be larger."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def known_fields(kind: type, data: Any) -> dict[str, Any]:
    """The entries of a JSON object, all of which must be fields of `kind`, and among which are all that it needs."""
    names = [f.name for f in fields(kind)]
    if not isinstance(data, Mapping) or (unknown := [name for name in data if name not in names]):
        wrong = unknown if isinstance(data, Mapping) else repr(data)[:100]
        raise ValueError(f"{kind.__name__.lower()}: unknown field {wrong}, it has {', '.join(names)}")
    needed = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"{kind.__name__.lower()}: {', '.join(missing)} missing")
    return dict(data)
