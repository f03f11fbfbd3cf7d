"""Asking a searcher what to do next, in time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from morphnas.graph import Network
from morphnas.graph.morphs import check_stored
from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, grow_proposal
from morphnas.train.deadline import POLL, Deadline

SWITCHING = 1e-4
"""Seconds for which asking ahead may keep Python to itself: by default it is 5 ms, for which a thread that tells a GPU
what to do next would wait."""


@dataclass
class _Switching:
    """Python's switch interval, short as long as anybody asks ahead, in whatever threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    askers: int = 0
    usual: float = 0.0

    def begin(self) -> None:
        with self.lock:
            if not self.askers:
                self.usual = sys.getswitchinterval()
                sys.setswitchinterval(SWITCHING)
            self.askers += 1

    def end(self) -> None:
        with self.lock:
            self.askers -= 1
            if not self.askers:
                sys.setswitchinterval(self.usual)


_switching = _Switching()


class SearcherError(RunError):
    """What a searcher, which may be a user's own, proposes cannot be done, or it raises; its cause says why."""


class Asker:
    """Asks a searcher for proposals: now, or ahead, in a thread of its own, while all workers train.

    seconds: that the last answer took which was asked for now, by the clock.
    """

    def __init__(self, searcher: Searcher, store: Store, ahead: bool, clock: Callable[[], float]) -> None:
        self._searcher, self._store, self._clock = searcher, store, clock
        self._thread = ThreadPoolExecutor(1, "morphnas-ask") if ahead else None
        self._coming: Future[tuple[Proposal | None, Network | None]] | None = None
        self.seconds = 0.0

    def __enter__(self) -> Self:
        if self._thread:
            _switching.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)
            _switching.end()

    def now(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """What the searcher answers. SearcherError where that is no proposal."""
        begun = self._clock()
        try:
            return self._asked(trials, budget)
        finally:
            self.seconds = self._clock() - begun

    def _asked(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        try:
            answer: object = self._searcher.ask(trials, budget)
            if not isinstance(answer, Proposal | None):
                raise TypeError(f"a searcher's ask returns a Proposal or None, not {answer!r:.100}")
            if answer is not None:
                for morph in answer.morphs:
                    check_stored(morph)
                grow_proposal(answer, {trial.id: trial.graph for trial in trials})
        except Exception as error:
            raise SearcherError(f"the searcher failed: {type(error).__name__}: {error}") from error
        return answer

    def ahead(self, trials: Sequence[Trial], budget: Budget) -> None:
        """Begin to ask, unless that has begun, or is done here only."""
        if self._thread and not self._coming:
            self._coming = self._thread.submit(self._with_network, trials, budget)

    def taken(self, deadline: Deadline) -> tuple[Proposal | None, Network | None]:
        """What was asked for ahead, and the network that it starts from, where that could be read; nothing where it
        does not come by the deadline."""
        coming, self._coming = self._coming, None
        while coming and not (coming.done() or deadline.passed):
            wait([coming], min(deadline.left, POLL))
        return coming.result() if coming and coming.done() else (None, None)

    def _with_network(self, trials: Sequence[Trial], budget: Budget) -> tuple[Proposal | None, Network | None]:
        proposal = self._asked(trials, budget)
        if proposal and proposal.parent is not None:
            with suppress(RunError):
                return proposal, self._store.network(proposal.parent)
        return proposal, None
