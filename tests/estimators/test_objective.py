"""User-defined metrics and losses: their meaning, their effect on the search, and which are rejected."""

from __future__ import annotations

import itertools
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
from tests.run.doubles import module_from_file
from tests.train.tasks import Clock

CPU = torch.device("cpu")
X, Y = stripes(150)
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 4}}
VALUES = 50 + 10 * np.arange(150) % 7 + np.linspace(0, 3, 150)
LABELS = np.stack([Y == 0, Y > 0, np.arange(150) % 2 == 0], axis=1).astype(int)


def problem(y: Any = Y, **options: Any) -> Problem:
    """Regression for floats, otherwise classification or multi-label."""
    read = RegressionTarget.infer if np.asarray(y).dtype.kind == "f" else classification_target
    return Problem.infer(X, y, None, None, 0, CPU, read=read, **options)


def random_outputs(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


# -- metrics


def most_probable(outputs: Tensor) -> NDArray[Any]:
    labels: NDArray[Any] = ANIMALS.classes[outputs.argmax(1).numpy()]
    return labels


def probabilities(outputs: Tensor) -> NDArray[Any]:
    softmax: NDArray[Any] = outputs.double().softmax(1).numpy()
    return softmax


ANIMALS = ClassTarget(np.array(["cat", "dog", "owl"]))
BINARY = ClassTarget(np.array(["no", "yes"]))


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("f1_macro", lambda y, o, w: metrics.f1_score(y, most_probable(o), average="macro", sample_weight=w)),
        ("balanced_accuracy", lambda y, o, w: metrics.balanced_accuracy_score(y, most_probable(o), sample_weight=w)),
        ("neg_log_loss", lambda y, o, w: -metrics.log_loss(y, probabilities(o), sample_weight=w)),
        ("roc_auc_ovr", lambda y, o, w: metrics.roc_auc_score(y, probabilities(o), multi_class="ovr", sample_weight=w)),
        (
            make_scorer(metrics.zero_one_loss),
            lambda y, o, w: metrics.zero_one_loss(y, most_probable(o), sample_weight=w),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weighted", [False, True])
def test_classification_metrics_equal_scikit_learn(metric: Any, reference: Any, weighted: bool) -> None:
    codes, outputs = torch.arange(60) % 3, random_outputs(60, 3)
    weights = torch.linspace(0.5, 1.5, 60) if weighted else None
    expected = reference(ANIMALS.classes[codes.numpy()], outputs, None if weights is None else weights.numpy())
    assert Scorer(metric, ANIMALS)(outputs, codes, weights) == pytest.approx(expected)


def test_binary_metrics_use_positive_class() -> None:
    codes, outputs = torch.arange(60) % 2, random_outputs(60, 2)
    predicted, y = BINARY.classes[outputs.argmax(1).numpy()], BINARY.classes[codes.numpy()]
    scorer = make_scorer(metrics.f1_score, pos_label="no")
    assert Scorer(scorer, BINARY)(outputs, codes) == pytest.approx(metrics.f1_score(y, predicted, pos_label="no"))
    auc = metrics.roc_auc_score(y, probabilities(outputs)[:, 1])
    assert Scorer("roc_auc", BINARY)(outputs, codes) == pytest.approx(auc)


@pytest.mark.parametrize("k", [2, 3])
def test_multi_label_metrics_equal_scikit_learn(k: int) -> None:
    codes, outputs = (random_outputs(80, k, 1) > 0).float(), random_outputs(80, k)
    y, p = codes.numpy().astype(int), outputs.double().sigmoid().numpy()
    for name, expected in {
        "f1_micro": metrics.f1_score(y, p >= 0.5, average="micro"),
        "roc_auc": metrics.roc_auc_score(y, p),
        "average_precision": metrics.average_precision_score(y, p),
        "accuracy": metrics.accuracy_score(y, p >= 0.5),
    }.items():
        assert Scorer(name, MultiLabelTarget(k))(outputs, codes) == pytest.approx(expected), name


@pytest.mark.parametrize("k", [1, 2])
def test_regression_metrics_are_in_units_of_y(k: int) -> None:
    y = 1000 + 50 * np.random.default_rng(0).normal(size=(80, k))
    target, codes = RegressionTarget.infer(y, 80)
    outputs = torch.from_numpy(codes) + 0.3 * random_outputs(80, k)
    predicted = target.decode(outputs.numpy())
    assert Scorer("neg_mean_absolute_error", target)(outputs, torch.from_numpy(codes)) == pytest.approx(
        -metrics.mean_absolute_error(y, predicted), rel=1e-4
    )
    shapes: list[tuple[int, ...]] = []

    def record_shapes(estimator: Any, x: Any, y: Any) -> float:
        shapes.extend([y.shape, estimator.predict(x).shape])
        return 1.0

    Scorer(record_shapes, target)(outputs, torch.from_numpy(codes))
    assert shapes == [(80,) if k == 1 else (80, 2)] * 2


def test_undefined_metric_says_why() -> None:
    codes, outputs = torch.zeros(20, dtype=torch.int64), random_outputs(20, 2)
    with pytest.raises(UndefinedMetric, match=r"roc_auc.* nan|roc_auc cannot be computed"):
        Scorer("roc_auc", BINARY)(outputs, codes)

    def broken(estimator: Any, x: Any, y: Any) -> float:
        raise RuntimeError("no such thing")

    with pytest.raises(UndefinedMetric, match="the metric broken cannot be computed: RuntimeError: no such thing"):
        Scorer(broken, BINARY)(outputs, codes)


# -- losses


def goal_of(problem: Problem) -> CustomGoal:
    goal = problem.task.goal
    assert isinstance(goal, CustomGoal)
    return goal


def gradient_size(goal: Goal, outputs: Tensor, y: Tensor) -> float:
    """The root mean square of the gradient of the loss."""
    leaf = outputs.clone().requires_grad_()
    goal.loss(leaf, y).backward()
    assert leaf.grad is not None
    return leaf.grad.square().mean().sqrt().item()


LOSSES: list[tuple[Any, Any]] = [
    (Y, F.cross_entropy), (Y, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 9.0]), reduction="none")),
    (Y, lambda outputs, y: 7 * F.multi_margin_loss(outputs, y, reduction="none")),
    (LABELS, nn.BCEWithLogitsLoss(reduction="none")), (LABELS, F.soft_margin_loss),
    (VALUES, nn.L1Loss()), (VALUES, nn.HuberLoss(delta=0.1)), (np.stack([VALUES, -VALUES], 1), nn.MSELoss()),
    (VALUES, lambda outputs, y: ((outputs - y) / y).square()),
]  # fmt: skip


