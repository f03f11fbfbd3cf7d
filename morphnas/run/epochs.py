"""What a user's own function is told after every epoch, and how it can end the fit."""

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
    """Raised by a function that is called after every epoch: ends the fit as one Ctrl-C does."""


@dataclass(frozen=True)
class EpochReport:
    """An epoch of a trial that is done.

    run: the run's folder. trial: the trial's id. parent: whose weights it began with; None: fresh ones. morphs: edits
    that made its network of the parent's, in words. final: what a training of the final model is for, as "inherited",
    "fresh" or "everything"; None: it is one of the search. epoch: from 1, of so many `epochs` that are meant.

    loss: mean training loss of the epoch, with label smoothing where the recipe has it. validation_loss, metric: mean
    log loss (or the loss of the user's own) and accuracy, or whatever else the metric is, on the validation part after
    the epoch; None: nobody judges this training, or, of the loss, a metric of the user's own does. lr: learning rate of
    the last step. seconds: since the trial's training began.
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
        """outcome: that of the trial so far."""
        scored = outcome.curve[-1] if outcome.curve else None
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
            validation_loss=None if scored is None or scored.score is None or outcome.by_metric else -scored.score,
            metric=None if scored is None else scored.metric,
        )

    @property
    def numbers(self) -> dict[str, float]:
        """The figures of the epoch that there are, by name, as writers of logs take them."""
        found = {name: getattr(self, name) for name in ("loss", "lr", "seconds", "validation_loss", "metric")}
        return {name: value for name, value in found.items() if value is not None}


EachEpochReport = Callable[[EpochReport], object]


@dataclass
class EpochCalls:
    """An observer that calls a function after every epoch of every trial.

    `StopFit` from it asks to stop. Anything else that it raises costs nothing but that call: the first time it is
    logged with its traceback, and at the end how often it was. function: None: nobody's. stop: what is asked to stop.
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
            self.stopped = self.stop.asked = True
        except Exception:
            if not self.failed:
                log.exception("each_epoch raised after epoch %d of trial %d; the fit goes on", outcome.epochs, trial.id)
            self.failed += 1

    def trial_ends(self, trial: Trial) -> None:
        pass

    def close(self) -> None:
        """Say how often the function has failed."""
        if self.failed > 1:
            log.error("each_epoch raised %d times", self.failed)
