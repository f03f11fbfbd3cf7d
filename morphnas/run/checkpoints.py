"""Checkpoint files, from which interrupted trainings continue; removed with the commit of a trial not cut short."""

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
MIN_INTERVAL = 10.0
"""Least number of seconds between two checkpoints."""
MAX_TIME_SHARE = 0.02
"""Largest share of the time that writing checkpoints may take."""
SECONDS_PER_BYTE = 2e-8
"""Expected seconds, per byte of the network's weights, of writing its first checkpoint, which holds them about three
times. Twice what an idle disk took (`benchmarks/writing.py`)."""
_FIRST = "first."
"""Prefix of the tensors of `Saved.first`."""

Result = tuple[Outcome, Weights | None]
"""The result of a job: its outcome, and the weights of the best epoch, or None if there are none."""


@dataclass(frozen=True, eq=False)
class Saved:
    """Contents of a checkpoint file. first: the result of a training that diverged, if the checkpoint is of its
    repetition (see `work`); else None."""

    checkpoint: Checkpoint
    first: Result | None


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of a job to a file, at intervals such that they take at most `MAX_TIME_SHARE` of the time.

    If a checkpoint cannot be written, a warning is logged, no more are written, and the training goes on.

    path: None: no checkpoints. job: JSON values that identify the job. first: see `Saved`. weights: size in bytes of
    the network's weights.
    """

    path: Path | None
    job: Mapping[str, Any]
    clock: Callable[[], float] = time.monotonic
    first: Result | None = None
    weights: int = 0

    def __post_init__(self) -> None:
        self._next = self.clock() + max(MIN_INTERVAL, self.weights * SECONDS_PER_BYTE / MAX_TIME_SHARE)

    def __call__(self, make: Callable[[], Checkpoint]) -> None:
        """Write the checkpoint that `make` returns, if one is due."""
        start = self.clock()
        if self.path is None or start < self._next:
            return
        try:
            self._write(self.path, make())
        except RunError as error:
            log.warning("no further checkpoints of this training are written: %s", error)
            self.path = None
        cost = self.clock() - start
        self._next = start + cost + max(MIN_INTERVAL, cost / MAX_TIME_SHARE)

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        facts: dict[str, Any] = {"format": FORMAT, "job": self.job, "facts": checkpoint.facts, "first": None}
        tensors = dict(checkpoint.tensors)
        if self.first is not None:
            outcome, weights = self.first
            facts["first"] = {"outcome": outcome.to_json(), "kept": weights is not None}
            tensors |= {_FIRST + name: value for name, value in (weights or {}).items()}
        write_tensors(path, tensors, {"checkpoint": json.dumps(facts, allow_nan=False)})

    def load(self) -> Saved | None:
        """The checkpoint in the file, if there is one; also None, with a warning in the log, if it is damaged or
        belongs to another job."""
        if self.path is None or not self.path.exists():
            return None
        try:
            return self._read(self.path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("a training starts again, because its checkpoint cannot be used: %s", error)
            return None

    def _read(self, path: Path) -> Saved:
        tensors, metadata = read_tensors(path)
        facts = parse_json(metadata.get("checkpoint", "null"))
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise RunError(f"{path} is not a checkpoint that this version can read")
        if facts.get("job") != json.loads(json.dumps(self.job)):
            raise RunError(f"{path} belongs to another training")
        result = None
        if (first := facts.get("first")) is not None:
            weights = {name.removeprefix(_FIRST): v for name, v in tensors.items() if name.startswith(_FIRST)}
            result = Outcome.from_json(first["outcome"]), weights if first["kept"] is True else None
        current = {name: value for name, value in tensors.items() if not name.startswith(_FIRST)}
        return Saved(Checkpoint(facts["facts"], current), result)
