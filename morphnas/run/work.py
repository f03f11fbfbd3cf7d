"""What a worker does with a job: apply the morphs, check that they preserve the network's function, and train it."""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from morphnas.graph import (
    MIN_MICRO_BATCH,
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
from morphnas.run.checkpoints import CheckpointWriter, Result, Saved
from morphnas.run.jobs import DeviceLost, Job
from morphnas.train.calibrate import calibrate
from morphnas.train.checkpoint import CheckpointMismatch
from morphnas.train.data import Task
from morphnas.train.deadline import NEVER, Deadline, OutOfTime
from morphnas.train.last_layer import train_last_layer
from morphnas.train.predict import Diverged, evaluate, full_precision, latency, predict
from morphnas.train.recipe import MIN_LEARNING_RATE, Outcome
from morphnas.train.step import is_device_lost, is_out_of_memory, to_memory_format
from morphnas.train.trainer import MAX_ERROR_LENGTH, EachEpoch, train
from morphnas.train.whitening import whitening

log = logging.getLogger("morphnas")

MAX_MORPH_ERROR = 1e-3
"""Largest difference between the outputs of child and parent that is accepted, relative to the largest output, in
float32."""
RETRY_LR_DIVISOR = 4.0
"""Divisor of the learning rate for repeating a training that diverged."""
MIN_MIRRORED = 200
"""Held-out examples below which the metric on mirrored images is that on so many mirrored training images, of all
training images at most: chance has less effect, and if labels do not depend on the orientation, these images are no
harder than held-out ones (`benchmarks/few.py`)."""
LATENCY_SECONDS = 0.1
"""Time limit in seconds for measuring a network's latency."""
MIN_SIDE_TO_WHITEN = 16
"""Smallest height and width, in pixels, of images whose first convolution whitens patches."""
_PROBE_EXAMPLES = 64
"""Examples on which the outputs of child and parent are compared."""
_CALIBRATION_EXAMPLES = 512
"""Maximum number of examples that the statistics for new batch norms and whitening filters are estimated from."""


def work(job: Job, task: Task, each_epoch: EachEpoch | None = None) -> Result:
    """Apply the job's morphs to its start, check that they preserve the outputs, and train the network.

    A training that diverges is repeated once at a lower learning rate, in the remaining time, and the better of the two
    is returned. Returns the outcome and the weights of the best epoch (those before the first one, if there was no time
    for any), or None for the weights if the training failed, ran out of memory, or could not begin in time. Any error
    becomes an outcome, except for `DeviceLost`, which is not the network's fault; KeyboardInterrupt propagates.
    """
    deadline = Deadline.after(job.seconds, stop=job.stop)
    writer = CheckpointWriter(job.checkpoint, _identity(job, task), weights=4 * job.start_graph.parameters)
    saved = writer.load()
    if saved is None or saved.first is None:
        first, saved = _attempt(job, task, deadline, each_epoch, writer, saved), None
    else:
        first = saved.first
    if first[0].status != "diverged" or (deadline.passed and saved is None):
        return first
    retry_recipe = replace(job.recipe, lr=max(MIN_LEARNING_RATE, job.recipe.lr / RETRY_LR_DIVISOR))
    writer.first = first
    second = _attempt(replace(job, recipe=retry_recipe), task, deadline, each_epoch, writer, saved)
    outcome, weights = max(second, first, key=_goodness)
    return replace(outcome, retries=1, error=outcome.error or first[0].error), weights


def _identity(job: Job, task: Task) -> dict[str, Any]:
    """JSON values by which a job's checkpoint is recognised, beyond the trial's folder that holds it."""
    return {"recipe": job.recipe.to_json(), "seed": job.seed, "scored": job.scored, "examples": len(task.train)}


def _goodness(result: Result) -> tuple[bool, float, bool, int]:
    """Sort key of the trainings of one network: the result with the larger value is kept."""
    outcome, weights = result
    score = -math.inf if outcome.score is None else outcome.score
    return weights is not None, score, outcome.status != "diverged", outcome.epochs


def _attempt(
    job: Job,
    task: Task,
    deadline: Deadline,
    each_epoch: EachEpoch | None,
    writer: CheckpointWriter,
    saved: Saved | None,
) -> Result:
    """One training of `work`. saved: the checkpoint to continue from; if it turns out to belong to another training,
    this one starts from the beginning."""
    try:
        with torch.random.fork_rng([task.device] if task.device.type == "cuda" else []):
            torch.manual_seed(job.seed)  # dropout draws from torch's own random state
            module, difference = grow_network(job, task, deadline)
            if difference is not None and not difference <= MAX_MORPH_ERROR:
                names = ", ".join(map(str, job.morphs))
                message = f"the morphs {names} changed the network's outputs by {difference:.2g} of the largest"
                morph_error = difference if math.isfinite(difference) else None
                return Outcome("failed", morph_error=morph_error, error=message), None
            generator = torch.Generator().manual_seed(job.seed)
            if job.recipe.layers == "last":
                last = job.start_graph.output.name  # morphs never replace it
                options = job.scored, job.evaluation_batch_size
                outcome = train_last_layer(module, last, task, job.recipe, deadline, generator, each_epoch, *options)
            else:
                outcome = train(
                    module,
                    task,
                    job.recipe,
                    deadline,
                    generator,
                    each_epoch,
                    scored=job.scored,
                    micro=job.micro,
                    smallest=MIN_MICRO_BATCH,
                    keep=writer,
                    saved=None if saved is None else saved.checkpoint,
                )
            if job.scored and outcome.score is not None:
                try:
                    outcome = _with_measurements(outcome, module, job, task, deadline)
                except Exception as error:
                    if is_device_lost(task.device):
                        raise
                    log.warning("a network was scored, but further measurements of it failed: %s", error)
            return replace(outcome, morph_error=difference), weights_of(module)
    except CheckpointMismatch as error:
        log.warning("a training starts again, because its checkpoint belongs to another one: %s", error)
        return _attempt(job, task, deadline, each_epoch, writer, None)
    except OutOfTime as error:
        return Outcome("truncated", error=str(error)), None
    except Diverged as error:
        return Outcome("failed", error=str(error)), None
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome("oom", error=str(error)[:MAX_ERROR_LENGTH]), None
        if is_device_lost(task.device):
            reason = str(error).partition("\n")[0]
            raise DeviceLost(f"{task.device} has failed, so this process can no longer use it ({reason})") from error
        return Outcome("failed", error=traceback.format_exc()[-4000:]), None


def grow_network(job: Job, task: Task, deadline: Deadline = NEVER) -> tuple[nn.Module, float | None]:
    """The network to train, on the task's device, and the largest change of outputs by its morphs, relative to the
    largest output (None: no morphs).

    New batch norms get the statistics of a batch of training examples, fewer if time or memory is short. OutOfTime if
    the deadline comes before the outputs are compared. If the recipe whitens, the first filters of a network with fresh
    weights are whitening filters, first filters get no gradients, and morphs that add some add further whitening
    directions.
    """
    if isinstance(job.start, Graph):
        weights = fresh_weights(job.start, torch.Generator().manual_seed(job.seed))
        if job.recipe.whiten and (stems := first_filters(job.start)):
            x = _sample_images(task, job.seed)
            weights |= {name: whitening(x, weights[name]).cpu() for name in stems}
        start = Network(job.start, weights)
    else:
        start = job.start
    graph, weights = start.graph, dict(start.weights)
    generator = torch.Generator().manual_seed(job.seed)
    for morph in job.morphs:
        if deadline.passed:
            raise OutOfTime("the deadline came before the network was grown")
        weights = carry_weights(morph, graph, weights, generator, job, task)
        graph = morph.grow(graph)
    module = to_module(graph, weights).to(task.device)
    if job.recipe.whiten:
        for name in first_filters(graph):
            module.get_parameter(name).requires_grad_(False)
    if not job.morphs:
        return module, None
    new = [node.name for node in graph.nodes if node.name not in start.graph and f"{node.name}.running_mean" in weights]
    probes, seconds_left = task.evaluation_set.x[:_PROBE_EXAMPLES], deadline.left
    with full_precision(task.device):
        before = predict(start.to_module().to(task.device), probes, task, job.evaluation_batch_size, deadline)
    if new:
        # seconds per example; twice those of `before`, since the child is larger and runs in training mode
        pace = 2 * (seconds_left - deadline.left) / max(1, len(before))
        n = int(min(_CALIBRATION_EXAMPLES, job.evaluation_batch_size, deadline.left / pace if pace else math.inf))
        if n < 2:
            raise OutOfTime("the deadline came before the network was calibrated")
        order = torch.randperm(len(task.train), generator=generator)
        while True:
            try:
                calibrate(module, new, task.normalised(task.train[order[:n]].x))
                break
            except Exception as error:
                if n <= MIN_MICRO_BATCH or not is_out_of_memory(error):
                    raise
            n = max(MIN_MICRO_BATCH, n // 2)
    with full_precision(task.device):
        after = predict(module, probes, task, job.evaluation_batch_size, deadline)
    if len(before) < len(probes) or len(after) < len(probes):
        raise OutOfTime("the deadline came before the network was compared with its parent")
    return module, ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()


def _sample_images(task: Task, seed: int) -> Tensor:
    """A random sample of normalised training images, large enough to estimate the statistics of their patches."""
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    return task.normalised(task.train[order[:_CALIBRATION_EXAMPLES]].x)


def carry_weights(
    morph: Morph, graph: Graph, weights: Weights, generator: torch.Generator, job: Job, task: Task
) -> Weights:
    """The weights after the morph, see `Morph.carry`.

    First filters that are not trained are widened by whitening filters along further directions, since copies of the
    old ones would stay identical to them.
    """
    stems = first_filters(graph) if job.recipe.whiten and isinstance(morph, Widening) else []
    if not stems:
        return morph.carry(graph, weights, generator)
    assert isinstance(morph, Widening)
    grown = morph.carry(graph, weights, generator, fresh=[stem.rpartition(".")[0] for stem in stems])
    for stem in stems:
        old, new = weights[stem], grown[stem]
        if (n := len(old)) < len(new):
            filters = whitening(_sample_images(task, job.seed), new).to(new.device)
            grown[stem] = torch.cat([old, filters[n:] * (old.norm() / filters[:n].norm().clamp(min=1e-12))])
    return grown


def first_filters(graph: Graph) -> list[str]:
    """Names of the weights of convolutions that read patches of the input and may whiten them.

    Empty unless the input is images of at least `MIN_SIDE_TO_WHITEN` pixels per side.
    """
    shape = graph.shapes[graph.input.name]
    if len(shape) != 3 or min(shape[1:]) < MIN_SIDE_TO_WHITEN:
        return []
    consumers = (graph[name] for name in graph.consumers[graph.input.name])
    return [
        f"{node.name}.weight"
        for node in consumers
        if isinstance(node.op, Conv) and node.op.kernel > 1 and not node.op.fixed_channels
    ]


def _with_measurements(outcome: Outcome, module: nn.Module, job: Job, task: Task, deadline: Deadline) -> Outcome:
    """The outcome of a scored network, with its latency and, if `flip` is undecided, its metric on mirrored images."""
    if job.recipe.augment.flip is None:
        outcome = measure_mirrored(outcome, module, task, job.evaluation_batch_size, deadline)
    to_memory_format(module, torch.contiguous_format)  # the format that predictions use
    seconds = latency(module, task, min(LATENCY_SECONDS, 0.01 * deadline.left))
    return replace(outcome, latency=seconds, slow=seconds > (job.max_latency or math.inf))


def measure_mirrored(outcome: Outcome, module: nn.Module, task: Task, chunk: int, deadline: Deadline) -> Outcome:
    """The outcome with the standard metric on the evaluation set as it is (`upright`) and on mirrored examples
    (`mirrored`), see `MIN_MIRRORED`.

    Unchanged if examples have no axis to mirror, an output is NaN or infinite, or time runs out.
    """
    standard = replace(task, goal=task.goal.standard)
    if task.evaluation_set.x.ndim < 3:
        return outcome
    few = len(task.evaluation_set) < min(MIN_MIRRORED, len(task.train))
    examples = task.train[:: math.ceil(len(task.train) / MIN_MIRRORED)] if few else task.evaluation_set
    try:
        mirrored = evaluate(_Mirror(module), examples, standard, chunk, deadline)[1]
        upright = outcome.metric
        if upright is None or outcome.by_metric:  # a user-defined metric, or undefined
            upright = evaluate(module, task.evaluation_set, standard, chunk, deadline)[1]
        return replace(outcome, upright=upright, mirrored=mirrored)
    except (Diverged, OutOfTime):
        return outcome


class _Mirror(nn.Module):
    """The network applied to mirrored examples, which are flipped batch by batch instead of copying the whole set."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x.flip(-1))
        return outputs
