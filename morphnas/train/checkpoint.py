"""What a training needs to go on as if it had not been interrupted: values, and tensors by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from morphnas.train.data import Orders
from morphnas.train.recipe import Epoch, Outcome, known_fields
from morphnas.train.step import Step


class CheckpointMismatch(ValueError):
    """A checkpoint is not one of this training."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training after one of its epochs. facts: JSON values. tensors: on the CPU, contiguous, each with memory of its
    own."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


Keep = Callable[[Callable[[], Checkpoint]], None]
"""Is given after every epoch what makes its checkpoint, and decides whether that is worth its time."""


@dataclass
class TrainingState:
    """Where a training has come to, apart from its tensors: it changes as the training goes on.

    best: the outcome so far, of the weights that are kept. decay, end: of the schedule; None: patience has not ended.
    last: the epoch that it ends with. epoch: done. stale: of these, without a better score. calmed: whether the best
    was scored at a low rate. validation: seconds that scoring is expected to take. trained: examples; timed: of these,
    in `training` seconds, those since the last step that was recorded, which takes far longer than others. pace:
    seconds per example of slow steps. micro: examples in memory at a time. usual: the first losses. seconds: since it
    began.
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
        """What `to_json` described; ValueError when it is none."""
        facts = known_fields(TrainingState, data)
        best = Outcome.from_json(facts.pop("best"))
        outcome = Outcome.from_json({"status": "truncated", "curve": facts.pop("curve", ())})
        usual = facts.pop("usual", ())
        for name, value in facts.items():
            whole, maybe = (
                name in ("last", "micro", "epoch", "stale", "trained", "timed"),
                name == "decay" and value is None,
            )
            kind = bool if name == "calmed" else int if whole else (int, float)
            if not maybe and not (isinstance(value, kind) and (name == "calmed") == isinstance(value, bool)):
                raise ValueError(f"checkpoint: {name} cannot be {value!r:.100}")
            if not maybe and not 0 <= value < (2**62 if whole else math.inf):
                raise ValueError(f"checkpoint: {name} cannot be {value!r:.100}")
        if not (isinstance(usual, (list, tuple)) and all(isinstance(v, float) and math.isfinite(v) for v in usual)):
            raise ValueError(f"checkpoint: usual cannot be {usual!r:.100}")
        return replace(TrainingState(best, **facts), usual=tuple(usual), curve=outcome.curve)


@dataclass(frozen=True, eq=False)
class Moving:
    """The parts of a training that change in place."""

    step: Step
    generator: torch.Generator
    order: Orders

    @property
    def device(self) -> torch.device:
        return self.step.task.device

    def tensors(self, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of them as they are now, together with the best weights, and torch's own random state."""
        found = {f"module.{name}": value for name, value in self.step.module.state_dict().items()}
        found |= {f"best.{name}": value for name, value in best.items()}
        if self.step.kept is not self.step.module:
            found |= {f"averaged.{name}": value for name, value in self.step.kept.state_dict().items()}
        for i, state in self.step.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{i}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        found |= {"generator": self.generator.get_state(), "torch": torch.get_rng_state(), "order": self.order.rest}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.step.mirrored is not None:
            found["mirrored"] = self.step.mirrored
        copies = {name: value.detach().to("cpu", copy=True) for name, value in found.items()}
        return {name: value.contiguous() for name, value in copies.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Set all parts as they were, and return the best weights; Unfit, with everything as it is, where they differ.

        In the memory format that the parts have: what is computed from them is the same to the last bit.
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
        wanted = self.tensors(self.step.module.state_dict())
        for name in {*wanted, *saved}:
            if name.startswith("optimizer."):
                continue
            if name not in wanted or name not in saved:
                raise CheckpointMismatch(f"{name} is {'missing' if name in wanted else 'not known'}")
            if saved[name].dtype != wanted[name].dtype:
                raise CheckpointMismatch(f"{name} is of {saved[name].dtype}")
            if name != "order" and saved[name].shape != wanted[name].shape:
                raise CheckpointMismatch(f"{name} has shape {tuple(saved[name].shape)}")
        rest = saved["order"]
        if rest.ndim != 1 or len(rest) > self.order.n + self.order.length:
            raise CheckpointMismatch(f"order has shape {tuple(rest.shape)}")
        if len(rest) and not 0 <= int(rest.min()) <= int(rest.max()) < self.order.n:
            raise CheckpointMismatch("order holds numbers of no examples")
        try:
            torch.set_rng_state(saved["torch"])
            self.generator.set_state(saved["generator"])
            if "cuda" in saved:
                torch.cuda.set_rng_state(saved["cuda"], self.device)
        except RuntimeError as error:
            raise CheckpointMismatch(f"a random state: {error}") from None
        _load(self.step.module, saved, "module.")
        if self.step.kept is not self.step.module:
            _load(self.step.kept, saved, "averaged.")
        groups = self.step.optimizer.state_dict()["param_groups"]
        self.step.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.order.rest = rest.clone()
        if self.step.mirrored is not None:
            self.step.mirrored.copy_(saved["mirrored"])
        return {name: value.to(self.device, copy=True) for name, value in best.items()}


def _load(module: nn.Module, saved: Mapping[str, Tensor], prefix: str) -> None:
    module.load_state_dict({name: saved[prefix + name] for name in module.state_dict()})
