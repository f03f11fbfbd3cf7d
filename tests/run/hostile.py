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
class Hostile(Morph):
    """Leaves the network as it is, but `carry` raises, exits, hangs or kills its process, depending on `way`."""

    way: str
    tag = "hostile"

    def grow(self, graph: Graph) -> Graph:
        return graph

    def carry(self, graph: Graph, weights: Any, generator: Any) -> Weights:
        if self.way == "raise":
            raise LookupError("no luck")
        if self.way == "leave":
            sys.exit(3)
        if self.way == "exit":
            os._exit(3)
        if self.way == "hang":
            time.sleep(3600)
        if self.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if not Path(once := self.way.removeprefix("kill once ")).exists():
            Path(once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(weights)
