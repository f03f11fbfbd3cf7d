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
from morphnas.train.checkpoint import Checkpoint, CheckpointCallback, CheckpointMismatch, TensorState, TrainingState
from morphnas.train.data import ShuffledIndices, Task, batch_count
from morphnas.train.deadline import Deadline, OutOfTime
from morphnas.train.goal import Goal, UndefinedMetric
from morphnas.train.predict import Diverged, evaluate, evaluation_batch_size
from morphnas.train.recipe import Epoch, Outcome, Recipe, Status
from morphnas.train.step import Step, autocast_to, is_out_of_memory, set_training_mode, to_memory_format

MAX_EPOCHS_WITHOUT_PATIENCE = 12
"""Schedules of at most this many epochs have no patience: they end before an epoch without improvement means much."""

LOW_RATE = 0.5
"""Share of the peak learning rate: after the warm-up, epochs that end at this rate or below are preferred to others."""

PROBE_BELOW_SECONDS = 30.0
"""Remaining time below which the duration of a step is estimated before the first one is made."""

PROBE_EXAMPLES = 8
"""Number of examples that this estimate is made with."""

MAX_ERROR_LENGTH = 2000
"""Maximum number of characters of an out-of-memory error message in an outcome."""

EachEpoch = Callable[[Outcome], None]
"""Called with the outcome so far after every epoch, except one that ends the training without a result (by an error,
divergence, or the deadline before its score). An exception that it raises ends the training."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a fraction of its peak, over the progress of a training from 0 to 1: it rises linearly from 0.05
    for the share `warmup` of the progress, then falls linearly to 0.

    decay: the progress at which patience ran out; from there the rate falls linearly to 0 at the progress `end`.
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

    def is_low(self, progress: float) -> bool:
        """Whether the rate has come down to `LOW_RATE` after the warm-up."""
        return progress >= self.warmup and self.rate(progress) <= LOW_RATE

    def with_final_decay(self, progress: float, epochs: int, last: int) -> Schedule:
        """The schedule with a final decay that begins now, at `progress` after `epochs` epochs, and ends after `last`.

        The decay assumes the same progress per epoch as so far: where the clock drives the schedule, progress is ahead
        of the share of planned epochs.
        """
        return replace(self, decay=progress, end=min(1.0, progress * last / epochs))


def load_optimizers() -> None:
    """Import what PyTorch loads lazily with the first optimizer step: it takes seconds, outside of time limits."""
    torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0).step()


def last_epoch(epochs: int, planned: int) -> int:
    """The last epoch of a final decay that begins after `epochs`: it takes half as many epochs again, at least 3, but
    ends at the latest with the last planned epoch."""
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
    keep: CheckpointCallback | None = None,
    saved: Checkpoint | None = None,
) -> Outcome:
    """Train the module in place; afterwards it holds the weights of the epoch that scored best.

    Epochs after which the learning rate has come down to half its peak or less are preferred to all others: at a high
    rate weights fluctuate, and which of them do well on a few hundred validation examples is luck.

    The learning rate follows the epochs or the clock, whichever is further, so that it has come down to 0 when the
    deadline ends the training. The outcome is then "truncated"; it is "diverged" when the loss explodes or becomes NaN
    or infinite. Both keep the best weights so far. A score that the deadline interrupts does not count. When a stop
    request ends the training before any epoch was scored, the epoch that was started is scored all the same.

    each_epoch: see `EachEpoch`.

    scored: False for a training without validation, as the validation examples are trained on: no epoch is scored,
    there is no patience, and the last finite weights are kept.

    micro, smallest: initial and smallest micro-batch size, see `Step`. Raises PyTorch's out-of-memory error when not
    even `smallest` examples fit, unless an epoch was completed before.

    keep: see `CheckpointCallback`.

    saved: a checkpoint to resume from. Module, task, recipe and generator must be as they were at the start. Unless the
    clock drives the schedule, the final weights are the same as without the interruption. PyTorch's global random state
    is restored. CheckpointMismatch if it belongs to another training.
    """
    return _Training(module, task, recipe, deadline, generator, scored, micro, smallest, saved).run(each_epoch, keep)


class _Training:
    """The implementation of `train`. A checkpoint holds `state`, and the tensors of `tensor_state`."""

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
        self.other_bytes = _reset_peak_memory(module, task.device)  # before copies of the weights are made
        self.module, self.task, self.recipe, self.deadline = module, task, recipe, deadline
        self.generator, self.scored, self.clock = generator, scored, deadline.clock
        n = min(recipe.examples or len(task.train), len(task.train))
        self.per_epoch = batch_count(n, recipe.batch_size)
        self.epoch_size = n - n % self.per_epoch  # batches of one length need one CUDA graph; the rest comes next epoch
        self.order = ShuffledIndices(len(task.train), self.epoch_size, generator)
        mirrored = torch.rand(len(task.train), generator=generator) < 0.5 if recipe.augment.flip else None
        self.step = Step(module, task, recipe, self.per_epoch, mirrored, micro, smallest)
        self.tensor_state = TensorState(self.step, generator, self.order)
        if saved is None:
            self.start = self.clock()
            hurry = deadline.left < PROBE_BELOW_SECONDS
            pace = probe_step_seconds(module, task, recipe, self.clock) if hurry else 0.0
            examples, held_out = task.evaluation_set.effective_size if scored else 0, task.valid is not None
            names: dict[str, Any] = {"measure": task.goal.measure, "objective": task.goal.objective}
            initial = Outcome("truncated", examples=examples, held_out=held_out, **names)
            self.state = TrainingState(initial, recipe.epochs, self.step.micro, pace=pace)
            self.best_weights = _copy_weights(module)
        else:
            self.state = _restored_state(saved, recipe.epochs, task.goal)
            self.best_weights = self.tensor_state.restore(saved.tensors)
            self.start = self.clock() - self.state.seconds
            self.step.micro, self.step.fresh = self.state.micro, False
        self.allotted = deadline.left + self.seconds
        self.status: Status = "finished"

    @property
    def seconds(self) -> float:
        return self.clock() - self.start

    @property
    def schedule(self) -> Schedule:
        decay = math.inf if self.state.decay is None else self.state.decay
        return Schedule(self.recipe.warmup, decay, self.state.end)

    def progress(self, epochs: float) -> float:
        """Progress of the schedule after so many epochs, from 0 to 1.

        It follows the planned epochs, or the clock where this is ahead by more than a step: then the deadline will come
        before the last epoch.
        """
        available = self.allotted - 1.5 * self.state.validation
        by_clock = self.seconds / available if available > 0 else 1.0
        planned = self.recipe.epochs
        return by_clock if by_clock > (epochs + 1 / self.per_epoch) / planned else epochs / planned

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs, as a share of the recipe's.

        Long trainings have a lower rate (`Recipe.lr_factor`); their length is estimated from the progress so far, since
        the deadline may end them early.
        """
        progress = self.progress(epochs)
        total_epochs = epochs / progress if progress else self.recipe.epochs
        factor = self.recipe.lr_factor(total_epochs * self.epoch_size, len(self.task.train))
        return factor * self.schedule.rate(min(progress, self.state.end * 0.9999))

    def run(self, each_epoch: EachEpoch | None, keep: CheckpointCallback | None) -> Outcome:
        state = self.state
        while state.epoch < state.last and self.status == "finished":
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
                message = f"{error}, in epoch {state.epoch} at a learning rate of {self.recipe.lr:g}"
                state.best = replace(state.best, error=message)
                break
            except Exception as error:
                if not (state.best.best_epoch and is_out_of_memory(error)):
                    raise
                self.status = "truncated"  # another process has taken the memory meanwhile
                state.best = replace(state.best, error=str(error)[:MAX_ERROR_LENGTH])
                break
            self.apply_patience()
            if each_epoch:
                each_epoch(replace(state.best, epochs=state.epoch, curve=state.curve, seconds=self.seconds))
            if keep and state.epoch < state.last and self.status == "finished":
                keep(self.checkpoint)
        self.step.release_graphs()
        self.module.load_state_dict(self.best_weights)
        return replace(
            state.best,
            status=self.status,
            epochs=state.epoch,
            curve=state.curve,
            seconds=self.seconds,
            images_per_second=state.timed / state.training if state.training else 0.0,
            peak_bytes=max(0, torch.cuda.max_memory_allocated(self.task.device) - self.other_bytes) if self.gpu else 0,
            micro_batch=min(self.step.micro, self.recipe.batch_size) if state.trained else 0,
        )

    def epoch(self) -> float | None:
        """Train for an epoch, or as long as there is time; its mean loss, or None if there was no time for any batch.

        Diverged when the loss explodes, or becomes NaN or infinite.
        """
        state, task = self.state, self.task
        set_training_mode(self.module, self.recipe)
        total = torch.zeros((), device=task.device)
        done, diverged = 0, ""
        pending: deque[tuple[Callable[[], float], Draw]] = deque()
        epoch_draw = Draw.of(next(self.order), task.train.x.shape[1:], self.recipe.augment, self.generator)
        for draw in epoch_draw.to(task.device, task.train.x.device).split(self.per_epoch):
            left = self.deadline.left - state.validation
            if left <= 1.5 * state.pace * len(draw):
                fitting = int(left / (1.5 * state.pace)) if state.pace else 0
                if fitting < 2 or state.trained:  # part of a batch is worthwhile only as a first step
                    self.status = "truncated"
                    break
                draw = draw.first(fitting)
            start = self.clock()
            rate = self.rate(state.epoch + done / self.epoch_size)
            loss = self.step(draw, rate)
            total += loss * len(draw)
            pending.append((fetch_async(loss), draw))
            if len(pending) > (self.gpu and state.trained > 0):  # on a GPU a step behind, so that it is never idle
                fetch, checked = pending.popleft()
                value = fetch()
                if diverged := self.divergence(value, checked):
                    break
                state.usual = (*state.usual, value) if len(state.usual) < 8 else state.usual
            seconds = self.clock() - start
            if not self.step.recorded:  # outliers are forgotten slowly
                state.pace = max(0.9 * state.pace if state.trained else 0.0, seconds / len(draw))
            done += len(draw)
            state.trained += len(draw)
            state.timed, state.training = (
                (0, 0.0) if self.step.recorded else (state.timed + len(draw), state.training + seconds)
            )
            if self.scored and not state.curve:
                state.validation = 0.5 * state.pace * len(task.evaluation_set)  # without a backward pass
        if done == 0 and not diverged:
            return None
        state.epoch += 1
        start = self.clock()
        mean = total.item() / max(1, done)
        waited = self.clock() - start  # until a GPU has finished the last step
        state.training += waited
        state.pace = max(state.pace, waited / len(draw))
        if diverged or not math.isfinite(mean):
            raise Diverged(diverged or "the training loss is NaN or infinite")
        mean *= task.goal.display_scale
        state.best = replace(state.best, training_loss=mean, lr=self.recipe.lr * rate)
        return mean

    def divergence(self, loss: float, draw: Draw) -> str:
        """See the function `divergence`.

        A batch with outliers or large sample weights has a large loss in any case, so the baseline is at least the
        batch's loss for outputs of 0.
        """
        goal, usual = self.task.goal, self.state.usual
        if not divergence(loss, usual, goal.baseline_loss):
            return ""
        batch = self.task.train[draw.index]
        zeros = torch.zeros(len(draw), goal.outputs, device=self.task.device)
        return divergence(loss, usual, max(goal.baseline_loss, goal.loss(zeros, batch.y, batch.weights).item()))

    def evaluate_epoch(self, loss: float) -> None:
        """Score the network, and keep its weights if it is the best so far; loss: the epoch's mean training loss.

        OutOfTime when there is no time left for that, and an earlier epoch has a score. Diverged when outputs or
        weights are NaN or infinite. An epoch for which a user-defined metric is undefined has no score.
        """
        state = self.state
        score: float | None = None
        metric: float | None = None
        if self.scored:
            start = self.clock()
            deadline = self.deadline if state.best.score is not None else self.deadline.with_stop(None)
            try:
                score, metric = evaluate(
                    self.step.evaluated,
                    self.task.evaluation_set,
                    self.task,
                    evaluation_batch_size(self.step.micro),
                    deadline,
                )
                state.validation = max(1.2 * (self.clock() - start), 0.8 * state.validation)
                state.curve = (*state.curve, Epoch(self.seconds, loss, score, metric))
            except OutOfTime:
                if state.best.score is not None:
                    raise
                self.status = "truncated"
            except UndefinedMetric as error:
                state.curve = (*state.curve, Epoch(self.seconds, loss, None, None))
                if state.best.score is None:
                    state.best = replace(state.best, error=f"after epoch {state.epoch} {error}")
        state.stale += 1
        if self.scored and score is None and state.best.score is not None:
            return
        low = self.schedule.is_low(self.progress(state.epoch))
        before = None if state.best.score is None else (state.calmed, state.best.score)
        if score is None or before is None or (low, score) >= before:  # of equal scores the later epoch is kept
            state.stale = state.stale if before == (low, score) else 0
            state.calmed = low
            weights = _copy_weights(self.step.evaluated)
            if not all(value.isfinite().all() for value in weights.values()):  # the last step came after its loss
                raise Diverged("the weights are NaN or infinite")
            error_message = state.best.error if score is None else None
            state.best = replace(state.best, score=score, metric=metric, best_epoch=state.epoch, error=error_message)
            self.best_weights = weights

    def apply_patience(self) -> None:
        """Begin the final decay when there was no better score for as long as the recipe's patience.

        Epochs of the warm-up do not count: scores fall while the learning rate rises, above all with inherited weights.
        """
        state, patience = self.state, self.recipe.patience
        if self.progress(state.epoch) <= self.recipe.warmup:
            state.stale = 0
        if (
            patience
            and self.recipe.epochs > MAX_EPOCHS_WITHOUT_PATIENCE
            and state.stale >= patience
            and state.decay is None
        ):
            state.last = last_epoch(state.epoch, self.recipe.epochs)
            schedule = self.schedule.with_final_decay(self.progress(state.epoch), state.epoch, state.last)
            state.decay, state.end = schedule.decay, schedule.end

    def checkpoint(self) -> Checkpoint:
        state = replace(self.state, micro=self.step.micro, seconds=self.seconds)
        return Checkpoint(state.to_json(), self.tensor_state.tensors(self.best_weights))


