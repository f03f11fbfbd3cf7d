"""Carrying a search out: `work` trains one proposal, `search` asks, hands out work and writes down what comes back."""

from __future__ import annotations

import logging
import math
import statistics
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from morphnas.graph import SMALLEST, Conv, Graph, Limits, Morph, Network, Weights, fresh_weights, to_module, weights_of
from morphnas.run.checkpoints import Keeper, Result, Saved
from morphnas.run.files import RunError
from morphnas.run.keeping import prune
from morphnas.run.proposing import Asker
from morphnas.run.store import Store
from morphnas.search.candidates import measured_memory
from morphnas.search.trial import Left, Searcher, Trial
from morphnas.train.calibrate import calibrate
from morphnas.train.checkpoint import Unfit
from morphnas.train.data import Task
from morphnas.train.deadline import NEVER, POLL, Deadline, OutOfTime, Stop
from morphnas.train.predict import Diverged, chunk, evaluate, in_full, latency, predict
from morphnas.train.recipe import LEAST_RATE, Outcome, Recipe
from morphnas.train.step import is_gone, is_out_of_memory, lay_out
from morphnas.train.trainer import EachEpoch, train
from morphnas.train.whitening import whitening

log = logging.getLogger("morphnas")

PROOF = 1e-3
"""Largest difference of a child's outputs from its start's, relative to the largest output, in float32."""
CALMER = 4.0
"""A training that diverged is done again at a learning rate so many times lower."""
TRIES = 9
"""Trainings that must have failed before a search without any network is given up."""
AGAIN = ("failed", "diverged")
"""What may come of a training by chance: where there is nothing else, its network is tried once more."""
DROP = 0.03
"""What mirrored images may cost a network that was trained without them, of its accuracy or R2, if they are to help."""
TIMED = 0.1
"""Seconds for measuring how long a network takes for one example, at most."""
LEAST_SIDE = 16
"""Pixels along each side of images whose patches are worth whitening."""
UNLIMITED = Limits()
_PROBES = 64
_CALIBRATION = 512


