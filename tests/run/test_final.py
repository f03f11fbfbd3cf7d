"""The final model: trained longer, chosen on a selection set, and then trained on all examples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphnas.graph import Graph, Network, Weights, to_module
from morphnas.run import executors, predictions
from morphnas.run import final as module
from morphnas.run.executors import SerialExecutor
from morphnas.run.files import RunError
from morphnas.run.final import (
    MAX_FINAL_EPOCHS,
    MIN_COMPARED_EPOCHS,
    PLANNED_SPEEDUP,
    STRONG_CUTOUT,
    STRONG_SHIFT,
    Final,
)
from morphnas.run.jobs import Job, trial_seed
from morphnas.run.store import Store, load_run
from morphnas.run.work import work
from morphnas.search.trial import STOPPED, Proposal, Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline, Stop
from morphnas.train.goal import CustomGoal, UndefinedMetric
from morphnas.train.predict import evaluate
from morphnas.train.recipe import DEFAULT_SHIFT, Augment, Outcome, Recipe, Status
from tests.run.doubles import GOOD, GRAPH, RECIPE, Notes, files, proposals, resumed, same_weights, weights
from tests.train.tasks import Clock, Timed, blobs

TASK = blobs(60, 20)
assert TASK.valid is not None
CHOOSER = TASK.valid[:10]
EVERYTHING = Examples(torch.cat([TASK.train.x, TASK.valid.x]), torch.cat([TASK.train.y, TASK.valid.y]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def searched(path: Path) -> Iterator[tuple[Store, Trial]]:
    """A run whose second trial has won."""
    store = Store.create(path, {"seed": 1})
    try:
        for i, proposal in enumerate(proposals(3)):
            store.claim(proposal)
            assert isinstance(proposal.start, Graph)
            outcome, trained = work(Job(proposal.start, (), RECIPE, 600, i), TASK)
            store.finish(i, outcome, trained)
        yield store, store.trials[1]
    finally:
        store.close()


def finish(store: Store, winner: Trial, **settings: Any) -> Trial:
    given = {"selection_set": CHOOSER, "all_examples": EVERYTHING, "recipe": RECIPE, "deadline": Deadline.after(600)}
    given = given | {"epochs": 3} | settings
    task = given.pop("task", TASK)
    executor = SerialExecutor(task, given["all_examples"])  # type: ignore[arg-type]
    return Final(store, winner, executor, task, **given).run()  # type: ignore[arg-type]


def judged(store: Store, trial: Trial, by: Examples) -> float:
    network = store.network(trial.id)
    return evaluate(to_module(network.graph, network.weights), by, TASK)[0]


# -- for real


@pytest.mark.parametrize("selection_set", [CHOOSER, None])
def test_the_final_training_adds_trials_and_changes_none(path: Path, selection_set: Examples | None) -> None:
    notes = Notes()
    with searched(path) as (store, winner):
        before, about = {name: data for name, data in files(path).items() if name != "run.json"}, dict(store.about)
        last = finish(store, winner, selection_set=selection_set, observer=notes)
        assert {name: data for name, data in files(path).items() if name in before} == before
        assert {name: value for name, value in store.about.items() if name != "chosen"} == about
        inherited, fresh, whole = store.trials[3:]
        assert [t.proposal.why["final"] for t in store.trials[3:]] == ["inherited", "fresh", "everything"]
        assert all(t.proposal.why["of"] == winner.id and t.final and t.graph == winner.graph for t in store.trials[3:])
        assert not any(t.final for t in store.trials[:3])
        assert inherited.proposal.start == winner.id
        assert fresh.proposal.start == winner.graph
        assert [t.epochs for t in (inherited, fresh)] == [3, 3]
        best = max((winner, inherited, fresh), key=lambda t: judged(store, t, selection_set or TASK.evaluation_set))
        assert last == whole
        assert whole.proposal.start == whole.proposal.why["score_of"] == best.id
        assert load_run(path).trials == tuple(store.trials)
    assert [entry for entry in notes.told if entry[0] != "epoch"] == [
        (what, id) for id in (3, 4, 5) for what in ("begins", "ends")
    ]


def test_what_was_trained_on_everything_has_no_score_but_weights(path: Path) -> None:
    with searched(path) as (store, winner):
        last = finish(store, winner)
        assert last.outcome is not None
        assert last.outcome.status == "finished"
        assert (last.score, last.outcome.metric, last.outcome.examples) == (None, None, 0)
        assert last.kept
        assert isinstance(last.proposal.start, int)
        assert not same_weights(store.network(last.id), dict(store.network(last.proposal.start).weights))
        assert last.proposal.recipe.lr < RECIPE.lr
        assert last.proposal.recipe.patience is None
        assert [entry["model_id"] for entry in load_run(path).history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("status", "longer"), [("truncated", True), ("finished", True), ("diverged", False)])
def test_a_winner_that_has_no_score_is_trained_longer_unless_it_diverged(
    path: Path, status: Status, longer: bool
) -> None:
    """Nothing is compared: there is time for three quarters of a pass."""
    graph = proposals(1)[0].start
    assert isinstance(graph, Graph)
    outcome = Outcome(status, seconds=600, epochs=1, best_epoch=1, images_per_second=0.1)
    store = Store.create(path, {"seed": 1})
    try:
        store.claim(proposals(1)[0])
        winner = store.finish(0, outcome, weights(0, graph))
        last = finish(store, winner, epochs=None)
    finally:
        store.close()
    assert (last.id, last.proposal.why.get("final")) == ((1, "everything") if longer else (0, None))
    assert last.kept


def test_a_second_final_training_adds_to_the_first(path: Path) -> None:
    with searched(path) as (store, winner):
        finish(store, winner)
        store.update_about(settled=4)
    before = files(path)
    with resumed(path) as store:
        last = finish(store, winner)
    assert last.id == 8
    after = files(path)
    assert {name for name in before if after[name] != before[name]} <= {"holder", "run.json"}
    was, now = (json.loads(all_of_it["run.json"]) for all_of_it in (before, after))
    assert {name for name in was | now if was.get(name) != now.get(name)} <= {"chosen"}


@pytest.mark.parametrize(("lost", "again"), [(3, ["inherited", "everything"]), (5, ["everything"])])
def test_damaged_weights_of_an_earlier_final_training_cost_that_training_alone(
    path: Path, caplog: pytest.LogCaptureFixture, lost: int, again: list[str]
) -> None:
    with searched(path) as (store, winner):
        finish(store, winner)
    file = path / "trials" / f"{lost:05d}" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with resumed(path) as store:
        last = finish(store, store.trials[1])
        assert [t.proposal.why["final"] for t in store.trials[6:]] == again
        assert last == store.trials[-1]
        store.network(last.id)
    assert f"the final training of trial {lost} is repeated, because its weights are lost" in caplog.text


def test_what_the_observer_raises_ends_the_final_trainings(path: Path) -> None:
    class Full(Notes):
        def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
            raise OSError("no space to write to")

    with searched(path) as (store, winner):
        with pytest.raises(OSError, match="no space to write to"):
            finish(store, winner, observer=Full())
        assert store.trials[3].outcome is None


@pytest.mark.parametrize(("before", "now", "taken"), [(59.0, 61.0, True), (29.0, 60.0, False), (31.0, 60.0, True)])
def test_a_training_that_was_interrupted_goes_on_unless_one_can_be_twice_as_long(
    path: Path, before: float, now: float, taken: bool
) -> None:
    n, recipe = 50_000, replace(RECIPE, epochs=6, batch_size=128)
    old, new = (module._sized(recipe, passes, n, None) for passes in (before, now))
    assert old is not None
    assert new is not None
    why = {"final": "inherited", "of": 1, "data": ""}
    with searched(path) as (store, winner):
        open_ = store.claim(Proposal(winner.id, (), old, why))
        assert module._find_started(store, Proposal(winner.id, (), new, why), n) == (open_ if taken else None)


@pytest.mark.parametrize(("passes", "trained"), [(1.0, True), (0.9, False)])
def test_fewer_examples_than_a_batch_are_trained_on(passes: float, trained: bool) -> None:
    sized = module._sized(replace(RECIPE, batch_size=64), passes, 60, 1)
    assert (sized is not None) is trained


def test_trainings_that_came_to_nothing_say_nothing_of_how_long_to_train(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Outcome("failed", error="no"), None
    made = told(inherited=nothing, fresh=nothing)
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: 999.0)
    with won(path, replace(WELL, epochs=6, best_epoch=6)) as (store, winner):
        finish(store, winner, epochs=None)
    assert [job.recipe.epochs for job in made.jobs] == [MAX_FINAL_EPOCHS] * 3


@pytest.mark.parametrize(("labels", "epochs"), [((1, 2), 6), ((1, 0), 52), ((0, 0), 52)])
def test_longer_trainings_that_all_came_to_clearly_less_are_no_reason_to_train_for_long(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, labels: tuple[int, int], epochs: int
) -> None:
    """Unless one of them has the same outputs: then the winner is better by chance."""
    made = told(inherited=(BADLY, labels[0]), fresh=(BADLY, labels[1]))
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: 41.0)
    valid = all_of(0)
    with won(path, replace(WELL, epochs=6, best_epoch=6), label=0) as (store, winner):
        finish(store, winner, task=replace(TASK, valid=valid), selection_set=None, epochs=None)
        assert [t.proposal.why["final"] for t in store.trials[1:]] == ["inherited", "fresh", "everything"]
        assert store.trials[-1].parent == winner.id
    assert [job.recipe.epochs for job in made.jobs][-1] == epochs


def test_on_other_data_without_held_out_examples_what_was_trained_on_these_is_the_model(
    path: Path, told: Callable[..., Told]
) -> None:
    """The winner's score is on the earlier data, so it cannot be compared."""
    told(inherited=(BADLY, 0), fresh=(BADLY, 1))
    few = replace(TASK, valid=None)
    with won(path, WELL) as (store, winner):
        store.update_about(data={"hash": "of the fit", "validation": None})
        last = finish(store, winner, task=few, selection_set=None, all_examples=None, data="others")
        assert last.proposal.why["data"] == "others"
        assert last in store.trials[1:]
        told(inherited=(Outcome("failed", error="no"), None), fresh=(Outcome("failed", error="no"), None))
        assert finish(store, winner, task=few, selection_set=None, all_examples=None, data="more").id == winner.id


