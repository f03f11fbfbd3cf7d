"""Tests of the final trainings: longer ones, the choice on a selection set, and the last one on all examples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
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
    FEW_EXAMPLES,
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
from tests.run.doubles import (
    FINISHED,
    GRAPH,
    RECIPE,
    RecordingObserver,
    file_contents,
    has_weights,
    proposals,
    resumed_store,
    weights,
)
from tests.train.tasks import Clock, TimedNetwork, blob_task

TASK = blob_task(60, 20)
assert TASK.valid is not None
SELECTION_SET = TASK.valid[:10]
ALL_EXAMPLES = Examples(torch.cat([TASK.train.x, TASK.valid.x]), torch.cat([TASK.train.y, TASK.valid.y]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def searched_run(path: Path) -> Iterator[tuple[Store, Trial]]:
    """A run of three trained networks, and the winner, its second trial."""
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


def run_final(store: Store, winner: Trial, task: Task = TASK, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "selection_set": SELECTION_SET,
        "all_examples": ALL_EXAMPLES,
        "recipe": RECIPE,
        "deadline": Deadline.after(600),
        "epochs": 3,
    }
    settings |= changes
    executor = SerialExecutor(task, settings["all_examples"])
    return Final(store, winner, executor, task, **settings).run()


def kinds(trials: Sequence[Trial]) -> list[str]:
    """The kinds of the final trainings among the trials."""
    return [trial.proposal.why["final"] for trial in trials if trial.final]


def score_on(store: Store, trial: Trial, examples: Examples) -> float:
    network = store.network(trial.id)
    return evaluate(to_module(network.graph, network.weights), examples, TASK)[0]


# -- with real trainings


@pytest.mark.parametrize("selection_set", [SELECTION_SET, None])
def test_final_trainings_add_trials_and_change_none(path: Path, selection_set: Examples | None) -> None:
    observer = RecordingObserver()
    with searched_run(path) as (store, winner):
        before, about = (
            {name: data for name, data in file_contents(path).items() if name != "run.json"},
            dict(store.about),
        )
        final = run_final(store, winner, selection_set=selection_set, observer=observer)
        assert {name: data for name, data in file_contents(path).items() if name in before} == before
        assert {name: value for name, value in store.about.items() if name != "chosen"} == about
        inherited, fresh, last = store.trials[3:]
        assert kinds(store.trials[3:]) == ["inherited", "fresh", "everything"]
        assert all(t.proposal.why["of"] == winner.id and t.graph == winner.graph for t in store.trials[3:])
        assert kinds(store.trials[:3]) == []
        assert inherited.proposal.start == winner.id
        assert fresh.proposal.start == winner.graph
        assert [t.epochs for t in (inherited, fresh)] == [3, 3]
        best = max((winner, inherited, fresh), key=lambda t: score_on(store, t, selection_set or TASK.evaluation_set))
        assert final == last
        assert last.proposal.start == last.proposal.why["score_of"] == best.id
        assert load_run(path).trials == tuple(store.trials)
    assert [entry for entry in observer.calls if entry[0] != "epoch"] == [
        (what, id) for id in (3, 4, 5) for what in ("begins", "ends")
    ]


def test_training_on_all_examples_has_weights_but_no_score(path: Path) -> None:
    with searched_run(path) as (store, winner):
        last = run_final(store, winner)
        assert last.outcome is not None
        assert last.outcome.status == "finished"
        assert (last.score, last.outcome.metric, last.outcome.examples) == (None, None, 0)
        assert last.kept
        assert isinstance(last.proposal.start, int)
        assert not has_weights(store.network(last.id), dict(store.network(last.proposal.start).weights))
        assert last.proposal.recipe.lr < RECIPE.lr
        assert last.proposal.recipe.patience is None
        assert [entry["model_id"] for entry in load_run(path).history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("status", "longer"), [("truncated", True), ("finished", True), ("diverged", False)])
def test_unscored_winner_is_trained_unless_it_diverged(path: Path, status: Status, longer: bool) -> None:
    """Nothing is compared, as there is only time for three quarters of a pass."""
    graph = proposals(1)[0].start
    assert isinstance(graph, Graph)
    outcome = Outcome(status, seconds=600, epochs=1, best_epoch=1, images_per_second=0.1)
    store = Store.create(path, {"seed": 1})
    try:
        store.claim(proposals(1)[0])
        winner = store.finish(0, outcome, weights(0, graph))
        last = run_final(store, winner, epochs=None)
    finally:
        store.close()
    assert (last.id, last.proposal.why.get("final")) == ((1, "everything") if longer else (0, None))
    assert last.kept


def test_second_fit_adds_new_final_trainings(path: Path) -> None:
    with searched_run(path) as (store, winner):
        run_final(store, winner)
        store.update_about(settled=4)
    before = file_contents(path)
    with resumed_store(path) as store:
        last = run_final(store, winner)
    assert last.id == 8
    after = file_contents(path)
    assert {name for name in before if after[name] != before[name]} <= {"holder", "run.json"}
    old, new = (json.loads(contents["run.json"]) for contents in (before, after))
    assert {name for name in old | new if old.get(name) != new.get(name)} <= {"chosen"}


@pytest.mark.parametrize(("damaged", "repeated"), [(3, ["inherited", "everything"]), (5, ["everything"])])
def test_only_finals_with_damaged_weights_are_repeated(
    path: Path, caplog: pytest.LogCaptureFixture, damaged: int, repeated: list[str]
) -> None:
    with searched_run(path) as (store, winner):
        run_final(store, winner)
    file = path / "trials" / f"{damaged:05d}" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with resumed_store(path) as store:
        last = run_final(store, store.trials[1])
        assert kinds(store.trials[6:]) == repeated
        assert last == store.trials[-1]
        store.network(last.id)
    assert f"the final training of trial {damaged} is repeated, because its weights are lost" in caplog.text


def test_observer_error_ends_final_trainings(path: Path) -> None:
    class FullDisk(RecordingObserver):
        def epoch_done(self, trial: Trial, outcome: Outcome) -> None:
            raise OSError("no space to write to")

    with searched_run(path) as (store, winner):
        with pytest.raises(OSError, match="no space to write to"):
            run_final(store, winner, observer=FullDisk())
        assert store.trials[3].outcome is None


@pytest.mark.parametrize(("before", "now", "continued"), [(59.0, 61.0, True), (29.0, 60.0, False), (31.0, 60.0, True)])
def test_interrupted_final_continues_unless_twice_as_long_fits(
    path: Path, before: float, now: float, continued: bool
) -> None:
    n, recipe = 50_000, replace(RECIPE, epochs=6, batch_size=128)
    old, new = (module._sized(recipe, passes, n, 60) for passes in (before, now))
    assert old is not None
    assert new is not None
    why = {"final": "inherited", "of": 1, "data": ""}
    with searched_run(path) as (store, winner):
        started = store.claim(Proposal(winner.id, (), old, why))
        assert module._find_started(store, Proposal(winner.id, (), new, why), n) == (started if continued else None)


@pytest.mark.parametrize(("passes", "trained"), [(1.0, True), (0.9, False)])
def test_fewer_examples_than_a_batch_need_a_whole_pass(passes: float, trained: bool) -> None:
    sized = module._sized(replace(RECIPE, batch_size=64), passes, 60, 1, whole=True)
    assert (sized is not None) is trained


def test_failed_trainings_do_not_shorten_last_training(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_work(inherited=FAILED, fresh=FAILED)
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: 999.0)
    with one_trial_run(path, replace(BETTER, epochs=6, best_epoch=6)) as (store, winner):
        run_final(store, winner, epochs=None)
    assert [job.recipe.epochs for job in fake.jobs] == [MAX_FINAL_EPOCHS] * 3


@pytest.mark.parametrize(("labels", "epochs"), [((1, 2), 6), ((1, 0), 52), ((0, 0), 52)])
def test_last_training_is_short_if_longer_ones_are_worse(
    path: Path,
    fake_work: Callable[..., FakeWork],
    monkeypatch: pytest.MonkeyPatch,
    labels: tuple[int, int],
    epochs: int,
) -> None:
    """Unless one of them has the same outputs, so that the winner may be better by chance."""
    fake = fake_work(inherited=(WORSE, labels[0]), fresh=(WORSE, labels[1]))
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: 41.0)
    valid = examples_of(0)
    with one_trial_run(path, replace(BETTER, epochs=6, best_epoch=6), label=0) as (store, winner):
        run_final(store, winner, task=replace(TASK, valid=valid), selection_set=None, epochs=None)
        assert kinds(store.trials) == ["inherited", "fresh", "everything"]
        assert store.trials[-1].parent == winner.id
    assert [job.recipe.epochs for job in fake.jobs][-1] == epochs


def test_winner_on_other_data_is_not_comparable(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """The winner's score is on the earlier data, so it cannot be compared. It is used only if no training succeeds."""
    fake_work(inherited=(WORSE, 0), fresh=(WORSE, 1))
    task = replace(TASK, valid=None)
    with one_trial_run(path, BETTER) as (store, winner):
        store.update_about(data={"hash": "of the fit", "validation": None})
        final = run_final(store, winner, task=task, selection_set=None, all_examples=None, data="other")
        assert final.proposal.why["data"] == "other"
        assert final in store.trials[1:]
        fake_work(inherited=FAILED, fresh=FAILED)
        assert run_final(store, winner, task=task, selection_set=None, all_examples=None, data="third").id == winner.id


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(2 * MIN_COMPARED_EPOCHS, ["inherited", "everything"]), (2 * MIN_COMPARED_EPOCHS - 2, ["everything"])],
)
def test_needs_score_adds_one_scored_training_if_time_allows(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch, seconds: int, expected: list[str]
) -> None:
    """A pass takes a second: half of the time is enough for one training of enough epochs, or not even for that."""
    fake = fake_work()
    monkeypatch.setattr(Final, "_passes", lambda self, seconds, *_, **__: seconds)
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, needs_score=True, epochs=None, deadline=fake.clock.deadline(seconds))
        assert kinds(store.trials) == expected


