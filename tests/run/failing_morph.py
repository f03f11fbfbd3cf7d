"""A morph that fails in various ways, for tests of executors."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphnas.graph import Graph, Morph, Weights


@dataclass(frozen=True)
class FailingMorph(Morph):
    """Does not change the network, but `carry` fails: it raises, exits, hangs or kills its process.

    failure: "raise", "sys.exit", "os._exit", "hang", "kill", or "kill once PATH", which kills the process only if the
    file does not exist, and creates it.
    """

    failure: str
    tag = "failing"

    def grow(self, graph: Graph) -> Graph:
        return graph

    def carry(self, graph: Graph, weights: Any, generator: Any) -> Weights:
        if self.failure == "raise":
            raise LookupError("weights not carried")
        if self.failure == "sys.exit":
            sys.exit(3)
        if self.failure == "os._exit":
            os._exit(3)
        if self.failure == "hang":
            time.sleep(3600)
        if self.failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if not (marker := Path(self.failure.removeprefix("kill once "))).exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(weights)