@pytest.mark.parametrize(("y", "loss"), LOSSES)
@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e4])
def test_loss_is_scaled_to_gradient_of_standard_loss(y: Any, loss: Any, factor: float) -> None:
    data = problem(y)
    goal = goal_of(with_objective(data, None, lambda outputs, y: factor * loss(outputs, y)))
    train = data.task.train
    outputs = random_outputs(len(train), goal.outputs, seed=3)
    expected = gradient_size(goal.standard, outputs, train.y)
    assert gradient_size(goal, outputs, train.y) == pytest.approx(expected, rel=0.25)
    assert goal.baseline_loss >= goal.standard.baseline_loss
    unscaled = goal_of(with_objective(data, None, loss))
    assert goal.loss(outputs, train.y).item() == pytest.approx(unscaled.loss(outputs, train.y).item(), rel=1e-4)
    score, metric = goal.score_and_metric(outputs, train.y)
    assert score == pytest.approx(factor * unscaled.score_and_metric(outputs, train.y)[0], rel=1e-4)
    assert metric == goal.standard.score_and_metric(outputs, train.y)[1]


@pytest.mark.parametrize(("y", "loss"), [(Y, F.cross_entropy), (LABELS, F.binary_cross_entropy_with_logits),
                                         (VALUES, F.mse_loss)])  # fmt: skip
@given(seed=st.integers(0, 100))
def test_standard_loss_given_by_user_is_unchanged(y: Any, loss: Any, seed: int) -> None:
    data = problem(y)
    goal, train = goal_of(with_objective(data, None, loss)), data.task.train
    outputs = random_outputs(len(train), goal.outputs, seed)
    assert goal.loss(outputs, train.y).item() == pytest.approx(goal.standard.loss(outputs, train.y).item(), rel=1e-4)


def test_sample_weights_apply_to_losses_per_example() -> None:
    data = problem(sample_weight=np.linspace(0, 3, 150))
    goal, train = goal_of(with_objective(data, None, partial(F.cross_entropy, reduction="none"))), data.task.train
    outputs = random_outputs(len(train), 3)
    assert goal.loss(outputs, train.y, train.weights).item() == pytest.approx(
        goal.standard.loss(outputs, train.y, train.weights).item(), rel=1e-5
    )


