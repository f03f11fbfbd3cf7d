"""A run as a self-contained HTML page: no network requests, no framework, no other files.

Python derives all contents (`morphnas.report.facts`) and embeds them as JSON; `page.js` draws them. Strings of a run
are never interpreted as markup: they are escaped here and set as text there, and the page's content security policy
(CSP) allows no other script and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from morphnas.report import effects, facts
from morphnas.report.explain import ACQUISITIONS, REASONS, nearest
from morphnas.report.outline import layers_svg
from morphnas.report.words import (
    FINAL_WORDS,
    duration,
    ends_words,
    epochs_words,
    metric_words,
    status_words,
    trial_words,
)
from morphnas.run.store import Run, RunLike, run_of, user_path
from morphnas.search.pareto import COSTS, front
from morphnas.search.trial import Trial, comparable, lineage
from morphnas.train.recipe import Outcome, Recipe

CURVE_POINTS, ERROR_TEXT, PLACES = 12_000, 60_000, 20_000
"""Limits of a page: points of all curves, characters of all errors, and entries of the ranking by epoch."""
SHADES = 7
"""Number of colours for scores, from the worst to the best."""
_MAX_TEXT = 240


def page(run: Run, reload: float | None = None) -> str:
    """The run as an HTML page. reload: seconds after which it reloads itself; None: never. ValueError unless it is a
    finite number above 0."""
    if reload is not None and not (facts.number(reload) and reload > 0):
        raise ValueError(f"reload must be None or seconds above 0, not {reload!r}")
    script, style = _asset("page.js"), _asset("page.css")
    best = facts.best_of(run.trials, run.about)
    return Template(_asset("page.html")).substitute(
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=_text(f"{run.path.name or run.path} · morphnas"),
        name=_text(str(run.path.name or run.path)),
        about=_text(about_words(run.about)),
        live='<p class="live"><b>The search is running.</b> This page reloads itself.</p>' if reload else "",
        answers="".join(answer.html for answer in answers(run, best)),
        panels="\n".join(panel.html for panel in panels(run, best)),
        data=_json(content(run, best) | {"reload": reload}),
        style=style,
        script=script,
    )


def write_report(run: RunLike, file: str | os.PathLike[str] | None = None, reload: float | None = None) -> Path:
    """Write the HTML report of a run, and return its path.

    run: a run, a fitted estimator, or the folder of a run. file: None: report.html in the run's folder; a folder:
    report.html in it. reload: seconds after which the page reloads itself, for a page that is rewritten while the
    search runs. The file is replaced atomically; OSError if it cannot be written, RunError if there is no run,
    ValueError for an invalid `reload`.
    """
    run = run_of(run)
    target = run.path / "report.html" if file is None else user_path(file)
    return _write(page(run, reload), target / "report.html" if target.is_dir() else target)


def _write(text: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


@dataclass(frozen=True)
class Shown:
    """The report in a notebook, in an iframe, so that its style and the notebook's do not affect each other.

    height: of the frame, in pixels.
    """

    html: str = field(repr=False)
    height: int = 800

    def _repr_html_(self) -> str:
        look = f'width="100%" height="{int(self.height)}" frameborder="0" sandbox="allow-scripts" title="The search"'
        return f'<iframe srcdoc="{escape(self.html)}" {look}></iframe>'


def show(run: RunLike, height: int = 800) -> Shown:
    """The HTML report of a run, for the last line of a notebook cell.

    run: a run, a fitted estimator, or the folder of a run. height: of the report, in pixels.
    """
    return Shown(page(run_of(run)), height)


# -- headline answers


@dataclass(frozen=True)
class Answer:
    """A headline of the report: a question, its answer in a word or figure, and a sentence of details."""

    question: str
    figure: str
    sentence: str

    @property
    def html(self) -> str:
        return f"<div><dt>{_text(self.question)}</dt><dd><b>{_text(self.figure)}</b> {_text(self.sentence)}</dd></div>"


def answers(run: Run, best: Trial | None = None) -> list[Answer]:
    """The best network, networks tried, time, exploration, convergence, and how to continue."""
    best = facts.best_of(run.trials, run.about) if best is None else best
    return [_best(run, best), _tried(run), _time(run), _explored(run), _converged(run), _continuing(run)]


def _best(run: Run, best: Trial | None) -> Answer:
    question = "Best network"
    if best is None or best.outcome is None or best.score is None:
        return Answer(question, "none yet", "No network has a score.")
    outcome, first = best.outcome, lineage(run.trials, best)[0]
    parts = [f"Network {best.id}"]
    if not outcome.held_out:
        parts[0] += ", on the examples that it was trained on, as none are held out"
    if outcome.interval is not None:
        low, high = (100 * value for value in outcome.interval)
        parts[0] += f", on {outcome.examples:,} validation examples: 95 % confidence interval {low:.1f} to {high:.1f} %"
        before = None if first.outcome is None else first.outcome.metric
        if first.id != best.id and before is not None and outcome.metric is not None:
            parts.append(f"{_points(outcome.metric - before)} network {first.id}, which it was grown from")
    if outcome.loss is not None:
        name = outcome.objective
        parts[-1] += f"{f'; {name}' if len(parts) == 1 else f'. {name[:1].upper() + name[1:]}'} {outcome.loss:.4f}"
    parts[-1] += "."
    final = next((t for t in run.trials if t.id == run.about.get("final") and t.id != best.id), None)
    if final is not None:
        words = FINAL_WORDS.get(str(final.proposal.why.get("final")), "trained further").removeprefix("final: ")
        parts[-1] += f" The final model is network {final.id}: the same architecture, {words}."
        if by := facts.choice(run.about):
            parts[-1] += f" {by}."
    if helpers := [f"{id} ({share:.0%})" for id, share in facts.members(run.about) if id != run.about.get("final")]:
        parts[-1] += f" An ensemble predicts: with it, network{'s' * (len(helpers) > 1)} {', '.join(helpers)}."
    return Answer(question, metric_words(outcome, named=True) or f"{best.score:.4f}", "; ".join(parts))


def _points(difference: float) -> str:
    side = "better" if difference > 0 else "worse"
    return "as good as" if abs(difference) < 5e-5 else f"{abs(100 * difference):.1f} points {side} than"


def _tried(run: Run) -> Answer:
    search = facts.searched(run.trials)
    kinds = len({trial.graph.key for trial in search})
    final = len(run.trials) - len(search)
    text = f"{ends_words(search)}; {kinds} different {'architecture' if kinds == 1 else 'architectures'}"
    text += f"; {final} final {'training' if final == 1 else 'trainings'}." if final else "."
    return Answer("Networks tried", f"{len(search):,}", text if search else "The search has not started.")


def _time(run: Run) -> Answer:
    spent = facts.time_spent(run.trials)
    limit = facts.number(run.about.get("time_limit"))
    texts = [f"of {duration(limit)} allowed" if limit else "", ""]
    if spent.total:
        parts = ((spent.training, "training"), (spent.final, "final training"), (spent.between, "between trainings"))
        texts[1] = ", ".join(f"{100 * part / spent.total:.0f} % {name}" for part, name in parts if part)
    return Answer("Time", duration(spent.total), "; ".join(text for text in texts if text).capitalize() + ".")


def _explored(run: Run) -> Answer:
    question = "Did it explore?"
    lead = facts.leaders(run.trials)
    grown = [t for t in facts.searched(run.trials) if t.proposal.morphs and t.id in lead]
    if len(grown) < 3:
        return Answer(question, "too early to say", "Fewer than 3 networks were grown from others.")
    from_best = sum(t.parent == lead[t.id] for t in grown)
    strides = facts.strides(run.trials)
    median = sorted(strides[t.id] for t in grown)[len(grown) // 2]
    share = from_best / len(grown)
    figure = "yes, mostly" if share < 0.35 else "yes and no" if share < 0.7 else "little"
    return Answer(
        question,
        figure,
        f"{from_best} of {len(grown)} networks were grown from the best at the time, {len(grown) - from_best} from "
        f"others; the median distance from the best is {median:.1f} edits.",
    )


def _converged(run: Run) -> Answer:
    question = "Did it converge?"
    search = facts.searched(run.trials)
    scored = [t for t in search if t.score is not None and not t.slow]
    better = facts.improvements(search)
    if len(scored) < 8:
        return Answer(question, "too early to say", f"Networks with a score: {len(scored)}; at least 8 are needed.")
    spans = facts.timeline(search)
    last = better[-1]
    since = sum(spans[t.id][1] > spans[last.id][1] for t in scored)
    begin, end = min(b for b, _ in spans.values()), max(e for _, e in spans.values())
    share = (end - spans[last.id][1]) / (end - begin) if end > begin else 0.0
    figure = "it levelled off" if share >= 0.25 and since >= 4 else "not yet"
    then = "so more time may not help" if figure != "not yet" else "so more time may help"
    return Answer(
        question,
        figure,
        f"The best score is that of network {last.id}; the {since} scored after it, in the last "
        f"{100 * share:.0f} % of the search, were no better, {then}.",
    )


def _continuing(run: Run) -> Answer:
    kept, unfinished = sum(t.kept for t in run.trials), sum(t.outcome is None for t in run.trials)
    name = run.about.get("estimator")
    name = name if isinstance(name, str) and name.isidentifier() else "ImageClassifier"
    text = f"{name}(path={str(run.path)!r}, resume=True).fit(x, y, time_limit=...) continues the search, given the "
    text += f"same settings. The weights of {kept} networks are kept: load_run(path).load_model_by_id(id) loads them."
    if unfinished:
        text += f" {unfinished} {'training has' if unfinished == 1 else 'trainings have'} not finished."
    return Answer("To continue", "resume=True", text)


def about_words(about: Mapping[str, Any]) -> str:
    """A one-line summary of run.json; values of unexpected types are left out."""
    data, decides = about.get("data"), about.get("decides")
    parts = [about.get("estimator")]
    if isinstance(data, Mapping):
        shape = data.get("shape")
        if isinstance(shape, (list, tuple)) and shape and all(type(n) is int for n in shape):
            parts.append(f"{shape[0]:,} examples of {' x '.join(map(str, shape[1:]))}")
        parts += [
            f"{data[kind]} {noun}"
            for kind, noun in (("classes", "classes"), ("tags", "labels"), ("amounts", "targets"))
            if type(data.get(kind)) is int and data[kind] > 1
        ]
        parts.append("with a teacher" if data.get("taught") is True else None)
    if isinstance(decides, Mapping) and isinstance(decides.get("search_type"), str):
        parts.append(f"{decides['search_type']} search")
    parts += [about.get("device"), f"seed {about['seed']}" if type(about.get("seed")) is int else None]
    return " · ".join(part for part in parts if isinstance(part, str) and part)


# -- panels


@dataclass(frozen=True)
class Panel:
    """A figure of the page, with a caption that says how to read it.

    empty: text shown instead if there is nothing to draw. inside: markup of a figure that Python draws. wide: whether
    it spans the page.
    """

    name: str
    title: str
    caption: str
    empty: str = ""
    inside: str = ""
    wide: bool = False

    @property
    def html(self) -> str:
        body = f'<p class="empty">{_text(self.empty)}</p>' if self.empty else f'<div class="plot">{self.inside}</div>'
        return (
            f'<figure id="{self.name}" class="panel{" wide" * self.wide}" aria-labelledby="{self.name}-title">'
            f'<figcaption><h2 id="{self.name}-title">{_text(self.title)}</h2><p>{_text(self.caption)}</p></figcaption>'
            f"{body}</figure>"
        )


def panels(run: Run, best: Trial | None) -> list[Panel]:
    """The figures of the page, in their order."""
    trials = run.trials
    unscored = "" if any(t.score is not None for t in trials) else "No network has a score yet."
    curves = "" if any(t.outcome and t.outcome.curve for t in trials) else "No network has a learning curve yet."
    untimed = "" if any(t.outcome and t.outcome.latency for t in trials) else "No network was timed."
    return [
        Panel("progress", "Best so far", _PROGRESS, unscored),
        Panel("curves", "Learning curves", _CURVES, curves),
        Panel("tree", "The tree of morphs", _TREE, "" if trials else "No network was tried yet.", wide=True),
        _map_panel(trials),
        Panel("strides", "Exploring or exploiting", _STRIDES, "" if facts.strides(trials) else _NO_STRIDES),
        _kinds_panel(trials),
        *_setting_panels(trials, unscored),
        _belief_panel(trials),
        _calibration_panel(trials),
        Panel("parameters", "Score against parameters", _PARETO, unscored),
        Panel("flops", "Score against FLOPs", _PARETO, unscored),
        Panel("latency", "Score against latency", _LATENCY, unscored or untimed),
        _ranking_panel(trials),
        _time_panel(trials),
        *_winner_panels(trials, best, _failures_panel(trials)),
    ]


_PROGRESS = (
    "The line is the best of the search so far, the band the 95 % confidence interval of an accuracy; dots are "
    "networks at the end of their training, diamonds final trainings. Where the line is flat, nothing better was found."
)
_CURVES = "Each line is a network's validation score over its own epochs, coloured by how well it ended; up is better."
_TREE = (
    "Each network stands below its parent, whose weights it started with. Rows show its morphs, the change "
    "of the score from the parent's, and the score."
)
_STRIDES = (
    "Edit distance of each new network from the best one at the time: small distances exploit, large ones explore. "
    "From left to right in the order they were tried."
)
_NO_STRIDES = "No network was started after another had a score."
_KINDS = (
    "Each dot is a network: its gain over the network that it was grown from, by the kind of morph; the tick is the "
    "median. A network that was grown is also trained for longer than its parent: a morph has helped where it gained "
    "more than training the same network longer did."
)
_SETTING = "Each dot is a network of the search; {side} is better. Networks also differ in their architecture."
SETTINGS = 8
"""Maximum number of settings of the recipe that the page has a panel for."""
_LATENCY = (
    "Time from a single example to its outputs, measured on the device that trained the network. Up is better, left is "
    "faster; the line is the Pareto front: no network is better in the same time or less."
)
_PARETO = "Up is better, left is cheaper; the line is the Pareto front: no network is better at the same cost or less."


def _map_panel(trials: Sequence[Trial]) -> Panel:
    plane = facts.plane(trials)
    caption = (
        "Networks at a small edit distance are near each other; lines connect parents and children, and the slider "
        "goes back in time. Clusters come from exploitation, isolated networks from exploration."
    )
    if plane.fidelity is not None:
        caption += f" Distances on the map follow the edit distances with a correlation of {plane.fidelity:.2f}."
    too_few = "" if len({t.graph.key for t in trials}) > 1 else "There are fewer than 2 architectures so far."
    return Panel("map", "Map of the architectures", caption, too_few)


def _kinds_panel(trials: Sequence[Trial]) -> Panel:
    gains = effects.gains_by_kind(trials)
    counts = ", ".join(f"{name} {len(values)}" for name, values in gains.items())
    few = "" if gains else "No network with a score was grown from another."
    return Panel("kinds", "What each kind of morph gained", _KINDS + (f" Networks: {counts}." if gains else ""), few)


def _setting_panels(trials: Sequence[Trial], unscored: str) -> list[Panel]:
    """One for each setting of the recipe that the search varied; those that are not numbers are drawn as rows."""
    return [
        Panel(
            f"setting-{setting.name}",
            f"Score against {setting.name.replace('_', ' ')}",
            _SETTING.format(side="right" if setting.options else "up"),
            unscored,
        )
        for setting in effects.varied_settings(trials)[:SETTINGS]
    ]


def _belief_panel(trials: Sequence[Trial]) -> Panel:
    predictions = facts.forecasts(trials)
    caption = (
        "Bars are the surrogate's 95 % prediction intervals for each network before it was trained, dots the actual "
        "scores, filled if inside; from left to right in the order they were tried."
    )
    if predictions:
        inside = sum(prediction.level <= 0.95 for prediction in predictions)
        caption += f" {inside} of {len(predictions)} are inside"
        rank = facts.rank_correlation([p.mean for p in predictions], [p.score for p in predictions])
        caption += "." if rank is None else f"; predictions and scores have a rank correlation of {rank:.2f}."
    return Panel("belief", "Predicted and actual scores", caption, "" if predictions else _NO_PREDICTIONS)


_NO_PREDICTIONS = "The searcher recorded no predicted scores."


def _calibration_panel(trials: Sequence[Trial]) -> Panel:
    predictions = facts.forecasts(trials)
    caption = (
        "Coverage of the prediction intervals: the share of scores inside, against their nominal probability. On the "
        "diagonal the surrogate is calibrated, below it overconfident. It predicts a network's mean score, without the "
        "noise between one training and another."
    )
    if predictions:
        shares = ((level, facts.coverage(predictions, level)) for level in (0.5, 0.8, 0.95))
        parts = (f"{100 * share:.0f} % in the {100 * level:.0f} % intervals" for level, share in shares)
        caption += f" {', '.join(parts)}."
    too_few = "There are fewer than 3 predictions." if predictions else _NO_PREDICTIONS
    return Panel("calibration", "Is the surrogate calibrated?", caption, "" if len(predictions) > 2 else too_few)


def _ranking_panel(trials: Sequence[Trial]) -> Panel:
    ranking = facts.rank_by_epoch(trials)
    title = "Epochs until the ranking is stable"
    caption = "Rank correlation of the scores after each number of epochs with the final ones (1: the same ranking)."
    if ranking is None:
        too_few = "Needs different scores of at least 3 networks trained for the same number of epochs, 2 or more."
        return Panel("ranking", title, caption, too_few)
    caption += (
        f" For {len(ranking.ids)} networks of {epochs_words(len(ranking.correlations))} it is at least 0.9 from epoch "
        f"{ranking.settled()} on."
    )
    return Panel("ranking", title, caption)


def _time_panel(trials: Sequence[Trial]) -> Panel:
    spent = facts.time_spent(trials)
    caption = (
        f"Each block is a training; in the gaps, networks were proposed, weights transferred and results written: "
        f"{duration(spent.training)} of training, {duration(spent.final)} of final training (outlined), "
        f"{duration(spent.between)} between them."
    )
    return Panel("time", "Time spent", caption, "" if spent.total else "No training has ended yet.")


def _winner_panels(trials: Sequence[Trial], best: Trial | None, failures: Panel) -> list[Panel]:
    if best is None:
        return [failures]
    line = lineage(trials, best)
    drawing = layers_svg(best.graph, facts.introduced(trials, best), line[0].id)
    size = f"{best.graph.parameters:,} parameters, {best.graph.flops:,} FLOPs, depth {best.graph.depth}"
    return [
        Panel(
            "lineage",
            f"How network {best.id} came about",
            "Its lineage from the first network on: morphs, the change of the score in each step, and the score.",
            wide=True,
        ),
        failures,
        Panel(
            "winner",
            f"Network {best.id}",
            f"Its layers from top to bottom: wider bars have more channels, outlined ones were added by morphs; "
            f"lines on the left are skip connections. {size}.",
            inside=drawing,
        ),
    ]


def _failures_panel(trials: Sequence[Trial]) -> Panel:
    bad = facts.failures(trials)
    caption = "Trainings that failed, diverged or ran out of memory, and why; the search continues without them."
    return Panel("failures", "Failed trials", caption, "" if bad else "None.", wide=bool(bad))


# -- the data


def content(run: Run, best: Trial | None) -> dict[str, Any]:
    """The data that the page draws, as JSON values. Columns have one entry per trial, in the order of their ids."""
    trials = run.trials
    by_id = {trial.id: trial for trial in trials}
    spans, plane, strides = facts.timeline(trials), facts.plane(trials), facts.strides(trials)
    rows = {id: (place, level) for place, (id, level) in enumerate(facts.family(trials))}
    shades = _shades(trials)
    recipes = list(dict.fromkeys(_recipe_words(trial.proposal.recipe) for trial in trials))
    errors = list(dict.fromkeys(t.outcome.error for t in trials if t.outcome is not None and t.outcome.error))
    error_length = max(80, ERROR_TEXT // max(1, len(errors)))
    points = max(4, CURVE_POINTS // max(1, len(trials)))
    predictions = {prediction.id: prediction for prediction in facts.forecasts(trials)}
    gains = {trial.id: facts.gain(trial, by_id) for trial in trials}
    kinds = list(effects.gains_by_kind(trials))
    no_outcome = Outcome("failed")
    columns: dict[str, list[Any]] = {}

    def add(**values: Any) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(_short(value, 7 if name in ("metric", "score") else 5))

    for trial in trials:
        outcome = trial.outcome or no_outcome
        low, high = outcome.interval or (None, None)
        parent = None if trial.parent is None else by_id.get(trial.parent)
        parent_metric = None if parent is None or parent.outcome is None else parent.outcome.metric
        prediction = predictions.get(trial.id)
        add(
            id=trial.id,
            parent=None if parent is None else parent.id,
            row=rows[trial.id][0],
            level=rows[trial.id][1],
            what=_cut(trial_words(trial)),
            brief=_brief(trial),
            final=int(trial.final),
            status=status_words(trial),
            score=trial.score,
            metric=outcome.metric,
            low=low,
            high=high,
            gain=gains[trial.id],
            kind=kinds.index(name) if not trial.final and (name := effects.kind(trial)) in kinds else None,
            metric_gain=None if parent_metric is None or outcome.metric is None else outcome.metric - parent_metric,
            shade=shades.get(trial.id),
            begin=spans[trial.id][0],
            end=spans[trial.id][1],
            parameters=trial.graph.parameters,
            flops=trial.graph.flops,
            latency=None if outcome.latency is None else 1000 * outcome.latency,
            depth=trial.graph.depth,
            epochs=outcome.epochs,
            planned=trial.epochs,
            curve=_thinned(outcome, points),
            x=plane.positions[trial.id][0],
            y=plane.positions[trial.id][1],
            stride=strides.get(trial.id),
            mean=None if prediction is None else prediction.mean,
            sd=None if prediction is None else prediction.sd,
            sureness=None if prediction is None else prediction.level,
            why=_why(trial.proposal.why),
            recipe=recipes.index(_recipe_words(trial.proposal.recipe)),
            error=errors.index(outcome.error) if outcome.error else None,
            moved=outcome.morph_error,
            speed=outcome.images_per_second,
        )
    ranking = facts.rank_by_epoch(trials)
    places = ranking is not None and len(ranking.ids) * len(ranking.correlations) <= PLACES
    scores = {"metric": lambda t: t.outcome.metric if t.outcome else None, "score": lambda t: t.score}
    metrics = [t.outcome for t in trials if t.outcome is not None and t.outcome.metric is not None]
    objectives = {outcome.objective for outcome in metrics}
    candidates = [trial for trial in comparable(trials, run.data) if not trial.slow]
    return {
        "columns": columns,
        "best": None if best is None else best.id,
        "line": [] if best is None else [t.id for t in lineage(trials, best)],
        "share": bool(metrics) and all(outcome.interval is not None for outcome in metrics),
        "metric": bool(metrics),
        "measure": metrics[0].measure if len({outcome.measure for outcome in metrics}) == 1 else "metric",
        "loss": objectives.pop() if len(objectives) == 1 else "loss",
        "by_metric": bool(metrics) and all(outcome.by_metric for outcome in metrics),
        "fronts": {
            name: {kind: [t.id for t in front(candidates, cost, of)] for kind, of in scores.items()}
            for name, cost in COSTS.items()
        },
        "kinds": kinds,
        "settings": [
            {
                "name": setting.name,
                "options": setting.options,
                "log": setting.logarithmic,
                "values": [_short(setting.values.get(trial.id)) for trial in trials],
            }
            for setting in effects.varied_settings(trials)[:SETTINGS]
        ],
        "ranking": None
        if ranking is None
        else {
            "correlations": [_short(value) for value in ranking.correlations],
            "ids": ranking.ids if places else [],
            "places": ranking.places if places else [],
        },
        "recipes": recipes,
        "errors": [text if len(text) <= error_length else "… " + text[-error_length:] for text in errors],
    }


def _shades(trials: Sequence[Trial]) -> dict[int, int]:
    """By id, the colour of a score, from 0 for the worst: by its rank, so that one bad network does not give all others
    the same colour."""
    scores = sorted({trial.score for trial in trials if trial.score is not None})
    place = {score: i / max(1, len(scores) - 1) for i, score in enumerate(scores)}
    lowest = SHADES - 1 if len(scores) == 1 else 0  # a single score is the best
    return {t.id: max(lowest, min(SHADES - 1, int(SHADES * place[t.score]))) for t in trials if t.score is not None}


def _thinned(outcome: Outcome, most: int) -> list[float]:
    """A flat list of (epoch, score, metric) of about `most` epochs of a curve, with the first, best and last one."""
    n = len(outcome.curve)
    kept = set(range(n)) if n <= most else {round(i * (n - 1) / (most - 1)) for i in range(most)}
    kept |= {outcome.best_epoch - 1} & set(range(n))
    return [_short(v) for i in sorted(kept) for v in (i + 1, outcome.curve[i].score, outcome.curve[i].metric)]


def _brief(trial: Trial) -> str:
    """What a trial changes, in a few words: its kinds of morphs, with counts."""
    kinds = Counter(morph.tag.replace("_", " ") for morph in trial.proposal.morphs)
    texts = [kind if n == 1 else f"{n} {kind}" for kind, n in kinds.items()]
    return ", ".join(texts) if texts else _cut(trial_words(trial))


def _recipe_words(recipe: Recipe) -> str:
    """The most important settings, and those that differ from their defaults."""
    default, texts = Recipe(), [epochs_words(recipe.epochs)]
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if f.name in ("optimizer", "lr", "batch_size") or (f.name != "epochs" and value != getattr(default, f.name)):
            parts = [f"{p.name} {getattr(value, p.name)}" for p in fields(value)] if f.name == "augment" else [value]
            texts.append(f"{f.name.replace('_', ' ')} {' '.join(map(str, parts))}")
    return ", ".join(texts)


def _why(why: Mapping[str, Any]) -> str:
    """What a searcher recorded about a proposal, as text; the predicted score is shown separately."""
    texts = []
    for name, value in why.items():
        if name in ("budget", "mean", "sd", "data", "recipe"):
            continue
        if name == "reason":
            texts.append(REASONS.get(value, str(value)) if isinstance(value, str) else _cut(repr(value)))
        elif name == "nearest" and (pairs := nearest(value)):
            texts.append("nearest: " + ", ".join(f"{id} ({edits:.1f} edits)" for id, edits in pairs))
        elif name == "acquisition" and isinstance(value, str):
            texts.append(f"by {ACQUISITIONS.get(value, value)}")
        else:
            texts.append(f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return _cut("; ".join(_cut(text, 120) for text in texts))


def _cut(text: str, most: int = _MAX_TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(value: Any, digits: int = 5) -> Any:
    """A float rounded to so many digits, None if it is NaN or infinite; anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return None if isinstance(value, float) else value
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# -- text


def _text(text: str) -> str:
    """Text escaped for HTML; also of paths whose names are not valid Unicode."""
    return escape(text.encode("utf-8", "replace").decode())


def _json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element: plain ASCII without angle brackets or ampersands."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