def _restored_state(saved: Checkpoint, planned: int, goal: Goal) -> TrainingState:
    """The state in a checkpoint; CheckpointMismatch if it cannot be of a training of so many epochs for this goal."""
    try:
        state = TrainingState.from_json(saved.facts)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointMismatch(str(error)) from None
    if not (0 < state.epoch < state.last <= planned and state.micro):
        raise CheckpointMismatch(f"it is from epoch {state.epoch} of {state.last}, but {planned} epochs are planned")
    if (state.best.objective, state.best.measure) != (goal.objective, goal.measure):
        raise CheckpointMismatch(f"its scores are of {state.best.objective}, not of {goal.objective}")
    return state


def probe_step_seconds(module: nn.Module, task: Task, recipe: Recipe, clock: Callable[[], float]) -> float:
    """Estimate a step's seconds per example by forward and backward passes of a few examples.

    Neither weights, buffers nor random state change. 0 if even these examples do not fit into memory: then the first
    step finds out what fits.
    """
    batch, gpu = task.train[:PROBE_EXAMPLES], task.device.type == "cuda"
    buffers = {name: value.clone() for name, value in module.named_buffers()}  # updated instead of the module's own
    set_training_mode(module, recipe)
    seconds = 0.0
    try:
        with torch.random.fork_rng([task.device] if gpu else []):
            for _ in range(2):  # the first pass takes longer
                start = clock()
                with autocast_to(recipe.precision, task.device):
                    outputs = functional_call(module, buffers, task.normalised(batch.x))
                task.goal.loss(outputs.float(), batch.y).backward()
                if gpu:
                    torch.cuda.current_stream(task.device).synchronize()
                seconds = clock() - start
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        seconds = 0.0
    module.zero_grad(set_to_none=True)
    return seconds / len(batch)