def test_user_defined_goal_is_sent_by_value(tmp_path: Path) -> None:
    """A worker does not import the script that defines the functions."""
    shift = 3.0
    data = with_objective(
        problem(), lambda estimator, x, y: shift + np.mean(estimator.predict(x) == y), nn.CrossEntropyLoss()
    )
    write_task(tmp_path / "task.pt", data.task)
    received, sent, train = read_task(tmp_path / "task.pt", CPU).goal, data.task.goal, data.task.train
    outputs = random_outputs(len(train), 3)
    assert received.score_and_metric(outputs, train.y) == sent.score_and_metric(outputs, train.y)
    assert received.score_and_metric(outputs, train.y)[0] > 3
    assert received.loss(outputs, train.y) == sent.loss(outputs, train.y)


class DeviceRecorder(nn.Module):
    """A loss that records its device."""

    device = "cuda:1"

    def to(self, device: Any) -> DeviceRecorder:  # type: ignore[override]
        self.device = str(device)
        return self


def test_loss_is_sent_without_its_device() -> None:
    """Another process may lack that device, or have it under another number."""
    sent = UserLoss(DeviceRecorder(), ANIMALS)
    received = pickle.loads(cloudpickle.dumps(sent))
    assert (received.loss.device, sent.loss.device) == ("cpu", "cuda:1")  # type: ignore[attr-defined]


class ExamplesOnDevice(Examples):
    """Multi-label examples whose y is on another device than the CPU."""

    def to(self, device: torch.device, x: bool = True) -> Examples:
        assert (device, x) == (CPU, False)
        train = problem(LABELS).task.train
        return Examples(train.x, train.y)


def examples_on_device() -> Examples:
    train = problem(LABELS).task.train
    return ExamplesOnDevice(train.x, train.y.to("meta"))


def test_loss_is_checked_on_cpu() -> None:
    """An invalid value raises an error there, but on a GPU aborts all further work of the process."""
    goal, loss = CustomGoal(MultiLabel(3)), UserLoss(nn.BCEWithLogitsLoss(), MultiLabelTarget(3))
    scale = _with_loss_scale(replace(goal, criterion=loss), examples_on_device()).scale
    assert scale == pytest.approx(goal_of(with_objective(problem(LABELS), None, nn.BCEWithLogitsLoss())).scale)
    with pytest.raises(ValueError, match="RuntimeError: all elements of input should be between 0 and 1"):
        _with_loss_scale(replace(goal, criterion=UserLoss(nn.BCELoss(), MultiLabelTarget(3))), examples_on_device())


def test_loss_with_tensors_on_device_is_checked_there() -> None:
    devices = []

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        devices.append((outputs.device.type, y.device.type))
        raise RuntimeError("Expected all tensors to be on the same device")

    goal = CustomGoal(MultiLabel(3), criterion=UserLoss(loss, MultiLabelTarget(3)))
    with pytest.raises(ValueError, match="same device"):
        _with_loss_scale(goal, examples_on_device())
    assert devices == [("cpu", "cpu"), ("meta", "meta")]


@pytest.mark.parametrize(
    ("loss", "allowed"),
    [(None, True), (F.cross_entropy, True), (nn.L1Loss(), True), (torch.dist, True), (lambda o, y: o, False),
     (partial(F.cross_entropy, reduction="none"), False)],
)  # fmt: skip
def test_cuda_graphs_only_with_losses_of_pytorch(loss: Any, allowed: bool) -> None:
    """A replayed CUDA graph would repeat what a user-defined function did in the captured call."""
    assert Settings.of(ImageClassifier(loss=loss)).allows_cuda_graphs is allowed


# -- fits


def test_user_defined_metric_is_the_score_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    f1 = metrics.f1_score(Y, classifier.predict(X), average="macro")
    assert classifier.evaluate(X, Y) == pytest.approx(f1)
    assert classifier.score(X, Y) == metrics.accuracy_score(Y, classifier.predict(X))
    loaded = morphnas.load(tmp_path / "run")
    assert loaded.metric == "f1_macro"
    assert loaded.evaluate(X, Y) == pytest.approx(f1)
    assert loaded.format_metric(f1) == f"f1_macro {f1:.4f}"
    loaded.metric = make_scorer(metrics.accuracy_score)
    assert loaded.evaluate(X, Y) == loaded.score(X, Y)
    loaded.metric = "nothing"
    with pytest.raises(ValueError, match="metric must be one of"):
        loaded.evaluate(X, Y)
    table = morphnas.trials_table(run.trials)
    assert "f1_macro" in table
    assert "score" not in table
    page = morphnas.write_report(run).read_text(encoding="utf-8").replace(" ", "")
    assert '"loss":"f1_macro","by_metric":true' in page
    assert "score" not in str(morphnas.explain(run))
    np.savez(tmp_path / "data.npz", x_test=X, y_test=Y)
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "data.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1_macro"] == pytest.approx(f1)
    with pytest.raises(RunError, match="metric was 'f1_macro' and is None"):
        ImageClassifier(tmp_path / "run", resume=True, searcher_args=SMALL, random_state=0).fit(X, Y, time_limit=9)
    other = ImageClassifier(tmp_path / "other", searcher_args=SMALL, max_trials=2, random_state=0, refit=False)
    other.fit(X, Y, time_limit=30)
    with pytest.raises(ValueError, match="chosen by different metrics or losses, f1_macro, log loss"):
        morphnas.compare_runs([run, other])
    assert "f1_macro" in str(morphnas.compare_runs([run, replace(run, path=tmp_path / "copy")]))
    ablation = morphnas.ablate(classifier, X, Y, time_limit=3, repeats=1)
    assert ablation.measure == "f1_macro"


