"""The callback after every epoch: its argument, and how it can end the fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from morphnas.search.trial import Trial
from morphnas.train.deadline import Stop
from morphnas.train.recipe import Outcome

log = logging.getLogger("morphnas")


class StopFit(Exception):
    """Raise it in the `each_epoch` callback to end the fit as one Ctrl-C does."""


@dataclass(frozen=True)
class EpochReport:
    """A finished epoch of a trial.

    run: the run's folder. trial: the trial's id. parent: the trial whose weights it began with; None: no trial's.
    morphs: the edits that made its network from its start, usually the parent's network, as text. final: the purpose of
    a final training, such as "inherited", "fresh" or "everything"; None: it belongs to the search. epoch: from 1, of
    the planned `epochs`.

    loss: mean training loss of the epoch, including label smoothing. validation_loss, metric: mean log loss (or
    user-defined loss), and accuracy or another metric, on the validation set (without one, on the training set) after
    the epoch; None if this training is not scored or the score undefined, or, for the loss, if it is scored by a
    user-defined metric. lr: learning rate of the last step. seconds: since the trial's training began.
    """

    run: Path
    trial: int
    parent: int | None
    morphs: tuple[str, ...]
    final: str | None
    epoch: int
    epochs: int
    seconds: float
    loss: float
    lr: float
    validation_loss: float | None
    metric: float | None

    @staticmethod
    def of(run: Path, trial: Trial, outcome: Outcome) -> EpochReport:
        """The report of a trial's last epoch. outcome: of the trial so far."""
        last = outcome.curve[-1] if outcome.curve else None
        proposal = trial.proposal
        return EpochReport(
            run=run,
            trial=trial.id,
            parent=trial.parent,
            morphs=tuple(map(str, proposal.morphs)),
            final=str(proposal.why["final"]) if trial.final else None,
            epoch=outcome.epochs,
            epochs=trial.epochs,
            seconds=outcome.seconds,
            loss=outcome.training_loss or 0.0,
            lr=outcome.lr or 0.0,
            validation_loss=None if last is None or last.score is None or outcome.by_metric else -last.score,
            metric=None if last is None else last.metric,
        )

    @property
    def numbers(self) -> dict[str, float]:
        """The figures of the epoch that are not None, by name, ready for logging."""
        values = {name: getattr(self, name) for name in ("loss", "lr", "seconds", "validation_loss", "metric")}
        return {name: value for name, value in values.items() if value is not None}


EachEpochReport = Callable[[EpochReport], object]


@dataclass
class EpochCalls:
    """An observer that calls a function after every epoch of every trial.

    If it raises `StopFit`, the fit stops. Any other exception is ignored: the first one is logged with its traceback,
    and `close` logs their number. function: None: nothing is called. stop: what `StopFit` sets.
    """

    function: EachEpochReport | None
    run: Path
    stop: Stop
    stopped: bool = field(default=False, init=False)
    failed: int = field(default=0, init=False)

    def trial_begins(self, trial: Trial) -> None:
        pass

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        if self.function is None or self.stopped:
            return
        try:
            self.function(EpochReport.of(self.run, trial, outcome))
        except StopFit as reason:
            log.info("the fit was asked to end after epoch %d of trial %d: %s", outcome.epochs, trial.id, reason)
            self.stopped = self.stop.requested = True
        except Exception:
            if not self.failed:
                log.exception("each_epoch raised after epoch %d of trial %d; fit continues", outcome.epochs, trial.id)
            self.failed += 1

    def trial_ends(self, trial: Trial) -> None:
        pass

    def close(self) -> None:
        """Log how often the function has failed, if more than once."""
        if self.failed > 1:
            log.error("each_epoch raised %d times", self.failed)
