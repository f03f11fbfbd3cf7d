"""Ablation of morphs: a network trained with all morphs of its lineage, and without one at a time."""

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
from morphnas.estimators.data_memory import DataMemory, memory_for
from morphnas.estimators.distillation import Teacher
from morphnas.estimators.inputs import Problem
from morphnas.estimators.objective import Loss, Metric, check_functions_given, check_loss, check_metric, with_objective
from morphnas.estimators.placement import torch_device
from morphnas.estimators.settings import restored_settings, time_limit_seconds
from morphnas.estimators.splits import Groups
from morphnas.estimators.targets import RegressionTarget, SampleWeight, classification_target
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
class MorphEffect:
    """The effect of a morph on a network.

    trial: id of the trial that added the morph. morph: in words. gone: later morphs that need this one and were left
    out as well. n: number of pairs of trainings, with and without the morph, that finished. gain, metric_gain: mean
    differences of the scores (minus the log loss, unless there is a user-defined metric or loss) and of the metrics,
    positive if the morph helps; None if n is 0, for the reason `why`. standard_error: of the gain; None if n is below
    2. parameters: number that the morph and those in `gone` add.
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
    """The effects of all morphs of a network, in the order of its lineage; `str` of it is a summary for people.

    trial: id of the network. ancestor: id of the first trial of the lineage. epochs: of each training. measure: name of
    the metric.
    """

    trial: int
    ancestor: int
    epochs: int
    measure: str
    morphs: tuple[MorphEffect, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        begin = f"network {self.trial}, from {self.ancestor}, trained for {self.epochs} epochs with all its morphs, "
        lines = [f"{begin}less without"]
        for effect in self.morphs:
            if effect.gain is None:
                result = effect.why
            else:
                error = "" if effect.standard_error is None else f", standard error {effect.standard_error:.4f}"
                points = "" if effect.metric_gain is None else f"; {gain_words(effect.metric_gain, self.measure)}"
                result = f"score {effect.gain:+.4f} (n = {effect.n}{error}){points}"
            gone = f", and with it {'; '.join(effect.gone)}" if effect.gone else ""
            lines.append(f"  {effect.morph} (of {effect.trial}; {effect.parameters:+,} parameters){gone}: {result}")
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
    """Measure the effect of each morph of a network: leave out one at a time, and train the rest in the same way.

    Every network starts with the weights of the first network of the lineage (or, if these were not kept, with fresh
    ones), gets all remaining morphs at once, and is trained with the network's own recipe for as many epochs as all
    later networks of the lineage together. The run is not changed.

    Parameters
    ----------
    run : str, Path, Run, ImageClassifier or ImageRegressor
        The run, its folder, or its estimator.
    x, y, validation_data, sample_weight, groups, teacher
        Those of the fit.
    trial : int, optional
        Id of the network. None: the winner of the search.
    time_limit : float
        Seconds that it may take in all; as many of the `repeats` rounds are done as fit.
    repeats : int
        Maximum number of trainings of each network, with different seeds.
    device : str or torch.device, optional
        None: a GPU if there is one.
    metric, loss : optional
        Those of the fit, if these are functions, which a run does not store.

    Returns
    -------
    Ablation
        The effect of each morph. Print it, or use its fields.

    Raises
    ------
    RunError
        If the data is not that of the run, or the run has no such trial or cannot be read.
    ValueError
        If an argument or the data is invalid, or if a function was the metric or loss of the fit and is not given.
    TimeoutError
        If reading the data takes all of the time limit.
    """
    with usual_modes():
        deadline = Deadline.after(time_limit_seconds(time_limit, None))
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats must be a positive integer, not {repeats!r}")
        metric, loss = metric or getattr(run, "metric", None), loss or getattr(run, "loss", None)
        run = run_of(run)
        network = run.trial(run.get_best_model_id() if trial is None else trial)
        problem = _problem(run, x, y, validation_data, sample_weight, groups, teacher, torch_device(device), deadline)
        metric = metric or restored_settings(run.about.get("settings")).get("metric")
        check_metric(metric)
        check_loss(loss)
        check_functions_given(run.about.get("settings"), metric, loss)
        problem = with_objective(problem, metric, loss, deadline)
        memory = memory_for(Plan.of_run(run.about, __version__).limits.max_memory, problem.task.device)
        ancestors = lineage(run.trials, network)
        morphs_by_trial = [(trial.id, morph) for trial in ancestors[1:] for morph in trial.proposal.morphs]
        morphs = [morph for _, morph in morphs_by_trial]
        start = run.load_model_by_id(ancestors[0].id) if ancestors[0].kept else ancestors[0].graph
        graph = start.graph if isinstance(start, Network) else start
        recipe = decide_flip(network.proposal.recipe, run.trials, problem.baseline_metric)
        recipe = replace(recipe, epochs=max(1, sum(trial.epochs for trial in ancestors[1:]) or network.epochs))
        variants = [_replay_without(graph, morphs, skip) for skip in (None, *range(len(morphs)))]
        whole, *ablated = (_grow(graph, kept) for kept, _ in variants)
        seed, outcomes = int(run.about.get("seed", 0)), [list[Outcome]() for _ in variants]
        for i in range(repeats if morphs else 0):
            for results, (kept, _), part in zip(outcomes, variants, (None, *ablated), strict=True):
                if deadline.passed:
                    break
                if part is None or part.key != whole.key:
                    results.append(_train(run, memory, start, kept, recipe, problem, deadline, trial_seed(seed, i)))
        effects = [
            _effect(id, morph, gone, outcomes[0], results, whole, part)
            for (id, morph), (_, gone), results, part in zip(
                morphs_by_trial, variants[1:], outcomes[1:], ablated, strict=True
            )
        ]
        return Ablation(network.id, ancestors[0].id, recipe.epochs, problem.task.goal.measure, tuple(effects))


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
    memory, size = settings.get("data_memory"), settings.get("image_size")
    size = (int(size[0]), int(size[1])) if isinstance(size, list) else size
    problem = Problem.infer(
        x,
        y,
        validation_data,
        settings.get("image_shape"),
        seed,
        device,
        image_size=size,
        normalization=settings.get("normalization"),
        data_memory=DataMemory(memory if isinstance(memory, int) and memory > 0 else None, Path(run.path)),
        read=RegressionTarget.infer if "amounts" in (run.about.get("data") or {}) else classification_target,
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


def _replay_without(graph: Graph, morphs: Sequence[Morph], skip: int | None) -> tuple[list[Morph], tuple[str, ...]]:
    """The morphs without the one at `skip`, as far as they still apply, and descriptions of those that do not.

    New nodes are named after the nodes that exist, so that without a morph the nodes of later ones have other names:
    the morphs returned refer to those names.
    """
    whole = part = graph
    names = {node.name: node.name for node in graph.nodes}  # from the whole network to the part
    kept: list[Morph] = []
    gone = []
    for i, morph in enumerate(morphs):
        before, whole = whole, morph.grow(whole)
        if i == skip:
            continue
        sites = {f.name: value for f in fields(morph) if isinstance(value := getattr(morph, f.name), str)}
        try:
            renamed = replace(morph, **{field: names[site] for field, site in sites.items()})
            grown = renamed.grow(part)
        except (KeyError, GraphError):
            gone.append(morph_words(morph))
            continue
        new_in_whole, new_in_part = _new_nodes(whole, before), _new_nodes(grown, part)
        if [node.op.tag for node in new_in_whole] != [node.op.tag for node in new_in_part]:
            gone.append(morph_words(morph))
            continue
        names |= {node.name: other.name for node, other in zip(new_in_whole, new_in_part, strict=True)}
        part = grown
        kept.append(renamed)
    return kept, tuple(gone)


def _new_nodes(graph: Graph, before: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.name not in before]


def _grow(graph: Graph, morphs: Sequence[Morph]) -> Graph:
    for morph in morphs:
        graph = morph.grow(graph)
    return graph


def _train(
    run: Run,
    memory: int | None,
    start: Graph | Network,
    morphs: Sequence[Morph],
    recipe: Recipe,
    problem: Problem,
    deadline: Deadline,
    seed: int,
) -> Outcome:
    graph = _grow(start.graph if isinstance(start, Network) else start, morphs)
    micro = micro_batch(graph, recipe.batch_size, memory, run.trials)
    return work(Job(start, tuple(morphs), recipe, deadline.left, seed, micro=micro), problem.task)[0]


def _effect(
    trial: int,
    morph: Morph,
    gone: tuple[str, ...],
    whole: Sequence[Outcome],
    without: Sequence[Outcome],
    network: Graph,
    part: Graph,
) -> MorphEffect:
    """The effect of a morph. whole, without: outcomes of the network and of the part, paired by their seeds."""
    rounds = list(zip(whole, without, strict=False))  # the last round may be incomplete
    pairs = [(a, b) for a, b in rounds if all(o.status == "finished" and o.score is not None for o in (a, b))]
    failed = sorted({o.status for pair in rounds for o in pair if o.status not in ("finished", "truncated")})
    why = f"trainings failed ({', '.join(failed)})" if failed else "no time"
    why = "the network is the same without it" if part.key == network.key else why
    gains = [(a.score or 0.0) - (b.score or 0.0) for a, b in pairs]
    metrics = [a.metric - b.metric for a, b in pairs if a.metric is not None and b.metric is not None]
    return MorphEffect(
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