def test_network_with_best_metric_wins(tmp_path: Path) -> None:
    """Even if its log loss is worse."""

    def penalised(estimator: Any, x: Any, y: Any) -> float:
        """Accuracy, with a large penalty on the size of outputs."""
        return float(np.mean(estimator.predict(x) == y) - 2 * np.abs(x).mean())

    classifier = ImageClassifier(tmp_path / "run", metric=penalised, searcher_args=SMALL, max_trials=4, random_state=0,
                                 refit=False)  # fmt: skip
    classifier.fit(X, Y, time_limit=60)
    run = classifier.load_searcher()
    best = max(trial.score for trial in run.trials if trial.score is not None)
    assert run.trial(classifier.best_trial_).score == best
    raw, codes = torch.from_numpy(X)[:, None], torch.from_numpy(Y)
    with torch.no_grad():
        losses = [float(F.cross_entropy(classifier.to_module(trial.id)(raw), codes)) for trial in run.trials]
    assert losses[classifier.best_trial_] > 1.2 * min(losses)
    assert run.about["settings"]["metric"].endswith(".penalised")
    loaded = morphnas.load(tmp_path / "run")
    assert loaded.metric is None  # functions are not stored
    with pytest.warns(UserWarning, match=r"metric of the fit, .*penalised, .*: the default metric is used"):
        assert loaded.evaluate(X, Y) != classifier.evaluate(X, Y)
    assert loaded.set_params(metric=penalised).evaluate(X, Y) == classifier.evaluate(X, Y)
    with pytest.raises(
        ValueError, match=r"the fit had metric=.*penalised, which a run does not store: set metric again"
    ):
        morphnas.ablate(run, X, Y, time_limit=5)
    assert morphnas.ablate(run, X, Y, time_limit=5, repeats=1, metric=penalised).measure == "penalised"


def test_search_patience_ends_search_at_maximal_metric(tmp_path: Path) -> None:
    """1 is the largest value of this metric."""

    def above_threshold(estimator: Any, x: Any, y: Any) -> float:
        return float(np.mean(estimator.predict(x) == y) > 0.4)

    classifier = ImageClassifier(tmp_path / "run", metric=above_threshold, searcher_args=SMALL, random_state=0,
                                 refit=False, search_patience=3)  # fmt: skip
    classifier.fit(X, Y, time_limit=300)
    scores = [trial.score for trial in classifier.load_searcher().trials]
    assert len(scores) == scores.index(1.0) + 4


def test_quantile_loss_trains_a_quantile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    y = 300 + 5 * x[:, 0] + rng.exponential(20, 600)

    def pinball(outputs: Tensor, y: Tensor) -> Tensor:
        assert outputs.dtype == y.dtype == torch.float64
        return torch.maximum(0.9 * (y - outputs), 0.1 * (outputs - y))

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
def test_other_processes_use_user_defined_loss_and_metric(tmp_path: Path) -> None:
    """The same networks, with the same scores as in this process."""
    results = []
    for executor in (None, "process"):
        classifier = ImageClassifier(
            tmp_path / str(executor), executor=executor, devices=1 if executor else None, searcher_args=SMALL,
            max_trials=3, random_state=0, refit=False, loss=lambda outputs, y: 2 * F.cross_entropy(outputs, y),
            metric=make_scorer(metrics.matthews_corrcoef),
        )  # fmt: skip
        classifier.fit(X, Y, time_limit=100)
        results.append([(t.graph.key, t.score) for t in classifier.load_searcher().trials])
    assert results[0] == results[1]