def test_failed_retraining_returns_winner(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """No training inherits weights, since `retrain` excludes that."""
    fake_work(fresh=FAILED)
    with one_trial_run(path) as (store, winner):
        assert run_final(store, winner, retrain=True) == winner
        assert kinds(store.trials) == ["fresh"]


def test_retraining_starts_only_from_fresh_weights(path: Path) -> None:
    with searched_run(path) as (store, winner):
        run_final(store, winner, retrain=True)
        assert kinds(store.trials) == ["fresh", "everything"]
        assert store.trials[4].proposal.start == 3


def test_best_candidate_is_returned_without_all_examples(path: Path) -> None:
    with searched_run(path) as (store, winner):
        last = run_final(store, winner, all_examples=None)
        assert kinds(store.trials) == ["inherited", "fresh"]
        candidates = [winner, *store.trials[3:]]
        assert last == max(candidates, key=lambda t: score_on(store, t, SELECTION_SET))


@pytest.mark.parametrize("retrain", [False, True])
def test_winner_is_returned_without_time(path: Path, retrain: bool) -> None:
    with searched_run(path) as (store, winner):
        before = file_contents(path)
        assert run_final(store, winner, retrain=retrain, deadline=Clock().deadline(0)) == winner
        assert file_contents(path) == before


@pytest.mark.parametrize("retrain", [False, True])
def test_winner_without_epochs_is_trained_on_all_examples(path: Path, retrain: bool) -> None:
    with searched_run(path) as (store, _):
        untrained = store.claim(Proposal(GRAPH, (), RECIPE))
        assert run_final(store, untrained) == untrained, "it is running"
        untrained = store.finish(untrained.id, Outcome("truncated"), weights())
        last = run_final(store, untrained, guess=1e-9, retrain=retrain)
        assert last.proposal.why["final"] == "everything"
        assert last.outcome is not None
        assert last.outcome.epochs == 3
        assert last.graph == GRAPH


# -- with simulated trainings


def weights_predicting(label: int, graph: Graph) -> Weights:
    """Weights with which a network predicts that label for every example."""
    constant = {name: torch.zeros_like(value) for name, value in weights(0, graph).items()}
    constant |= {name: torch.ones_like(value) for name, value in constant.items() if name.endswith("running_var")}
    constant[f"{graph.output.name}.bias"][label] = 3.0
    return constant


@dataclass
class FakeWork:
    """Replaces `work`: trains nothing, and records the jobs and their tasks.

    results: by kind of final training, the outcome, and the label that the network always predicts; None: no weights.
    clock: advances by `seconds_per_epoch`. by_shift: outcomes of the scored trainings by their shift, instead.
    """

    results: dict[str, tuple[Outcome, int | None]]
    clock: Clock = field(default_factory=Clock)
    seconds_per_epoch: float = 0.0
    by_shift: dict[float | None, Outcome] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def __call__(self, job: Job, task: Task, each_epoch: object = None) -> tuple[Outcome, Weights | None]:
        self.jobs.append(job)
        self.tasks.append(task)
        self.clock.now += self.seconds_per_epoch * job.recipe.epochs
        kind = "everything" if not job.scored else "fresh" if isinstance(job.start, Graph) else "inherited"
        outcome, label = self.results[kind]
        if job.scored and self.by_shift:
            outcome = self.by_shift[job.recipe.augment.shift]
        graph = job.start.graph if isinstance(job.start, Network) else job.start
        return outcome, None if label is None else weights_predicting(label, graph)


BETTER, WORSE = replace(FINISHED, score=-0.1), replace(FINISHED, score=-2.0)
UNSCORED = Outcome("finished", epochs=1, best_epoch=1)
FAILED = Outcome("failed", error="trace"), None


@pytest.fixture
def fake_work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeWork]:
    """Replaces `work` by one with the given results; the others are defaults."""

    def patch(**results: tuple[Outcome, int | None]) -> FakeWork:
        defaults = {"inherited": (BETTER, 0), "fresh": (WORSE, 1), "everything": (UNSCORED, 1)}
        fake = FakeWork(defaults | results)
        monkeypatch.setattr(executors, "work", fake)
        return fake

    return patch


