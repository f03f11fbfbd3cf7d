"""What each morph of a network's lineage is worth: the network trained with all of them, and without one at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from morphnas import __version__
from morphnas.estimators.data_memory import Room, memory_for
from morphnas.estimators.distillation import Teacher
from morphnas.estimators.inputs import Problem
from morphnas.estimators.objective import Loss, Metric, aimed, check_loss, check_metric, check_said
from morphnas.estimators.placement import torch_device
from morphnas.estimators.settings import restored, time_limit_seconds
from morphnas.estimators.splits import Groups
from morphnas.estimators.targets import RegressionTarget, SampleWeight, classes_of
from morphnas.graph import Graph, GraphError, Morph, Network, Node
from morphnas.report.words import gain_words, morph_words
from morphnas.run.files import RunError
from morphnas.run.jobs import Job, micro_batch, trial_seed
from morphnas.run.plan import Plan
from morphnas.run.search import decide_flip
from morphnas.run.store import Run, RunLike, run_of
from morphnas.run.work import work
from morphnas.search.trial import lineage
from morphnas.train.deadline import Deadline
from morphnas.train.modes import usual_modes
from morphnas.train.recipe import Outcome, Recipe


@dataclass(frozen=True)
class Undone:
    """A morph of a lineage, by the trial that brought it, and what the network is worth with it and without it.

    gone: morphs that do not fit where this one is missing, and were left out as well. gain, metric_gain: of the scores
    (minus the log loss) and of the metrics, with it less without it, the mean over `n` pairs of trainings that ended
    well; None where there are none, and `why` that is. standard_error: of the gain; None for fewer than 2. parameters:
    that it costs.
    """

    trial: int
    morph: str
    gone: tuple[str, ...]
    n: int
    gain: float | None
    standard_error: float | None
    metric_gain: float | None
    parameters: int
    why: str = ""


@dataclass(frozen=True, repr=False)
class Ablation:
    """What each morph is worth, in the order of the lineage; `str` of it is for people. ancestor: the trial it begins
    with. epochs: that every network was trained for. measure: what the metric is."""

    trial: int
    ancestor: int
    epochs: int
    measure: str
    morphs: tuple[Undone, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        begin = f"network {self.trial}, from {self.ancestor}, trained for {self.epochs} epochs with all its morphs, "
        lines = [f"{begin}less without"]
        for one in self.morphs:
            if one.gain is None:
                told = one.why
            else:
                sure = "" if one.standard_error is None else f", standard error {one.standard_error:.4f}"
                points = "" if one.metric_gain is None else f"; {gain_words(one.metric_gain, self.measure)}"
                told = f"score {one.gain:+.4f} (n = {one.n}{sure}){points}"
            gone = f", and with it {'; '.join(one.gone)}" if one.gone else ""
            lines.append(f"  {one.morph} (of {one.trial}; {one.parameters:+,} parameters){gone}: {told}")
        return "\n".join(lines if self.morphs else [f"network {self.trial} has no morphs to undo"])

    __repr__ = __str__


def ablate(
    run: RunLike,
    x: Any,
    y: ArrayLike | None = None,
    trial: int | None = None,
    *,
    time_limit: float,
    repeats: int = 3,
    validation_data: Any = None,
    sample_weight: SampleWeight = None,
    groups: Groups = None,
    teacher: Teacher = None,
    device: str | torch.device | None = None,
    metric: Metric = None,
    loss: Loss = None,
) -> Ablation:
    """What each morph of a network's lineage is worth: undo one at a time, and train the rest like the whole.

    Every network begins with the weights of the lineage's first one (or, if these were not kept, with fresh ones), gets
    all remaining morphs at once, and is trained for as many epochs as the lineage was, with the network's own recipe.
    x, y, validation_data, sample_weight, groups, teacher: those of the fit, as are metric and loss if these are
    functions, which a run does not store. trial: the network's id; None: the search's winner. time_limit: seconds,
    within which as many of `repeats` rounds are done as fit. The run is not changed. RunError for other data,
    ValueError for what cannot be used, TimeoutError for data that take all of the time to read.
    """
    with usual_modes():
        deadline = Deadline.after(time_limit_seconds(time_limit, None))
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats must be a positive integer, not {repeats!r}")
        metric, loss = metric or getattr(run, "metric", None), loss or getattr(run, "loss", None)
        run = run_of(run)
        network = run.trial(run.get_best_model_id() if trial is None else trial)
        problem = _problem(run, x, y, validation_data, sample_weight, groups, teacher, torch_device(device), deadline)
        metric = metric or restored(run.about.get("settings")).get("metric")
        check_metric(metric)
        check_loss(loss)
        check_said(run.about.get("settings"), metric, loss)
        problem = aimed(problem, metric, loss, deadline)
        memory = memory_for(Plan.of_run(run.about, __version__).limits.max_memory, problem.task.device)
        line = lineage(run.trials, network)
        brought = [(one.id, morph) for one in line[1:] for morph in one.proposal.morphs]
        morphs = [morph for _, morph in brought]
        start = run.load_model_by_id(line[0].id) if line[0].kept else line[0].graph
        graph = start.graph if isinstance(start, Network) else start
        recipe = decide_flip(network.proposal.recipe, run.trials, problem.chance)
        recipe = replace(recipe, epochs=max(1, sum(one.epochs for one in line[1:]) or network.epochs))
        ways = [_replayed(graph, morphs, skip) for skip in (None, *range(len(morphs)))]
        whole, *parts = (_grown(graph, kept) for kept, _ in ways)
        seed, outcomes = int(run.about.get("seed", 0)), [list[Outcome]() for _ in ways]
        for turn in range(repeats if morphs else 0):
            for found, (kept, _), part in zip(outcomes, ways, (None, *parts), strict=True):
                if deadline.passed:
                    break
                if part is None or part.key != whole.key:
                    found.append(_trained(run, memory, start, kept, recipe, problem, deadline, trial_seed(seed, turn)))
        undone = [
            _undone(id, morph, gone, outcomes[0], found, whole, part)
            for (id, morph), (_, gone), found, part in zip(brought, ways[1:], outcomes[1:], parts, strict=True)
        ]
        return Ablation(network.id, line[0].id, recipe.epochs, problem.task.goal.measure, tuple(undone))


def _problem(
    run: Run,
    x: Any,
    y: Any,
    validation_data: Any,
    sample_weight: SampleWeight,
    groups: Groups,
    teacher: Teacher,
    device: torch.device,
    deadline: Deadline,
) -> Problem:
    settings, seed = run.about.get("settings"), run.about.get("seed")
    if not isinstance(settings, dict) or not isinstance(seed, int):
        raise RunError(f"run.json of {str(run.path)!r} does not hold the settings of the run")
    size = settings.get("image_size")
    size = (int(size[0]), int(size[1])) if isinstance(size, list) else size
    problem = Problem.found(
        x,
        y,
        validation_data,
        settings.get("image_shape"),
        seed,
        device,
        image_size=size,
        room=Room(None, Path(run.path)),
        read=RegressionTarget.found if "amounts" in (run.about.get("data") or {}) else classes_of,
        sample_weight=sample_weight,
        axes=settings.get("axes"),
        groups=groups,
        teacher=teacher,
        deadline=deadline,
    )
    if problem.fingerprint != run.about.get("data"):
        raise RunError(
            f"{str(run.path)!r} holds a run on other data: give the x, y, validation_data, sample_weight, groups and "
            "teacher of the fit"
        )
    return problem


def _replayed(graph: Graph, morphs: Sequence[Morph], skip: int | None) -> tuple[list[Morph], tuple[str, ...]]:
    """The morphs without one, as far as they fit, and words for those that do not.

    New nodes are named by what there is, so that without a morph later ones have other names: morphs are told those.
    """
    whole = part = graph
    names = {node.name: node.name for node in graph.nodes}  # of the whole network, in the part
    kept: list[Morph] = []
    gone = []
    for i, morph in enumerate(morphs):
        before, whole = whole, morph.grow(whole)
        if i == skip:
            continue
        sites = {f.name: value for f in fields(morph) if isinstance(value := getattr(morph, f.name), str)}
        try:
            again = replace(morph, **{field: names[site] for field, site in sites.items()})
            grown = again.grow(part)
        except (KeyError, GraphError):
            gone.append(morph_words(morph))
            continue
        added, there = _added(whole, before), _added(grown, part)
        if [node.op.tag for node in added] != [node.op.tag for node in there]:
            gone.append(morph_words(morph))
            continue
        names |= {node.name: other.name for node, other in zip(added, there, strict=True)}
        part = grown
        kept.append(again)
    return kept, tuple(gone)


def _added(graph: Graph, before: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.name not in before]


def _grown(graph: Graph, morphs: Sequence[Morph]) -> Graph:
    for morph in morphs:
        graph = morph.grow(graph)
    return graph


def _trained(
    run: Run,
    memory: int | None,
    start: Graph | Network,
    morphs: Sequence[Morph],
    recipe: Recipe,
    problem: Problem,
    deadline: Deadline,
    seed: int,
) -> Outcome:
    graph = _grown(start.graph if isinstance(start, Network) else start, morphs)
    micro = micro_batch(graph, recipe.batch_size, memory, run.trials)
    return work(Job(start, tuple(morphs), recipe, deadline.left, seed, micro=micro), problem.task)[0]


def _undone(
    trial: int,
    morph: Morph,
    gone: tuple[str, ...],
    whole: Sequence[Outcome],
    without: Sequence[Outcome],
    network: Graph,
    part: Graph,
) -> Undone:
    """whole, without: what came of trainings, those of one turn, with the same seed, at the same place."""
    turns = list(zip(whole, without, strict=False))  # the last one may have ended midway
    pairs = [(a, b) for a, b in turns if all(o.status == "finished" and o.score is not None for o in (a, b))]
    failed = sorted({o.status for turn in turns for o in turn if o.status not in ("finished", "truncated")})
    why = f"trainings failed ({', '.join(failed)})" if failed else "no time"
    why = "the network is the same without it" if part.key == network.key else why
    gains = [(a.score or 0.0) - (b.score or 0.0) for a, b in pairs]
    metrics = [a.metric - b.metric for a, b in pairs if a.metric is not None and b.metric is not None]
    return Undone(
        trial=trial,
        morph=morph_words(morph),
        gone=gone,
        n=len(gains),
        gain=statistics.mean(gains) if gains else None,
        standard_error=statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
        metric_gain=statistics.mean(metrics) if metrics else None,
        parameters=network.parameters - part.parameters,
        why="" if gains else why,
    )