def test_command_line_accepts_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    data, run = str(tmp_path / "data.npz"), str(tmp_path / "run")
    assert (
        main(["fit", data, "--path", run, "--time-limit", "5", "--metric", "balanced_accuracy", "--json", "--quiet"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert 0.3 < result["validation_balanced_accuracy"] == result["score"]
    assert 0.3 < result["test_balanced_accuracy"] <= 1
    assert main(["fit", data, "--path", f"{run}2", "--metric", "goodness"]) == 1
    assert "metric must be one of scikit-learn's scorers" in capsys.readouterr().err


# -- resuming, comparing and special cases


def accuracy_of(estimator: Any, x: Any, y: Any) -> float:
    return float(np.mean(estimator.predict(x) == y))


def pinball(share: float) -> Any:
    """The loss of a quantile."""
    return lambda outputs, y: torch.maximum(share * (y - outputs), (1 - share) * (outputs - y))


class Shifted(nn.Module):
    """The cross entropy of shifted outputs, with a parameter."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs + self.shift, y)


@pytest.mark.parametrize(
    ("settings", "other"),
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
def test_metric_and_loss_must_not_change_on_resume(settings: dict[str, Any], other: dict[str, Any]) -> None:
    fixed, repeated, changed = (
        fixed_settings(ImageClassifier(**each).get_params()) for each in (settings, settings, other)
    )
    assert fixed == repeated
    assert fixed != changed
    check_unchanged(Path("run"), fixed, repeated)
    for before, now in ((fixed, changed), (changed, fixed), ({}, fixed)):
        with pytest.raises(RunError, match="metric was" if "metric" in settings else "loss was"):
            check_unchanged(Path("run"), before, now)


def test_final_fit_of_loaded_model_requires_its_loss(tmp_path: Path) -> None:
    options: dict[str, Any] = {"searcher_args": SMALL, "max_trials": 1, "random_state": 0, "refit": False}
    ImageClassifier(tmp_path / "run", loss=lambda o, y: 2 * F.cross_entropy(o, y), **options).fit(X, Y, time_limit=20)
    loaded = morphnas.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"the fit had loss=.*which a run does not store: set loss again"):
        loaded.final_fit(X, Y, time_limit=5)
    loaded.loss = F.cross_entropy
    loaded.final_fit(X, Y, time_limit=5)
    assert {t.outcome.objective for t in loaded.load_searcher().trials if t.outcome} == {"<lambda>", "cross_entropy"}


def test_scores_of_different_objectives_are_not_compared(tmp_path: Path) -> None:
    """A winner by accuracy, with a positive score, and trainings for the log loss, with negative scores."""
    classifier = ImageClassifier(tmp_path / "run", metric="accuracy", searcher_args=SMALL, max_trials=2, refit=False,
                                 random_state=0)  # fmt: skip
    classifier.fit(X, Y, time_limit=30)
    classifier.metric = None
    classifier.final_fit(X, Y, time_limit=60)
    run = classifier.load_searcher()
    last = run.trials[-1]
    assert last.parent is not None
    before = run.trial(last.parent).outcome  # it is far better, although its score is lower
    assert before is not None
    assert before.score is not None
    assert (before.objective, before.score < 0) == ("log loss", True)
    assert {row["measure"] for row in classifier.results_summary().to_json()} == {"accuracy"}
    assert all(row["loss"] is None for row in classifier.results_summary().to_json())
    on_front = [trial.outcome.objective for trial in run.front() if trial.outcome]
    assert set(on_front) == {"accuracy"}


def test_undefined_test_metric_warns_but_keeps_final_fit(tmp_path: Path) -> None:
    classifier = ImageClassifier(tmp_path / "run", metric="roc_auc_ovr", searcher_args=SMALL, max_trials=1,
                                 random_state=0, refit=False).fit(X, Y, time_limit=20)  # fmt: skip
    with pytest.warns(UserWarning, match="x_test, y_test: the metric roc_auc_ovr cannot be computed"):
        classifier.final_fit(X, Y, X[Y < 2], Y[Y < 2], time_limit=6)
    assert np.isnan(classifier.test_metric_)
    with pytest.raises(ValueError, match="roc_auc_ovr cannot be computed"):
        classifier.evaluate(X[Y < 2], Y[Y < 2])


def test_metric_undefined_in_some_epochs_fails_no_training(tmp_path: Path) -> None:
    """Trainings continue, and their other epochs are scored."""
    calls = itertools.count(1)

    def sometimes_nan(estimator: Any, x: Any, y: Any) -> float:
        return float("nan") if next(calls) % 3 == 0 else accuracy_of(estimator, x, y)

    classifier = ImageClassifier(tmp_path / "run", metric=sometimes_nan, searcher_args=SMALL, max_trials=3,
                                 random_state=0, refit=False).fit(X, Y, time_limit=60)  # fmt: skip
    outcomes = [trial.outcome for trial in classifier.load_searcher().trials if trial.outcome is not None]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert any(epoch.score is None for outcome in outcomes for epoch in outcome.curve)
    assert all(outcome.score is not None for outcome in outcomes)


def test_metric_undefined_for_all_networks_warns(tmp_path: Path) -> None:
    def failing(estimator: Any, x: Any, y: Any) -> float:
        if np.abs(x).max() != CONFIDENT_LOGIT:  # outputs of a network, not those of the metric's check
            raise KeyError("Miller")
        return accuracy_of(estimator, x, y)

    classifier = ImageClassifier(tmp_path / "run", metric=failing, searcher_args=SMALL, max_trials=1, random_state=0)
    with pytest.warns(UserWarning, match="no network has a score: .* failing cannot be computed: KeyError: 'Miller'"):
        classifier.fit(X, Y, time_limit=10)
    assert classifier.predict(X).shape == Y.shape


def test_check_of_slow_metric_is_limited_in_time() -> None:
    clock = Clock()
    data, calls = problem(), []

    def slow(estimator: Any, x: Any, y: Any) -> float:
        calls.append(0)
        clock.now += 0.5
        return accuracy_of(estimator, x, y)

    with_objective(data, slow, None, clock.deadline(10))
    assert len(calls) == 2  # correct and wrong outputs
    calls.clear()
    with_objective(data, slow, None, clock.deadline(1000))
    assert len(calls) == 5


def test_metrics_undefined_for_some_outputs_are_accepted() -> None:
    def pearson(estimator: Any, x: Any, y: Any) -> float:
        predicted = estimator.predict(x)
        return float(np.corrcoef(predicted, y)[0, 1]) if predicted.std() else float("nan")

    with_objective(problem(VALUES), pearson, None)
    counts = problem(np.floor(VALUES) % 3)
    with_objective(counts, "neg_mean_poisson_deviance", None)  # undefined for some correct outputs
    one_class = (X[Y == 0][:20], Y[Y == 0][:20])  # there are no wrong outputs
    with_objective(Problem.infer(X, Y, one_class, None, 0, CPU), "accuracy", None)


def test_metric_lower_by_rounding_error_is_accepted() -> None:
    with_objective(problem(), lambda estimator, x, y: 1 - 1e-12 * accuracy_of(estimator, x, y), None)


@pytest.mark.parametrize("spread", [1e-15, 1.0, 1e12])
def test_loss_is_computed_for_y_of_any_magnitude(spread: float) -> None:
    data = problem(VALUES * spread)
    goal, train = goal_of(with_objective(data, None, nn.MSELoss())), data.task.train
    outputs = random_outputs(len(train), 1)
    loss = goal.loss(outputs, train.y)
    assert loss.item() == pytest.approx(goal.standard.loss(outputs, train.y).item(), rel=1e-3)
    assert loss.dtype == torch.float32
    assert goal.display_scale * loss.item() == pytest.approx(-goal.score_and_metric(outputs, train.y)[0], rel=1e-3)


def test_loss_cannot_change_its_arguments_or_random_state() -> None:
    def inplace(outputs: Tensor, y: Tensor) -> Tensor:
        y[y == 2] = 1
        loss = F.cross_entropy(F.dropout(outputs, 0.5), y)
        outputs.detach().zero_()
        return loss

    before = torch.get_rng_state()
    data = with_objective(problem(), None, inplace)
    assert torch.equal(before, torch.get_rng_state())
    train, goal = data.task.train, goal_of(data)
    counts, outputs = torch.bincount(train.y), random_outputs(len(train), 3)
    goal.loss(outputs, train.y)
    assert torch.equal(torch.bincount(train.y), counts)
    assert torch.equal(outputs, random_outputs(len(train), 3))
    assert goal.scale == goal_of(with_objective(problem(), None, inplace)).scale


def test_parameters_of_loss_are_not_trained() -> None:
    shifted = Shifted(0.0)
    goal = goal_of(with_objective(problem(), None, shifted))
    goal.loss(random_outputs(30, 3).requires_grad_(), torch.arange(30) % 3).backward()
    assert shifted.scale.grad is None
    assert shifted.scale.requires_grad


def test_score_is_weighted_mean_of_losses() -> None:
    y, outputs, weights = torch.arange(30) % 3, random_outputs(30, 3), torch.linspace(0, 1, 30)  # not 1 on average
    goal = goal_of(with_objective(problem(), None, partial(F.cross_entropy, reduction="none")))
    assert goal.score_and_metric(outputs, y, weights)[0] == pytest.approx(
        goal.standard.score_and_metric(outputs, y, weights)[0], rel=1e-5
    )


def test_objective_errors_are_losses_per_example_if_available() -> None:
    """Otherwise the standard errors."""
    y, outputs = torch.zeros(4, 1), torch.tensor([[-1.0], [1.0], [3.0], [0.0]])
    target = RegressionTarget(np.zeros(1), np.ones(1))
    per_example = CustomGoal(target.goal, criterion=UserLoss(pinball(0.9), target))
    assert per_example.objective_errors(outputs, y).tolist() == pytest.approx([0.9, 0.1, 0.3, 0.0])
    for goal in (
        CustomGoal(target.goal, criterion=UserLoss(nn.L1Loss(), target)),
        CustomGoal(target.goal, Scorer("r2", target)),
    ):
        assert goal.objective_errors(outputs, y).tolist() == target.goal.errors(outputs, y).tolist() == [1, 1, 9, 0]


@pytest.mark.parametrize("labels", [[("a", 1), ("b", 2), ("c", 3)], [b"a", b"b", b"c"], ["a", 1, b"c"]])
def test_metric_with_labels_unsupported_by_scikit_learn(labels: list[Any]) -> None:
    data = problem([labels[i] for i in Y])
    goal, train = goal_of(with_objective(data, "f1_macro", None)), data.task.train
    outputs = random_outputs(len(train), 3)
    expected = metrics.f1_score(train.y.numpy(), outputs.argmax(1).numpy(), average="macro")
    assert goal.score_and_metric(outputs, train.y)[0] == pytest.approx(expected)


def test_loss_with_class_weights_accepts_float64_outputs() -> None:
    """As in ensemble selection."""
    goal = goal_of(with_objective(problem(), None, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))))
    y, outputs = torch.arange(30) % 3, random_outputs(30, 3)
    assert goal.score_and_metric(outputs.double(), y) == pytest.approx(goal.score_and_metric(outputs, y), rel=1e-5)
    assert goal.loss(outputs.double(), y).item() == pytest.approx(goal.loss(outputs, y).item(), rel=1e-5)


def test_user_defined_functions_have_unambiguous_names() -> None:
    def accuracy(estimator: Any, x: Any, y: Any) -> float:
        return 100 * accuracy_of(estimator, x, y)

    assert Scorer(accuracy, ANIMALS).name == "accuracy (own)"
    assert Scorer("accuracy", ANIMALS).name == "accuracy"
    assert Scorer(make_scorer(metrics.mean_absolute_error, greater_is_better=False), ANIMALS).name == (
        "neg_mean_absolute_error"
    )
    assert UserLoss(nn.CrossEntropyLoss(), ANIMALS).name == "CrossEntropyLoss"


def test_runs_for_different_losses_are_not_compared(tmp_path: Path) -> None:
    runs = []
    for share in (0.9, 0.1):
        regressor = ImageRegressor(tmp_path / str(share), loss=pinball(share), searcher_args=SMALL, max_trials=1,
                                   random_state=0, refit=False)  # fmt: skip
        reports: list[EpochReport] = []
        runs.append(regressor.fit(X, 1000 * VALUES, time_limit=20, each_epoch=reports.append))
        for report in reports:  # both in the units of y
            assert report.validation_loss is not None
            assert 0.2 < report.loss / report.validation_loss < 5
    with pytest.raises(ValueError, match=r"chosen by different metrics or losses, .*lambda.*lambda"):
        morphnas.compare_runs(runs)


# -- invalid metrics and losses


class Unpicklable:
    """A loss that cannot be pickled."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y)

    def __reduce__(self) -> Any:
        raise TypeError("there is only one of these")


def error_rate(estimator: Any, x: Any, y: Any, sample_weight: Any = None) -> float:
    return float(np.mean(estimator.predict(x) != y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "goodness"}, "metric must be one of scikit-learn's scorers"),
        ({"metric": 3}, "metric must be None, one of"),
        ({"metric": metrics.f1_score}, r"make_scorer\(f1_score, greater_is_better=...\)"),
        ({"metric": lambda y_true, y_pred: 1.0}, "metric must be a function .estimator, x, y."),
        ({"metric": error_rate}, "error_rate is 0 for right answers and .* for wrong ones, but higher must be better"),
        ({"metric": make_scorer(metrics.hamming_loss)}, "hamming_loss is 0 for right answers"),
        ({"loss": nn.NLLLoss()}, "it falls without bound, from -20 to -200 .* outputs are logits"),
        ({"metric": lambda estimator, x, y: 0.5}, "is 0.5 for right and wrong answers alike"),
        ({"metric": lambda estimator, x, y: np.nan}, "on the validation examples, the metric .* is nan"),
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
        ({"loss": Unpicklable(), "executor": "process"}, "sent to other processes: there is only one of these"),
    ],
)  # fmt: skip
def test_invalid_metric_or_loss_is_rejected_before_writing(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(tmp_path / "run", **options).fit(X, Y, time_limit=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("y", "name", "message"),
    [
        (np.array(list("abc"))[Y], "r2", "labels: .*: ValueError: .*could not convert string to float"),
        (LABELS, "f1", "multi-label y: .*: ValueError: "),
        (VALUES, "f1", "numeric y: .*: ValueError: "),
    ],
)
def test_metric_error_names_kind_of_y(y: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^metric: {name} does not work for {message}"):
        with_objective(problem(y), name, None)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda outputs, y: F.cross_entropy(outputs, y / 2)])
def test_single_label_loss_is_rejected_for_multi_label(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss: .* number is added to all logits of an example, .*BCEWithLogitsLoss"):
        with_objective(problem(LABELS), None, loss)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss()])