@contextmanager
def one_trial_run(
    path: Path, outcome: Outcome = WORSE, label: int = 0, recipe: Recipe = RECIPE
) -> Iterator[tuple[Store, Trial]]:
    """A run of one trial, whose network always predicts that label, and this trial as the winner."""
    store = Store.create(path, {})
    try:
        store.claim(Proposal(GRAPH, (), recipe))
        yield store, store.finish(0, outcome, weights_predicting(label, GRAPH))
    finally:
        store.close()


def examples_of(label: int) -> Examples:
    return Examples(TASK.evaluation_set.x[:6], torch.full((6,), label))


@pytest.mark.parametrize(("label", "chosen"), [(0, 0), (1, 2)])
def test_selection_set_chooses_network(path: Path, fake_work: Callable[..., FakeWork], label: int, chosen: int) -> None:
    """The winner and the inherited training, which has a better score, predict 0; that from fresh weights predicts 1.

    If several are equal, the winner is chosen, as the first one.
    """
    fake_work()
    with one_trial_run(path, label=0) as (store, winner):
        last = run_final(store, winner, selection_set=examples_of(label), all_examples=None)
        assert last.id == chosen
        record = store.about["chosen"][str(chosen)]
        assert (record["examples"], record["stopped"]) == (6, False)
        assert sorted(record["scores"]) == ["0", "1", "2"]
        assert max(record["scores"].values()) == record["scores"][str(chosen)]


@dataclass
class PredictedShare:
    """A user-defined metric: the share of examples for which a label is predicted; undefined for labels above 1."""

    label: int
    name: str = "share"

    def __call__(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        if self.label > 1:
            raise UndefinedMetric("no such label")
        return float((outputs.argmax(1) == self.label).double().mean())


@pytest.mark.parametrize(("label", "chosen"), [(0, 0), (1, 2), (2, 0)])
def test_user_defined_metric_chooses_network(
    path: Path, fake_work: Callable[..., FakeWork], label: int, chosen: int
) -> None:
    """The true labels do not matter; of equal metrics the network with the lower loss is chosen, or the first one."""
    fake_work()
    task = replace(TASK, goal=CustomGoal(TASK.goal, PredictedShare(label)))
    with one_trial_run(path, label=0) as (store, winner):
        assert run_final(store, winner, task=task, selection_set=examples_of(0), all_examples=None).id == chosen


@pytest.mark.parametrize(("has_validation_set", "chosen"), [(True, 0), (False, 1)])
def test_losses_are_compared_after_calibration(
    path: Path,
    fake_work: Callable[..., FakeWork],
    monkeypatch: pytest.MonkeyPatch,
    has_validation_set: bool,
    chosen: int,
) -> None:
    """The winner is right on 90 % but much too confident, the other network on 70 %: the loss of the latter is lower,
    but only without the calibration on the validation set."""
    fake_work(inherited=(BETTER, 1))

    def fake_predict(network: nn.Module, x: Tensor, *_: Any) -> Tensor:
        label = int(network.get_parameter(f"{GRAPH.output.name}.bias").argmax())
        share, scale = ((0.9, 8.0), (0.7, 1.0))[label]
        predicts_0 = torch.arange(len(x)) < share * len(x)
        return torch.stack([predicts_0, ~predicts_0], 1).float() * scale

    def zeros(n: int) -> Examples:
        return Examples(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64))

    monkeypatch.setattr(module, "predict", fake_predict)
    task = replace(TASK, valid=zeros(20) if has_validation_set else None)
    with one_trial_run(path, label=0) as (store, winner):
        assert run_final(store, winner, task=task, selection_set=zeros(40), all_examples=None).id == chosen