def test_one_training_is_judged_where_an_ensemble_needs_to_know_how_good_the_last_is(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the time has room for one training of enough epochs, but not for two."""
    told()
    clock = Clock()
    monkeypatch.setattr(Final, "_passes", lambda self, seconds, *_, **__: seconds)
    for seconds, names in (
        (2 * MIN_COMPARED_EPOCHS, ["inherited", "everything"]),
        (2 * MIN_COMPARED_EPOCHS - 2, ["everything"]),
    ):
        with won(path / str(seconds)) as (store, winner):
            finish(store, winner, needs_score=True, epochs=None, deadline=clock.deadline(seconds))
            assert [t.proposal.why["final"] for t in store.trials[1:]] == names


def test_retraining_that_comes_to_nothing_leaves_the_winner(path: Path, told: Callable[..., Told]) -> None:
    """No training inherits weights, since `retrain` excludes that."""
    told(fresh=(Outcome("failed", error="no"), None))
    with won(path) as (store, winner):
        assert finish(store, winner, retrain=True) == winner
        assert [t.proposal.why["final"] for t in store.trials[1:]] == ["fresh"]


def test_retraining_is_from_fresh_weights_alone(path: Path) -> None:
    with searched(path) as (store, winner):
        finish(store, winner, retrain=True)
        assert [t.proposal.why["final"] for t in store.trials[3:]] == ["fresh", "everything"]
        assert store.trials[4].proposal.start == 3


def test_without_everything_the_chosen_one_is_the_model(path: Path) -> None:
    with searched(path) as (store, winner):
        last = finish(store, winner, all_examples=None)
        assert [t.proposal.why["final"] for t in store.trials[3:]] == ["inherited", "fresh"]
        candidates = [winner, *store.trials[3:]]
        assert last == max(candidates, key=lambda t: judged(store, t, CHOOSER))


@pytest.mark.parametrize("retrain", [False, True])
def test_without_time_the_winner_is_the_model(path: Path, retrain: bool) -> None:
    with searched(path) as (store, winner):
        clock = Clock()
        before = files(path)
        assert finish(store, winner, retrain=retrain, deadline=clock.deadline(0)) == winner
        assert files(path) == before


@pytest.mark.parametrize("retrain", [False, True])
def test_a_winner_that_came_to_no_epoch_is_trained_now(path: Path, retrain: bool) -> None:
    with searched(path) as (store, _):
        untrained = store.claim(Proposal(GRAPH, (), RECIPE))
        assert finish(store, untrained) == untrained, "nobody knows of any weights"
        untrained = store.finish(untrained.id, Outcome("truncated"), weights())
        last = finish(store, untrained, guess=1e-9, retrain=retrain)
        assert last.proposal.why["final"] == "everything"
        assert last.outcome is not None
        assert last.outcome.epochs == 3
        assert last.graph == GRAPH


# -- with results as they are told


def sure_of(label: int, graph: Graph) -> Weights:
    """Weights with which a network predicts that label for every example."""
    made = {name: torch.zeros_like(value) for name, value in weights(0, graph).items()}
    made |= {name: torch.ones_like(value) for name, value in made.items() if name.endswith("running_var")}
    made[f"{graph.output.name}.bias"][label] = 3.0
    return made


@dataclass
class Told:
    """In place of `work`: outcomes, and networks that always predict one label, by the kind of final training."""

    ends: dict[str, tuple[Outcome, int | None]]
    clock: Clock = field(default_factory=Clock)
    per_epoch: float = 0.0
    by_shift: dict[float | None, Outcome] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def __call__(self, job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights | None]:
        self.jobs.append(job)
        self.tasks.append(task)
        self.clock.now += self.per_epoch * job.recipe.epochs
        way = "everything" if not job.scored else "fresh" if isinstance(job.start, Graph) else "inherited"
        outcome, label = self.ends[way]
        if job.scored and self.by_shift:
            outcome = self.by_shift[job.recipe.augment.shift]
        graph = job.start.graph if isinstance(job.start, Network) else job.start
        return outcome, None if label is None else sure_of(label, graph)


WELL, BADLY = replace(GOOD, score=-0.1), replace(GOOD, score=-2.0)
WHOLE = Outcome("finished", epochs=1, best_epoch=1)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    def make(**ends: tuple[Outcome, int | None]) -> Told:
        made = Told({"inherited": (WELL, 0), "fresh": (BADLY, 1), "everything": (WHOLE, 1)} | ends)
        monkeypatch.setattr(executors, "work", made)
        return made

    return make


@contextmanager
def won(path: Path, outcome: Outcome = BADLY, label: int = 0) -> Iterator[tuple[Store, Trial]]:
    """A run with one trial, which has won."""
    store = Store.create(path, {})
    try:
        store.claim(Proposal(GRAPH, (), RECIPE))
        yield store, store.finish(0, outcome, sure_of(label, GRAPH))
    finally:
        store.close()


def all_of(label: int) -> Examples:
    return Examples(TASK.evaluation_set.x[:6], torch.full((6,), label))


@pytest.mark.parametrize(("label", "chosen"), [(0, 1), (1, 2)])
def test_the_chooser_chooses(path: Path, told: Callable[..., Told], label: int, chosen: int) -> None:
    """The inherited training has the better score, and predicts 0; that from fresh weights predicts 1."""
    told()
    with won(path, label=0) as (store, winner):
        last = finish(store, winner, selection_set=all_of(label), all_examples=None)
        assert last.id == (0 if label == 0 else chosen)  # of equals the winner, which was there first
        noted = store.about["chosen"][str(last.id)]
        assert (noted["examples"], noted["stopped"]) == (6, False)
        assert sorted(noted["scores"]) == ["0", "1", "2"]
        assert max(noted["scores"].values()) == noted["scores"][str(last.id)]


@dataclass
class Says:
    """A user-defined metric: the share of examples for which a label is predicted; undefined for labels above 1."""

    label: int
    name: str = "says"

    def __call__(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        if self.label > 1:
            raise UndefinedMetric("nobody says that")
        return float((outputs.argmax(1) == self.label).double().mean())


@pytest.mark.parametrize(("says", "chosen"), [(0, 0), (1, 2), (2, 0)])
def test_the_chooser_goes_by_a_metric_of_the_users_own(
    path: Path, told: Callable[..., Told], says: int, chosen: int
) -> None:
    """Labels do not matter; of equal metrics the network with the lower loss is chosen, or the first one."""
    told()
    task = replace(TASK, goal=CustomGoal(TASK.goal, Says(says)))
    with won(path, label=0) as (store, winner):
        assert finish(store, winner, task=task, selection_set=all_of(0), all_examples=None).id == chosen


@pytest.mark.parametrize("stops", [True, False])
def test_the_chooser_is_asked_as_networks_are_used(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """One is right on 90 % but much too confident, the other on 70 %: its loss is lower only without calibration."""
    told(inherited=(WELL, 1))

    def said(network: nn.Module, x: Tensor, *_: Any) -> Tensor:
        label = int(network.get_parameter(f"{GRAPH.output.name}.bias").argmax())
        share, sure = ((0.9, 8.0), (0.7, 1.0))[label]
        says_0 = torch.arange(len(x)) < share * len(x)
        return torch.stack([says_0, ~says_0], 1).float() * sure

    monkeypatch.setattr(module, "predict", said)
    task = TASK if stops else replace(TASK, valid=None)
    task = replace(task, valid=replace(task.valid, y=torch.zeros(20, dtype=torch.int64)) if task.valid else None)
    selection_set = Examples(torch.zeros(40, 4), torch.zeros(40, dtype=torch.int64))
    with won(path, label=0) as (store, winner):
        assert finish(store, winner, task=task, selection_set=selection_set, all_examples=None).id == (
            0 if stops else 1
        )


def test_a_network_that_cannot_be_read_is_not_chosen(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told(inherited=(WELL, 0))
    network = Store.network

    def read(store: Store, id: int) -> Network:
        if id == 1:
            raise RunError("damaged")
        return network(store, id)

    monkeypatch.setattr(Store, "network", read)
    with won(path, label=1) as (store, winner):
        assert finish(store, winner, selection_set=all_of(0), all_examples=None).id == 0
    assert "trial 1 cannot be evaluated: damaged" in caplog.text


def test_the_score_chooses_where_there_is_no_chooser(path: Path, told: Callable[..., Told]) -> None:
    told()
    with won(path) as (store, winner):
        assert finish(store, winner, selection_set=None, all_examples=None).id == 1
    told(inherited=(BADLY, 0), fresh=(replace(BADLY, score=-1.9), 1))
    with resumed(path) as store:
        store.update_about(settled=2)
        assert finish(store, winner, selection_set=None, all_examples=None).id == 4


def test_the_winner_stays_where_nothing_is_better(path: Path, told: Callable[..., Told]) -> None:
    told(inherited=(BADLY, 0), fresh=(BADLY, 1))
    with won(path, WELL) as (store, winner):
        assert finish(store, winner, selection_set=None, all_examples=None) == winner
        last = finish(store, winner, selection_set=None)
        assert last.proposal.start == winner.id


NO_SCORE = Outcome("diverged", epochs=1, error="no numbers")


@pytest.mark.parametrize(
    "end", [(Outcome("failed", error="trace"), None), (Outcome("oom"), None), (NO_SCORE, 1), (Outcome("truncated"), 1)]
)
@pytest.mark.parametrize("retrain", [False, True])
def test_trainings_that_came_to_nothing_are_not_chosen(
    path: Path, told: Callable[..., Told], end: tuple[Outcome, int | None], retrain: bool
) -> None:
    told(inherited=end, fresh=end)
    with won(path) as (store, winner):
        for selection_set in (None, all_of(1)):
            assert finish(store, winner, selection_set=selection_set, all_examples=None, retrain=retrain) == winner


@pytest.mark.parametrize(
    "end",
    [
        (Outcome("diverged", epochs=2, best_epoch=1), 1),
        (Outcome("failed", error="trace"), None),
        (Outcome("oom"), None),
    ],
)
def test_what_went_wrong_on_everything_is_dropped(
    path: Path, told: Callable[..., Told], end: tuple[Outcome, int | None]
) -> None:
    told(everything=end)
    with won(path) as (store, winner):
        last = finish(store, winner, selection_set=None)
        assert last.id == 1  # what it began from
        assert last.score == WELL.score
        assert [t.final for t in store.trials] == [False, True, True, True]
        assert store.trials[3].outcome == end[0]


def test_what_time_ran_out_for_on_everything_is_used(path: Path, told: Callable[..., Told]) -> None:
    told(everything=(Outcome("truncated", epochs=1, best_epoch=1), 1))  # the rate had come down by then
    with won(path) as (store, winner):
        assert finish(store, winner, selection_set=None) == store.trials[3]


@pytest.mark.parametrize("label", [0, 1])
def test_what_everything_has_spoilt_is_not_used(
    path: Path, told: Callable[..., Told], caplog: pytest.LogCaptureFixture, label: int
) -> None:
    """The network predicts 0 before training on held-out examples, which are of the class `label`, and 1 after it."""
    told(fresh=(BADLY, 0))
    task = replace(TASK, valid=all_of(label))
    with won(path, label=0) as (store, winner):
        last = finish(store, winner, task=task)
        assert store.trials[3].proposal.why["final"] == "everything"
        assert last.id == (0 if label == 0 else 3)
    assert ("trial 0, which has not seen these, is used instead" in caplog.text) is (label == 0)


def test_where_nobody_can_tell_what_everything_did_it_is_used(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(fresh=(BADLY, 0))
    with won(path, label=0) as (store, winner):
        assert finish(store, winner, task=replace(TASK, valid=None)).id == 3
        monkeypatch.setattr(predictions, "predict", lambda *_: torch.empty(0, 2))  # there was no time
        last = finish(store, winner, task=replace(TASK, valid=all_of(0)), selection_set=None)
        assert last.proposal.why["final"] == "everything"


def test_slow_scoring_does_not_take_the_time_of_the_last_training(path: Path, told: Callable[..., Told]) -> None:
    """There are 100 seconds left, and a pass over the validation set would take 60."""
    made = told()
    slow = replace(WELL, seconds=122.0, epochs=2, images_per_second=len(TASK.train))
    with won(path, slow) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(100), epochs=None)
    assert made.jobs[-1].scored is False
    assert made.jobs[-1].seconds == pytest.approx(90)


def test_a_few_more_mistakes_after_everything_are_chance(path: Path, told: Callable[..., Told]) -> None:
    """Of 6 examples 5 are right before and 1 after: 4 more mistakes, where the deviation is 2.4."""
    told(fresh=(BADLY, 0))
    mixed = Examples(TASK.evaluation_set.x[:6], torch.tensor([0, 0, 0, 0, 0, 1]))
    with won(path, label=0) as (store, winner):
        assert finish(store, winner, task=replace(TASK, valid=mixed)).proposal.why["final"] == "everything"


def test_everything_is_trained_on_as_the_rest_was_normalised(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    with won(path) as (store, winner):
        finish(store, winner)
    inherited, fresh, whole = made.tasks
    assert inherited is fresh is TASK
    assert whole.train is EVERYTHING
    assert whole.mean is TASK.mean
    assert whole.std is TASK.std
    assert [job.scored for job in made.jobs] == [True, True, False]
    assert len({job.seed for job in made.jobs}) == 3


# -- time


def test_epochs_are_what_there_is_time_for(path: Path, told: Callable[..., Told]) -> None:
    """They are planned somewhat faster than the winner's 2 epochs in 2 seconds, and cut by the deadline."""
    made = told(everything=(WHOLE, 1))
    made.per_epoch = 1.0
    with won(path, replace(BADLY, seconds=2.0, epochs=2)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(80), epochs=None, needs_score=True, selection_set=None)
    inherited, fresh, whole = (job.recipe.epochs for job in made.jobs)
    assert 15 * PLANNED_SPEEDUP <= inherited <= 20 * PLANNED_SPEEDUP
    assert fresh == pytest.approx(inherited, abs=2)  # both ways get the same
    assert whole >= inherited
    assert inherited + fresh + whole <= 80 * PLANNED_SPEEDUP
    assert not any(job.recipe.patience for job in made.jobs)
    assert sum(job.seconds for job in made.jobs[:1]) < 0.5 * 80


def test_all_of_the_time_is_used(path: Path, told: Callable[..., Told]) -> None:
    """With time for 4.2 passes over all examples, 6 epochs of a part of them make a quarter more passes; also if the
    children's epochs were parts."""
    n = len(EVERYTHING)
    for examples in (None, 30):
        made = told()
        speed = (examples or len(TASK.train)) * 2 / 2.0  # 2 epochs in 2 seconds
        store = Store.create(path / str(examples), {})
        store.claim(Proposal(GRAPH, (), replace(RECIPE, examples=examples)))
        outcome = replace(BADLY, seconds=2.0, epochs=2, images_per_second=speed)
        winner = store.finish(0, outcome, sure_of(0, GRAPH))
        finish(store, winner, deadline=made.clock.deadline(4.2 * n / speed), epochs=None)
        store.close()
        (recipe,) = (job.recipe for job in made.jobs)
        assert recipe.epochs == 6
        assert recipe.examples == pytest.approx(PLANNED_SPEEDUP * 4.2 * n / 6, abs=1)
        assert (recipe.examples or 0) > RECIPE.batch_size


@pytest.mark.parametrize(("much", "share"), [(0.9, 0), (1.0, 0), (1.4, 1 - 1 / 1.4), (2.2, 0.5)])
def test_comparing_has_the_time_that_the_last_training_does_not_need(
    path: Path, told: Callable[..., Told], much: float, share: float
) -> None:
    """much: the time, relative to that of the longest training on all examples."""
    made = told()
    made.per_epoch = 1.0
    seconds = much * MAX_FINAL_EPOCHS * len(EVERYTHING) / len(TASK.train)
    with won(path, replace(BADLY, seconds=2.0, epochs=2)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(seconds), epochs=None, selection_set=None)
    *compared, whole = made.jobs
    assert [job.scored for job in made.jobs] == [True] * len(compared) + [False]
    assert len(compared) == (2 if share else 0)
    assert sum(job.recipe.epochs for job in compared) == pytest.approx(
        share * seconds * PLANNED_SPEEDUP, rel=0.1, abs=1
    )
    assert whole.recipe.epochs == MAX_FINAL_EPOCHS


def test_scoring_has_its_share_of_the_time(path: Path, told: Callable[..., Told]) -> None:
    """Half of the winner's time went into scoring, so half as many scored epochs fit as its training speed says."""
    made = told()
    speed = len(TASK.train) * 2 / 2.0
    with won(path, replace(BADLY, seconds=4.0, epochs=2, images_per_second=speed)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(24), epochs=None, all_examples=None)
    assert [job.recipe.epochs for job in made.jobs] == [12 * PLANNED_SPEEDUP]


def test_final_trainings_say_how_long_those_after_them_take(path: Path, told: Callable[..., Told]) -> None:
    """The first is four times as fast as the winner, which another worker trained: the next has as many more epochs."""
    made = told(inherited=(replace(WELL, seconds=0.5, epochs=2), 0), fresh=(replace(BADLY, seconds=0.5, epochs=2), 1))
    with won(path, replace(BADLY, seconds=2.0, epochs=2)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(40), epochs=None, all_examples=None)
    assert [job.recipe.epochs for job in made.jobs] == [20 * PLANNED_SPEEDUP, MAX_FINAL_EPOCHS]


def test_long_trainings_are_long_enough(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    with won(path) as (store, winner):
        finish(store, winner, epochs=None, deadline=Deadline.after(1e6))
    assert [job.recipe.epochs for job in made.jobs[:2]] == [MAX_FINAL_EPOCHS, MAX_FINAL_EPOCHS]


def test_with_little_time_all_of_it_is_for_everything(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    made.per_epoch = 1.0
    with won(path, replace(BADLY, seconds=2.0, epochs=2)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(12), epochs=None)
        assert [t.proposal.why["final"] for t in store.trials[1:]] == ["everything"]
        assert store.trials[1].proposal.start == store.trials[1].proposal.why["score_of"] == winner.id
    assert [job.recipe.epochs for job in made.jobs] == [
        math.ceil(12 * PLANNED_SPEEDUP * len(TASK.train) / len(EVERYTHING))
    ]


def test_with_little_time_and_nothing_more_to_train_on_fresh_weights_are_left_out(
    path: Path, told: Callable[..., Told]
) -> None:
    made = told()
    made.per_epoch = 1.0
    with won(path, replace(BADLY, seconds=2.0, epochs=2)) as (store, winner):
        finish(store, winner, deadline=made.clock.deadline(12), epochs=None, all_examples=None)
        assert [t.proposal.why["final"] for t in store.trials[1:]] == ["inherited"]
    assert [job.recipe.epochs for job in made.jobs] == [12 * PLANNED_SPEEDUP]


def test_what_became_worse_by_training_is_trained_on_everything_for_no_longer_than_it_was_good(
    path: Path, told: Callable[..., Told]
) -> None:
    made = told(inherited=(replace(WELL, epochs=30, best_epoch=12), 0))
    with won(path) as (store, winner):
        finish(store, winner, selection_set=None, epochs=40)
    assert [job.recipe.epochs for job in made.jobs] == [40, 40, 12]
    assert made.jobs[2].recipe.lr == RECIPE.lr


UNDECIDED = replace(RECIPE, augment=Augment(shift=None))


@pytest.mark.parametrize("unmoved", [WELL, BADLY])
def test_whether_images_are_shifted_is_found_out(path: Path, told: Callable[..., Told], unmoved: Outcome) -> None:
    made = told()
    middling = replace(GOOD, score=-0.5)
    made.by_shift = {DEFAULT_SHIFT: middling, 0.0: unmoved}
    with won(path) as (store, winner):
        finish(store, winner, selection_set=None, recipe=UNDECIDED, epochs=20)
        ways = [t.proposal.why["final"] for t in store.trials[1:]]
    assert ways == ["inherited", "inherited, unmoved", "fresh", "everything"]
    better = 0.0 if unmoved is WELL else DEFAULT_SHIFT
    assert [job.recipe.augment.shift for job in made.jobs] == [DEFAULT_SHIFT, 0.0, DEFAULT_SHIFT, better]


@pytest.mark.parametrize(
    ("wrong", "colours", "changed"),
    [
        ((2, 40), True, True),
        ((2, 40), False, False),
        ((10, 40), True, True),
        ((30, 40), True, False),
        ((0, 0), True, False),
    ],
)
def test_images_that_are_known_by_heart_are_changed_more(
    path: Path,
    told: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
    wrong: tuple[int, int],
    colours: bool,
    changed: bool,
) -> None:
    """wrong: numbers of wrong predictions on 40 training examples and on the 40 held-out ones."""
    made, base = told(inherited=(WELL, 0)), blobs(60, 40)
    assert base.valid is not None
    known, held_out = ((torch.arange(40) < n).long() for n in wrong)
    rest = torch.ones(20, dtype=torch.int64)
    train, valid = Examples(base.train.x, torch.cat([known, rest])), Examples(base.valid.x, held_out)
    task = replace(base, train=train, valid=valid)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))  # which ones are asked
    monkeypatch.setattr(module, "is_colour", lambda _: colours)
    with won(path) as (store, winner):
        finish(store, winner, task=task, selection_set=None, all_examples=None, recipe=UNDECIDED, epochs=20)
        ways = [t.proposal.why["final"] for t in store.trials[1:]]
    more = ["inherited, changed more", "fresh, changed more"] if changed else ["inherited, unmoved", "fresh"]
    assert ways == ["inherited", *more]
    given = [(job.recipe.augment.shift, job.recipe.augment.cutout) for job in made.jobs]
    strong = (STRONG_SHIFT, STRONG_CUTOUT)
    assert given == [(DEFAULT_SHIFT, 0.0), *([strong, strong] if changed else [(0.0, 0.0), (DEFAULT_SHIFT, 0.0)])]


@pytest.mark.parametrize(
    ("passes", "colours", "recipe", "changed"),
    [(41.0, True, UNDECIDED, True), (39.0, True, UNDECIDED, False), (41.0, False, UNDECIDED, False),
     (41.0, True, RECIPE, False)],
)  # fmt: skip
def test_and_where_nothing_was_compared_if_they_are_seen_often(
    path: Path,
    told: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
    passes: float,
    colours: bool,
    recipe: Recipe,
    changed: bool,
) -> None:
    made = told()
    monkeypatch.setattr(module, "is_colour", lambda _: colours)
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: passes)
    with won(path) as (store, winner):
        finish(store, winner, recipe=recipe, data="which this run did not have", epochs=None)
        assert [t.proposal.why["final"] for t in store.trials[1:]] == ["everything"]
    shift, cutout = made.jobs[0].recipe.augment.shift, made.jobs[0].recipe.augment.cutout
    assert ((shift, cutout) == (STRONG_SHIFT, STRONG_CUTOUT)) is changed