def test_multi_label_losses_are_accepted(loss: Any) -> None:
    with_objective(problem(LABELS), None, loss)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss(), nn.BCEWithLogitsLoss()])
def test_classification_loss_is_rejected_for_regression(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss: .* is for classification; for regression use torch.nn.MSELoss"):
        with_objective(problem(VALUES / VALUES.max()), None, loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": F.cross_entropy}, r"it must return a loss for each, \(\d+,\), as they have weights"),
        ({"metric": lambda estimator, x, y: np.mean(estimator.predict(x) == y)}, "it must take a sample_weight"),
    ],
)
def test_sample_weights_require_weighted_loss_and_metric(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**options).fit(X, Y, time_limit=5, sample_weight=np.linspace(1, 2, 150))


def test_regression_metrics_are_checked_in_units_of_y() -> None:
    with pytest.raises(ValueError, match=r"neg_mean_squared_log_error cannot be computed"):
        ImageRegressor(metric="neg_mean_squared_log_error").fit(X, VALUES - 100, time_limit=5)
    with_objective(problem(VALUES), "neg_mean_squared_log_error", None)
    with_objective(problem(VALUES), "neg_max_error", None)


VALID_METRICS = ["f1_macro", "recall_macro", "precision_weighted", "jaccard_micro", "accuracy", "roc_auc_ovr",
         "average_precision"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "y"),
    [*((name, y) for name in VALID_METRICS for y in (Y, LABELS)), ("neg_log_loss", Y), ("top_k_accuracy", Y)],
)
def test_valid_metrics_are_accepted(name: str, y: Any) -> None:
    with_objective(problem(y), name, None)