def test_unreadable_network_is_not_chosen(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_work(inherited=(BETTER, 0))
    network = Store.network

    def read(store: Store, id: int) -> Network:
        if id == 1:
            raise RunError("damaged")
        return network(store, id)

    monkeypatch.setattr(Store, "network", read)
    with one_trial_run(path, label=1) as (store, winner):
        assert run_final(store, winner, selection_set=examples_of(0), all_examples=None).id == 0
    assert "trial 1 cannot be evaluated: damaged" in caplog.text


def test_score_chooses_network_without_selection_set(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake_work()
    with one_trial_run(path) as (store, winner):
        assert run_final(store, winner, selection_set=None, all_examples=None).id == 1
    fake_work(inherited=(WORSE, 0), fresh=(replace(WORSE, score=-1.9), 1))
    with resumed_store(path) as store:
        store.update_about(settled=2)
        assert run_final(store, winner, selection_set=None, all_examples=None).id == 4


def test_winner_is_chosen_if_nothing_is_better(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake_work(inherited=(WORSE, 0), fresh=(WORSE, 1))
    with one_trial_run(path, BETTER) as (store, winner):
        assert run_final(store, winner, selection_set=None, all_examples=None) == winner
        last = run_final(store, winner, selection_set=None)
        assert last.proposal.start == winner.id


DIVERGED = Outcome("diverged", epochs=1, error="the loss is nan")


@pytest.mark.parametrize("result", [FAILED, (Outcome("oom"), None), (DIVERGED, 1), (Outcome("truncated"), 1)])
@pytest.mark.parametrize("retrain", [False, True])
def test_unusable_trainings_are_not_chosen(
    path: Path, fake_work: Callable[..., FakeWork], result: tuple[Outcome, int | None], retrain: bool
) -> None:
    fake_work(inherited=result, fresh=result)
    with one_trial_run(path) as (store, winner):
        for selection_set in (None, examples_of(1)):
            assert run_final(store, winner, selection_set=selection_set, all_examples=None, retrain=retrain) == winner


@pytest.mark.parametrize("result", [(Outcome("diverged", epochs=2, best_epoch=1), 1), FAILED, (Outcome("oom"), None)])
def test_failed_last_training_is_dropped(
    path: Path, fake_work: Callable[..., FakeWork], result: tuple[Outcome, int | None]
) -> None:
    fake_work(everything=result)
    with one_trial_run(path) as (store, winner):
        last = run_final(store, winner, selection_set=None)
        assert last.id == 1  # the network that it started from
        assert last.score == BETTER.score
        assert [t.final for t in store.trials] == [False, True, True, True]
        assert store.trials[3].outcome == result[0]


def test_last_training_truncated_by_deadline_is_used(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """By the deadline, its learning rate has decayed."""
    fake_work(everything=(Outcome("truncated", epochs=1, best_epoch=1), 1))
    with one_trial_run(path) as (store, winner):
        assert run_final(store, winner, selection_set=None) == store.trials[3]


@pytest.mark.parametrize("label", [0, 1])
def test_last_training_that_degrades_network_is_dropped(
    path: Path, fake_work: Callable[..., FakeWork], caplog: pytest.LogCaptureFixture, label: int
) -> None:
    """The network predicts 0 before training on held-out examples, which are of the class `label`, and 1 after it."""
    fake_work(fresh=(WORSE, 0))
    task = replace(TASK, valid=examples_of(label))
    with one_trial_run(path, label=0) as (store, winner):
        last = run_final(store, winner, task=task)
        assert store.trials[3].proposal.why["final"] == "everything"
        assert last.id == (0 if label == 0 else 3)
    assert ("trial 0, which has not seen these, is used instead" in caplog.text) is (label == 0)


def test_last_training_that_cannot_be_checked_is_used(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_work(fresh=(WORSE, 0))
    with one_trial_run(path, label=0) as (store, winner):
        last = run_final(store, winner, task=replace(TASK, valid=None))
        assert last.proposal.why["final"] == "everything"
        monkeypatch.setattr(predictions, "predict", lambda *_: torch.empty(0, 2))  # as if there were no time
        last = run_final(store, winner, task=replace(TASK, valid=examples_of(0)), selection_set=None)
        assert last.proposal.why["final"] == "everything"


def test_check_of_last_training_gets_at_most_a_tenth_of_time(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """There are 100 seconds left, and a pass over the validation set takes 60, so the check needs more than a tenth."""
    fake = fake_work()
    slow = replace(BETTER, seconds=122.0, epochs=2, images_per_second=len(TASK.train))
    with one_trial_run(path, slow) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(100), epochs=None)
    assert fake.jobs[-1].scored is False
    assert fake.jobs[-1].seconds == pytest.approx(90)


def test_insignificant_degradation_is_ignored(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """Of 6 examples 5 are right before and 1 after: 4 more errors, where the standard deviation is 2.4."""
    fake_work(fresh=(WORSE, 0))
    mixed = Examples(TASK.evaluation_set.x[:6], torch.tensor([0, 0, 0, 0, 0, 1]))
    with one_trial_run(path, label=0) as (store, winner):
        assert run_final(store, winner, task=replace(TASK, valid=mixed)).proposal.why["final"] == "everything"


def test_last_training_keeps_normalisation(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path) as (store, winner):
        run_final(store, winner)
    inherited, fresh, last = fake.tasks
    assert inherited is fresh is TASK
    assert last.train is ALL_EXAMPLES
    assert last.mean is TASK.mean
    assert last.std is TASK.std
    assert [job.scored for job in fake.jobs] == [True, True, False]
    assert len({job.seed for job in fake.jobs}) == 3


# -- time


def test_epochs_of_final_trainings_fit_the_time(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """They are planned for a somewhat higher speed than the winner's 2 epochs in 2 seconds; the deadline cuts them."""
    fake = fake_work()
    fake.seconds_per_epoch = 1.0
    with one_trial_run(path, replace(WORSE, seconds=2.0, epochs=2)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(80), epochs=None, needs_score=True, selection_set=None)
    inherited, fresh, last = (job.recipe.epochs for job in fake.jobs)
    assert 15 * PLANNED_SPEEDUP <= inherited <= 20 * PLANNED_SPEEDUP
    assert fresh == pytest.approx(inherited, abs=2)
    assert last >= inherited
    assert inherited + fresh + last <= 80 * PLANNED_SPEEDUP
    assert not any(job.recipe.patience for job in fake.jobs)
    assert fake.jobs[0].seconds < 0.5 * 80


@pytest.mark.parametrize("examples", [None, 30])
def test_partial_epochs_use_all_of_the_time(
    path: Path, fake_work: Callable[..., FakeWork], examples: int | None
) -> None:
    """With time for 4.2 passes over all examples, 6 epochs of a part of them make a quarter more passes.

    examples: of the winner's epochs.
    """
    fake = fake_work()
    n = len(ALL_EXAMPLES)
    speed = (examples or len(TASK.train)) * 2 / 2.0  # 2 epochs in 2 seconds
    outcome = replace(WORSE, seconds=2.0, epochs=2, images_per_second=speed)
    with one_trial_run(path, outcome, recipe=replace(RECIPE, examples=examples)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(4.2 * n / speed), epochs=None)
    (recipe,) = (job.recipe for job in fake.jobs)
    assert recipe.epochs == 6
    assert recipe.examples == pytest.approx(PLANNED_SPEEDUP * 4.2 * n / 6, abs=1)
    assert (recipe.examples or 0) > RECIPE.batch_size


@pytest.mark.parametrize(("relative_time", "share"), [(0.9, 0), (1.0, 0), (1.4, 1 - 1 / 1.4), (2.2, 0.5)])
def test_comparison_gets_time_last_training_does_not_need(
    path: Path, fake_work: Callable[..., FakeWork], relative_time: float, share: float
) -> None:
    """relative_time: relative to that of the longest training on all examples. share: of the compared trainings."""
    fake = fake_work()
    fake.seconds_per_epoch = 1.0
    seconds = relative_time * MAX_FINAL_EPOCHS * len(ALL_EXAMPLES) / len(TASK.train)
    with one_trial_run(path, replace(WORSE, seconds=2.0, epochs=2)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(seconds), epochs=None, selection_set=None)
    *compared, last = fake.jobs
    assert [job.scored for job in fake.jobs] == [True] * len(compared) + [False]
    assert len(compared) == (2 if share else 0)
    assert sum(job.recipe.epochs for job in compared) == pytest.approx(
        share * seconds * PLANNED_SPEEDUP, rel=0.1, abs=1
    )
    assert last.recipe.epochs == MAX_FINAL_EPOCHS


def test_scoring_time_reduces_epochs(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """Half of the winner's time was scoring, so half as many scored epochs fit as its training speed suggests."""
    fake = fake_work()
    speed = len(TASK.train) * 2 / 2.0
    with one_trial_run(path, replace(WORSE, seconds=4.0, epochs=2, images_per_second=speed)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(24), epochs=None, all_examples=None)
    assert [job.recipe.epochs for job in fake.jobs] == [12 * PLANNED_SPEEDUP]


def test_measured_speed_determines_epochs_of_next_training(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """The first is four times as fast as the winner, which another worker may have trained."""
    fake = fake_work(
        inherited=(replace(BETTER, seconds=0.5, epochs=2), 0), fresh=(replace(WORSE, seconds=0.5, epochs=2), 1)
    )
    with one_trial_run(path, replace(WORSE, seconds=2.0, epochs=2)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(40), epochs=None, all_examples=None)
    assert [job.recipe.epochs for job in fake.jobs] == [20 * PLANNED_SPEEDUP, MAX_FINAL_EPOCHS]


@pytest.mark.parametrize(
    ("shape", "n", "epochs"),
    [((1, 4, 4), 2, 240), ((1, 4, 4), 250, 240), ((1, 9), 400, 150), ((1, 4, 4), 1000, 60), ((4,), 100, 60)],
)
def test_few_images_get_more_final_epochs(
    path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], n: int, epochs: int
) -> None:
    monkeypatch.setattr(module, "FEW_EXAMPLES", FEW_EXAMPLES)
    examples = Examples(torch.zeros(n, *shape), torch.zeros(n, dtype=torch.int64))
    task = replace(TASK, train=examples)
    with one_trial_run(path) as (store, winner):
        final = Final(store, winner, SerialExecutor(task, None), task, RECIPE, Deadline.after(600))
        assert final._longest(RECIPE, n) == epochs
        assert replace(final, epochs=7)._longest(RECIPE, n) == 7


def test_ample_time_gives_max_final_epochs(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, epochs=None, deadline=Deadline.after(1e6))
    assert [job.recipe.epochs for job in fake.jobs[:2]] == [MAX_FINAL_EPOCHS, MAX_FINAL_EPOCHS]


def test_little_time_is_all_for_last_training(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    fake.seconds_per_epoch = 1.0
    with one_trial_run(path, replace(WORSE, seconds=2.0, epochs=2)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(12), epochs=None)
        assert kinds(store.trials) == ["everything"]
        assert store.trials[1].proposal.start == store.trials[1].proposal.why["score_of"] == winner.id
    assert [job.recipe.epochs for job in fake.jobs] == [
        math.ceil(12 * PLANNED_SPEEDUP * len(TASK.train) / len(ALL_EXAMPLES))
    ]


def test_little_time_without_all_examples_skips_fresh_weights(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    fake.seconds_per_epoch = 1.0
    with one_trial_run(path, replace(WORSE, seconds=2.0, epochs=2)) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(12), epochs=None, all_examples=None)
        assert kinds(store.trials) == ["inherited"]
    assert [job.recipe.epochs for job in fake.jobs] == [12 * PLANNED_SPEEDUP]


def test_last_training_is_no_longer_than_best_epoch(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work(inherited=(replace(BETTER, epochs=30, best_epoch=12), 0))
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, selection_set=None, epochs=40)
    assert [job.recipe.epochs for job in fake.jobs] == [40, 40, 12]
    assert fake.jobs[2].recipe.lr == RECIPE.lr


LAST_LAYER = replace(RECIPE, layers="last", freeze_norms=True, epochs=6)
FINE_TUNING = replace(RECIPE, freeze_norms=True)


@pytest.mark.parametrize(
    ("tuned", "last"), [(BETTER, replace(FINE_TUNING, epochs=20)), (WORSE, replace(LAST_LAYER, epochs=3))]
)
def test_network_with_given_weights_is_fine_tuned_if_that_is_better(
    path: Path, fake_work: Callable[..., FakeWork], tuned: Outcome, last: Recipe
) -> None:
    """Otherwise only its last layer is trained again, with the strength of regularisation that was best before."""
    fake = fake_work(inherited=(tuned, 0))
    winner_outcome = replace(FINISHED, score=-1.0, epochs=6, best_epoch=3)
    with one_trial_run(path, winner_outcome, recipe=LAST_LAYER) as (store, winner):
        run_final(store, winner, selection_set=None, recipe=FINE_TUNING, epochs=None, guess=1 / GRAPH.work)
    assert kinds(store.trials) == ["inherited", "everything"]
    assert [job.recipe for job in fake.jobs] == [replace(FINE_TUNING, epochs=20), last]


def test_short_fine_tuning_has_the_full_rate(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    fake.seconds_per_epoch = 1.0
    with one_trial_run(path, replace(FINISHED, seconds=2.0, epochs=2), recipe=FINE_TUNING) as (store, winner):
        run_final(store, winner, deadline=fake.clock.deadline(4), recipe=FINE_TUNING, epochs=None)
    assert [job.recipe.lr for job in fake.jobs] == [FINE_TUNING.lr]


@pytest.mark.parametrize(("seconds", "layers", "epochs"), [(12, "last", 3), (14, "all", 14), (5, "last", 3)])
def test_last_layer_alone_if_there_is_no_time_to_fine_tune(
    path: Path, fake_work: Callable[..., FakeWork], seconds: float, layers: str, epochs: int
) -> None:
    """50 steps need 10 passes over 80 examples in batches of 16, which take 13.3 seconds."""
    fake = fake_work()
    with one_trial_run(path, replace(FINISHED, epochs=6, best_epoch=3), recipe=LAST_LAYER) as (store, winner):
        deadline = fake.clock.deadline(seconds)
        run_final(store, winner, deadline=deadline, recipe=FINE_TUNING, epochs=None, guess=1 / GRAPH.work)
    assert [(job.recipe.layers, job.recipe.epochs) for job in fake.jobs] == [(layers, epochs)]


def test_only_the_last_layer_is_trained_on_request(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path, replace(FINISHED, epochs=6, best_epoch=3), recipe=LAST_LAYER) as (store, winner):
        run_final(store, winner, recipe=LAST_LAYER, epochs=None, guess=1 / GRAPH.work)
    assert [job.recipe for job in fake.jobs] == [replace(LAST_LAYER, epochs=3)]


@pytest.mark.parametrize(("outcome", "expected"), [(replace(BETTER, epochs=6, best_epoch=4), [6, 4]), (WORSE, [6])])
def test_last_layer_of_any_network_can_be_trained_alone(
    path: Path, fake_work: Callable[..., FakeWork], outcome: Outcome, expected: list[int]
) -> None:
    fake = fake_work(inherited=(outcome, 0))
    with one_trial_run(path, FINISHED) as (store, winner):
        recipe = replace(RECIPE, layers="last")
        last = run_final(store, winner, selection_set=None, recipe=recipe, epochs=None)
        assert (last == winner) is (len(expected) == 1)
    assert [(job.recipe.layers, job.recipe.epochs) for job in fake.jobs] == [("last", n) for n in expected]


def test_last_layer_that_had_no_time_is_trained_at_the_end(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path, Outcome("truncated"), recipe=LAST_LAYER) as (store, winner):
        run_final(store, winner, recipe=LAST_LAYER, epochs=None, guess=1 / GRAPH.work)
    assert [(job.recipe.layers, job.recipe.epochs) for job in fake.jobs] == [("last", 3)]


UNDECIDED_SHIFT = replace(RECIPE, augment=Augment(shift=None))


@pytest.mark.parametrize(("without_shift", "better"), [(BETTER, 0.0), (WORSE, DEFAULT_SHIFT)])
def test_last_training_uses_better_shift(
    path: Path, fake_work: Callable[..., FakeWork], without_shift: Outcome, better: float
) -> None:
    fake = fake_work()
    fake.by_shift = {DEFAULT_SHIFT: replace(FINISHED, score=-0.5), 0.0: without_shift}
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, selection_set=None, recipe=UNDECIDED_SHIFT, epochs=20)
    assert kinds(store.trials) == ["inherited", "inherited, unmoved", "fresh", "everything"]
    assert [job.recipe.augment.shift for job in fake.jobs] == [DEFAULT_SHIFT, 0.0, DEFAULT_SHIFT, better]


@pytest.mark.parametrize("retrain", [False, True])
def test_without_validation_set_nothing_is_compared(
    path: Path, fake_work: Callable[..., FakeWork], retrain: bool
) -> None:
    """Scores on training examples would prefer fresh weights or no shifts if these memorise sooner."""
    fake = fake_work()
    options = {"selection_set": None, "all_examples": None, "recipe": UNDECIDED_SHIFT, "epochs": 20}
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, task=replace(TASK, valid=None), retrain=retrain, **options)
    assert kinds(store.trials) == ["fresh" if retrain else "inherited"]
    assert [job.recipe.augment.shift for job in fake.jobs] == [DEFAULT_SHIFT]


@pytest.mark.parametrize(
    ("errors", "colour", "strong"),
    [
        ((2, 40), True, True),
        ((2, 40), False, False),
        ((10, 40), True, True),
        ((30, 40), True, False),
        ((0, 0), True, False),
    ],
)
def test_memorised_colour_images_get_strong_augmentation(
    path: Path,
    fake_work: Callable[..., FakeWork],
    monkeypatch: pytest.MonkeyPatch,
    errors: tuple[int, int],
    colour: bool,
    strong: bool,
) -> None:
    """errors: numbers of wrong predictions on 40 training examples and on the 40 held-out ones."""
    fake, base = fake_work(inherited=(BETTER, 0)), blob_task(60, 40)
    assert base.valid is not None
    evaluated, held_out = ((torch.arange(40) < n).long() for n in errors)
    rest = torch.ones(20, dtype=torch.int64)
    train, valid = Examples(base.train.x, torch.cat([evaluated, rest])), Examples(base.valid.x, held_out)
    task = replace(base, train=train, valid=valid)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))  # selects the first training examples
    monkeypatch.setattr(module, "is_colour", lambda _: colour)
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, task=task, selection_set=None, all_examples=None, recipe=UNDECIDED_SHIFT, epochs=20)
    strong_augment = (STRONG_SHIFT, STRONG_CUTOUT)
    later = (
        {"inherited, changed more": strong_augment, "fresh, changed more": strong_augment}
        if strong
        else {"inherited, unmoved": (0.0, 0.0), "fresh": (DEFAULT_SHIFT, 0.0)}
    )
    assert kinds(store.trials) == ["inherited", *later]
    augments = [(job.recipe.augment.shift, job.recipe.augment.cutout) for job in fake.jobs]
    assert augments == [(DEFAULT_SHIFT, 0.0), *later.values()]


@pytest.mark.parametrize(
    ("passes", "colour", "recipe", "strong"),
    [(41.0, True, UNDECIDED_SHIFT, True), (39.0, True, UNDECIDED_SHIFT, False), (41.0, False, UNDECIDED_SHIFT, False),
     (41.0, True, RECIPE, False)],
)  # fmt: skip
def test_many_passes_get_strong_augmentation(
    path: Path,
    fake_work: Callable[..., FakeWork],
    monkeypatch: pytest.MonkeyPatch,
    passes: float,
    colour: bool,
    recipe: Recipe,
    strong: bool,
) -> None:
    """Where nothing is compared, here since the run was on other data."""
    fake = fake_work()
    monkeypatch.setattr(module, "is_colour", lambda _: colour)
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: passes)
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, recipe=recipe, data="other", epochs=None)
    assert kinds(store.trials) == ["everything"]
    augment = fake.jobs[0].recipe.augment
    assert ((augment.shift, augment.cutout) == (STRONG_SHIFT, STRONG_CUTOUT)) is strong


def test_short_final_trainings_do_not_shift(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, recipe=UNDECIDED_SHIFT, epochs=12)
    assert [job.recipe.augment.shift for job in fake.jobs] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("epochs", "share"), [(2, 0.2), (5, 0.5), (10, 1.0), (30, 1.0)])
def test_short_last_training_has_lower_learning_rate(
    path: Path, fake_work: Callable[..., FakeWork], epochs: int, share: float
) -> None:
    fake = fake_work()
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, epochs=epochs)
    assert fake.jobs[2].recipe.lr == pytest.approx(share * RECIPE.lr)


def test_given_recipe_is_used(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    recipe = Recipe(lr=0.03, optimizer="adamw", batch_size=7, patience=5)
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, recipe=recipe)
    for job in fake.jobs[:2]:
        assert job.recipe == replace(recipe, epochs=3)
    assert fake.jobs[2].recipe.optimizer == "adamw"
    assert fake.jobs[2].recipe.batch_size == 7


# -- deadline, memory, seeds and continuing


def test_scores_choose_without_time_for_selection_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Network, "to_module", lambda network: TimedNetwork(to_module(network.graph), clock, 0.0, 1.0))
    with searched_run(path) as (store, _):
        results = [trial for trial in store.trials if trial.score is not None]
        deadline = clock.deadline(40)
        chosen, scores = module._choose(store, results, TASK, TASK.train, deadline)
    assert not scores
    assert chosen == max(results, key=lambda trial: trial.score or 0.0)
    assert deadline.left >= 0