def test_short_final_trainings_do_not_shift(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    with won(path) as (store, winner):
        finish(store, winner, recipe=UNDECIDED, epochs=12)
    assert [job.recipe.augment.shift for job in made.jobs] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("epochs", "share"), [(2, 0.2), (5, 0.5), (10, 1.0), (30, 1.0)])
def test_short_trainings_on_everything_stay_below_the_full_rate(
    path: Path, told: Callable[..., Told], epochs: int, share: float
) -> None:
    made = told()
    with won(path) as (store, winner):
        finish(store, winner, epochs=epochs)
    assert made.jobs[2].recipe.lr == pytest.approx(share * RECIPE.lr)


def test_the_recipe_given_is_used(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    recipe = Recipe(lr=0.03, optimizer="adamw", batch_size=7, patience=5)
    with won(path) as (store, winner):
        finish(store, winner, recipe=recipe)
    for job in made.jobs[:2]:
        assert job.recipe == replace(recipe, epochs=3)
    assert made.jobs[2].recipe.optimizer == "adamw"
    assert made.jobs[2].recipe.batch_size == 7


# -- the deadline and memory


def test_scores_choose_when_there_is_no_time_to_ask_the_chooser(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Network, "to_module", lambda network: Timed(to_module(network.graph), clock, 0.0, 1.0))
    with searched(path) as (store, _):
        results = [trial for trial in store.trials if trial.score is not None]
        begun = clock.now
        chosen, scores = module._choose(store, results, TASK, TASK.train, clock.deadline(40))
    assert not scores
    assert chosen == max(results, key=lambda trial: trial.score or 0.0)
    assert clock.now - begun <= 40


def test_final_trainings_keep_to_the_memory(path: Path) -> None:
    with searched(path) as (store, winner):
        finish(store, winner, max_memory=winner.graph.peak_bytes(8))
        outcomes = [trial.outcome for trial in store.trials[3:]]
    assert [outcome and outcome.micro_batch for outcome in outcomes] == [8, 8, 8]


def test_final_trainings_have_seeds_of_the_run(path: Path, told: Callable[..., Told]) -> None:
    made = told()
    with won(path) as (store, winner):
        finish(store, winner, seed=5)
    assert [job.seed for job in made.jobs] == [trial_seed(5, id) for id in (1, 2, 3)]


def test_a_training_on_other_data_is_not_taken_up(path: Path) -> None:
    why = {"final": "inherited", "of": 1, "data": "these"}
    with searched(path) as (store, winner):
        begun = store.claim(Proposal(winner.id, (), RECIPE, why))
        again = Proposal(winner.id, (), RECIPE, why)
        assert module._find_started(store, again, 60) == begun
        assert module._find_started(store, replace(again, why=why | {"data": "others"}), 60) is None


def test_scores_of_something_else_do_not_choose(path: Path, told: Callable[..., Told]) -> None:
    """The search had a metric, whose values exceed minus any log loss: its winner predicts 1 where 0 is right."""
    told()
    other = replace(GOOD, score=0.9, metric=0.9, measure="f1_macro", objective="f1_macro")
    with won(path, other, label=1) as (store, winner):
        last = finish(store, winner, task=replace(TASK, valid=all_of(0)), selection_set=None, all_examples=None)
        assert last.id == 1


@pytest.mark.parametrize("status", ["truncated", "finished"])
def test_what_a_stop_cut_short_on_everything_is_gone_on_with_and_what_had_ended_is_used(
    path: Path, told: Callable[..., Told], status: Status
) -> None:
    """The learning rate has decayed by the deadline, but not when a stop cuts a training."""
    made, stop = told(everything=(Outcome(status, epochs=1, best_epoch=1), 1)), Stop()

    class Stopping(Notes):
        def trial_begins(self, trial: Trial) -> None:
            stop.requested = trial.proposal.why["final"] == "everything"

    with won(path) as (store, winner):
        last = finish(store, winner, selection_set=None, deadline=Deadline.after(600, stop=stop), observer=Stopping())
        assert [job.scored for job in made.jobs] == [True, True, False]
        assert last == store.trials[1 if status == "truncated" else 3]
        if status == "truncated":
            assert store.trials[3].outcome is None
            told()
            assert finish(store, winner, selection_set=None).id == 3


@pytest.mark.parametrize(("passes", "goes_on"), [(30.0, True), (90.0, False)])
def test_a_last_training_that_was_begun_is_gone_on_with_before_anything_else_is_compared(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, passes: float, goes_on: bool
) -> None:
    """Unless there is time for a much longer one."""
    made = told()
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: passes)
    with won(path) as (store, winner):
        recipe = replace(RECIPE, epochs=20)
        why = {"final": "everything", "of": winner.id, "data": "", "score_of": winner.id}
        open_ = store.claim(Proposal(winner.id, (), recipe, why)).id
        last = finish(store, winner, epochs=None)
        assert (last.id == open_) is goes_on
        assert len(made.jobs) == (1 if goes_on else 3)