def fetch_async(value: Tensor) -> Callable[[], float]:
    """Begin to copy a scalar to the host, and return a function that waits for it.

    The returned function waits for the work that the GPU was given before this call, not for later work.
    """
    if value.device.type != "cuda":
        number = value.item()
        return lambda: number
    copy, copied = value.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))

    def wait() -> float:
        copied.synchronize()
        return float(copy)

    return wait


def divergence(loss: float, usual: Sequence[float], baseline_loss: float) -> str:
    """What is wrong with a batch's loss, as a message; "" if nothing is.

    A loss does not recover when it is NaN or infinite, or above both 20 times the mean of `usual`, the first losses of
    the training, and 10 times `baseline_loss`, that of an uninformed prediction.
    """
    if not math.isfinite(loss):
        return "the training loss is NaN or infinite"
    if usual and loss > max(20 * statistics.fmean(usual), 10 * baseline_loss):
        return f"the training loss went up from {statistics.fmean(usual):.3g} to {loss:.3g}"
    return ""


def _reset_peak_memory(module: nn.Module, device: torch.device) -> int:
    """Reset a GPU's peak memory statistics; returns the bytes in use that are not the module's. 0 on other devices."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    own = sum(value.nbytes for value in module.state_dict().values())
    return int(torch.cuda.memory_allocated(device) - own)


def _copy_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
