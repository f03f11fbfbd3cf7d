"""A run as one HTML page that needs nothing else: no network, no framework, no file beside it.

Python derives all that is told (`morphnas.report.facts`) and writes it into the page as JSON; `page.js` draws it.
Nothing of a run is ever taken for markup: texts are escaped here and set as text there, and the page's own policy (CSP)
lets no script run but that one, and no request leave.
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
"""What a page holds at most of all curves together, of all errors (characters) and of all places by epoch."""
SHADES = 7
"""Colours of scores, from the worst to the best."""
_LONGEST = 240


def page(run: Run, reload: float | None = None) -> str:
    """The run as an HTML page. reload: seconds after which it is loaded again, for as long as the search runs."""
    if reload is not None and not (facts.number(reload) and reload > 0):
        raise ValueError(f"reload must be None or seconds above 0, not {reload!r}")
    script, style = _asset("page.js"), _asset("page.css")
    best = facts.best_of(run.trials, run.about)
    told = [panel.html for panel in panels(run, best)]
    return Template(_asset("page.html")).substitute(
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=_text(f"{run.path.name or run.path} · morphnas"),
        name=_text(str(run.path.name or run.path)),
        about=_text(about_words(run.about)),
        live='<p class="live"><b>The search is running.</b> This page reloads itself.</p>' if reload else "",
        answers="".join(answer.html for answer in answers(run, best)),
        panels="\n".join(told),
        data=_json(content(run, best) | {"reload": reload}),
        style=style,
        script=script,
    )


def write_report(run: RunLike, file: str | os.PathLike[str] | None = None, reload: float | None = None) -> Path:
    """Write the HTML report of a run (or an estimator's, or the one in a folder), and return its path.

    file: None: report.html in the run's folder; a folder: report.html in it. reload: seconds after which the page
    reloads itself, if it is rewritten while the search runs. The file is replaced as a whole; OSError if it cannot be
    written, RunError if there is no run.
    """
    run = run_of(run)
    target = run.path / "report.html" if file is None else user_path(file)
    return _written(page(run, reload), target / "report.html" if target.is_dir() else target)


def _written(text: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(text.encode())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


@dataclass(frozen=True)
class Shown:
    """A page for notebooks, in a frame of its own, so that its style and the notebook's leave each other alone.

    height: of the frame, in pixels.
    """

    html: str = field(repr=False)
    height: int = 800

    def _repr_html_(self) -> str:
        look = f'width="100%" height="{int(self.height)}" frameborder="0" sandbox="allow-scripts" title="The search"'
        return f'<iframe srcdoc="{escape(self.html)}" {look}></iframe>'


def show(run: RunLike, height: int = 800) -> Shown:
    """The HTML report of a run (or an estimator's, or the one in a folder), for the last line of a notebook cell."""
    return Shown(page(run_of(run)), height)


# -- headline answers


@dataclass(frozen=True)
class Answer:
    """An answer to a question that everybody has: in a word or a figure, and in a sentence."""

    question: str
    figure: str
    sentence: str

    @property
    def html(self) -> str:
        return f"<div><dt>{_text(self.question)}</dt><dd><b>{_text(self.figure)}</b> {_text(self.sentence)}</dd></div>"


def answers(run: Run, best: Trial | None = None) -> list[Answer]:
    """How good, how many, how long, did it explore, did it converge, how to go on."""
    best = facts.best_of(run.trials, run.about) if best is None else best
    return [_good(run, best), _many(run), _long(run), _explored(run), _converged(run), _onward(run)]


def _good(run: Run, best: Trial | None) -> Answer:
    question = "Best network"
    if best is None or best.outcome is None or best.score is None:
        return Answer(question, "none yet", "No network has a score.")
    outcome, first = best.outcome, lineage(run.trials, best)[0]
    told = [f"Network {best.id}"]
    if not outcome.held_out:
        told[0] += ", on the examples that it was trained on, as none are held out"
    if outcome.interval is not None:
        low, high = (100 * value for value in outcome.interval)
        told[0] += f", on {outcome.examples:,} validation examples: 95 % interval {low:.1f} to {high:.1f} %"
        before = None if first.outcome is None else first.outcome.metric
        if first.id != best.id and before is not None and outcome.metric is not None:
            told.append(f"{_points(outcome.metric - before)} network {first.id}, which it was grown from")
    if outcome.loss is not None:
        name = outcome.objective
        told[-1] += f"{f'; {name}' if len(told) == 1 else f'. {name[:1].upper() + name[1:]}'} {outcome.loss:.4f}"
    told[-1] += "."
    final = next((t for t in run.trials if t.id == run.about.get("final") and t.id != best.id), None)
    if final is not None:
        words = FINAL_WORDS.get(str(final.proposal.why.get("final")), "trained further").removeprefix("final: ")
        told[-1] += f" The final model is network {final.id}: the same, {words}."
        if by := facts.choice(run.about):
            told[-1] += f" {by}."
    if helpers := [f"{id} ({share:.0%})" for id, share in facts.members(run.about) if id != run.about.get("final")]:
        told[-1] += f" An ensemble predicts: with it, network{'s' * (len(helpers) > 1)} {', '.join(helpers)}."
    return Answer(question, metric_words(outcome, named=True) or f"{best.score:.4f}", "; ".join(told))


def _points(difference: float) -> str:
    side = "better" if difference > 0 else "worse"
    return "as good as" if abs(difference) < 5e-5 else f"{abs(100 * difference):.1f} points {side} than"


def _many(run: Run) -> Answer:
    search = facts.searched(run.trials)
    kinds = len({trial.graph.key for trial in search})
    final = len(run.trials) - len(search)
    told = f"{ends_words(search)}; {kinds} different {'architecture' if kinds == 1 else 'architectures'}"
    told += f"; and {final} final {'training' if final == 1 else 'trainings'}." if final else "."
    return Answer("Networks tried", f"{len(search):,}", told if search else "The search has not begun.")


def _long(run: Run) -> Answer:
    spent = facts.time_spent(run.trials)
    limit = facts.number(run.about.get("time_limit"))
    told = [f"of {duration(limit)} allowed" if limit else "", ""]
    if spent.total:
        parts = ((spent.training, "training"), (spent.final, "final training"), (spent.between, "between trainings"))
        told[1] = ", ".join(f"{100 * part / spent.total:.0f} % {name}" for part, name in parts if part)
    return Answer("Time", duration(spent.total), "; ".join(part for part in told if part).capitalize() + ".")


def _explored(run: Run) -> Answer:
    question = "Did it explore?"
    lead = facts.leaders(run.trials)
    grown = [t for t in facts.searched(run.trials) if t.proposal.morphs and t.id in lead]
    if len(grown) < 3:
        return Answer(question, "too early to say", "Fewer than 3 networks were grown from others.")
    ahead = sum(t.parent == lead[t.id] for t in grown)
    apart = facts.strides(run.trials)
    middle = sorted(apart[t.id] for t in grown)[len(grown) // 2]
    share = ahead / len(grown)
    figure = "yes, mostly" if share < 0.35 else "yes and no" if share < 0.7 else "little"
    return Answer(
        question,
        figure,
        f"{ahead} of {len(grown)} networks were grown from the best at the time, {len(grown) - ahead} from others; "
        f"half of them are {middle:.1f} or more edits away from the best.",
    )


def _converged(run: Run) -> Answer:
    question = "Did it converge?"
    search = facts.searched(run.trials)
    scored = [t for t in search if t.score is not None and not t.slow]
    better = facts.improvements(search)
    if len(scored) < 8:
        return Answer(question, "too early to say", f"Networks with a score: {len(scored)}, at least 8 are needed.")
    spans = facts.timeline(search)
    last = better[-1]
    since = sum(spans[t.id][1] > spans[last.id][1] for t in scored)
    begin, end = min(b for b, _ in spans.values()), max(e for _, e in spans.values())
    share = (end - spans[last.id][1]) / (end - begin) if end > begin else 0.0
    figure = "it levelled off" if share >= 0.25 and since >= 4 else "not yet"
    then = "so more time may not help" if figure != "not yet" else "so more time may well help"
    return Answer(
        question,
        figure,
        f"The best score last rose with network {last.id}; the {since} scored after it, in the last "
        f"{100 * share:.0f} % of the search, were no better, {then}.",
    )


def _onward(run: Run) -> Answer:
    kept, open_ones = sum(t.kept for t in run.trials), sum(t.outcome is None for t in run.trials)
    name = run.about.get("estimator")
    name = name if isinstance(name, str) and name.isidentifier() else "ImageClassifier"
    told = f"{name}(path={str(run.path)!r}, resume=True).fit(x, y, time_limit=...) continues, given the same "
    told += f"settings; the weights of {kept} networks are kept, load_run(path).load_model_by_id(id) has them."
    if open_ones:
        told += f" {open_ones} {'training has' if open_ones == 1 else 'trainings have'} not finished."
    return Answer("To continue", "resume=True", told)


def about_words(about: Mapping[str, Any]) -> str:
    """What run.json says of the run, in a line; whatever is not as expected is left out."""
    data, decides = about.get("data"), about.get("decides")
    told = [about.get("estimator")]
    if isinstance(data, Mapping):
        shape = data.get("shape")
        if isinstance(shape, (list, tuple)) and shape and all(type(n) is int for n in shape):
            told.append(f"{shape[0]:,} examples of {' x '.join(map(str, shape[1:]))}")
        told += [
            f"{data[kind]} {kind}"
            for kind in ("classes", "tags", "amounts")
            if type(data.get(kind)) is int and data[kind] > 1
        ]
        told.append("a teacher" if data.get("taught") is True else None)
    if isinstance(decides, Mapping) and isinstance(decides.get("search_type"), str):
        told.append(f"{decides['search_type']} search")
    told += [about.get("device"), f"seed {about['seed']}" if type(about.get("seed")) is int else None]
    return " · ".join(part for part in told if isinstance(part, str) and part)


# -- panels


@dataclass(frozen=True)
class Panel:
    """A figure of the page with a caption that says how to read it. empty: what to say where there is nothing to draw.

    inside: markup that is made here. wide: as wide as the page.
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
        *_setting_panels(trials),
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
    "The line is the best of the search so far, the band the 95 % interval of an accuracy; dots are networks, when "
    "their training ended; diamonds are final trainings. Where the line is flat nothing better was found."
)
_CURVES = "Each line is a network's validation score over its own epochs, coloured by how well it ended; up is better."
_TREE = (
    "Each network stands below the one whose weights it started with, together with what was done to that one, its "
    "score, and how much better (+) or worse (-) that made it."
)
_STRIDES = (
    "How many edits each new network was from the best one at the time: low ones refine what is known, high ones try "
    "something else. From left to right in the order they were tried."
)
_NO_STRIDES = "No network was tried after another had a score."
_KINDS = (
    "Each dot is a network: its gain over the network that it was grown from, by the kind of morph; the tick is the "
    "median. A network that was grown is also trained for longer than its parent: a morph has helped where it gained "
    "more than training the same network longer did."
)
_SETTING = "Each dot is a network of the search; up is better. Networks also differ in their architecture."
SETTINGS = 8
"""Settings of the recipe that the page has a panel for, at most."""
_LATENCY = (
    "From one example, alone, to its outputs, as measured where the network was trained. Up is better, left is faster; "
    "no network is better than those on the line in the same time or less."
)
_PARETO = "Up is better, left is cheaper; no network is better than those on the line at the same cost or less."


def _map_panel(trials: Sequence[Trial]) -> Panel:
    plane = facts.plane(trials)
    caption = (
        "Networks that take few edits to turn into each other are near each other; lines lead from each to those grown "
        "from it, and the slider goes back in time. Clusters were exploited, lone networks explored."
    )
    if plane.fidelity is not None:
        caption += f" Distances on the map follow the edit distances with a correlation of {plane.fidelity:.2f}."
    few = "" if len({t.graph.key for t in trials}) > 1 else "There is no more than one architecture yet."
    return Panel("map", "Map of the architectures", caption, few)


def _kinds_panel(trials: Sequence[Trial]) -> Panel:
    gains = effects.gains_by_kind(trials)
    counts = ", ".join(f"{name} {len(values)}" for name, values in gains.items())
    few = "" if gains else "No network with a score was grown from another."
    return Panel("kinds", "What each kind of morph gained", _KINDS + (f" Networks: {counts}." if gains else ""), few)


def _setting_panels(trials: Sequence[Trial]) -> list[Panel]:
    """One for each setting of the recipe that the search varied."""
    settings = effects.varied_settings(trials)[:SETTINGS]
    return [
        Panel(f"setting-{setting.name}", f"Score against {setting.name.replace('_', ' ')}", _SETTING)
        for setting in settings
        if any(trial.score is not None for trial in trials)
    ]


def _belief_panel(trials: Sequence[Trial]) -> Panel:
    told = facts.forecasts(trials)
    caption = (
        "Bars are the surrogate's 95 % prediction intervals for each network before it was trained, dots the scores "
        "it got, filled where inside; from left to right in the order they were tried."
    )
    if told:
        inside = sum(one.level <= 0.95 for one in told)
        caption += f" {inside} of {len(told)} are inside"
        rank = facts.rank_correlation([one.mean for one in told], [one.score for one in told])
        caption += "." if rank is None else f"; predictions and scores have a rank correlation of {rank:.2f}."
    return Panel("belief", "Predicted and actual scores", caption, "" if told else _NO_BELIEF)


_NO_BELIEF = "No searcher recorded a prediction for a network before it was trained."


def _calibration_panel(trials: Sequence[Trial]) -> Panel:
    told = facts.forecasts(trials)
    caption = (
        "How many scores lie within prediction intervals that should hold a given share of them: on the diagonal the "
        "surrogate is calibrated, below it overconfident. It predicts a network's mean score, without the noise "
        "between one training and another."
    )
    if told:
        shares = ((level, facts.coverage(told, level)) for level in (0.5, 0.8, 0.95))
        caption += " " + ", ".join(f"{100 * share:.0f} % in the {100 * level:.0f} %" for level, share in shares) + "."
    few = "There are fewer than 3 predictions." if told else _NO_BELIEF
    return Panel("calibration", "Is the surrogate calibrated?", caption, "" if len(told) > 2 else few)


def _ranking_panel(trials: Sequence[Trial]) -> Panel:
    ranking = facts.rank_by_epoch(trials)
    caption = "How well the ranking after so many epochs agrees with the final one (rank correlation; 1: identical)."
    if ranking is None:
        few = "Fewer than 3 networks were trained for equally many epochs, or for more than one."
        return Panel("ranking", "Epochs until the ranking is right", caption, few)
    settled = ranking.settled()
    caption += (
        f" For {len(ranking.ids)} networks of {epochs_words(len(ranking.correlations))} the correlation is at least "
        f"0.9 from epoch {settled} on."
    )
    return Panel("ranking", "Epochs until the ranking is right", caption)


def _time_panel(trials: Sequence[Trial]) -> Panel:
    spent = facts.time_spent(trials)
    caption = (
        f"Every block is a training; in the gaps the searcher was asked, weights were carried over and results "
        f"written: {duration(spent.training)} of training, {duration(spent.final)} of final training (outlined), "
        f"{duration(spent.between)} between them."
    )
    return Panel("time", "Time spent", caption, "" if spent.total else "No training has ended yet.")


def _winner_panels(trials: Sequence[Trial], best: Trial | None, failures: Panel) -> list[Panel]:
    if best is None:
        return [failures]
    line = lineage(trials, best)
    drawn = layers_svg(best.graph, facts.introduced(trials, best), line[0].id)
    size = f"{best.graph.parameters:,} parameters, {best.graph.flops:,} FLOPs, depth {best.graph.depth}"
    return [
        Panel(
            "lineage",
            f"How network {best.id} came about",
            "From the network it began as, step by step: what was done, its score, and what the step gained.",
            wide=True,
        ),
        failures,
        Panel(
            "winner",
            f"Network {best.id}",
            f"Its layers from top to bottom: the wider, the more channels; outlined: added by morphs; arcs are "
            f"skip connections. {size}.",
            inside=drawn,
        ),
    ]


def _failures_panel(trials: Sequence[Trial]) -> Panel:
    bad = facts.failures(trials)
    caption = "Trainings that failed or diverged, and why; the search continues without them."
    return Panel("failures", "Failed trials", caption, "" if bad else "None.", wide=bool(bad))


# -- the data


def content(run: Run, best: Trial | None) -> dict[str, Any]:
    """All that the page draws, as JSON values. Columns have an entry for each trial, in the order of their ids."""
    trials = run.trials
    by_id = {trial.id: trial for trial in trials}
    spans, plane, strides = facts.timeline(trials), facts.plane(trials), facts.strides(trials)
    rows = {id: (place, level) for place, (id, level) in enumerate(facts.family(trials))}
    shades = _shades(trials)
    recipes = list(dict.fromkeys(_recipe_words(trial.proposal.recipe) for trial in trials))
    errors = list(dict.fromkeys(t.outcome.error for t in trials if t.outcome is not None and t.outcome.error))
    most = max(80, ERROR_TEXT // max(1, len(errors)))
    points = max(4, CURVE_POINTS // max(1, len(trials)))
    told = {one.id: one for one in facts.forecasts(trials)}
    gains = {trial.id: facts.gain(trial, by_id) for trial in trials}
    kinds = list(effects.gains_by_kind(trials))
    nothing = Outcome("failed")
    columns: dict[str, list[Any]] = {}

    def add(**values: Any) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(_short(value, 7 if name in ("metric", "score") else 5))

    for trial in trials:
        outcome = trial.outcome or nothing
        low, high = outcome.interval or (None, None)
        start = None if trial.parent is None else by_id.get(trial.parent)
        before = None if start is None or start.outcome is None else start.outcome.metric
        add(
            id=trial.id,
            parent=None if start is None else start.id,
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
            metric_gain=None if before is None or outcome.metric is None else outcome.metric - before,
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
            mean=told[trial.id].mean if trial.id in told else None,
            sd=told[trial.id].sd if trial.id in told else None,
            sureness=told[trial.id].level if trial.id in told else None,
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
    aims = {outcome.objective for outcome in metrics}
    alike = [trial for trial in comparable(trials, run.data) if not trial.slow]
    return {
        "columns": columns,
        "best": None if best is None else best.id,
        "line": [] if best is None else [t.id for t in lineage(trials, best)],
        "share": bool(metrics) and all(outcome.interval is not None for outcome in metrics),
        "metric": bool(metrics),
        "measure": metrics[0].measure if len({outcome.measure for outcome in metrics}) == 1 else "metric",
        "loss": aims.pop() if len(aims) == 1 else "loss",
        "by_metric": bool(metrics) and all(outcome.by_metric for outcome in metrics),
        "fronts": {
            name: {kind: [t.id for t in front(alike, cost, of)] for kind, of in scores.items()}
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
        "errors": [text if len(text) <= most else "… " + text[-most:] for text in errors],
    }


def _shades(trials: Sequence[Trial]) -> dict[int, int]:
    """By id, the colour of a score: its place among all, so that one bad network does not make the others alike."""
    scores = sorted({trial.score for trial in trials if trial.score is not None})
    place = {score: i / max(1, len(scores) - 1) for i, score in enumerate(scores)}
    last = SHADES - 1 if len(scores) == 1 else 0  # one alone is the best
    return {t.id: max(last, min(SHADES - 1, int(SHADES * place[t.score]))) for t in trials if t.score is not None}


def _thinned(outcome: Outcome, most: int) -> list[float]:
    """Epoch, score, metric of so many epochs of a curve, one after the other; the first, the best, and the last among
    them."""
    n = len(outcome.curve)
    kept = set(range(n)) if n <= most else {round(i * (n - 1) / (most - 1)) for i in range(most)}
    kept |= {outcome.best_epoch - 1} & set(range(n))
    return [_short(v) for i in sorted(kept) for v in (i + 1, outcome.curve[i].score, outcome.curve[i].metric)]


def _brief(trial: Trial) -> str:
    """What a trial tries, in a few words: its kinds of morphs, counted."""
    kinds = Counter(morph.tag.replace("_", " ") for morph in trial.proposal.morphs)
    told = [kind if n == 1 else f"{n} {kind}" for kind, n in kinds.items()]
    return ", ".join(told) if told else _cut(trial_words(trial))


def _recipe_words(recipe: Recipe) -> str:
    """The settings that matter most, and those that are not as usual."""
    usual, told = Recipe(), [epochs_words(recipe.epochs)]
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if f.name in ("optimizer", "lr", "batch_size") or (f.name != "epochs" and value != getattr(usual, f.name)):
            parts = [f"{p.name} {getattr(value, p.name)}" for p in fields(value)] if f.name == "augment" else [value]
            told.append(f"{f.name.replace('_', ' ')} {' '.join(map(str, parts))}")
    return ", ".join(told)


def _why(why: Mapping[str, Any]) -> str:
    """What a searcher noted down about a proposal, as it is said to people; the belief is shown apart."""
    told = []
    for name, value in why.items():
        if name in ("budget", "mean", "sd", "data", "recipe"):
            continue
        if name == "reason":
            told.append(REASONS.get(value, str(value)) if isinstance(value, str) else _cut(repr(value)))
        elif name == "nearest" and (pairs := nearest(value)):
            told.append("nearest: " + ", ".join(f"{id} ({apart:.1f} edits)" for id, apart in pairs))
        elif name == "acquisition" and isinstance(value, str):
            told.append(f"by {ACQUISITIONS.get(value, value)}")
        else:
            told.append(f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return _cut("; ".join(_cut(part, 120) for part in told))


def _cut(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _short(value: Any, digits: int = 5) -> Any:
    """A float to so many digits; anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return None if isinstance(value, float) else value
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# -- text


def _text(text: str) -> str:
    """Text as HTML, also of paths whose names are no Unicode."""
    return escape(text.encode("utf-8", "replace").decode())


def _json(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element, whatever it holds: plain ASCII without angle brackets."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
