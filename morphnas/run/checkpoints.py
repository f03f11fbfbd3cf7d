"""The file from which an interrupted training goes on: written now and then, removed when its trial is committed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphnas.graph import Weights
from morphnas.run.files import RunError, parse_json, read_tensors, write_tensors
from morphnas.train.checkpoint import Checkpoint
from morphnas.train.recipe import Outcome

log = logging.getLogger("morphnas")

FORMAT = 1
EVERY = 10.0
"""Seconds between two checkpoints, at least."""
SHARE = 0.02
"""Of the time, what writing checkpoints may take."""
WRITING = 2e-8
"""Seconds for each byte of a network's weights that writing its first checkpoint is expected to take: it holds them
about three times. Twice what an idle disk took (`benchmarks/writing.py`)."""
_FIRST = "first."

Result = tuple[Outcome, Weights | None]


@dataclass(frozen=True, eq=False)
class Saved:
    """What a checkpoint's file holds. first: the result of the training that diverged, where this one follows it."""

    checkpoint: Checkpoint
    first: Result | None


@dataclass
class Keeper:
    """Writes a work's checkpoints to a file, seldom enough to cost little; to none where `path` is None.

    job: JSON values that tell the work from others. weights: bytes of the network's. A disk that cannot be written to
    costs the checkpoints, not the training.
    """

    path: Path | None
    job: Mapping[str, Any]
    clock: Callable[[], float] = time.monotonic
    first: Result | None = None
    weights: int = 0

    def __post_init__(self) -> None:
        self._next = self.clock() + max(EVERY, self.weights * WRITING / SHARE)

    def __call__(self, make: Callable[[], Checkpoint]) -> None:
        """Write the checkpoint that `make` makes, when it is time for one."""
        begun = self.clock()
        if self.path is None or begun < self._next:
            return
        try:
            self._write(self.path, make())
        except RunError as error:
            log.warning("no more checkpoints of this training: %s", error)
            self.path = None
        cost = self.clock() - begun
        self._next = begun + cost + max(EVERY, cost / SHARE)

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        facts: dict[str, Any] = {"format": FORMAT, "job": self.job, "facts": checkpoint.facts, "first": None}
        tensors = dict(checkpoint.tensors)
        if self.first is not None:
            outcome, weights = self.first
            facts["first"] = {"outcome": outcome.to_json(), "kept": weights is not None}
            tensors |= {_FIRST + name: value for name, value in (weights or {}).items()}
        write_tensors(path, tensors, {"checkpoint": json.dumps(facts, allow_nan=False)})

    def load(self) -> Saved | None:
        """The checkpoint that is there, if it is one of this work; what else is there is said and not used."""
        if self.path is None or not self.path.exists():
            return None
        try:
            return self._read(self.path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("a training starts again, because its checkpoint cannot be used: %s", error)
            return None

    def _read(self, path: Path) -> Saved:
        tensors, said = read_tensors(path)
        facts = parse_json(said.get("checkpoint", "null"))
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise RunError(f"{path} is no checkpoint that this version reads")
        if facts.get("job") != json.loads(json.dumps(self.job)):
            raise RunError(f"{path} is of another training")
        first = None
        if (before := facts.get("first")) is not None:
            weights = {name.removeprefix(_FIRST): v for name, v in tensors.items() if name.startswith(_FIRST)}
            first = Outcome.from_json(before["outcome"]), weights if before["kept"] is True else None
        own = {name: value for name, value in tensors.items() if not name.startswith(_FIRST)}
        return Saved(Checkpoint(facts["facts"], own), first)
