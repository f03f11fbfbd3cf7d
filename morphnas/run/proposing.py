"""Asking a searcher for proposals, also while workers train."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from morphnas.graph import Network
from morphnas.graph.morphs import check_storable
from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.search.trial import Budget, Proposal, Searcher, Trial, grow_proposal
from morphnas.train.deadline import POLL_SECONDS, Deadline

SWITCH_INTERVAL = 1e-4
"""Seconds for which a thread that asks ahead may hold Python's global interpreter lock. The default is 5 ms, for which
a thread that launches work on a GPU would wait."""


@dataclass
class _ShortSwitchInterval:
    """Python's switch interval, which is short while there are askers that ask ahead, in any threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    askers: int = 0
    before: float = 0.0

    def begin(self) -> None:
        with self.lock:
            if not self.askers:
                self.before = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_INTERVAL)
            self.askers += 1

    def end(self) -> None:
        with self.lock:
            self.askers -= 1
            if not self.askers:
                sys.setswitchinterval(self.before)


_switch_interval = _ShortSwitchInterval()


class SearcherError(RunError):
    """A searcher, which may be user-defined, raised, or its proposal is invalid; see the cause."""


class Asker:
    """Asks a searcher for proposals: now, or ahead in another thread, while all workers train.

    ahead: whether `ask_ahead` asks in another thread, or does nothing. seconds: duration of the last call of `ask_now`,
    by `clock`.
    """

    def __init__(self, searcher: Searcher, store: Store, ahead: bool, clock: Callable[[], float]) -> None:
        self._searcher, self._store, self._clock = searcher, store, clock
        self._thread = ThreadPoolExecutor(1, "morphnas-ask") if ahead else None
        self._pending: Future[tuple[Proposal | None, Network | None]] | None = None
        self.seconds = 0.0

    def __enter__(self) -> Self:
        if self._thread:
            _switch_interval.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)
            _switch_interval.end()

    def ask_now(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        """The searcher's proposal. SearcherError if it is invalid or the searcher raises."""
        start = self._clock()
        try:
            return self._ask(trials, budget)
        finally:
            self.seconds = self._clock() - start

    def _ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
        try:
            answer: object = self._searcher.ask(trials, budget)
            if not isinstance(answer, Proposal | None):
                raise TypeError(f"a searcher's ask returns a Proposal or None, not {answer!r:.100}")
            if answer is not None:
                for morph in answer.morphs:
                    check_storable(morph)
                grow_proposal(answer, {trial.id: trial.graph for trial in trials})
        except Exception as error:
            raise SearcherError(f"the searcher failed: {type(error).__name__}: {error}") from error
        return answer

    def ask_ahead(self, trials: Sequence[Trial], budget: Budget) -> None:
        """Start to ask in the other thread, if there is one and it is not asking already."""
        if self._thread and not self._pending:
            self._pending = self._thread.submit(self._ask_and_read, trials, budget)

    def take(self, deadline: Deadline) -> tuple[Proposal | None, Network | None]:
        """The proposal that was asked for ahead, and its parent's network if it has one and that could be read.

        None for both if nothing was asked for, the searcher had no proposal, or there is no answer by the deadline.
        SearcherError as for `ask_now`.
        """
        pending, self._pending = self._pending, None
        while pending and not (pending.done() or deadline.passed):
            wait([pending], min(deadline.left, POLL_SECONDS))
        return pending.result() if pending and pending.done() else (None, None)

    def _ask_and_read(self, trials: Sequence[Trial], budget: Budget) -> tuple[Proposal | None, Network | None]:
        proposal = self._ask(trials, budget)
        if proposal and proposal.parent is not None:
            with suppress(RunError):
                return proposal, self._store.network(proposal.parent)
        return proposal, None
