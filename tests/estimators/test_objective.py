"""User-defined metrics and losses: their meaning, their effect on the search, and which are refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.metrics import make_scorer
from torch import Tensor, nn
from torch.nn import functional as F

import morphnas
from morphnas import EpochReport, ImageClassifier, ImageRegressor, RunError
from morphnas.cli import main
from morphnas.estimators.inputs import Problem
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.objective import CONFIDENT_LOGIT, Scorer, UserLoss, _with_loss_scale, with_objective
from morphnas.estimators.settings import Settings, check_unchanged, fixed_settings
from morphnas.estimators.targets import MultiLabelTarget, RegressionTarget, Target, classification_target
from morphnas.run.transport import read_task, send_by_value, write_task
from morphnas.train.data import Examples
from morphnas.train.goal import CustomGoal, Goal, MultiLabel, UndefinedMetric
from tests.estimators.conftest import stripes
from tests.run.doubles import from_file
from tests.train.tasks import Clock

CPU = torch.device("cpu")
X, Y = stripes(150)
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 4}}
AMOUNTS = 50 + 10 * np.arange(150) % 7 + np.linspace(0, 3, 150)
TAGS = np.stack([Y == 0, Y > 0, np.arange(150) % 2 == 0], axis=1).astype(int)


def problem(y: Any = Y, **options: Any) -> Problem:
    read = RegressionTarget.infer if np.asarray(y).dtype.kind == "f" else classification_target
    return Problem.infer(X, y, None, None, 0, CPU, read=read, **options)


def outputs_for(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


# -- metrics


def most_probable(outputs: Tensor) -> NDArray[Any]:
    labels: NDArray[Any] = WORDS.classes[outputs.argmax(1).numpy()]
    return labels


def chances(outputs: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = outputs.double().softmax(1).numpy()
    return found


WORDS = ClassTarget(np.array(["cat", "dog", "owl"]))
TWO = ClassTarget(np.array(["no", "yes"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f1_macro", lambda y, o, w: metrics.f1_score(y, most_probable(o), average="macro", sample_weight=w)),
        ("balanced_accuracy", lambda y, o, w: metrics.balanced_accuracy_score(y, most_probable(o), sample_weight=w)),
        ("neg_log_loss", lambda y, o, w: -metrics.log_loss(y, chances(o), sample_weight=w)),
        ("roc_auc_ovr", lambda y, o, w: metrics.roc_auc_score(y, chances(o), multi_class="ovr", sample_weight=w)),
        (
            make_scorer(metrics.zero_one_loss),
            lambda y, o, w: metrics.zero_one_loss(y, most_probable(o), sample_weight=w),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_are_measured_as_they_were_given(name: Any, value: Any, weighted: bool) -> None:
    codes, outputs = torch.arange(60) % 3, outputs_for(60, 3)
    weights = torch.linspace(0.5, 1.5, 60) if weighted else None
    counted = None if weights is None else weights.numpy()
    found = Scorer(name, WORDS)(outputs, codes, weights)
    assert found == pytest.approx(value(WORDS.classes[codes.numpy()], outputs, counted))


def test_a_positive_class_may_be_named() -> None:
    codes, outputs = torch.arange(60) % 2, outputs_for(60, 2)
    said, truth = TWO.classes[outputs.argmax(1).numpy()], TWO.classes[codes.numpy()]
    scorer = make_scorer(metrics.f1_score, pos_label="no")
    assert Scorer(scorer, TWO)(outputs, codes) == pytest.approx(metrics.f1_score(truth, said, pos_label="no"))
    auc = metrics.roc_auc_score(truth, chances(outputs)[:, 1])
    assert Scorer("roc_auc", TWO)(outputs, codes) == pytest.approx(auc)


@pytest.mark.parametrize("k", [2, 3])
def test_tags_are_measured_each_by_itself(k: int) -> None:
    y, outputs = (outputs_for(80, k, 1) > 0).float(), outputs_for(80, k)
    truth, likely = y.numpy().astype(int), outputs.double().sigmoid().numpy()
    tags = MultiLabelTarget(k)
    for name, value in {
        "f1_micro": metrics.f1_score(truth, likely >= 0.5, average="micro"),
        "roc_auc": metrics.roc_auc_score(truth, likely),
        "average_precision": metrics.average_precision_score(truth, likely),
        "accuracy": metrics.accuracy_score(truth, likely >= 0.5),
    }.items():
        assert Scorer(name, tags)(outputs, y) == pytest.approx(value), name


@pytest.mark.parametrize("k", [1, 2])
def test_amounts_are_measured_in_their_own_units(k: int) -> None:
    y = 1000 + 50 * np.random.default_rng(0).normal(size=(80, k))
    values, codes = RegressionTarget.infer(y, 80)
    outputs = torch.from_numpy(codes) + 0.3 * outputs_for(80, k)
    said = values.decode(outputs.numpy())
    assert Scorer("neg_mean_absolute_error", values)(outputs, torch.from_numpy(codes)) == pytest.approx(
        -metrics.mean_absolute_error(y, said), rel=1e-4
    )
    given: list[tuple[int, ...]] = []

    def seen(estimator: Any, x: Any, y: Any) -> float:
        given.extend([y.shape, estimator.predict(x).shape])
        return 1.0

    Scorer(seen, values)(outputs, torch.from_numpy(codes))
    assert given == [(80,) if k == 1 else (80, 2)] * 2


def test_what_cannot_be_measured_says_so() -> None:
    codes, outputs = torch.zeros(20, dtype=torch.int64), outputs_for(20, 2)
    with pytest.raises(UndefinedMetric, match=r"roc_auc.* nan|roc_auc cannot be computed"):
        Scorer("roc_auc", TWO)(outputs, codes)

    def broken(estimator: Any, x: Any, y: Any) -> float:
        raise RuntimeError("no such thing")

    with pytest.raises(UndefinedMetric, match="the metric broken cannot be computed: RuntimeError: no such thing"):
        Scorer(broken, TWO)(outputs, codes)


# -- losses


def goal_of(found: Problem) -> CustomGoal:
    goal = found.task.goal
    assert isinstance(goal, CustomGoal)
    return goal


def slope(goal: Goal, outputs: Tensor, y: Tensor) -> float:
    asked = outputs.clone().requires_grad_()
    goal.loss(asked, y).backward()
    assert asked.grad is not None
    return asked.grad.square().mean().sqrt().item()


LOSSES: list[tuple[Any, Any]] = [
    (Y, F.cross_entropy), (Y, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 9.0]), reduction="none")),
    (Y, lambda outputs, y: 7 * F.multi_margin_loss(outputs, y, reduction="none")),
    (TAGS, nn.BCEWithLogitsLoss(reduction="none")), (TAGS, F.soft_margin_loss),
    (AMOUNTS, nn.L1Loss()), (AMOUNTS, nn.HuberLoss(delta=0.1)), (np.stack([AMOUNTS, -AMOUNTS], 1), nn.MSELoss()),
    (AMOUNTS, lambda outputs, y: ((outputs - y) / y).square()),
]  # fmt: skip


@pytest.mark.parametrize(("y", "loss"), LOSSES)
@pytest.mark.parametrize("times", [1.0, 1e-4, 1e4])
def test_a_loss_is_as_steep_as_the_usual_one_whatever_its_unit(y: Any, loss: Any, times: float) -> None:
    found = problem(y)
    goal = goal_of(with_objective(found, None, lambda outputs, y: times * loss(outputs, y)))
    part = found.task.train
    outputs = outputs_for(len(part), goal.outputs, seed=3)
    assert slope(goal, outputs, part.y) == pytest.approx(slope(goal.standard, outputs, part.y), rel=0.25)
    assert goal.baseline_loss >= goal.standard.baseline_loss
    alike = goal_of(with_objective(found, None, loss))
    assert goal.loss(outputs, part.y).item() == pytest.approx(alike.loss(outputs, part.y).item(), rel=1e-4)
    score, metric = goal.score_and_metric(outputs, part.y)
    assert score == pytest.approx(times * alike.score_and_metric(outputs, part.y)[0], rel=1e-4)
    assert metric == goal.standard.score_and_metric(outputs, part.y)[1]


@pytest.mark.parametrize(("y", "loss"), [(Y, F.cross_entropy), (TAGS, F.binary_cross_entropy_with_logits),
                                         (AMOUNTS, F.mse_loss)])  # fmt: skip
@given(seed=st.integers(0, 100))
def test_the_usual_losses_given_as_ones_own_are_what_they_were(y: Any, loss: Any, seed: int) -> None:
    found = problem(y)
    goal, part = goal_of(with_objective(found, None, loss)), found.task.train
    outputs = outputs_for(len(part), goal.outputs, seed)
    assert goal.loss(outputs, part.y).item() == pytest.approx(goal.standard.loss(outputs, part.y).item(), rel=1e-4)


def test_a_loss_of_each_example_is_weighed() -> None:
    found = problem(sample_weight=np.linspace(0, 3, 150))
    goal, part = goal_of(with_objective(found, None, partial(F.cross_entropy, reduction="none"))), found.task.train
    outputs = outputs_for(len(part), 3)
    assert goal.loss(outputs, part.y, part.weights).item() == pytest.approx(
        goal.standard.loss(outputs, part.y, part.weights).item(), rel=1e-5
    )


def test_a_goal_of_ones_own_travels(tmp_path: Path) -> None:
    """Functions are pickled by value: a worker does not import the script that defines them."""
    shift = 3.0
    found = with_objective(
        problem(), lambda estimator, x, y: shift + np.mean(estimator.predict(x) == y), nn.CrossEntropyLoss()
    )
    write_task(tmp_path / "task.pt", found.task)
    goal, here, part = read_task(tmp_path / "task.pt", CPU).goal, found.task.goal, found.task.train
    outputs = outputs_for(len(part), 3)
    assert goal.score_and_metric(outputs, part.y) == here.score_and_metric(outputs, part.y)
    assert goal.score_and_metric(outputs, part.y)[0] > 3
    assert goal.loss(outputs, part.y) == here.loss(outputs, part.y)


class Placed(nn.Module):
    """A loss that records its device."""

    place = "cuda:1"

    def to(self, place: Any) -> Placed:  # type: ignore[override]
        self.place = str(place)
        return self


def test_a_loss_travels_without_its_device() -> None:
    """Another process may not have that device, or has it under another number."""
    here = UserLoss(Placed(), WORDS)
    there = pickle.loads(cloudpickle.dumps(here))
    assert (there.loss.place, here.loss.place) == ("cpu", "cuda:1")  # type: ignore[attr-defined]


class Elsewhere(Examples):
    """Examples on another device than the CPU."""

    def to(self, device: torch.device, x: bool = True) -> Examples:
        assert (device, x) == (CPU, False)
        part = problem(TAGS).task.train
        return Examples(part.x, part.y)


def elsewhere() -> Examples:
    part = problem(TAGS).task.train
    return Elsewhere(part.x, part.y.to("meta"))


def test_a_loss_is_tried_on_the_cpu() -> None:
    """An invalid value raises an error there, but makes a GPU refuse all further work of the process."""
    goal, lost = CustomGoal(MultiLabel(3)), UserLoss(nn.BCEWithLogitsLoss(), MultiLabelTarget(3))
    scale = _with_loss_scale(replace(goal, criterion=lost), elsewhere()).scale
    assert scale == pytest.approx(goal_of(with_objective(problem(TAGS), None, nn.BCEWithLogitsLoss())).scale)
    with pytest.raises(ValueError, match="RuntimeError: all elements of input should be between 0 and 1"):
        _with_loss_scale(replace(goal, criterion=UserLoss(nn.BCELoss(), MultiLabelTarget(3))), elsewhere())


def test_a_loss_that_has_tensors_on_the_device_is_tried_there() -> None:
    asked = []

    def own(outputs: Tensor, y: Tensor) -> Tensor:
        asked.append((outputs.device.type, y.device.type))
        raise RuntimeError("Expected all tensors to be on the same device")

    with pytest.raises(ValueError, match="same device"):
        _with_loss_scale(CustomGoal(MultiLabel(3), criterion=UserLoss(own, MultiLabelTarget(3))), elsewhere())
    assert asked == [("cpu", "cpu"), ("meta", "meta")]


@pytest.mark.parametrize(
    ("loss", "may"),
    [(None, True), (F.cross_entropy, True), (nn.L1Loss(), True), (torch.dist, True), (lambda o, y: o, False),
     (partial(F.cross_entropy, reduction="none"), False)],
)  # fmt: skip
def test_steps_with_functions_of_a_user_are_not_recorded(loss: Any, may: bool) -> None:
    """A replayed CUDA graph would repeat what they did in the captured call."""
    assert Settings.of(ImageClassifier(loss=loss)).allows_cuda_graphs is may


# -- fits


def test_the_metric_is_the_score_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[EpochReport] = []
    classifier = ImageClassifier(tmp_path / "run", metric="f1_macro", searcher_args=SMALL, max_trials=4, random_state=0)
    classifier.fit(X, Y, time_limit=60, each_epoch=reports.append)
    run = classifier.load_searcher()
    outcomes = [trial.outcome for trial in run.trials if trial.outcome is not None and trial.score is not None]
    assert len(outcomes) >= 4
    for outcome in outcomes:
        assert (outcome.measure, outcome.objective, outcome.loss) == ("f1_macro", "f1_macro", None)
        assert outcome.score == outcome.metric
        assert all(epoch.score == epoch.metric for epoch in outcome.curve)
    assert outcomes[0].upright is not None  # flips are still decided by the accuracy
    assert {report.validation_loss for report in reports} == {None}
    assert [entry["loss"] for entry in run.history] == [None] * len(outcomes)
    truth = metrics.f1_score(Y, classifier.predict(X), average="macro")
    assert classifier.evaluate(X, Y) == pytest.approx(truth)
    assert classifier.score(X, Y) == metrics.accuracy_score(Y, classifier.predict(X))
    again = morphnas.load(tmp_path / "run")
    assert again.metric == "f1_macro"
    assert again.evaluate(X, Y) == pytest.approx(truth)
    assert again.format_metric(truth) == f"f1_macro {truth:.4f}"
    again.metric = make_scorer(metrics.accuracy_score)
    assert again.evaluate(X, Y) == again.score(X, Y)
    again.metric = "nothing"
    with pytest.raises(ValueError, match="metric must be one of"):
        again.evaluate(X, Y)
    table = morphnas.trials_table(run.trials)
    assert "f1_macro" in table
    assert "score" not in table
    page = morphnas.write_report(run).read_text(encoding="utf-8").replace(" ", "")
    assert '"loss":"f1_macro","by_metric":true' in page
    assert "score" not in str(morphnas.explain(run))
    np.savez(tmp_path / "data.npz", x_test=X, y_test=Y)
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "data.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1_macro"] == pytest.approx(truth)
    with pytest.raises(RunError, match="metric was 'f1_macro' and is None"):
        ImageClassifier(tmp_path / "run", resume=True, searcher_args=SMALL, random_state=0).fit(X, Y, time_limit=9)
    other = ImageClassifier(tmp_path / "other", searcher_args=SMALL, max_trials=2, random_state=0, refit=False)
    other.fit(X, Y, time_limit=30)
    with pytest.raises(ValueError, match="chosen by different metrics or losses, f1_macro, log loss"):
        morphnas.compare_runs([run, other])
    assert "f1_macro" in str(morphnas.compare_runs([run, replace(run, path=tmp_path / "copy")]))
    undone = morphnas.ablate(classifier, X, Y, time_limit=3, repeats=1)
    assert undone.measure == "f1_macro"


def test_the_metric_decides(tmp_path: Path) -> None:
    """The network with the best metric wins, even if its log loss is worse."""

    def small(estimator: Any, x: Any, y: Any) -> float:
        """Accuracy, with a small penalty on the size of outputs."""
        return float(np.mean(estimator.predict(x) == y) - np.abs(x).mean() / 1e3)

    classifier = ImageClassifier(tmp_path / "run", metric=small, searcher_args=SMALL, max_trials=4, random_state=0,
                                 refit=False)  # fmt: skip
    classifier.fit(X, Y, time_limit=60)
    run = classifier.load_searcher()
    best = max(trial.score for trial in run.trials if trial.score is not None)
    assert run.trial(classifier.best_trial_).score == best
    assert run.about["settings"]["metric"].endswith(".small")
    loaded = morphnas.load(tmp_path / "run")
    assert loaded.metric is None  # functions are not stored
    with pytest.warns(UserWarning, match=r"the fit's metric, .*small, is not stored: this is the usual one; set"):
        assert loaded.evaluate(X, Y) != classifier.evaluate(X, Y)
    assert loaded.set_params(metric=small).evaluate(X, Y) == classifier.evaluate(X, Y)
    with pytest.raises(ValueError, match=r"the fit had metric=.*small, which a run does not store: set metric again"):
        morphnas.ablate(run, X, Y, time_limit=5)
    assert morphnas.ablate(run, X, Y, time_limit=5, repeats=1, metric=small).measure == "small"


def test_a_search_that_finds_nothing_better_ends(tmp_path: Path) -> None:
    """1 is the largest value of this metric."""

    def alike(estimator: Any, x: Any, y: Any) -> float:
        return float(np.mean(estimator.predict(x) == y) > 0.4)

    classifier = ImageClassifier(tmp_path / "run", metric=alike, searcher_args=SMALL, random_state=0, refit=False,
                                 search_patience=3)  # fmt: skip
    classifier.fit(X, Y, time_limit=300)
    scores = [trial.score for trial in classifier.load_searcher().trials]
    assert len(scores) == scores.index(1.0) + 4


def test_a_quantile_is_learnt_by_its_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    y = 300 + 5 * x[:, 0] + rng.exponential(20, 600)

    def pinball(said: Tensor, truth: Tensor) -> Tensor:
        assert said.dtype == truth.dtype == torch.float64
        return torch.maximum(0.9 * (truth - said), 0.1 * (said - truth))

    regressor = ImageRegressor(tmp_path / "run", loss=pinball, max_trials=2, random_state=0)
    regressor.fit(x[:400], y[:400], time_limit=8)
    below = np.mean(y[400:] < regressor.predict(x[400:]))
    assert 0.78 < below < 0.98  # the mean is above 63 % of an exponential distribution
    outcome = regressor.load_searcher().trials[0].outcome
    assert outcome is not None
    assert outcome.loss is not None
    assert 1 < outcome.loss < 30  # in the units of y
    assert (outcome.measure, outcome.objective) == ("R2", "pinball")
    page = morphnas.write_report(regressor).read_text(encoding="utf-8")
    assert '"loss":"pinball"' in page.replace(" ", "")


@pytest.mark.slow
def test_other_processes_train_on_a_loss_and_a_metric_of_ones_own(tmp_path: Path) -> None:
    """The same networks, with the same scores as in this process."""
    found = []
    for executor in (None, "process"):
        classifier = ImageClassifier(
            tmp_path / str(executor), executor=executor, devices=1 if executor else None, searcher_args=SMALL,
            max_trials=3, random_state=0, refit=False, loss=lambda outputs, y: 2 * F.cross_entropy(outputs, y),
            metric=make_scorer(metrics.matthews_corrcoef),
        )  # fmt: skip
        classifier.fit(X, Y, time_limit=100)
        found.append([(t.graph.key, t.score) for t in classifier.load_searcher().trials])
    assert found[0] == found[1]


def test_the_command_line_takes_a_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    data, run = str(tmp_path / "data.npz"), str(tmp_path / "run")
    assert (
        main(["fit", data, "--path", run, "--time-limit", "5", "--metric", "balanced_accuracy", "--json", "--quiet"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert 0.3 < told["validation_balanced_accuracy"] == told["score"]
    assert 0.3 < told["test_balanced_accuracy"] <= 1
    assert main(["fit", data, "--path", f"{run}2", "--metric", "goodness"]) == 1
    assert "metric must be one of scikit-learn's scorers" in capsys.readouterr().err


# -- resuming, comparing and special cases


def sevens(estimator: Any, x: Any, y: Any) -> float:
    return float(np.mean(estimator.predict(x) == y))


def pinball(share: float) -> Any:
    return lambda said, y: torch.maximum(share * (y - said), (1 - share) * (said - y))


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs + self.shift, y)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loss": pinball(0.9)}, {"loss": pinball(0.1)}),
        ({"loss": Shifted(1.0)}, {"loss": Shifted(2.0)}),
        ({"loss": nn.HuberLoss(delta=0.1)}, {"loss": nn.HuberLoss(delta=1.0)}),
        ({"loss": nn.CrossEntropyLoss(torch.ones(3))}, {"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 1, 5]))}),
        ({"loss": lambda o, y: 2 * F.cross_entropy(o, y)}, {"loss": lambda o, y: 3 * F.cross_entropy(o, y)}),
        ({"metric": make_scorer(metrics.fbeta_score, beta=1)}, {"metric": make_scorer(metrics.fbeta_score, beta=2)}),
        ({"metric": "f1"}, {"metric": "f1_macro"}),
        ({"loss": nn.Sequential(Shifted(1.0))}, {"loss": nn.Sequential(Shifted(2.0))}),
        ({"metric": "f1"}, {}),
    ],
)
def test_what_is_asked_for_decides_what_a_run_tries(one: dict[str, Any], other: dict[str, Any]) -> None:
    alike, also, unlike = (fixed_settings(ImageClassifier(**each).get_params()) for each in (one, one, other))
    assert alike == also
    assert alike != unlike
    check_unchanged(Path("run"), alike, also)
    for before, now in ((alike, unlike), (unlike, alike), ({}, alike)):
        if before != now:
            with pytest.raises(RunError, match="metric was" if "metric" in one else "loss was"):
                check_unchanged(Path("run"), before, now)


def test_a_loaded_model_is_not_trained_on_for_something_else_without_a_word(tmp_path: Path) -> None:
    options: dict[str, Any] = {"searcher_args": SMALL, "max_trials": 1, "random_state": 0, "refit": False}
    ImageClassifier(tmp_path / "run", loss=lambda o, y: 2 * F.cross_entropy(o, y), **options).fit(X, Y, time_limit=20)
    loaded = morphnas.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"the fit had loss=.*which a run does not store: set loss again"):
        loaded.final_fit(X, Y, time_limit=5)
    loaded.loss = F.cross_entropy
    loaded.final_fit(X, Y, time_limit=5)
    assert {t.outcome.objective for t in loaded.load_searcher().trials if t.outcome} == {"<lambda>", "cross_entropy"}


def test_scores_of_different_kinds_are_not_compared(tmp_path: Path) -> None:
    """A winner by accuracy, with a positive score, and trainings for the log loss, with negative scores."""
    classifier = ImageClassifier(tmp_path / "run", metric="accuracy", searcher_args=SMALL, max_trials=2, refit=False,
                                 random_state=0)  # fmt: skip
    classifier.fit(X, Y, time_limit=30)
    classifier.metric = None
    classifier.final_fit(X, Y, time_limit=60)
    run = classifier.load_searcher()
    last = run.trials[-1]
    assert last.parent is not None
    before = run.trial(last.parent).outcome  # it is far better, whatever the scores
    assert before is not None
    assert before.score is not None
    assert (before.objective, before.score < 0) == ("log loss", True)
    assert {row["measure"] for row in classifier.results_summary().to_json()} == {"accuracy"}
    assert all(row["loss"] is None for row in classifier.results_summary().to_json())
    on_front = [trial.outcome.objective for trial in run.front() if trial.outcome]
    assert set(on_front) == {"accuracy"}


def test_a_test_part_that_cannot_be_measured_costs_no_training(tmp_path: Path) -> None:
    classifier = ImageClassifier(tmp_path / "run", metric="roc_auc_ovr", searcher_args=SMALL, max_trials=1,
                                 random_state=0, refit=False).fit(X, Y, time_limit=20)  # fmt: skip
    with pytest.warns(UserWarning, match="x_test, y_test: the metric roc_auc_ovr cannot be computed"):
        classifier.final_fit(X, Y, X[Y < 2], Y[Y < 2], time_limit=6)
    assert np.isnan(classifier.test_metric_)
    with pytest.raises(ValueError, match="roc_auc_ovr cannot be computed"):
        classifier.evaluate(X[Y < 2], Y[Y < 2])


def test_a_metric_that_says_nothing_of_some_networks_costs_none(tmp_path: Path) -> None:
    """Their trainings continue, and their other epochs are scored."""
    calls: list[int] = []

    def moody(estimator: Any, x: Any, y: Any) -> float:
        calls.append(0)
        return float("nan") if len(calls) % 3 == 0 else sevens(estimator, x, y)

    classifier = ImageClassifier(tmp_path / "run", metric=moody, searcher_args=SMALL, max_trials=3, random_state=0,
                                 refit=False).fit(X, Y, time_limit=60)  # fmt: skip
    outcomes = [trial.outcome for trial in classifier.load_searcher().trials if trial.outcome is not None]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert any(epoch.score is None for outcome in outcomes for epoch in outcome.curve)
    assert all(outcome.score is not None for outcome in outcomes)


def test_where_a_metric_says_nothing_of_any_network_that_is_told(tmp_path: Path) -> None:

    def gone(estimator: Any, x: Any, y: Any) -> float:
        if np.abs(x).max() != CONFIDENT_LOGIT:  # for a network, not in the check of the metric
            raise KeyError("Miller")
        return sevens(estimator, x, y)

    classifier = ImageClassifier(tmp_path / "run", metric=gone, searcher_args=SMALL, max_trials=1, random_state=0)
    with pytest.warns(UserWarning, match="no network has a score: .* gone cannot be computed: KeyError: 'Miller'"):
        classifier.fit(X, Y, time_limit=10)
    assert classifier.predict(X).shape == Y.shape


def test_a_slow_metric_does_not_take_the_time_before_it_begins() -> None:
    clock = Clock()
    found, calls = problem(), []

    def slow(estimator: Any, x: Any, y: Any) -> float:
        calls.append(0)
        clock.now += 0.5
        return sevens(estimator, x, y)

    with_objective(found, slow, None, clock.deadline(10))
    assert len(calls) == 2  # correct and wrong outputs
    calls.clear()
    with_objective(found, slow, None, clock.deadline(1000))
    assert len(calls) == 5


def test_metrics_that_say_nothing_of_answers_that_are_all_the_same() -> None:
    def pearson(estimator: Any, x: Any, y: Any) -> float:
        said = estimator.predict(x)
        return float(np.corrcoef(said, y)[0, 1]) if said.std() else float("nan")

    with_objective(problem(AMOUNTS), pearson, None)
    with_objective(
        problem(np.floor(AMOUNTS) % 3), "neg_mean_poisson_deviance", None
    )  # undefined for some correct outputs
    with_objective(
        problem(), lambda estimator, x, y: sevens(estimator, x, y) ** 0 - 1e-12 * sevens(estimator, x, y), None
    )
    own = (X[Y == 0][:20], Y[Y == 0][:20])
    with_objective(Problem.infer(X, Y, own, None, 0, CPU), "accuracy", None)  # one class: no wrong outputs


@pytest.mark.parametrize("spread", [1e-15, 1.0, 1e12])
def test_amounts_of_any_size_have_a_loss(spread: float) -> None:
    found = problem(AMOUNTS * spread)
    goal, part = goal_of(with_objective(found, None, nn.MSELoss())), found.task.train
    outputs = outputs_for(len(part), 1)
    assert goal.loss(outputs, part.y).item() == pytest.approx(goal.standard.loss(outputs, part.y).item(), rel=1e-3)
    assert goal.loss(outputs, part.y).dtype == torch.float32
    assert goal.display_scale * goal.loss(outputs, part.y).item() == pytest.approx(
        -goal.score_and_metric(outputs, part.y)[0], rel=1e-3
    )


def test_a_loss_changes_neither_y_nor_the_random_numbers_of_others() -> None:
    def inplace(outputs: Tensor, y: Tensor) -> Tensor:
        y[y == 2] = 1
        lost = F.cross_entropy(F.dropout(outputs, 0.5), y)
        outputs.detach().zero_()
        return lost

    before = torch.get_rng_state()
    found = with_objective(problem(), None, inplace)
    assert torch.equal(before, torch.get_rng_state())
    part, goal = found.task.train, goal_of(found)
    counts, outputs = torch.bincount(part.y), outputs_for(len(part), 3)
    goal.loss(outputs, part.y)
    assert torch.equal(torch.bincount(part.y), counts)
    assert torch.equal(outputs, outputs_for(len(part), 3))
    assert goal.scale == goal_of(with_objective(problem(), None, inplace)).scale


def test_parameters_of_a_loss_stay_as_they_are() -> None:
    shifted = Shifted(0.0)
    goal = goal_of(with_objective(problem(), None, shifted))
    goal.loss(outputs_for(30, 3).requires_grad_(), torch.arange(30) % 3).backward()
    assert shifted.scale.grad is None
    assert shifted.scale.requires_grad


def test_losses_are_weighted_means() -> None:
    y, outputs, weights = torch.arange(30) % 3, outputs_for(30, 3), torch.linspace(0, 1, 30)  # not 1 on average
    goal = goal_of(with_objective(problem(), None, partial(F.cross_entropy, reduction="none")))
    assert goal.score_and_metric(outputs, y, weights)[0] == pytest.approx(
        goal.standard.score_and_metric(outputs, y, weights)[0], rel=1e-5
    )


def test_losses_of_each_example_tell_what_is_regretted() -> None:
    y, outputs = torch.zeros(4, 1), torch.tensor([[-1.0], [1.0], [3.0], [0.0]])
    values = RegressionTarget(np.zeros(1), np.ones(1))
    assert CustomGoal(values.goal, criterion=UserLoss(pinball(0.9), values)).objective_errors(
        outputs, y
    ).tolist() == pytest.approx([0.9, 0.1, 0.3, 0.0])
    for usual in (
        CustomGoal(values.goal, criterion=UserLoss(nn.L1Loss(), values)),
        CustomGoal(values.goal, Scorer("r2", values)),
    ):
        assert usual.objective_errors(outputs, y).tolist() == values.goal.errors(outputs, y).tolist() == [1, 1, 9, 0]


@pytest.mark.parametrize("labels", [[("a", 1), ("b", 2), ("c", 3)], [b"a", b"b", b"c"], ["a", 1, b"c"]])
def test_labels_that_scikit_learn_does_not_take_are_measured_all_the_same(labels: list[Any]) -> None:
    found = problem([labels[i] for i in Y])
    goal, part = goal_of(with_objective(found, "f1_macro", None)), found.task.train
    outputs = outputs_for(len(part), 3)
    codes, said = part.y.numpy(), outputs.argmax(1).numpy()
    assert goal.score_and_metric(outputs, part.y)[0] == pytest.approx(metrics.f1_score(codes, said, average="macro"))


def test_a_loss_with_weights_has_the_outputs_in_their_precision() -> None:
    """Also in ensemble selection, which uses float64."""
    goal = goal_of(with_objective(problem(), None, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))))
    y, outputs = torch.arange(30) % 3, outputs_for(30, 3)
    assert goal.score_and_metric(outputs.double(), y) == pytest.approx(goal.score_and_metric(outputs, y), rel=1e-5)
    assert goal.loss(outputs.double(), y).item() == pytest.approx(goal.loss(outputs, y).item(), rel=1e-5)


def test_functions_are_named_so_that_nobody_takes_them_for_something_else() -> None:
    def accuracy(estimator: Any, x: Any, y: Any) -> float:
        return 100 * sevens(estimator, x, y)

    assert Scorer(accuracy, WORDS).name == "accuracy (own)"
    assert Scorer("accuracy", WORDS).name == "accuracy"
    assert Scorer(make_scorer(metrics.mean_absolute_error, greater_is_better=False), WORDS).name == (
        "neg_mean_absolute_error"
    )
    assert UserLoss(nn.CrossEntropyLoss(), WORDS).name == "CrossEntropyLoss"


def test_runs_for_different_losses_are_not_compared(tmp_path: Path) -> None:
    runs = []
    for place, share in enumerate((0.9, 0.1)):
        regressor = ImageRegressor(tmp_path / str(place), loss=pinball(share), searcher_args=SMALL, max_trials=1,
                                   random_state=0, refit=False)  # fmt: skip
        reports: list[EpochReport] = []
        runs.append(regressor.fit(X, 1000 * AMOUNTS, time_limit=20, each_epoch=reports.append))
        for report in reports:  # both in the units of y
            assert report.validation_loss is not None
            assert 0.2 < report.loss / report.validation_loss < 5
    with pytest.raises(ValueError, match=r"chosen by different metrics or losses, .*lambda.*lambda"):
        morphnas.compare_runs(runs)


# -- what is refused


class Stateful:
    """A loss that cannot be pickled."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y)

    def __reduce__(self) -> Any:
        raise TypeError("there is only one of these")