TARGETS: list[Target] = [ANIMALS, MultiLabelTarget(2), RegressionTarget(np.zeros(1), np.ones(1))]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("user_defined", ["metric", "loss"])
def test_custom_goal_keeps_other_standard_behaviour(target: Target, user_defined: str) -> None:
    standard = target.goal
    loss = UserLoss(lambda outputs, y: outputs.abs().flatten(), target)
    is_metric = user_defined == "metric"
    goal = CustomGoal(standard, Scorer("accuracy", target)) if is_metric else CustomGoal(standard, criterion=loss)
    outputs = random_outputs(30, standard.outputs)
    labels = (random_outputs(30, standard.outputs, 1) > 0).float()
    y = torch.arange(30) % 3 if isinstance(target, ClassTarget) else labels
    assert goal.standard is standard.standard is standard
    if is_metric:
        assert goal.baseline_loss == standard.baseline_loss, "trainings minimise the standard loss"
    assert (goal.outputs, goal.to_json(), goal.baseline_metric(y)) == (
        standard.outputs,
        standard.to_json(),
        standard.baseline_metric(y),
    )
    assert torch.equal(goal.errors(outputs, y), standard.errors(outputs, y))
    assert goal.temperature(outputs, y) == standard.temperature(outputs, y)
    assert goal.distillation_loss(outputs, outputs) == standard.distillation_loss(outputs, outputs)


def test_function_of_unimportable_module_is_sent_by_value(tmp_path: Path) -> None:
    """With the functions of its module that it calls: other processes could not import it."""
    source = "def half(x):\n    return x / 2\n\n\ndef loss(x):\n    return half(x)\n"
    with module_from_file(tmp_path / "far_away.py", source) as module:
        for function in (None, "f1_macro", nn.L1Loss(), module.loss, lambda x: x):
            send_by_value(function)
        assert cloudpickle.list_registry_pickle_by_value() == {"far_away"}
        pickled = cloudpickle.dumps(module.loss)
    assert pickle.loads(pickled)(3) == 1.5
