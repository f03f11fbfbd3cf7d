"""Checkpoints: all that a training needs to resume as if it had not been interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from morphnas.train.data import ShuffledIndices
from morphnas.train.recipe import Epoch, Outcome, known_fields
from morphnas.train.step import Step


class CheckpointMismatch(ValueError):
    """A checkpoint does not belong to this training, or is malformed."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after one of its epochs.

    facts: JSON values, see `TrainingState.to_json`. tensors: on the CPU, contiguous, sharing no memory.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


CheckpointCallback = Callable[[Callable[[], Checkpoint]], None]
"""Called after every epoch after which the training continues, with a function that makes a checkpoint. It calls this
function only if it wants a checkpoint, since making one takes time."""


@dataclass
class TrainingState:
    """The mutable state of a training, apart from its tensors.

    best: the outcome so far, of the best weights. last: the epoch that the training ends with. micro: micro-batch size.
    decay, end: of the `Schedule`; decay is None until patience has run out. epoch: epochs done. stale: epochs after the
    warm-up since the last improvement. calmed: whether the learning rate was low at the best score (see
    `Schedule.is_low`). validation: expected seconds for scoring an epoch. trained: examples trained on so far. timed,
    training: examples, and the seconds that they took, since the last step that was captured as a CUDA graph: a capture
    takes far longer than other steps. pace: seconds per example, of slow steps. usual: losses of the first 8 steps.
    curve: as in `Outcome`. seconds: since the training began, without interruptions.
    """

    best: Outcome
    last: int
    micro: int
    decay: float | None = None
    end: float = 1.0
    epoch: int = 0
    stale: int = 0
    calmed: bool = False
    validation: float = 0.0
    trained: int = 0
    timed: int = 0
    training: float = 0.0
    pace: float = 0.0
    usual: tuple[float, ...] = ()
    curve: tuple[Epoch, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> TrainingState:
        """The inverse of `to_json`; ValueError if a value is invalid."""
        facts = known_fields(TrainingState, data)
        best = Outcome.from_json(facts.pop("best"))
        outcome = Outcome.from_json({"status": "truncated", "curve": facts.pop("curve", ())})
        usual = facts.pop("usual", ())
        for name, value in facts.items():
            if name == "decay" and value is None:
                continue
            integer = name in ("last", "micro", "epoch", "stale", "trained", "timed")
            kind = bool if name == "calmed" else int if integer else (int, float)
            if not (isinstance(value, kind) and (name == "calmed") == isinstance(value, bool)):
                raise ValueError(f"checkpoint: {name} cannot be {value!r:.100}")
            if not 0 <= value < (2**62 if integer else math.inf):
                raise ValueError(f"checkpoint: {name} cannot be {value!r:.100}")
        if not (isinstance(usual, (list, tuple)) and all(isinstance(v, float) and math.isfinite(v) for v in usual)):
            raise ValueError(f"checkpoint: usual cannot be {usual!r:.100}")
        return replace(TrainingState(best, **facts), usual=tuple(usual), curve=outcome.curve)


@dataclass(frozen=True, eq=False)
class TensorState:
    """The parts of a training whose tensors a checkpoint holds: its step, its random generator and its shuffling."""

    step: Step
    generator: torch.Generator
    order: ShuffledIndices

    @property
    def device(self) -> torch.device:
        return self.step.task.device

    def tensors(self, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of all current tensors, together with the given best weights and PyTorch's global random state."""
        tensors = {f"module.{name}": value for name, value in self.step.module.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        if self.step.evaluated is not self.step.module:
            tensors |= {f"averaged.{name}": value for name, value in self.step.evaluated.state_dict().items()}
        for i, state in self.step.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {"generator": self.generator.get_state(), "torch": torch.get_rng_state()}
        tensors["order"] = self.order.remaining
        if self.device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.step.mirrored is not None:
            tensors["mirrored"] = self.step.mirrored
        copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        return {name: value.contiguous() for name, value in copies.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Restore all parts from the tensors of a checkpoint, and return its best weights, on the device.

        Tensors keep the memory format that they have here, so that results are bitwise the same. CheckpointMismatch if
        names, shapes or dtypes differ, or a value is invalid: then the module, the optimizer and the shuffling are
        unchanged.
        """
        best = {name.removeprefix("best."): value for name, value in saved.items() if name.startswith("best.")}
        parameters = [p for group in self.step.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.items():
            if name.startswith("optimizer."):
                number, _, key = name.removeprefix("optimizer.").partition(".")
                if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(parameters)):
                    raise CheckpointMismatch(f"there is no parameter {number}")
                p = parameters[int(number)]
                if value.shape not in (p.shape, torch.Size([])) or not value.is_floating_point():
                    raise CheckpointMismatch(f"{name} has shape {tuple(value.shape)}")
                state.setdefault(int(number), {})[key] = (
                    torch.empty_like(p, requires_grad=False).copy_(value) if value.shape == p.shape else value
                )
        expected = self.tensors(self.step.module.state_dict())
        for name in {*expected, *saved}:
            if name.startswith("optimizer."):
                continue
            if name not in expected or name not in saved:
                raise CheckpointMismatch(f"{name} is {'missing' if name in expected else 'not known'}")
            if saved[name].dtype != expected[name].dtype:
                raise CheckpointMismatch(f"{name} is of {saved[name].dtype}")
            if name != "order" and saved[name].shape != expected[name].shape:
                raise CheckpointMismatch(f"{name} has shape {tuple(saved[name].shape)}")
        order = saved["order"]
        if order.ndim != 1 or len(order) > self.order.n + self.order.length:
            raise CheckpointMismatch(f"order has shape {tuple(order.shape)}")
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < self.order.n:
            raise CheckpointMismatch("order holds indices out of range")
        try:
            torch.set_rng_state(saved["torch"])
            self.generator.set_state(saved["generator"])
            if "cuda" in saved:
                torch.cuda.set_rng_state(saved["cuda"], self.device)
        except RuntimeError as error:
            raise CheckpointMismatch(f"invalid random state: {error}") from None
        _load(self.step.module, saved, "module.")
        if self.step.evaluated is not self.step.module:
            _load(self.step.evaluated, saved, "averaged.")
        groups = self.step.optimizer.state_dict()["param_groups"]
        self.step.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.order.remaining = order.clone()
        if self.step.mirrored is not None:
            self.step.mirrored.copy_(saved["mirrored"])
        return {name: value.to(self.device, copy=True) for name, value in best.items()}


def _load(module: nn.Module, saved: Mapping[str, Tensor], prefix: str) -> None:
    module.load_state_dict({name: saved[prefix + name] for name in module.state_dict()})