def wrong_way(estimator: Any, x: Any, y: Any, sample_weight: Any = None) -> float:
    return float(np.mean(estimator.predict(x) != y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "goodness"}, "metric must be one of scikit-learn's scorers"),
        ({"metric": 3}, "metric must be None, one of"),
        ({"metric": metrics.f1_score}, r"make_scorer\(f1_score, greater_is_better=...\)"),
        ({"metric": lambda truth, said: 1.0}, "metric must be a function .estimator, x, y."),
        ({"metric": wrong_way}, "wrong_way is 0 for right answers and .* for wrong ones, but higher must be better"),
        ({"metric": make_scorer(metrics.hamming_loss)}, "hamming_loss is 0 for right answers"),
        ({"loss": nn.NLLLoss()}, "it falls without bound, from -20 to -200 .* outputs are logits"),
        ({"metric": lambda estimator, x, y: 0.5}, "is 0.5 for right and wrong answers alike"),
        ({"metric": lambda estimator, x, y: np.nan}, "tried on the validation examples, the metric .* is nan"),
        ({"metric": lambda estimator, x, y: 1e200 * np.mean(estimator.predict(x) == y)}, "the metric .* is 1e.200"),
        ({"metric": "f1"}, "the metric f1 cannot be computed: ValueError"),
        ({"loss": "l1"}, "loss must be None, or a function"),
        ({"loss": nn.CrossEntropyLoss}, r"use CrossEntropyLoss\(\)"),
        ({"loss": lambda outputs, y: 1.0}, "it must return a tensor, not 1.0"),
        ({"loss": lambda outputs, y: outputs[:2].sum(1)}, r"for \d+ examples it must return a loss for each"),
        ({"loss": lambda outputs, y: -F.cross_entropy(outputs, y)}, "for wrong ones, but lower must be better"),
        ({"loss": lambda outputs, y: torch.zeros(len(y))}, "loss: it failed on training examples"),
        ({"loss": lambda outputs, y: 0 * outputs.sum(1)}, "negative ones too, it is 0, with gradient 0:"),
        ({"loss": lambda outputs, y: outputs.sum(1) / 0}, "negative ones too, it is"),
        ({"loss": nn.L1Loss()}, "loss: it failed on training examples: "),
        ({"loss": Stateful(), "executor": "process"}, "sent to other processes: there is only one of these"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run", **options).fit(X, Y, time_limit=5)
    assert not (tmp_path / "run").exists()


def test_what_a_metric_cannot_score_is_named() -> None:
    for y, name, what in ((np.array(list("abc"))[Y], "r2", "labels"), (TAGS, "f1", "tags"), (AMOUNTS, "f1", "amounts")):
        with pytest.raises(ValueError, match=f"^metric: {name} cannot score these {what}: .*: ValueError: ") as caught:
            with_objective(problem(y), name, None)
        assert what != "labels" or "could not convert string to float" in str(caught.value)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda outputs, y: F.cross_entropy(outputs, y / 2)])
