"""What a worker does with a job: grow the network, prove that it computes what its start did, train it."""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from morphnas.graph import (
    SMALLEST,
    Conv,
    Graph,
    Morph,
    Network,
    Weights,
    Widening,
    fresh_weights,
    to_module,
    weights_of,
)
from morphnas.run.checkpoints import Keeper, Result, Saved
from morphnas.run.jobs import DeviceLost, Job
from morphnas.train.calibrate import calibrate
from morphnas.train.checkpoint import CheckpointMismatch
from morphnas.train.data import Task
from morphnas.train.deadline import NEVER, Deadline, OutOfTime
from morphnas.train.predict import Diverged, evaluate, full_precision, latency, predict
from morphnas.train.recipe import LEAST_RATE, Outcome
from morphnas.train.step import is_device_lost, is_out_of_memory, to_memory_format
from morphnas.train.trainer import MAX_ERROR_LENGTH, EachEpoch, train
from morphnas.train.whitening import whitening

log = logging.getLogger("morphnas")

PROOF = 1e-3
"""Largest difference of a child's outputs from its start's, relative to the largest output, in float32."""
CALMER = 4.0
"""A training that diverged is done again at a learning rate so many times lower."""
TIMED = 0.1
"""Seconds for measuring how long a network takes for one example, at most."""
LEAST_SIDE = 16
"""Pixels along each side of images whose patches are worth whitening."""
_PROBES = 64
_CALIBRATION = 512


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
            if job.scored and outcome.score is not None:
                try:
                    outcome = _asked(outcome, module, job, task, deadline)
                except Exception as error:
                    if is_device_lost(task.device):
                        raise
                    log.warning("a network was trained, but cannot be asked more than its score: %s", error)
            return replace(outcome, morph_error=difference), weights_of(module)
    except CheckpointMismatch as error:
        log.warning("a training starts again, because its checkpoint belongs to another one: %s", error)
        return _attempt(job, task, deadline, each_epoch, keeper, None)
    except OutOfTime as error:
        return Outcome("truncated", error=str(error)), None
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome("oom", error=str(error)[:MAX_ERROR_LENGTH]), None
        if is_device_lost(task.device):
            reason = str(error).partition("\n")[0]
            raise DeviceLost(f"{task.device} does nothing any more for this process ({reason})") from error
        return Outcome("failed", error=traceback.format_exc()[-4000:]), None


def inherited(job: Job, task: Task, deadline: Deadline = NEVER) -> tuple[nn.Module, float | None]:
    """The network to train, on the task's device, and how far morphs changed its outputs (None: there were none).

    Batch norms that are new get the statistics of a batch, of fewer examples where time is short. OutOfTime when the
    deadline comes before that is done. Where the recipe whitens, fresh first filters do that, no first filters get
    gradients, and where they become more, those are of further directions.
    """
    if isinstance(job.start, Graph):
        weights = fresh_weights(job.start, torch.Generator().manual_seed(job.seed))
        if job.recipe.whiten and (stems := first_filters(job.start)):
            x = _some(task, job.seed)
            weights |= {name: whitening(x, weights[name]).cpu() for name in stems}
        start = Network(job.start, weights)
    else:
        start = job.start
    graph, weights = start.graph, dict(start.weights)
    generator = torch.Generator().manual_seed(job.seed)
    for morph in job.morphs:
        if deadline.passed:
            raise OutOfTime("the deadline came before the network was grown")
        weights = _carried(morph, graph, weights, generator, job, task)
        graph = morph.grow(graph)
    module = to_module(graph, weights).to(task.device)
    if job.recipe.whiten:
        for name in first_filters(graph):
            module.get_parameter(name).requires_grad_(False)
    if not job.morphs:
        return module, None
    new = [node.name for node in graph.nodes if node.name not in start.graph and f"{node.name}.running_mean" in weights]
    probes, begun = task.evaluation_set.x[:_PROBES], deadline.left
    with full_precision(task.device):
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
    with full_precision(task.device):
        after = predict(module, probes, task, job.chunk, deadline)
    if len(before) < len(probes) or len(after) < len(probes):
        raise OutOfTime("the deadline came before the network was proved to be what its morphs promise")
    return module, ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()


def _some(task: Task, seed: int) -> Tensor:
    """Normalised images, as many as suffice to tell what their patches look like."""
    some = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION]
    return task.normalised(task.train[some].x)


def _carried(morph: Morph, graph: Graph, weights: Weights, generator: torch.Generator, job: Job, task: Task) -> Weights:
    """See `Morph.carry`. First filters that are not trained become more by those that whiten along further directions,
    since repeated ones would stay what they are."""
    stems = first_filters(graph) if job.recipe.whiten and isinstance(morph, Widening) else []
    if not stems:
        return morph.carry(graph, weights, generator)
    assert isinstance(morph, Widening)
    grown = morph.carry(graph, weights, generator, fresh=[stem.rpartition(".")[0] for stem in stems])
    for stem in stems:
        old, new = weights[stem], grown[stem]
        if (n := len(old)) < len(new):
            found = whitening(_some(task, job.seed), new).to(new.device)
            grown[stem] = torch.cat([old, found[n:] * (old.norm() / found[:n].norm().clamp(min=1e-12))])
    return grown


def first_filters(graph: Graph) -> list[str]:
    """Names of the weights of convolutions over patches of the input, where it is images large enough to whiten."""
    shape = graph.shapes[graph.input.name]
    if len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
        return []
    readers = (graph[name] for name in graph.consumers[graph.input.name])
    return [
        f"{node.name}.weight"
        for node in readers
        if isinstance(node.op, Conv) and node.op.kernel > 1 and not node.op.rigid
    ]


def _asked(outcome: Outcome, module: nn.Module, job: Job, task: Task, deadline: Deadline) -> Outcome:
    """The outcome with what else is to be known of a network that has a score: mirrored images, and its latency."""
    if job.recipe.augment.flip is None:
        outcome = measure_mirrored(outcome, module, task, job.chunk, deadline)
    to_memory_format(module, torch.contiguous_format)  # as it is used
    seconds = latency(module, task, min(TIMED, 0.01 * deadline.left))
    return replace(outcome, latency=seconds, slow=seconds > (job.max_latency or math.inf))


def measure_mirrored(outcome: Outcome, module: nn.Module, task: Task, chunk: int, deadline: Deadline) -> Outcome:
    """The outcome with the usual metric on examples as they are and mirrored; without where there is no axis to mirror,
    no time, or an output is no number."""
    usual = replace(task, goal=task.goal.standard)
    if task.evaluation_set.x.ndim < 3:
        return outcome
    try:
        mirrored = evaluate(_Mirror(module), task.evaluation_set, usual, chunk, deadline)[1]
        own = outcome.by_metric or outcome.metric is None
        upright = evaluate(module, task.evaluation_set, usual, chunk, deadline)[1] if own else outcome.metric
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
