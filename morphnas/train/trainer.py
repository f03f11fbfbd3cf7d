"""Training any `nn.Module` on a task until its schedule or the deadline ends, and keeping the best weights seen."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphnas.train.augment import Draw
from morphnas.train.checkpoint import Checkpoint, CheckpointMismatch, Keep, Moving, TrainingState
from morphnas.train.data import Orders, Task, steps
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.goal import Goal, UndefinedMetric
from morphnas.train.predict import Diverged, chunk, evaluate
from morphnas.train.recipe import Epoch, Outcome, Recipe, Status
from morphnas.train.step import Step, computing, is_out_of_memory, to_memory_format

SHORT = 12
"""Schedules of at most this many epochs have no patience: they are over before a stale epoch says anything."""

CALM = 0.5
"""Share of the peak rate from which on an epoch's score is taken for the network's."""

HASTE = 30.0
"""Seconds left below which it is found out first how long a step will take."""

MAX_ERROR_LENGTH = 2000
"""Characters of an error that an outcome holds."""

PROBE = 8
"""Examples that this is tried with."""

EachEpoch = Callable[[Outcome], None]
"""Called after every epoch with the outcome so far. What it raises ends the training."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a fraction of its peak, over the progress of a training from 0 to 1: up for `warmup`, down to 0.

    decay: the progress at which patience ended; from there the rate falls linearly to 0 at the progress `end`.
    """

    warmup: float
    decay: float = math.inf
    end: float = 1.0

    def rate(self, progress: float) -> float:
        if progress >= self.end:
            return 0.0
        if progress > self.decay:
            return self.rate(self.decay) * (self.end - progress) / (self.end - self.decay)
        if progress < self.warmup:
            return 0.05 + 0.95 * progress / self.warmup
        return (1 - progress) / (1 - self.warmup) if self.warmup < 1 else 1.0

    def calm(self, progress: float) -> bool:
        """Whether the rate has come down again to a share of `CALM` of its peak."""
        return progress >= self.warmup and self.rate(progress) <= CALM

    def decaying(self, progress: float, epochs: int, last: int) -> Schedule:
        """The schedule whose final decay begins at `progress`, which took `epochs` epochs, and ends after the `last`.

        The progress may be ahead of the epochs, where the clock leads: it goes on at the pace that it had.
        """
        return replace(self, decay=progress, end=min(1.0, progress * last / epochs))


def warm_up() -> None:
    """Import what torch leaves out until its first optimizer steps: seconds that no time limit should pay for."""
    torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0).step()


def last_epoch(epochs: int, planned: int) -> int:
    """The epoch that a final decay ends with that begins after `epochs`: half as many again, at least 3."""
    return min(planned, epochs + max(3, epochs // 2))


def train(
    module: nn.Module,
    task: Task,
    recipe: Recipe,
    deadline: Deadline,
    generator: torch.Generator,
    each_epoch: EachEpoch | None = None,
    scored: bool = True,
    micro: int | None = None,
    smallest: int = 2,
    keep: Keep | None = None,
    saved: Checkpoint | None = None,
) -> Outcome:
    """Train the module in place; afterwards it holds the weights of the epoch that scored best.

    An epoch after which the rate has come down to half its peak comes before any other: at a high rate weights jump
    about, and which of them suit a few hundred validation examples is luck.

    With scored=False there is nobody to judge (the validation examples are trained on): no epoch is scored, there is
    no patience, and the last weights that are numbers are kept.

    The rate follows the epochs or the clock, whichever is further, so that it has come down to 0 when the deadline
    ends the training. Then the outcome is "truncated", and "diverged" when the loss explodes or is no number any more;
    both keep the best weights so far. A score that the deadline cuts short does not count. Where the deadline comes
    before its time, since the work is to stop, an epoch that was begun is scored all the same if none was before.

    micro, smallest: examples in memory at a time, to begin with and at least, see `Step`. Raises what torch does when
    not even `smallest` fit.

    keep: is offered a checkpoint after every epoch. saved: one to go on from, with a module, a task, a recipe and a
    generator that are as they were at the beginning; where the clock is of no matter, to the same weights as without
    an interruption. Sets torch's own random state to what it was. Unfit where it is another training's.
    """
    return _Training(module, task, recipe, deadline, generator, scored, micro, smallest, saved).run(each_epoch, keep)


class _Training:
    """What `train` does. `at` is all that a checkpoint holds of it beside tensors."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        recipe: Recipe,
        deadline: Deadline,
        generator: torch.Generator,
        scored: bool,
        micro: int | None,
        smallest: int,
        saved: Checkpoint | None,
    ) -> None:
        if task.train.x.ndim == 4:
            to_memory_format(module, torch.channels_last)
        self.gpu = task.device.type == "cuda"
        self.held = _begin_measuring(module, task.device)  # before there are any copies
        self.module, self.task, self.recipe, self.deadline = module, task, recipe, deadline
        self.generator, self.scored, self.clock = generator, scored, deadline.clock
        most = min(recipe.examples or len(task.train), len(task.train))
        self.per_epoch = steps(most, recipe.batch_size)
        self.seen = most - most % self.per_epoch  # in batches of one length, so that one is recorded; the next epoch
        self.order = Orders(len(task.train), self.seen, generator)  # begins with the others
        mirrored = torch.rand(len(task.train), generator=generator) < 0.5 if recipe.augment.flip else None
        self.step = Step(module, task, recipe, self.per_epoch, mirrored, micro, smallest)
        self.moving = Moving(self.step, generator, self.order)
        if saved is None:
            self.begun = self.clock()
            pace = probe_step_seconds(module, task, recipe, self.clock) if deadline.left < HASTE else 0.0
            examples, held_out = task.evaluation_set.effective_size if scored else 0, task.valid is not None
            judged: dict[str, Any] = {"measure": task.goal.measure, "objective": task.goal.objective}
            nothing = Outcome("truncated", examples=examples, held_out=held_out, **judged)
            self.at, self.best_state = TrainingState(nothing, recipe.epochs, self.step.micro, pace=pace), _copy(module)
        else:
            self.at = _past(saved, recipe.epochs, task.goal)
            self.best_state = self.moving.restore(saved.tensors)
            self.begun = self.clock() - self.at.seconds
            self.step.micro, self.step.fresh = self.at.micro, False
        self.allotted = deadline.left + self.seconds
        self.status: Status = "finished"

    @property
    def seconds(self) -> float:
        return self.clock() - self.begun

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.recipe.warmup, math.inf if self.at.decay is None else self.at.decay, self.at.end)

    def progress(self, epochs: float) -> float:
        """From 0 to 1: by the epochs done, or by the clock where they are late by a step: then the deadline binds."""
        reserved = self.allotted - 1.5 * self.at.validation
        by_clock = self.seconds / reserved if reserved > 0 else 1.0
        planned = self.recipe.epochs
        return by_clock if by_clock > (epochs + 1 / self.per_epoch) / planned else epochs / planned

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs, as a share of the recipe's: lower where the whole training is long,
        which the clock may cut short."""
        progress = self.progress(epochs)
        whole = epochs / progress if progress else self.recipe.epochs
        eased = self.recipe.lr_factor(whole * self.seen, len(self.task.train))
        return eased * self.schedule.rate(min(progress, self.at.end * 0.9999))

    def run(self, each_epoch: EachEpoch | None, keep: Keep | None) -> Outcome:
        at = self.at
        while at.epoch < at.last and self.status == "finished":
            try:
                loss = self.epoch()
                if loss is None:
                    break
                self.evaluate_epoch(loss)
            except OutOfTime:
                self.status = "truncated"
                break
            except Diverged as error:
                self.status = "diverged"
                message = f"{error}, in epoch {at.epoch} at a learning rate of {self.recipe.lr:g}"
                at.best = replace(at.best, error=message)
                break
            except Exception as error:
                if not (at.best.best_epoch and is_out_of_memory(error)):
                    raise
                self.status = "truncated"  # somebody else has taken the memory since
                at.best = replace(at.best, error=str(error)[:MAX_ERROR_LENGTH])
                break
            self.apply_patience()
            if each_epoch:
                each_epoch(replace(at.best, epochs=at.epoch, curve=at.curve, seconds=self.seconds))
            if keep and at.epoch < at.last and self.status == "finished":
                keep(self.checkpoint)
        self.step.forget()
        self.module.load_state_dict(self.best_state)
        return replace(
            at.best,
            status=self.status,
            epochs=at.epoch,
            curve=at.curve,
            seconds=self.seconds,
            images_per_second=at.timed / at.training if at.training else 0.0,
            peak_bytes=max(0, torch.cuda.max_memory_allocated(self.task.device) - self.held) if self.gpu else 0,
            micro_batch=min(self.step.micro, self.recipe.batch_size) if at.trained else 0,
        )

    def epoch(self) -> float | None:
        """Train for an epoch, or as long as there is time for; its mean loss, None where there was none for a batch.

        Diverged when the loss explodes or is no number any more.
        """
        at, task = self.at, self.task
        self.module.train()
        total = torch.zeros((), device=task.device)
        done, gone = 0, ""
        losses: deque[tuple[Callable[[], float], Draw]] = deque()
        whole = Draw.of(next(self.order), task.train.x.shape[1:], self.recipe.augment, self.generator)
        for draw in whole.to(task.device, task.train.x.device).split(self.per_epoch):
            room = self.deadline.left - at.validation
            if room <= 1.5 * at.pace * len(draw):
                fitting = int(room / (1.5 * at.pace)) if at.pace else 0
                if fitting < 2 or at.trained:  # part of a batch is worth it when there is nothing else
                    self.status = "truncated"
                    break
                draw = draw.first(fitting)
            begun = self.clock()
            rate = self.rate(at.epoch + done / self.seen)
            loss = self.step(draw, rate)
            total += loss * len(draw)
            losses.append((fetch_async(loss), draw))
            if len(losses) > (self.gpu and at.trained > 0):  # a GPU has the next step to do while one is looked at
                fetch, looked_at = losses.popleft()
                value = fetch()
                if gone := self.divergence(value, looked_at):
                    break
                at.usual = (*at.usual, value) if len(at.usual) < 8 else at.usual
            seconds = self.clock() - begun
            if not self.step.recorded:
                at.pace = max(0.9 * at.pace if at.trained else 0.0, seconds / len(draw))  # forgets hiccups slowly
            done += len(draw)
            at.trained += len(draw)
            at.timed, at.training = (0, 0.0) if self.step.recorded else (at.timed + len(draw), at.training + seconds)
            if self.scored and not at.curve:
                at.validation = 0.5 * at.pace * len(task.evaluation_set)  # without a backward pass
        if done == 0 and not gone:
            return None
        at.epoch += 1
        begun = self.clock()
        mean = total.item() / max(1, done)
        waited = self.clock() - begun  # for the last step, which a GPU had still to do
        at.training += waited
        at.pace = max(at.pace, waited / len(draw))
        if gone or not math.isfinite(mean):
            raise Diverged(gone or "the training loss is no number any more")
        mean *= task.goal.display_scale
        at.best = replace(at.best, training_loss=mean, lr=self.recipe.lr * rate)
        return mean

    def divergence(self, loss: float, draw: Draw) -> str:
        """See the function: where the batch has examples that are far off, or count a lot, also beside what it costs a
        network that says 0 of all."""
        goal, usual = self.task.goal, self.at.usual
        if not divergence(loss, usual, goal.baseline_loss):
            return ""
        batch = self.task.train[draw.index]
        nothing = goal.loss(torch.zeros(len(draw), goal.outputs, device=self.task.device), batch.y, batch.weights)
        return divergence(loss, usual, max(goal.baseline_loss, nothing.item()))

    def evaluate_epoch(self, loss: float) -> None:
        """Score the network, and keep its weights where it is the best so far.

        OutOfTime where there is no time left for that, and an earlier one has a score. Diverged where its outputs or
        its weights are no numbers any more. One that a metric of the user's own says nothing of has no score.
        """
        at = self.at
        score: float | None = None
        metric: float | None = None
        if self.scored:
            begun = self.clock()
            until = self.deadline if at.best.score is not None else self.deadline.heeding(None)
            try:
                score, metric = evaluate(
                    self.step.kept, self.task.evaluation_set, self.task, chunk(self.step.micro), until
                )
                at.validation = max(1.2 * (self.clock() - begun), 0.8 * at.validation)
                at.curve = (*at.curve, Epoch(self.seconds, loss, score, metric))
            except OutOfTime:
                if at.best.score is not None:
                    raise
                self.status = "truncated"
            except UndefinedMetric as error:
                at.curve = (*at.curve, Epoch(self.seconds, loss, None, None))
                if at.best.score is None:
                    at.best = replace(at.best, error=f"after epoch {at.epoch} {error}")
        at.stale += 1
        if self.scored and score is None and at.best.score is not None:
            return
        calm = self.schedule.calm(self.progress(at.epoch))
        before = None if at.best.score is None else (at.calmed, at.best.score)
        if score is None or before is None or (calm, score) >= before:  # of equals the one that is trained longer
            at.stale = at.stale if before == (calm, score) else 0
            at.calmed = calm
            state = _copy(self.step.kept)
            if not all(value.isfinite().all() for value in state.values()):  # of the last step, after its loss
                raise Diverged("the weights are no numbers any more")
            why = at.best.error if score is None else None
            found = replace(at.best, score=score, metric=metric, best_epoch=at.epoch, error=why)
            at.best, self.best_state = found, state

    def apply_patience(self) -> None:
        """Begin the final decay where there was no better score for as long as the recipe's patience.

        Epochs of the warm-up do not count: scores fall while the rate rises, from inherited weights above all.
        """
        at, patience = self.at, self.recipe.patience
        if self.progress(at.epoch) <= self.recipe.warmup:
            at.stale = 0
        if patience and self.recipe.epochs > SHORT and at.stale >= patience and at.decay is None:
            at.last = last_epoch(at.epoch, self.recipe.epochs)
            decaying = self.schedule.decaying(self.progress(at.epoch), at.epoch, at.last)
            at.decay, at.end = decaying.decay, decaying.end

    def checkpoint(self) -> Checkpoint:
        now = replace(self.at, micro=self.step.micro, seconds=self.seconds)
        return Checkpoint(now.to_json(), self.moving.tensors(self.best_state))


def _past(saved: Checkpoint, planned: int, goal: Goal) -> TrainingState:
    """Where a checkpoint was made; Unfit where that is nowhere in a training of so many epochs for this goal."""
    try:
        past = TrainingState.from_json(saved.facts)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointMismatch(str(error)) from None
    if not (0 < past.epoch < past.last <= planned and past.micro):
        raise CheckpointMismatch(f"it is after epoch {past.epoch} of {past.last}, where there are {planned}")
    if (past.best.objective, past.best.measure) != (goal.objective, goal.measure):
        raise CheckpointMismatch(f"its scores are of {past.best.objective}, not of {goal.objective}")
    return past


def probe_step_seconds(module: nn.Module, task: Task, recipe: Recipe, clock: Callable[[], float]) -> float:
    """Seconds per example that a step takes for a few of them, without one being made: nothing changes.

    0 where even these are too much for the memory: a step finds out what fits.
    """
    batch, gpu = task.train[:PROBE], task.device.type == "cuda"
    moving = {name: value.clone() for name, value in module.named_buffers()}  # these move, not the module's own
    module.train()
    seconds = 0.0
    try:
        with torch.random.fork_rng([task.device] if gpu else []):
            for _ in range(2):  # the first one takes longer
                begun = clock()
                with computing(recipe.precision, task.device):
                    outputs = functional_call(module, moving, task.normalised(batch.x))
                task.goal.loss(outputs.float(), batch.y).backward()
                if gpu:
                    torch.cuda.current_stream(task.device).synchronize()
                seconds = clock() - begun
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        seconds = 0.0
    module.zero_grad(set_to_none=True)
    return seconds / len(batch)


def fetch_async(value: Tensor) -> Callable[[], float]:
    """The number, on its way to the host: asked for it waits for what a GPU was given before, for nothing after."""
    if value.device.type != "cuda":
        number = value.item()
        return lambda: number
    copy, there = value.to("cpu", non_blocking=True), torch.cuda.Event()
    there.record(torch.cuda.current_stream(value.device))

    def wait() -> float:
        there.synchronize()
        return float(copy)

    return wait


def divergence(loss: float, usual: Sequence[float], baseline_loss: float) -> str:
    """What is wrong with a batch's loss; "" if nothing is.

    A loss does not recover that is above 20 times the mean of `usual`, the first losses of the training, and above 10
    times `baseline_loss`, that of an uninformed prediction.
    """
    if not math.isfinite(loss):
        return "the training loss is no number any more"
    if usual and loss > max(20 * statistics.fmean(usual), 10 * baseline_loss):
        return f"the training loss went up from {statistics.fmean(usual):.3g} to {loss:.3g}"
    return ""


def _begin_measuring(module: nn.Module, device: torch.device) -> int:
    """Forget a GPU's peak of memory; the bytes in use on it by others than the module. 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    own = sum(value.nbytes for value in module.state_dict().values())
    return int(torch.cuda.memory_allocated(device) - own)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