def test_a_loss_of_labels_is_none_of_tags(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss: .* all logits of an example are raised alike, .*BCEWithLogitsLoss"):
        with_objective(problem(TAGS), None, loss)
    for own in (nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss()):
        with_objective(problem(TAGS), None, own)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss(), nn.BCEWithLogitsLoss()])
def test_a_loss_of_labels_is_none_of_amounts(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss: .* is for classification; for regression use torch.nn.MSELoss"):
        with_objective(problem(AMOUNTS / AMOUNTS.max()), None, loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": F.cross_entropy}, r"it must return a loss for each, \(\d+,\), as they have weights"),
        ({"metric": lambda estimator, x, y: np.mean(estimator.predict(x) == y)}, "it must take a sample_weight"),
    ],
)
def test_weights_need_losses_and_metrics_that_take_them(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**options).fit(X, Y, time_limit=5, sample_weight=np.linspace(1, 2, 150))


def test_metrics_of_amounts_are_tried_in_their_units() -> None:
    with pytest.raises(ValueError, match=r"neg_mean_squared_log_error cannot be computed"):
        ImageRegressor(metric="neg_mean_squared_log_error").fit(X, AMOUNTS - 100, time_limit=5)
    with_objective(problem(AMOUNTS), "neg_mean_squared_log_error", None)
    with_objective(problem(AMOUNTS), "neg_max_error", None)