class Observer(Protocol):
    """Is told what happens, for people to see. It has no say in the search; what it raises ends it."""

    def trial_begins(self, trial: Trial) -> None: ...

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None: ...

    def trial_ends(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one: they are told in their order."""

    several: Sequence[Observer]

    def trial_begins(self, trial: Trial) -> None:
        for observer in self.several:
            observer.trial_begins(trial)

    def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
        for observer in self.several:
            observer.epoch_done(trial, outcome)

    def trial_ends(self, trial: Trial) -> None:
        for observer in self.several:
            observer.trial_ends(trial)


@dataclass(frozen=True, eq=False)
class Job:
    """A proposal as a worker gets it: with the weights of its start, if that has any.

    seconds: that the work may take. scored: whether the task's judge is asked after every epoch, see `train`.
    micro: examples to have in memory at a time; None: whole batches.
    checkpoint: the file, if it is within reach, that the work is gone on from, and can be later.
    stop: ends the work early, where it is done in this process.
    max_latency: seconds from one example to its outputs from which on a network is too slow; None: none is.
    """

    start: Graph | Network
    morphs: tuple[Morph, ...]
    recipe: Recipe
    seconds: float
    seed: int
    scored: bool = True
    micro: int | None = None
    checkpoint: Path | None = None
    stop: Stop | None = None
    max_latency: float | None = None

    @property
    def chunk(self) -> int:
        """See `morphnas.train.predict.chunk`."""
        return chunk(self.micro)


class DeviceGone(RunError):
    """The device does nothing any more for this process."""

    def left(self, store: Store, trial: Trial, again: bool) -> DeviceGone:
        """What a fit says of it. The trial stays open, to be gone on with; where it was so before it has failed."""
        if again:
            store.finish(trial.id, Outcome("failed", error=str(self)), None)
        kept = f"what was trained is kept in {store.path}, and a new process can go on with resume=True"
        return DeviceGone(f"{self}: {kept}")


class Executor(Protocol):
    """Where jobs run; it is made for one task, which it gives to its workers once.

    workers: how many jobs at a time. ahead: whether the next proposal is asked for while they run, so that no worker
    waits for it, instead of after the result.
    """

    @property
    def workers(self) -> int: ...

    @property
    def ahead(self) -> bool: ...

    def submit(self, job: Job, each_epoch: EachEpoch | None = None) -> Future[Result]:
        """Begin a job. What goes wrong with it, or with whoever does it, is an outcome. A worker that has begun it is
        waited for as long as its seconds and their `grace`. each_epoch is called in this process, from any thread.
        """
        ...

    def stop(self) -> None:
        """Have workers elsewhere end what they do with what they have. In this process the job's own stop does that."""
        ...

    def shutdown(self) -> None:
        """Give up what is running and let the workers go. May be called twice."""
        ...


class _Raised(BaseException):
    """What an observer raised in the midst of a training: no error of the network's."""


def submitted(executor: Executor, job: Job, each_epoch: EachEpoch) -> Future[Result]:
    """See `Executor.submit`; what each_epoch raises comes out here where it is called before that is back."""

    def passing(outcome: Outcome) -> None:
        try:
            each_epoch(outcome)
        except Exception as error:
            raise _Raised(error) from None

    try:
        return executor.submit(job, passing)
    except _Raised as raised:
        error: Exception = raised.args[0]
    raise error


def grace(seconds: float) -> float:
    """Seconds that an answer may come late, of work that was given so many, before nobody waits for it any more."""
    return min(10.0, max(1.0, 0.02 * seconds))


def work(job: Job, task: Task, each_epoch: EachEpoch | None = None) -> Result:
    """Grow the network, prove that it still computes what its start did, and train it.

    When that diverges it is done once more at a lower learning rate, in what is left of the time, and the better one of
    the two counts. Returns the outcome and the weights of the best epoch; None for weights when the work failed. Any
    error is an outcome, but for DeviceGone, which is nothing of the network's; KeyboardInterrupt passes.
    """
    deadline = Deadline.after(job.seconds, stop=job.stop)
    begins = job.start if isinstance(job.start, Graph) else job.start.graph
    keeper = Keeper(job.checkpoint, _identity(job, task), weights=4 * begins.parameters)
    saved = keeper.load()
    if saved is None or saved.first is None:
        first, saved = _attempt(job, task, deadline, each_epoch, keeper, saved), None
    else:
        first = saved.first
    if first[0].status != "diverged" or (deadline.passed and saved is None):
        return first
    calmer = replace(job.recipe, lr=max(LEAST_RATE, job.recipe.lr / CALMER))
    keeper.first = first
    second = _attempt(replace(job, recipe=calmer), task, deadline, each_epoch, keeper, saved)
    outcome, weights = max(second, first, key=_goodness)
    return replace(outcome, retries=1, error=outcome.error or first[0].error), weights


def _identity(job: Job, task: Task) -> dict[str, Any]:
    """What tells a work's checkpoint from those of others, as far as a trial's folder leaves that open."""
    return {"recipe": job.recipe.to_json(), "seed": job.seed, "scored": job.scored, "examples": len(task.train)}


def _goodness(result: Result) -> tuple[bool, float, bool, int]:
    """Of two trainings of a network the one with the larger goodness counts."""
    outcome, weights = result
    score = -math.inf if outcome.score is None else outcome.score
    return weights is not None, score, outcome.status != "diverged", outcome.epochs


def _attempt(
    job: Job, task: Task, deadline: Deadline, each_epoch: EachEpoch | None, keeper: Keeper, saved: Saved | None
) -> Result:
    """See `work`. saved: what to go on from; where that turns out to be another's, the training begins anew."""
    try:
        with torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
            torch.manual_seed(job.seed)  # dropout draws from torch's own random state
            module, difference = inherited(job, task, deadline)
            if difference is not None and not difference <= PROOF:
                names = ", ".join(map(str, job.morphs))
                message = f"the morphs {names} changed the network's outputs by {difference:.2g} of the largest"
                known = difference if math.isfinite(difference) else None
                return Outcome("failed", morph_error=known, error=message), None
            generator = torch.Generator().manual_seed(job.seed)
            outcome = train(
                module,
                task,
                job.recipe,
                deadline,
                generator,
                each_epoch,
                scored=job.scored,
                micro=job.micro,
                smallest=SMALLEST,
                keep=keeper,
                saved=None if saved is None else saved.checkpoint,
            )
            if job.recipe.augment.flip is None and outcome.score is not None:
                outcome = asked_mirrored(outcome, module, task, job.chunk, deadline)
            if job.scored and outcome.score is not None:
                lay_out(module, torch.contiguous_format)  # as it is used
                seconds = latency(module, task, min(TIMED, 0.01 * deadline.left))
                outcome = replace(outcome, latency=seconds, slow=seconds > (job.max_latency or math.inf))
            return replace(outcome, morph_error=difference), weights_of(module)
    except Unfit as error:
        log.warning("a training starts again, because its checkpoint belongs to another one: %s", error)
        return _attempt(job, task, deadline, each_epoch, keeper, None)
    except OutOfTime as error:
        return Outcome("truncated", error=str(error)), None
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome("oom", error=str(error)[:2000]), None
        if is_gone(task.device):
            reason = str(error).partition("\n")[0]
            raise DeviceGone(f"{task.device} does nothing any more for this process ({reason})") from error
        return Outcome("failed", error=traceback.format_exc()[-4000:]), None


def inherited(job: Job, task: Task, deadline: Deadline = NEVER) -> tuple[nn.Module, float | None]:
    """The network to train, on the task's device, and how far morphs changed its outputs (None: there were none).

    Morphs are carried out in float64; batch norms that are new get the statistics of a batch, of fewer examples where
    time is short. OutOfTime when the deadline comes before that is done. Where the recipe whitens, fresh first filters
    do that, and no first filters get gradients.
    """
    if isinstance(job.start, Graph):
        weights = fresh_weights(job.start, torch.Generator().manual_seed(job.seed))
        if job.recipe.whiten and (stems := first_filters(job.start)):
            some = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(job.seed))[:_CALIBRATION]
            x = task.normalised(task.train[some].x)
            weights |= {name: whitening(x, weights[name]).cpu() for name in stems}
        start = Network(job.start, weights)
    else:
        start = job.start
    graph, carried = start.graph, {name: _double(value) for name, value in start.weights.items()}
    generator = torch.Generator().manual_seed(job.seed)
    for morph in job.morphs:
        if deadline.passed:
            raise OutOfTime("the deadline came before the network was grown")
        carried = morph.carry(graph, carried, generator)
        graph = morph.grow(graph)
    weights = {name: value.float() if value.is_floating_point() else value for name, value in carried.items()}
    module = to_module(graph, weights).to(task.device)
    if job.recipe.whiten:
        for name in first_filters(graph):
            module.get_parameter(name).requires_grad_(False)
    if not job.morphs:
        return module, None
    new = [node.name for node in graph.nodes if node.name not in start.graph and f"{node.name}.running_mean" in weights]
    probes, begun = task.judge.x[:_PROBES], deadline.left
    with in_full(task.device):
        before = predict(start.to_module().to(task.device), probes, task, job.chunk, deadline)
    if new:
        pace = 2 * (begun - deadline.left) / max(1, len(before))  # in training mode, and of the child
        most = int(min(_CALIBRATION, job.chunk, deadline.left / pace if pace else math.inf))
        if most < 2:
            raise OutOfTime("the deadline came before the network was calibrated")
        some = torch.randperm(len(task.train), generator=generator)
        while True:
            try:
                calibrate(module, new, task.normalised(task.train[some[:most]].x))
                break
            except Exception as error:
                if most <= SMALLEST or not is_out_of_memory(error):
                    raise
            most = max(SMALLEST, most // 2)
    with in_full(task.device):
        after = predict(module, probes, task, job.chunk, deadline)
    if len(before) < len(probes) or len(after) < len(probes):
        raise OutOfTime("the deadline came before the network was proved to be what its morphs promise")
    return module, ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()


def first_filters(graph: Graph) -> list[str]:
    """Names of the weights of convolutions over patches of the input, where it is images large enough to whiten."""
    shape = graph.shapes[graph.input.name]
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
        return []
    readers = (graph[name] for name in graph.consumers[graph.input.name])
    return [f"{node.name}.weight" for node in readers if isinstance(node.op, Conv) and node.op.kernel > 1]


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def asked_mirrored(outcome: Outcome, module: nn.Module, task: Task, chunk: int, deadline: Deadline) -> Outcome:
    """The outcome with the usual metric on examples as they are and mirrored; without where there is no axis to mirror,
    no time, or an output is no number."""
    usual = replace(task, goal=task.goal.usual)
    if task.judge.x.ndim < 3:
        return outcome
    try:
        mirrored = evaluate(_Mirror(module), task.judge, usual, chunk, deadline)[1]
        own = outcome.by_metric or outcome.metric is None
        upright = evaluate(module, task.judge, usual, chunk, deadline)[1] if own else outcome.metric
        return replace(outcome, upright=upright, mirrored=mirrored)
    except (Diverged, OutOfTime):
        return outcome


class _Mirror(nn.Module):
    """The network on mirrored examples, of which no copy is made as a whole."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x.flip(-1))
        return outputs


def settle(recipe: Recipe, trials: Sequence[Trial], chance: float) -> Recipe:
    """The recipe with `flip` decided, once a network knows: unless mirrored images cost it more than `DROP`, clearly.

    Clearly is by 1.64 standard errors (5 %, one-sided) of the difference of two shares of the same examples, at most.
    Until a network is at least 30 points above `chance`, networks are trained without flips and asked.
    """
    if recipe.augment.flip is not None:
        return recipe
    for trial in trials:
        outcome = trial.outcome
        if outcome is None or outcome.upright is None or outcome.mirrored is None:
            continue
        if outcome.upright >= min(chance + 0.3, (1 + chance) / 2):
            differing = min(1.0, 2 - outcome.upright - outcome.mirrored)
            error = math.sqrt(max(0.0, differing) / max(1, outcome.examples))
            flip = outcome.upright - outcome.mirrored < DROP + 1.64 * error
            return replace(recipe, augment=replace(recipe.augment, flip=flip))
    return recipe


def seconds_per_flop(trials: Sequence[Trial], guess: float) -> float:
    """Seconds an epoch takes for every FLOP of a network's `work`: the median of the search's last trials."""
    seen = [
        outcome.seconds / outcome.epochs / trial.graph.work
        for trial in trials
        if (outcome := trial.outcome) is not None
        and outcome.status == "finished"
        and outcome.epochs
        and not trial.final
    ]
    return statistics.median(seen[-9:]) if seen else guess


def micro_batch(graph: Graph, batch_size: int, max_memory: int | None, trials: Sequence[Trial]) -> int | None:
    """Examples to have in memory at a time, so that training takes at most `max_memory` bytes; None: whole batches.

    As far as estimates go, which are corrected by what the trials took; never fewer than a step can do with.
    """
    size = batch_size
    cap = math.inf if max_memory is None else max_memory / measured_memory(trials)
    while size > SMALLEST and graph.peak_bytes(size) > cap:
        size = max(SMALLEST, size // 2)
    return None if size == batch_size else size


def trial_seed(seed: int, id: int) -> int:
    """The seed of a trial's weights and batches: of the run's seed and the trial's id alone."""
    return (seed * 1_000_003 + id * 7_919 + 17) % (2**63)


def search(
    store: Store,
    searcher: Searcher,
    executor: Executor,
    deadline: Deadline,
    *,
    seed: int = 0,
    max_trials: int | None = None,
    chance: float = 0.0,
    guess: float = 0.0,
    limits: Limits = UNLIMITED,
    max_memory: int | None = None,
    max_latency: float | None = None,
    keep: int | None = None,
    observer: Observer | None = None,
) -> None:
    """Ask, train and write down until the deadline, `max_trials` or the searcher ends it.

    Final trainings that there are do not count, and searchers do not know of them.
    Trials that an earlier driver claimed and did not finish are run first, under their ids, but for final trainings,
    which wait for `morphnas.run.final`. Where there is no network yet, at least one trial is begun, however short the
    time, so that there is one at the end. A worker gets its next job as soon as it is free; one that does not answer
    soon after the deadline is not waited for. When a stop is asked for, trials end as far as they have come; those of
    workers that have not begun, or do not answer soon, stay open, to be gone on with. guess: seconds per FLOP, before
    any is measured. limits: beyond which networks fail untrained, whoever proposes them. max_memory: bytes that a
    training should take at most. max_latency: see `Job`. keep: see `morphnas.run.keeping`. Raises what ends the store;
    what goes wrong in a trial is its outcome.
    """
    waiting = [trial for trial in store.trials if trial.outcome is None and not trial.final]
    interrupted = {trial.id for trial in waiting}
    prune(store, keep)  # as it would have been, had the driver not been interrupted
    running: dict[int, Future[Result]] = {}
    news: SimpleQueue[tuple[Trial, Outcome | Future[Result]]] = SimpleQueue()
    late = grace(deadline.left) + 0.5  # an executor that keeps to its word is earlier
    end, parting = deadline.earlier(-late), NEVER
    asker, here, begun = Asker(searcher, store, executor.ahead, deadline.clock), threading.get_ident(), False

    def tried() -> list[Trial]:
        """What searchers know of: final trainings may have been on examples that networks are scored on."""
        return [trial for trial in store.trials if not trial.final]

    def left(trials: Sequence[Trial], seconds: float = 0.0) -> Left:
        """What is left in so many seconds."""
        more = None if max_trials is None else max_trials - len(trials)
        return Left(max(0.0, deadline.left - seconds), more, seconds_per_flop(trials, guess))

    def enough(trials: Sequence[Trial]) -> bool:
        return max_trials is not None and len(trials) >= max_trials

    def usable(trial: Trial) -> bool:
        return trial.kept and not (trial.score is None and trial.outcome and trial.outcome.status in AGAIN)

    def kept(id: int) -> bool:
        return any(trial.id == id and trial.kept for trial in store.trials)

    def next_trial() -> tuple[Trial, Network | None] | None:
        """What a worker is to do, and the network that it starts from, where that was read ahead."""
        trials = tried()
        needed = not begun and not any(trial.kept for trial in trials)
        if waiting and not (deadline.passed and any(trial.outcome for trial in trials)):
            return waiting.pop(0), None
        if enough(trials) or (deadline.passed and not needed):
            return None
        proposal, network = asker.taken(deadline)
        if deadline.passed and not needed:
            return None
        if proposal and proposal.parent is not None and not kept(proposal.parent):
            proposal = network = None  # its start's weights were removed since
        if proposal is None and not needed and deadline.left < asker.seconds:
            return None  # it would come too late
        if proposal is None:
            proposal = asker.now(trials, left(trials))
        if proposal is None and needed:  # nothing can finish in time: better a network cut short than none
            proposal = asker.now((), replace(left(trials), seconds=math.inf))
        if proposal is None and not running and len(trials) < TRIES and not any(map(usable, trials)):
            others = [trial for trial in trials if trial.outcome is None or trial.outcome.status not in AGAIN]
            proposal = asker.now(others, left(trials))  # the failed ones once more
        if proposal is None or (deadline.passed and not needed):
            return None
        given = {"weights": "given"} if store.gives(proposal.start) else {}
        why = {**proposal.why, **given}
        return store.claim(replace(proposal, recipe=settle(proposal.recipe, trials, chance), why=why)), network

    def ask_ahead(trial: Trial) -> None:
        """Ask for what comes after this trial, of which nothing is known yet, and the others that run."""
        trials = tried()
        if not (waiting or deadline.passed or enough(trials)):
            seconds = left(trials).predict(trial.graph, trial.proposal.recipe.epochs) / executor.workers
            asker.ahead(trials, left(trials, seconds))

    def begin(trial: Trial, network: Graph | Network | None) -> None:
        nonlocal begun
        begun = True
        if observer:
            observer.trial_begins(trial)
        if (refused := limits.refuse(trial.graph)) is not None:
            finish(trial, Outcome("failed", error=f"the searcher exceeds the limits: {refused}"), None)
            return
        start = trial.proposal.start
        try:
            network = network or store.start(start)
        except RunError as error:  # the weights of the start: nothing can be begun from it any more
            store.forget_weights(trial.parent)
            finish(trial, Outcome("failed", error=str(error)), None)
            return
        morphs, recipe = trial.proposal.morphs, trial.proposal.recipe
        micro = micro_batch(trial.graph, recipe.batch_size, max_memory, store.trials)
        if len(running) + 1 == executor.workers:
            ask_ahead(trial)
        job = Job(
            network,
            morphs,
            recipe,
            deadline.left,
            trial_seed(seed, trial.id),
            micro=micro,
            checkpoint=store.checkpoint(trial.id),
            stop=deadline.stop,
            max_latency=max_latency,
        )
        try:
            running[trial.id] = submitted(executor, job, lambda outcome: epoch_done(trial, outcome))
        except DeviceGone as error:
            raise error.left(store, trial, trial.id in interrupted) from error
        running[trial.id].add_done_callback(lambda future: news.put((trial, future)))

    def epoch_done(trial: Trial, outcome: Outcome) -> None:
        """Tell the observer, in this thread only."""
        if threading.get_ident() != here:
            news.put((trial, outcome))
        elif observer:
            observer.epoch_done(trial, outcome)

    def finish(trial: Trial, outcome: Outcome, weights: Weights | None) -> None:
        ended = store.finish(trial.id, outcome, weights, behind=executor.ahead)
        prune(store, keep)
        if observer:
            observer.trial_ends(ended)

    with asker:
        while True:
            while len(running) < executor.workers and (following := next_trial()) is not None:
                begin(*following)
            if not running:
                break
            until = end if deadline.passed else deadline
            if deadline.stopped:
                if parting is NEVER:
                    parting = Deadline.after(late, deadline.clock)
                    executor.stop()
                    for future in list(running.values()):
                        future.cancel()  # no effect where a worker has begun
                until = parting
            try:
                trial, told = news.get(timeout=min(until.left, POLL))
            except Empty:
                if parting.passed:
                    break
                if not until.passed or deadline.stopped:
                    continue
                if not end.passed:
                    for future in list(running.values()):
                        future.cancel()  # no effect where a worker has begun
                    continue
                error = "no worker gave an answer by the deadline"
                for id in running:
                    finish(store.trial(id), Outcome("failed", error=error), None)
                break
            if isinstance(told, Outcome):
                epoch_done(trial, told)
            else:
                del running[trial.id]
                if told.cancelled() and deadline.stopped:
                    continue  # to be gone on with
                finish(trial, *result_of(told))
    store.written()


def result_of(future: Future[Result]) -> Result:
    """What came of a job that is done, also where whoever should have done it raised."""
    if future.cancelled():
        return Outcome("failed", error="no worker had started, or was free, before the deadline"), None
    if (error := future.exception()) is not None:
        return Outcome("failed", error=f"{type(error).__name__}: {error}"), None
    return future.result()