def test_final_trainings_respect_max_memory(path: Path) -> None:
    with searched_run(path) as (store, winner):
        run_final(store, winner, max_memory=winner.graph.peak_bytes(8))
        outcomes = [trial.outcome for trial in store.trials[3:]]
    assert [outcome and outcome.micro_batch for outcome in outcomes] == [8, 8, 8]


def test_final_trainings_have_trial_seeds(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    fake = fake_work()
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, seed=5)
    assert [job.seed for job in fake.jobs] == [trial_seed(5, id) for id in (1, 2, 3)]


def test_interrupted_final_on_other_data_is_not_continued(path: Path) -> None:
    why = {"final": "inherited", "of": 1, "data": "these"}
    with searched_run(path) as (store, winner):
        proposal = Proposal(winner.id, (), RECIPE, why)
        started = store.claim(proposal)
        assert module._find_started(store, proposal, 60) == started
        assert module._find_started(store, replace(proposal, why=why | {"data": "other"}), 60) is None


def test_scores_by_other_metric_are_not_compared(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    """The search had a metric, whose values exceed minus any log loss: its winner predicts 1 where 0 is right."""
    fake_work()
    by_metric = replace(FINISHED, score=0.9, metric=0.9, measure="f1_macro", objective="f1_macro")
    with one_trial_run(path, by_metric, label=1) as (store, winner):
        last = run_final(store, winner, task=replace(TASK, valid=examples_of(0)), selection_set=None, all_examples=None)
        assert last.id == 1


@pytest.mark.parametrize("status", ["truncated", "finished"])
def test_last_training_cut_by_stop_is_continued_later(
    path: Path, fake_work: Callable[..., FakeWork], status: Status
) -> None:
    """A finished one is used. The learning rate has not decayed if a stop cuts a training, unlike at the deadline."""
    fake, stop = fake_work(everything=(Outcome(status, epochs=1, best_epoch=1), 1)), Stop()

    class Stopping(RecordingObserver):
        def trial_begins(self, trial: Trial) -> None:
            stop.requested = trial.proposal.why["final"] == "everything"

    with one_trial_run(path) as (store, winner):
        last = run_final(
            store, winner, selection_set=None, deadline=Deadline.after(600, stop=stop), observer=Stopping()
        )
        assert [job.scored for job in fake.jobs] == [True, True, False]
        assert last == store.trials[1 if status == "truncated" else 3]
        if status == "truncated":
            assert store.trials[3].outcome is None
            fake_work()
            assert run_final(store, winner, selection_set=None).id == 3


@pytest.mark.parametrize(("passes", "continued"), [(30.0, True), (90.0, False)])
def test_interrupted_last_training_is_continued_first(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch, passes: float, continued: bool
) -> None:
    """Before anything else is compared, unless there is time for a much longer one."""
    fake = fake_work()
    monkeypatch.setattr(Final, "_passes", lambda *_, **__: passes)
    with one_trial_run(path) as (store, winner):
        recipe = replace(RECIPE, epochs=20)
        why = {"final": "everything", "of": winner.id, "data": "", "score_of": winner.id}
        started = store.claim(Proposal(winner.id, (), recipe, why))
        last = run_final(store, winner, epochs=None)
        assert (last.id == started.id) is continued
        assert len(fake.jobs) == (1 if continued else 3)


def test_compared_training_cut_by_stop_is_marked_stopped(path: Path, fake_work: Callable[..., FakeWork]) -> None:
    stop = Stop()
    fake_work(inherited=(replace(BETTER, status="truncated"), 1))

    class Stopping(RecordingObserver):
        def trial_begins(self, trial: Trial) -> None:
            stop.requested = True

    with one_trial_run(path) as (store, winner):
        last = run_final(store, winner, deadline=Deadline.after(600, stop=stop), observer=Stopping(), all_examples=None)
        assert store.trials[1].outcome == replace(BETTER, status="truncated", error=STOPPED)
        assert last in store.trials


@pytest.mark.parametrize(
    ("status", "error", "used"),
    [("finished", None, True), ("truncated", None, True), ("truncated", STOPPED, False), ("diverged", None, False)],
)
def test_incomplete_final_trainings_are_repeated(
    path: Path, status: Any, error: str | None, used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One cut by the deadline is complete, since its learning rate has decayed; one cut by a stop is not."""
    caplog.set_level("INFO")
    proposal = Proposal(1, (), RECIPE, {"final": "inherited", "of": 1, "data": ""})
    with searched_run(path) as (store, winner):
        id = store.claim(proposal).id
        ended = store.finish(id, replace(FINISHED, status=status, error=error), weights(0, winner.graph))
        assert module._find_started(store, proposal, 60) == (ended if used else None)
    assert ("is used: it had ended" in caplog.text) is used


def test_calibration_uses_sample_weights(
    path: Path, fake_work: Callable[..., FakeWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[Tensor | None] = []
    original = type(TASK.goal).temperature

    def recording_temperature(goal: Any, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        passed.append(weights)
        return original(goal, outputs, y, weights)

    monkeypatch.setattr(type(TASK.goal), "temperature", recording_temperature)
    fake_work()
    weighted = replace(examples_of(0), weights=torch.tensor([1.0, 2, 3, 4, 5, 6]))
    with one_trial_run(path) as (store, winner):
        run_final(store, winner, task=replace(TASK, valid=weighted), all_examples=None)
    assert len(passed) == 3
    assert all(weights is weighted.weights for weights in passed)