RIGHT = ["f1_macro", "recall_macro", "precision_weighted", "jaccard_micro", "accuracy", "roc_auc_ovr",
         "average_precision"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "y"), [*((name, y) for name in RIGHT for y in (Y, TAGS)), ("neg_log_loss", Y), ("top_k_accuracy", Y)]
)
def test_metrics_that_are_right_are_taken(name: str, y: Any) -> None:
    with_objective(problem(y), name, None)


targets: list[Target] = [WORDS, MultiLabelTarget(2), RegressionTarget(np.zeros(1), np.ones(1))]


@pytest.mark.parametrize("target", targets, ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("own", ["metric", "criterion"])
def test_all_else_of_a_goal_is_as_usual(target: Target, own: str) -> None:
    usual = target.goal
    lost = UserLoss(lambda outputs, y: outputs.abs().flatten(), target)
    goal = CustomGoal(usual, Scorer("accuracy", target)) if own == "metric" else CustomGoal(usual, criterion=lost)
    outputs = outputs_for(30, usual.outputs)
    y = torch.arange(30) % 3 if isinstance(target, ClassTarget) else (outputs_for(30, usual.outputs, 1) > 0).float()
    assert goal.standard is usual.standard is usual
    if own == "metric":
        assert goal.baseline_loss == usual.baseline_loss, "trainings minimise the usual loss"
    assert (goal.outputs, goal.to_json(), goal.baseline_metric(y)) == (
        usual.outputs,
        usual.to_json(),
        usual.baseline_metric(y),
    )
    assert torch.equal(goal.errors(outputs, y), usual.errors(outputs, y))
    assert goal.temperature(outputs, y) == usual.temperature(outputs, y)
    assert goal.distillation_loss(outputs, outputs) == usual.distillation_loss(outputs, outputs)


def test_a_loss_from_a_file_that_is_nowhere_on_the_path_travels_with_its_module(tmp_path: Path) -> None:
    """Other processes could not import it."""
    source = "def half(x):\n    return x / 2\n\n\ndef loss(x):\n    return half(x)\n"
    with from_file(tmp_path / "far_away.py", source) as module:
        for own in (None, "f1_macro", nn.L1Loss(), module.loss, lambda x: x):
            send_by_value(own)
        assert cloudpickle.list_registry_pickle_by_value() == {"far_away"}
        parcel = cloudpickle.dumps(module.loss)
    assert pickle.loads(parcel)(3) == 1.5