def test_a_compared_training_that_a_stop_cut_short_says_so(path: Path, told: Callable[..., Told]) -> None:
    stop = Stop()
    told(inherited=(replace(WELL, status="truncated"), 1))

    class Stopping(Notes):
        def trial_begins(self, trial: Trial) -> None:
            stop.requested = True

    with won(path) as (store, winner):
        last = finish(store, winner, deadline=Deadline.after(600, stop=stop), observer=Stopping(), all_examples=None)
        assert store.trials[1].outcome == replace(WELL, status="truncated", error=STOPPED)
        assert last in store.trials


@pytest.mark.parametrize(
    ("status", "error", "taken"),
    [("finished", None, True), ("truncated", None, True), ("truncated", STOPPED, False), ("diverged", None, False)],
)
def test_trainings_that_did_not_come_to_their_end_are_done_again(
    path: Path, status: Any, error: str | None, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One that the deadline cut is complete, since its learning rate has decayed; one that a stop cut is not."""
    caplog.set_level("INFO")
    proposal = Proposal(1, (), RECIPE, {"final": "inherited", "of": 1, "data": ""})
    with searched(path) as (store, winner):
        id = store.claim(proposal).id
        ended = store.finish(id, replace(GOOD, status=status, error=error), weights(0, winner.graph))
        assert module._find_started(store, proposal, 60) == (ended if taken else None)
    assert ("is used: it had ended" in caplog.text) is taken


def test_how_sure_networks_are_is_said_by_what_counts(
    path: Path, told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor | None] = []
    usual = type(TASK.goal).temperature

    def asked(goal: Any, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        given.append(weights)
        return usual(goal, outputs, y, weights)

    monkeypatch.setattr(type(TASK.goal), "temperature", asked)
    told()
    counted = replace(all_of(0), weights=torch.tensor([1.0, 2, 3, 4, 5, 6]))
    with won(path) as (store, winner):
        finish(store, winner, task=replace(TASK, valid=counted), all_examples=None)
    assert len(given) == 3
    assert all(weights is counted.weights for weights in given)
