"""The classifier: fit, predict, inspect, load in another process, train further."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import fx

import morphnas
from morphnas import ImageClassifier, Limits, RunError, legacy, load_run
from morphnas.cli import main
from morphnas.estimators import data_checks
from morphnas.estimators.fitting import (
    COMPARISON_SHARE,
    Fitting,
    StartersOnly,
    calibration_temperature,
    deadline_before_saving,
    predictions_at_end,
)
from morphnas.estimators.inputs import Problem
from morphnas.estimators.settings import Settings
from morphnas.estimators.sources import Source
from morphnas.estimators.splits import split
from morphnas.graph import Network, Wider, cnn, fresh_weights, mlp, resnet
from morphnas.run import plan
from morphnas.run.final import Final
from morphnas.run.jobs import Job
from morphnas.run.store import Store, load_about
from morphnas.run.work import work
from morphnas.search import SEARCHERS
from morphnas.search.random import RandomSearcher
from morphnas.search.trial import Budget, Proposal, Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import NEVER, Deadline
from morphnas.train.goal import Classification
from morphnas.train.predict import evaluate
from morphnas.train.recipe import MUON_FULL_RATE_EXAMPLES, Augment, Outcome, Recipe, default_learning_rate
from tests.estimators.conftest import Data, stripes
from tests.run.doubles import ScriptedSearcher
from tests.train.tasks import Clock

TINY = {"default_model_width": 4, "trainer_args": {"max_iter_num": 2}}


def test_fit_learns_and_predict_returns_classes(fitted_classifier: ImageClassifier) -> None:
    x, y = stripes(90, seed=1)
    assert (
        fitted_classifier.evaluate(x, y)
        == fitted_classifier.score(x, y)
        == (fitted_classifier.predict(x) == y).mean()
        > 0.9
    )
    probabilities = fitted_classifier.predict_proba(x)
    assert probabilities.shape == (90, 3)
    assert probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(1), 1)
    assert fitted_classifier.classes_.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_constructor_completes_all_imports() -> None:
    """Later imports would count towards the time limit of a fit."""
    code = """
        import sys
        import torch
        import morphnas
        morphnas.ImageClassifier()
        before = set(sys.modules)
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).step()
        assert not set(sys.modules) - before, sorted(set(sys.modules) - before)[:5]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_history_has_fields_of_legacy_scripts(fitted_classifier: ImageClassifier) -> None:
    history = fitted_classifier.history
    assert [entry["model_id"] for entry in history] == sorted(entry["model_id"] for entry in history)
    best = fitted_classifier.get_best_model_id()
    assert best in [entry["model_id"] for entry in history]
    for entry in history:
        assert entry["loss"] >= 0
        assert 0 <= entry["metric_value"] <= 1
        assert entry["interval"][0] <= entry["metric_value"] <= entry["interval"][1]
    searched = [t for t in fitted_classifier.load_searcher().trials if not t.final]
    assert len(searched) == 7
    assert any(t.proposal.morphs for t in searched)


def test_children_start_with_function_of_parent(fitted_classifier: ImageClassifier) -> None:
    children = [t for t in fitted_classifier.load_searcher().trials if t.proposal.morphs]
    assert children
    for trial in children:
        assert trial.outcome is not None
        assert trial.outcome.morph_error is not None
        assert trial.outcome.morph_error < 1e-4


def test_models_load_by_id_as_plain_modules(fitted_classifier: ImageClassifier) -> None:
    run = fitted_classifier.load_searcher()
    network = run.load_best_model()
    module = network.produce_model()
    assert isinstance(module, fx.GraphModule)
    assert set(module.state_dict()) == set(network.weights)
    for entry in run.history:
        assert run.load_model_by_id(entry["model_id"]).graph.shapes["x"] == (1, 6, 6)
        assert run.get_metric_value_by_id(entry["model_id"]) == entry["metric_value"]
    with pytest.raises(RunError, match="no model 99"):
        run.load_model_by_id(99)


def test_stored_weights_reproduce_reported_score(fitted_classifier: ImageClassifier, data: Data) -> None:
    run = fitted_classifier.load_searcher()
    problem = Problem.infer(*data, None, None, int(run.about["seed"]), torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(int(run.about["plan"]["threads"]))
    try:
        for trial in run.trials:
            if trial.score is not None and trial.outcome is not None:
                module = run.load_model_by_id(trial.id).produce_model()
                score, metric = evaluate(module, problem.task.evaluation_set, problem.task)
                assert score == pytest.approx(trial.score, rel=1e-6, abs=1e-6)
                assert metric == pytest.approx(trial.outcome.metric, abs=1e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_works_in_other_precisions(fitted_classifier: ImageClassifier, dtype: torch.dtype) -> None:
    raw = torch.from_numpy(stripes(40, seed=2)[0])[:, None]
    with torch.no_grad():
        expected, module = fitted_classifier.to_module()(raw), fitted_classifier.to_module().to(dtype)
        for x in (raw, raw.to(dtype)):
            logits = module(x)
            assert logits.dtype == dtype
            assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("mirrors", [True, False])
def test_exported_module_takes_raw_pixels_without_morphnas(
    fitted_classifier: ImageClassifier, tmp_path: Path, mirrors: bool
) -> None:
    x, _ = stripes(40, seed=2)
    classifier = ImageClassifier.load(fitted_classifier.path_)
    classifier.mirrors_ = mirrors
    module = classifier.to_module()
    raw = torch.from_numpy(x)[:, None]
    with torch.no_grad():
        assert torch.allclose(
            module(raw).double().softmax(1), torch.from_numpy(classifier.predict_proba(x)), rtol=0, atol=1e-5
        )
    program = torch.export.export(
        module, (raw[:2],), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1000)},), strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (tmp_path / "net.pt2").write_bytes(buffer.getvalue())
    np.savez(tmp_path / "x.npz", raw=raw.numpy(), expected=module(raw).detach().numpy())
    script = """
        import sys, numpy, torch
        sys.modules["morphnas"] = None
        data = numpy.load(sys.argv[1] + "/x.npz")
        network = torch.export.load(sys.argv[1] + "/net.pt2").module()
        logits = network(torch.from_numpy(data["raw"])).detach().numpy()
        assert abs(logits - data["expected"]).max() < 1e-5
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True, cwd=tmp_path)


def test_search_share_applies_to_time_left_after_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, forecast, check = [], Fitting.forecast, data_checks.check

    def forecast_and_record(self: Fitting, end: Deadline, *args: Any, **kwargs: Any) -> Any:
        planned = COMPARISON_SHARE if self.starters_only else self.plan.search_share
        shares.append((end.left / self.deadline.left, planned))
        return forecast(self, end, *args, **kwargs)

    def slow_check(problem: Any, deadline: Deadline) -> Any:
        time.sleep(0.5)  # in real time, like the time limit
        return check(problem, deadline)

    monkeypatch.setattr(data_checks, "check", slow_check)
    monkeypatch.setattr(Fitting, "forecast", forecast_and_record)
    ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=TINY).fit(*stripes(60), time_limit=2)
    ((share, planned),) = shares
    assert share == pytest.approx(planned, abs=0.02)


@pytest.mark.slow
def test_starters_get_more_time_than_planned_without_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all are compared even on a machine that is slower than measured."""
    monkeypatch.setattr(plan, "MIN_SEARCH_NETWORKS", 1000)  # no time limit allows a search
    first, second = cnn((1, 6, 6), 3, width=4), resnet((1, 6, 6), 3, width=4)
    requests: list[tuple[int, float]] = []  # number of trials and seconds left

    class Recording(RandomSearcher):
        def ask(self, trials: Sequence[Trial], budget: Budget) -> Proposal | None:
            requests.append((len(trials), budget.seconds))
            return super().ask(trials, budget)

    path = tmp_path / "run"
    classifier = ImageClassifier(path, search_type=Recording, initial_networks=[first, second], device="cpu")
    with pytest.warns(
        UserWarning, match="there is no time to search, so these settings have no effect: search_type=Recording"
    ):
        classifier.fit(*stripes(200), time_limit=12)
    searched = [trial.graph.key for trial in classifier.load_searcher().trials if not trial.final]
    assert searched == [first.key, second.key]
    assert [n for n, _ in requests] == [0, 1], "no further network, although there was time"
    planned = plan.Plan.of_run(load_about(path), morphnas.__version__)
    assert requests[0][1] > 1.5 * 12 * planned.search_share
    assert load_about(path)["expected"]["networks"] == 2


def test_starters_only_replaces_failed_starters() -> None:
    graph = cnn((1, 6, 6), 3, width=4)
    proposal = Proposal(graph, (), Recipe())
    searcher = StartersOnly(ScriptedSearcher([proposal] * 4), 2)
    failed = [Trial(i, proposal, graph, Outcome("failed")) for i in range(2)]
    budget = Budget(10.0)
    assert searcher.ask(failed, budget) is not None, "there is no network yet"
    assert searcher.ask([*failed, Trial(2, proposal, graph, Outcome("finished"), kept=True)], budget) is None
    assert searcher.ask([failed[0], Trial(1, proposal, graph)], budget) is None, "the open trial may still succeed"


def test_starters_only_drops_proposals_with_morphs() -> None:
    start = cnn((1, 6, 6), 3, width=4)
    done = Trial(0, Proposal(start, (), Recipe()), start, Outcome("finished"), kept=True)
    searcher = StartersOnly(ScriptedSearcher([Proposal(start, (Wider("conv_1", 8),), Recipe())] * 2), 2)
    assert searcher.ask([done], Budget(10.0)) is None
    assert searcher.ask([], Budget(10.0)) is not None, "better than no network"


def test_module_of_any_trial_matches_its_network(fitted_classifier: ImageClassifier) -> None:
    x, y = stripes(200, seed=2)
    raw, run = torch.from_numpy(x)[:, None], load_run(fitted_classifier.path_)
    for trial in [t for t in run.trials if t.kept][:3]:
        module, bare = fitted_classifier.to_module(trial.id), run.load_model_by_id(trial.id).to_module().eval()
        with torch.no_grad():
            logits = module(raw)
            mean, std = fitted_classifier._model.scale
            torch.testing.assert_close(logits, bare((raw.float() - mean) / std))
        if trial.outcome is not None and trial.outcome.metric is not None:
            accuracy = (logits.argmax(1).numpy() == y).mean()
            assert accuracy == pytest.approx(trial.outcome.metric, abs=0.25), "other examples of the same distribution"
    with pytest.raises(RunError, match="there is no model 999"):
        fitted_classifier.to_module(999)


def test_nearly_constant_feature_does_not_dominate(tmp_path: Path) -> None:
    """A feature that is 0 except in one training example, and a thousand times as large in the test examples."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = rng.normal(size=(400, 30)) + y[:, None]
    x[:, 5] = 0
    x[7, 5] = 1e-3
    classifier = ImageClassifier(tmp_path / "run", max_trials=2, random_state=0).fit(x[:300], y[:300], time_limit=10)
    x[:, 5] = 1.0
    assert classifier.evaluate(x[300:], y[300:]) > 0.8
    with torch.no_grad():
        logits = classifier.to_module()(torch.from_numpy(x))
    expected = torch.from_numpy(classifier.predict_proba(x))
    torch.testing.assert_close(logits.double().softmax(1), expected, rtol=0, atol=1e-5)


def test_model_trained_with_flips_averages_mirror_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions for an image and its mirror image are equal, also by the stored model."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 12)
    x, y = stripes(90)
    classifier = ImageClassifier(
        tmp_path / "run", max_trials=1, searcher_args={"trainer_args": {"augment": morphnas.Augment(flip=True)}}
    ).fit(x, y, time_limit=15)
    loaded = ImageClassifier.load(tmp_path / "run")
    for model in (classifier, loaded):
        assert model.mirrors_
        assert np.allclose(model.predict_proba(x), model.predict_proba(x[:, :, ::-1]), atol=1e-6)
    averaged = loaded._outputs([torch.from_numpy(x)[:, None]])
    loaded.mirrors_ = False
    separate = [loaded._outputs([torch.from_numpy(np.ascontiguousarray(a))[:, None]]) for a in (x, x[:, :, ::-1])]
    assert torch.allclose(averaged, torch.stack(separate).mean(0), atol=1e-5)
    assert not torch.allclose(separate[0], separate[1], atol=1e-3)


@pytest.mark.slow
def test_flip_is_decided_even_if_no_search_trial_measured_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enabled: mirror images of stripes are of the same class."""
    monkeypatch.setattr("morphnas.run.work.measure_mirrored", lambda outcome, *_: outcome)
    args = {"trainer_args": {"epochs": 20}}  # so that the network is accurate enough to decide
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=args)
    classifier.fit(*data, time_limit=40)
    (first, *_, last) = classifier.load_searcher().trials
    assert first.outcome is not None and first.outcome.mirrored is None
    assert last.final and last.proposal.recipe.augment.flip is True
    assert classifier.mirrors_


def test_rows_are_not_mirrored() -> None:
    y = np.arange(90) % 3
    rows = np.random.default_rng(0).normal(size=(90, 5)) + y[:, None] * np.arange(5)
    args = {"trainer_args": {"augment": morphnas.Augment(flip=True)}}
    classifier = ImageClassifier(max_trials=1, random_state=0, searcher_args=args).fit(rows, y, time_limit=15)
    assert not classifier.mirrors_


@pytest.mark.slow
def test_model_loads_in_fresh_process(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    x, _ = stripes(30, seed=3)
    np.savez(tmp_path / "x.npz", x=x, expected=fitted_classifier.predict_proba(x), labels=fitted_classifier.predict(x))
    script = """
        import sys, numpy, morphnas
        data = numpy.load(sys.argv[2])
        classifier = morphnas.ImageClassifier.load(sys.argv[1])
        assert (classifier.predict_proba(data["x"]) == data["expected"]).all()
        assert (classifier.predict(data["x"]) == data["labels"]).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), fitted_classifier.path_, str(tmp_path / "x.npz")]
    subprocess.run(command, check=True, cwd=Path(morphnas.__file__).parent.parent)


def test_final_fit_adds_trials_and_changes_no_others(
    fitted_classifier: ImageClassifier, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fitted_classifier.path_, copy)
    classifier = ImageClassifier.load(copy)
    before = {path: path.read_bytes() for path in (copy / "trials").rglob("*") if path.is_file()}
    x_test, y_test = stripes(60, seed=4)
    assert classifier.final_fit(*data, x_test, y_test, {"max_iter_num": 3}, retrain=True, time_limit=20) is classifier
    assert {path: path.read_bytes() for path in before} == before
    assert classifier.test_metric_ == classifier.evaluate(x_test, y_test)
    new = [t for t in load_run(copy).trials if t.id >= len({path.parent for path in before})]
    assert new
    assert all(t.final for t in new)
    assert new[0].parent is None, "retrain starts from fresh weights"
    assert max(t.epochs for t in new) == 3
    assert ImageClassifier.load(copy).final_trial_ == classifier.final_trial_
    degraded = f"trial {new[-1].scored_by}, which has not seen these, is used instead" in caplog.text
    assert classifier.final_trial_ == (new[-1].scored_by if degraded else new[-1].id)
    classifier.set_params(searcher_args={"trainer_args": {"lr": 0.007}})
    classifier.final_fit(*data, trainer_args={"epochs": 1, "batch_size": 32}, time_limit=10)
    assert not hasattr(classifier, "test_metric_"), "it belonged to the previous model"
    recipes = [t.proposal.recipe for t in load_run(copy).trials if t.id > new[-1].id]
    assert {recipe.batch_size for recipe in recipes} == {32}
    assert max(recipe.lr for recipe in recipes) == 0.007, "a learning rate that was set is kept"
    with pytest.raises(ValueError, match="fit did not see: 7"):
        classifier.final_fit(data[0], np.full(len(data[1]), 7))
    with pytest.raises(ValueError, match="both x_test and y_test"):
        classifier.final_fit(*data, x_test)
    with pytest.raises(ValueError, match=r"trainer_args: unknown \['epoch'\]"):
        classifier.final_fit(*data, trainer_args={"epoch": 3})


def test_final_fit_trains_any_trial_of_the_run(fitted_classifier: ImageClassifier, data: Data, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fitted_classifier.path_, copy)
    classifier = ImageClassifier.load(copy)
    run = load_run(copy)
    front = run.front("parameters")
    assert [t.graph.parameters for t in front] == sorted({t.graph.parameters for t in front})
    assert sorted(t.score for t in front if t.score is not None) == [t.score for t in front]
    other = next(t for t in run.trials if t.kept and not t.final and t.id != classifier.best_trial_)
    classifier.final_fit(*data, time_limit=5, trial=other.id)
    assert classifier.best_trial_ == other.id
    assert classifier.network_.graph.key == other.graph.key
    assert load_run(copy).trial(classifier.final_trial_).proposal.why["of"] == other.id
    assert ImageClassifier.load(copy).best_trial_ == load_run(copy).get_best_model_id() == other.id
    message = f"the model is network {classifier.final_trial_}, which is network {other.id} after"
    assert message in str(classifier.results_summary(1)), "even if other networks have better scores"
    for unknown in (1000, [1], "1"):
        with pytest.raises(RunError, match=r"no trial .*1.* in"):
            classifier.final_fit(*data, trial=unknown)  # type: ignore[arg-type]
    (copy / "trials" / f"{front[0].id:05d}" / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="weights"):
        classifier.final_fit(*data, trial=front[0].id)
    with pytest.raises(ValueError, match="cost must be one of"):
        run.front("size")


@pytest.mark.slow
def test_equal_seeds_give_equal_runs(tmp_path: Path) -> None:
    runs = []
    args = {**TINY, "trainer_args": {"epochs": 2, "precision": "float32"}}
    for name in ("a", "b"):
        ImageClassifier(tmp_path / name, max_trials=5, random_state=3, searcher_args=args).fit(*stripes(60))
        runs.append([
            (t.id, t.proposal.start, t.proposal.morphs, t.outcome.score)  # type: ignore[union-attr]
            for t in load_run(tmp_path / name).trials
        ])  # fmt: skip
    assert runs[0] == runs[1]


def test_settings_may_be_numpy_numbers(tmp_path: Path) -> None:
    numbers = {"max_trials": 1, "random_state": 3, "axes": 2, "keep": 1, "ensemble": 1, "max_memory": 10**9}
    sizes = {"default_model_width": 4, "trainer_args": {"epochs": 1}}
    args: dict[str, Any] = {name: np.int64(number) for name, number in numbers.items()}
    args |= {"limits": {"max_params": np.int64(10**5)}, "searcher_args": sizes, "refit": np.False_}
    ImageClassifier(tmp_path / "run", **args, time_limit=np.float32(9)).fit(*stripes(60))  # type: ignore[arg-type]
    args |= numbers | {"limits": {"max_params": 10**5}, "refit": False}
    ImageClassifier(tmp_path / "run", **args, resume=True).fit(*stripes(60), time_limit=9)
    assert len(load_run(tmp_path / "run").trials) == 1


def test_tilde_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    classifier = ImageClassifier("~/run", max_trials=1, searcher_args=TINY, refit=False)
    assert classifier.fit(*stripes(60)).path_ == str(tmp_path / "home" / "run")
    assert classifier.set_params(resume=True).fit(*stripes(60), time_limit=9).path == "~/run"
    run = load_run("~/run")
    np.savez(tmp_path / "home" / "data.npz", x=stripes(3)[0])
    assert main(["predict", "~/run", "~/data.npz"]) == 0
    legacy.ImageClassifier.load("~/run").export_autokeras_model("~/output/exported")
    assert legacy.pickle_from_file("~/output/exported").network_.graph == morphnas.load("~/run").network_.graph
    for write, name in (
        (morphnas.write_report, "page.html"),
        (morphnas.bundle, "run.zip"),
        (morphnas.draw, "tree.dot"),
    ):
        write("~/run", f"~/output/{name}")
    morphnas.export("~/run", "~/output/net.py")
    morphnas.compare_runs(["~/run", replace(run, path=tmp_path / "copy")]).draw("~/output/curves.svg")
    with contextlib.suppress(morphnas.GraphvizMissing):
        morphnas.visualize(run, "~/output/graphs")
    expected = {"page.html", "run.zip", "tree.dot", "net.py", "net.safetensors", "curves.svg", "graphs", "exported"}
    assert {path.name for path in (tmp_path / "home" / "output").iterdir()} == expected
    with pytest.raises(ValueError, match=rf"{tmp_path}/home/photos' is not a folder of images"):
        classifier.predict("~/photos")
    with pytest.raises(OSError, match=f"{tmp_path}/home/list.csv"):
        morphnas.load_image_dataset("~/list.csv", "~/photos")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_run_of_another_version_loads_but_does_not_resume(tmp_path: Path) -> None:
    path, data = tmp_path / "run", stripes(60)
    ImageClassifier(path, max_trials=1, searcher_args=TINY, refit=False).fit(*data)
    about = json.loads((path / "run.json").read_text())
    assert about["versions"]["morphnas"] == morphnas.__version__
    about["versions"]["morphnas"] = "0.0.1"
    about["plan"].pop("searches")
    (path / "run.json").write_text(json.dumps(about))
    message = r"another version of morphnas \(0\.0\.1, this is .*searches missing.*load still reads its model"
    with pytest.raises(RunError, match=message):
        ImageClassifier(path, resume=True, max_trials=1, searcher_args=TINY).fit(*data)
    loaded = ImageClassifier.load(path)
    assert loaded.predict(data[0]).shape == (60,)
    with pytest.raises(RunError, match=message):
        loaded.final_fit(*data, time_limit=2)
    assert load_run(path).load_model_by_id(0).graph == loaded.network_.graph


def test_resume_continues_run_on_same_data(tmp_path: Path) -> None:
    path, data = tmp_path / "run", stripes(60)
    first = ImageClassifier(path, resume="auto", max_trials=2, random_state=1, searcher_args=TINY).fit(*data)
    with pytest.raises(RunError, match=r"resume=True continues it, overwrite=True replaces it"):
        ImageClassifier(path, max_trials=2).fit(*data)
    x, y = data
    with pytest.raises(RunError, match="other data"):
        ImageClassifier(path, resume=True, max_trials=2, searcher_args=TINY).fit(x[:-1], y[:-1])
    before = load_run(path).trials
    second = ImageClassifier(path, resume=True, max_trials=4, searcher_args=TINY).fit(*data)
    after = load_run(path).trials
    assert after[: len(before)] == before
    assert sum(not t.final for t in after) == 4
    assert first.classes_.tolist() == second.classes_.tolist()
    with pytest.raises(RunError, match="no run to resume"):
        ImageClassifier(tmp_path / "empty", resume=True).fit(*data)
    ImageClassifier(path, overwrite=True, max_trials=1, searcher_args=TINY, refit=False).fit(*data)
    assert len(load_run(path).trials) == 1


def test_model_is_not_replaced_by_shorter_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, data = tmp_path / "run", stripes(200)
    settings: dict[str, Any] = {"random_state": 1, "searcher_args": TINY, "keep": 1, "max_trials": 1}
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 12)
    first = ImageClassifier(path, **settings).fit(*data, time_limit=20)
    files = {file: file.read_bytes() for file in (path / "model").iterdir()}
    assert first.final_trial_ != first.best_trial_

    def is_unchanged(classifier: ImageClassifier) -> bool:
        same_files = {file: file.read_bytes() for file in (path / "model").iterdir()} == files
        logged = f"trial {first.final_trial_} stays the model" in caplog.text
        caplog.clear()
        load_run(path).load_model_by_id(first.final_trial_)  # its weights are still there
        ids = (classifier.best_trial_, classifier.final_trial_)
        return same_files and logged and ids == (first.best_trial_, first.final_trial_)

    with monkeypatch.context() as patch:
        patch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 3)
        assert is_unchanged(ImageClassifier(path, **settings, resume=True).fit(*data, time_limit=9))
        assert is_unchanged(morphnas.load(path).final_fit(*data, time_limit=9))
    assert is_unchanged(ImageClassifier(path, **settings, resume=True, refit=False).fit(*data, time_limit=9))
    with monkeypatch.context() as patch:  # no final training takes place
        patch.setattr(Final, "run", lambda final: final.winner)
        with pytest.warns(UserWarning, match="nothing was trained: there was no time for a batch"):
            assert is_unchanged(morphnas.load(path).final_fit(*data, time_limit=9))
    other = morphnas.load(path).final_fit(*data, trainer_args={"epochs": 2}, time_limit=9)
    assert other.final_trial_ != first.final_trial_, "the number of epochs was requested"
    assert not path.joinpath("trials", f"{first.final_trial_:05d}", "weights.safetensors").exists()
    (path / "model" / "model.json").write_text("{}")
    resumed = ImageClassifier(path, **settings, resume=True).fit(*data, time_limit=9)
    assert resumed.score(*data) == morphnas.load(path).score(*data), "a damaged model is replaced"


@pytest.mark.parametrize("search", [*SEARCHERS, morphnas.RandomSearcher])
def test_fit_with_every_search_type(data: Data, tmp_path: Path, search: Any) -> None:
    classifier = ImageClassifier(tmp_path / "run", search_type=search, max_trials=6, searcher_args=TINY, refit=False)
    classifier.fit(*data)
    assert classifier.best_trial_ == classifier.final_trial_
    assert len(classifier.load_searcher().trials) == 6


def test_search_starts_from_initial_networks(data: Data, tmp_path: Path) -> None:
    graphs = [cnn((1, 6, 6), 3, width=3, depth=1), mlp((1, 6, 6), 3, width=5)]
    classifier = ImageClassifier(
        tmp_path / "run", initial_networks=graphs, search_type="random", max_trials=4, searcher_args=TINY, refit=False
    )
    trials = classifier.fit(*data).load_searcher().trials
    assert [t.proposal.start for t in trials[:2]] == graphs
    assert all(t.parent in (0, 1, 2) for t in trials[2:])


@pytest.mark.slow
def test_no_network_exceeds_limits(data: Data, tmp_path: Path) -> None:
    limits = Limits(max_params=3000, max_depth=5, morphs=("deeper", "wider"))
    classifier = ImageClassifier(tmp_path / "run", limits=limits, max_trials=7, random_state=0, searcher_args=TINY)
    classifier.fit(*data)
    for trial in classifier.load_searcher().trials:
        assert limits.violation(trial.graph) is None
        assert all(morph.tag in limits.morphs for morph in trial.proposal.morphs)
    message = r"no first network meets them; the smallest one has [\d,]+ parameters"
    with pytest.raises(ValueError, match=message) as error:
        ImageClassifier(limits={"max_params": 10}).fit(*data)
    minimum = int(str(error.value).partition(" has ")[2].partition(" parameters")[0].replace(",", ""))
    smallest = ImageClassifier(limits={"max_params": minimum}, max_trials=1, refit=False).fit(*data, time_limit=5)
    assert smallest.network_.graph.parameters <= minimum
    with pytest.raises(ValueError, match=r"limits: unknown \[3, 'max_param'\]"):
        ImageClassifier(limits={"max_param": 3, 3: 4}).fit(*data, time_limit=1)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"limits: unknown .'max_param'"):
        ImageClassifier(limits={"max_param": 10}).fit(*data)


def test_tight_limits_are_met_without_time_to_search(data: Data, tmp_path: Path) -> None:
    """Limits that exclude the starters which are small enough to leave time for a search."""
    classifier = ImageClassifier(tmp_path / "run", limits={"max_params": 500}, random_state=0)
    assert classifier.fit(*data, time_limit=3).network_.graph.parameters <= 500


@pytest.mark.parametrize("limit", [1e-4, 0.02, 0.3, 2.0])
def test_short_time_limit_gives_usable_model(data: Data, tmp_path: Path, limit: float) -> None:
    classifier = ImageClassifier(tmp_path / "run", random_state=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the time limit was too short")
        classifier.fit(*data, time_limit=limit)
    assert time.perf_counter() - start < limit + 3  # it ends within seconds; benchmarks measure how precisely
    probabilities = classifier.predict_proba(data[0])
    assert probabilities.shape == (150, 3)
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    ("shape", "options"),
    [((5,), {}), ((1,), {}), ((1, 1), {}), ((7, 5), {}), ((6, 6, 3), {}), ((36,), {"image_shape": (6, 6)}),
     ((108,), {"image_shape": (6, 6, 3)})],
)  # fmt: skip
def test_fit_accepts_examples_of_any_shape(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, *shape)) + 3 * y.reshape(-1, *[1] * len(shape))
    classifier = ImageClassifier(tmp_path / "run", max_trials=5, random_state=0, searcher_args=TINY, **options)
    assert classifier.fit(x, y).predict(x).shape == (60,)
    module = classifier.to_module()
    raw = classifier._model.preprocessing(Source.of(x, "x"))
    assert torch.allclose(
        module(raw).double().softmax(1), torch.from_numpy(classifier.predict_proba(x)), rtol=0, atol=1e-5
    )


def test_validation_data_is_not_trained_on(data: Data, tmp_path: Path) -> None:
    validation_data = stripes(45, seed=8)
    classifier = ImageClassifier(tmp_path / "run", max_trials=2, random_state=0, searcher_args=TINY)
    classifier.fit(*data, validation_data=validation_data)
    trials = classifier.load_searcher().trials
    assert all(t.outcome.examples == 45 for t in trials if t.score is not None)  # type: ignore[union-attr]
    assert not any(t.proposal.why.get("final") == "everything" for t in trials)
    with pytest.raises(ValueError, match=r"validation_data must be \(x, y\) or"):
        ImageClassifier().fit(*data, validation_data=validation_data[0])


def test_split_sizes_and_strata() -> None:
    y = np.repeat(np.arange(10), 100)
    parts = split(y, 0)
    assert parts.valid is not None
    assert parts.selection_set is not None
    assert sorted(np.concatenate([parts.train, parts.valid, parts.selection_set])) == list(range(1000))
    assert len(parts.valid) == len(parts.selection_set) == 75
    assert (np.bincount(y[parts.train]) == 85).all()
    small = split(np.arange(100) % 4, 0)
    assert small.selection_set is None
    assert small.valid is not None
    assert len(small.valid) == 15
    assert split(np.arange(49) % 4, 0).valid is None
    assert split(np.append(np.zeros(49, int), 1), 0).valid is None
    single = np.array([7, 500])
    y[single] = [10, 12]
    for groups in (None, np.arange(len(y)) // 2):
        parts = split(y, 0, groups)
        assert parts.valid is not None
        assert parts.selection_set is not None
        assert sorted(np.concatenate([parts.train, parts.valid, parts.selection_set])) == list(range(1000))
        assert set(single) <= set(parts.train), "the only example of a class is trained on"
        assert 140 <= len(parts.valid) + len(parts.selection_set) <= 160
    assert split(np.arange(100), 0).train.tolist() == list(range(100))
    assert len(split(np.arange(100_000) % 4, 0).train) == 95_000


def test_works_with_scikit_learn_tools(data: Data, tmp_path: Path) -> None:
    x, y = data
    quick = ImageClassifier(max_trials=1, random_state=0, searcher_args=TINY, refit=False)
    assert clone(quick).get_params() == quick.get_params()
    assert cross_val_score(quick, x, y, cv=2).shape == (2,)
    grid = GridSearchCV(quick, {"augment": [False, None]}, cv=2).fit(x, y)
    assert grid.best_score_ > 0.3
    rows = x.reshape(len(x), -1)[:, :20]
    assert make_pipeline(StandardScaler(), quick).fit(rows, y).predict(rows).shape == (150,)
    assert CalibratedClassifierCV(quick, cv=2).fit(x[:, 0], y).predict_proba(x[:, 0]).shape == (150, 3)
    with pytest.raises(NotFittedError):
        clone(quick).predict(x)


def test_module_is_built_once_for_all_predictions(
    fitted_classifier: ImageClassifier, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, converted, to_module = pickle.loads(pickle.dumps(fitted_classifier)), list[Network](), Network.to_module

    def count_and_convert(network: Network) -> fx.GraphModule:
        converted.append(network)
        return to_module(network)

    monkeypatch.setattr(Network, "to_module", count_and_convert)
    for _ in range(3):
        assert np.array_equal(copy.predict_proba(data[0][:5]), fitted_classifier.predict_proba(data[0][:5]))
    assert len(converted) <= 2, "one for each estimator"
    assert len(pickle.dumps(copy)) == len(pickle.dumps(pickle.loads(pickle.dumps(fitted_classifier)))), (
        "pickled without module"
    )


def test_constant_prediction_warning_only_for_useless_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = stripes(300)
    settings: dict[str, Any] = {"max_trials": 1, "random_state": 0, "refit": False, "device": "cpu"}
    args = {"default_model_width": 4, "default_model_len": 1, "trainer_args": {"epochs": 6}}
    ImageClassifier(tmp_path / "run", **settings, searcher_args=args).fit(x, y, time_limit=20)
    assert "constant prediction" not in caplog.text
    rng = np.random.default_rng(0)
    noise, y = rng.normal(size=(300, 6, 6)), (rng.random(300) < 0.8).astype(int)
    args["trainer_args"] = {"epochs": 1, "lr": 1e-8}
    ImageClassifier(tmp_path / "other", **settings, searcher_args=args).fit(noise, y, time_limit=20)
    assert "no network is better than a constant prediction, which has accuracy 0.8" in caplog.text


@pytest.mark.parametrize(
    ("side", "seconds", "given", "warns"),
    [(64, 2.0, False, True), (64, 2000.0, False, False), (32, 2.0, False, False), (64, 2.0, True, False)],
)
def test_images_too_large_for_time_limit_are_reported(
    side: int, seconds: float, given: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A training step takes 0.1 seconds. given: whether a network is trained already."""
    graph = cnn((1, side, side), 2, width=2, depth=1)
    task = SimpleNamespace(train=range(24))
    problem = SimpleNamespace(preprocessing=SimpleNamespace(shape=(1, side, side)), task=task)
    planned = SimpleNamespace(recipe=Recipe(batch_size=64), starts=(graph,), seconds_per_flop=0.1 / graph.work)
    settings = SimpleNamespace(networks=[graph] * given)
    args: Any = (None, problem, planned, settings, 0, Clock().deadline(seconds), True)
    Fitting(*args).warn_of_large_images()
    message = "there is time for about 20 training steps on images of 64x64, which hardly train a network"
    assert (message in caplog.text) is warns


def test_estimator_pickles_but_run_holds_no_pickle(fitted_classifier: ImageClassifier, data: Data) -> None:
    copy = pickle.loads(pickle.dumps(fitted_classifier))
    assert (copy.predict_proba(data[0]) == fitted_classifier.predict_proba(data[0])).all()
    for path in Path(fitted_classifier.path_).rglob("*"):
        if path.is_file() and path.suffix == ".json":
            json.loads(path.read_text())
        elif path.is_file():
            assert path.suffix == ".safetensors" or path.name in ("lock", "holder")


def test_column_names_must_match_those_of_fit(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), columns=list("abc"))
    y = (x["a"] > 0).to_numpy()
    args: dict[str, Any] = {"max_trials": 1, "random_state": 0, "refit": False}
    classifier = ImageClassifier(tmp_path / "run", **args).fit(x, y, time_limit=5)
    for model in (classifier, ImageClassifier.load(tmp_path / "run")):
        assert model.feature_names_in_.tolist() == ["a", "b", "c"]
        assert (model.predict(x) == model.predict(x.to_numpy())).all()
        for frame, difference in (
            (x[["c", "b", "a"]], "has the same columns in another order, first 'c' where that had 'a'"),
            (x.rename(columns={"c": "d"}), "lacks the column 'c' and has the column 'd' besides"),
            (x[["a", "b"]], "lacks the column 'c'"),
            (x[["b"]], "lacks the columns 'a', 'c'"),
            (x.assign(d=0, e=0), "has the columns 'd', 'e' besides"),
            (x[["a", "b", "c", "a"]], "has the column 'a' besides"),
            (x.assign(**{f"z{i}": 0 for i in range(8)}), "'z0', 'z1', 'z2', 'z3', 'z4' and 3 others besides"),
        ):
            with pytest.raises(ValueError, match=f"feature names should match .* {difference}$"):
                model.predict(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        ImageClassifier(**args).fit(x, y, validation_data=(x[["c", "b", "a"]], y), time_limit=5)


@pytest.mark.parametrize(
    "y",
    [np.array([0, 1] * 30, dtype=object), [(0, "a"), (1, "b")] * 30, [b"a", b"b"] * 30],
    ids=["object", "tuple", "bytes"],
)
def test_score_accepts_labels_of_any_type(y: Any, tmp_path: Path) -> None:
    x, _ = stripes(60)
    args: dict[str, Any] = {"max_trials": 1, "random_state": 0, "refit": False, "time_limit": 4}
    classifier = ImageClassifier(tmp_path / "run", **args).fit(x, y)
    weights = np.arange(60)
    assert classifier.score(x, y) == classifier.evaluate(x, y)
    assert classifier.score(x, y, weights) == pytest.approx(classifier.evaluate(x, y, weights))
    assert classifier.score(x, ["another"] * 60) == 0
    if not isinstance(y[0], bytes):  # scikit-learn rejects bytes
        assert np.isfinite(cross_val_score(ImageClassifier(**args), x, y, cv=2)).all()


def test_failed_fit_discards_previous_model(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args: dict[str, Any] = {"max_trials": 1, "random_state": 0, "refit": False}
    classifier = ImageClassifier(tmp_path / "one", **args)
    classifier.fit(np.random.default_rng(0).normal(size=(60, 4)), [0, 1] * 30, time_limit=4)
    assert classifier.n_features_in_ == 4
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "finish", lambda *_: (_ for _ in ()).throw(RunError("the disk is full")))
        with pytest.raises(RunError, match="full"):
            classifier.set_params(path=tmp_path / "other").fit(*data, time_limit=4)
    assert classifier.path_ == str(tmp_path / "other")
    for use in (classifier.load_searcher, classifier.to_module, lambda: classifier.predict(data[0])):
        with pytest.raises(NotFittedError):
            use()
    with pytest.raises(NotFittedError):
        check_is_fitted(classifier)
    classifier.set_params(overwrite=True).fit(*data, time_limit=4)
    assert not hasattr(classifier, "n_features_in_")


def test_load_restores_settings(data: Data, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limits": {"max_latency_ms": 1000.0}, "keep": 2, "image_size": 5, "augment": True}
    settings |= {"time_limit": 4.0, "random_state": 7}
    ImageClassifier(tmp_path / "run", max_trials=1, refit=False, **settings).fit(*data)
    loaded = ImageClassifier.load(tmp_path / "run")
    assert {name: loaded.get_params(deep=False)[name] for name in settings} == settings | {"limits": loaded.limits}
    assert Settings.of(loaded).limits.max_latency_ms == 1000
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    damaged = about | {"settings": about["settings"] | {"time_limit": "long", "random_state": "RandomState(MT19937)"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(damaged))
    loaded = ImageClassifier.load(tmp_path / "run")
    assert loaded.time_limit is loaded.random_state is None
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"settings": ["invalid"]}))
    assert ImageClassifier.load(tmp_path / "run").keep == "all"


def test_default_learning_rate_depends_on_optimizer() -> None:
    data = stripes(400)  # more than a batch of 256

    def recipe(**args: Any) -> Recipe:
        return ImageClassifier(searcher_args={"trainer_args": args}).search_space_summary(*data, time_limit=5).recipe

    assert recipe().lr == pytest.approx(0.1) == recipe(optimizer="sgd").lr
    assert recipe(optimizer="adamw").lr == pytest.approx(0.02)
    assert recipe(optimizer="adamw", batch_size=256).lr == pytest.approx(0.04)
    assert recipe(optimizer="adamw", lr=0.003).lr == 0.003
    assert recipe().lr_examples == recipe(batch_size=256).lr_examples == MUON_FULL_RATE_EXAMPLES
    for other in (recipe(optimizer="sgd"), recipe(optimizer="adamw", batch_size=32), recipe(lr=0.1)):
        assert other.lr_examples is None
    assert recipe(lr=0.1, lr_examples=50).lr_examples == 50


def test_search_type_is_called_with_keyword_arguments(data: Data, tmp_path: Path) -> None:
    def make(space: Any, *, seed: int, limits: Limits, recipe: Recipe) -> RandomSearcher:
        return RandomSearcher(space, recipe, limits, seed)

    classifier = ImageClassifier(tmp_path / "run", search_type=make, max_trials=2, refit=False)
    classifier.search_space_summary(*data, time_limit=5)
    assert len(classifier.fit(*data, time_limit=5).history) == 2


def test_reports_accept_estimator_run_or_folder(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    for source in (fitted_classifier, fitted_classifier.load_searcher(), fitted_classifier.path_):
        assert str(morphnas.explain(source)) == str(morphnas.explain(fitted_classifier))
        assert morphnas.write_report(source, tmp_path / "page.html").exists()
        assert morphnas.draw(source, tmp_path / "tree.dot").exists()
        copy = replace(fitted_classifier.load_searcher(), path=tmp_path / "copy")
        assert len(morphnas.compare_runs([source, copy]).runs) == 2


def _numpy_state() -> Any:
    return np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002


def test_fit_keeps_threads_random_states_and_log_handlers(tmp_path: Path) -> None:
    threads, torch_state, numpy_state = torch.get_num_threads(), torch.get_rng_state(), _numpy_state()
    handlers = list(logging.getLogger().handlers)
    ImageClassifier(tmp_path / "run", max_trials=5, searcher_args=TINY).fit(*stripes(60))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (_numpy_state() == numpy_state).all()
    assert logging.getLogger().handlers == handlers


def test_verbose_logs_progress_to_stderr(data: Data, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ImageClassifier(tmp_path / "quiet", max_trials=1, searcher_args=TINY, refit=False).fit(*data)
    assert capfd.readouterr() == ("", "")
    ImageClassifier(tmp_path / "loud", verbose=True, max_trials=1, searcher_args=TINY, refit=False).fit(*data)
    out, err = capfd.readouterr()
    assert not out
    assert "trial 0: start" in err
    assert "accuracy" in err
    assert "\r" not in err, "whole lines, as for a log file"


# -- memory


def test_max_memory_bounds_networks_and_micro_batches(data: Data, tmp_path: Path) -> None:
    limit = 600_000
    classifier = ImageClassifier(tmp_path / "run", max_trials=4, random_state=0, max_memory=limit, refit=False)
    classifier.fit(*data, time_limit=15)
    trials = classifier.load_searcher().trials
    for trial in trials:
        assert trial.graph.peak_bytes(8) <= limit
    trained = [(t.graph, t.outcome.micro_batch) for t in trials if t.outcome is not None and t.outcome.micro_batch]
    for graph, n in trained:
        assert graph.peak_bytes(n) <= limit < graph.peak_bytes(2 * n), "as many examples as the limit allows"
    assert trained
    assert classifier.score(*data) > 0.6


def test_max_memory_below_all_starters_is_rejected(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no first network meets them; the smallest one has .* bytes of memory"):
        ImageClassifier(tmp_path / "run", max_memory=1000).fit(*data, time_limit=5)
    assert not (tmp_path / "run").exists()


# -- ensembles


@pytest.mark.slow
def test_ensemble_predicts_as_one_network(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def select_two(store: Store, final: Trial, *_: object, **__: object) -> dict[int, float]:
        other = next(trial.id for trial in store.trials if trial.kept and trial.id != final.id)
        return {final.id: 0.75, other: 0.25}

    x, _ = data
    settings: dict[str, Any] = {"max_trials": 4, "random_state": 0, "refit": False}
    with monkeypatch.context() as patch:
        patch.setattr("morphnas.estimators.fitting.select_members", select_two)
        classifier = ImageClassifier(tmp_path / "run", **settings, ensemble=2).fit(*data, time_limit=30)
    assert sorted(classifier.members_.values()) == [0.25, 0.75]
    assert classifier.members_[classifier.final_trial_] == 0.75
    run = load_run(tmp_path / "run")
    assert classifier.network_.graph.parameters > sum(run.trial(id).graph.parameters for id in classifier.members_)
    probabilities = classifier.predict_proba(x)
    loaded = ImageClassifier.load(tmp_path / "run")
    assert loaded.members_ == classifier.members_
    assert np.array_equal(loaded.predict_proba(x), probabilities)
    module = classifier.to_module()
    assert np.allclose(module(torch.from_numpy(x[:, None])).softmax(1).detach().numpy(), probabilities, atol=1e-5)
    assert morphnas.export(tmp_path / "run", tmp_path / "net.py").error < 1e-4
    assert "An ensemble predicts: with it, network" in morphnas.write_report(tmp_path / "run").read_text()

    resumed = ImageClassifier(tmp_path / "run", **settings, resume=True).fit(*data, time_limit=5)
    assert resumed.members_ == {resumed.final_trial_: 1.0}
    resumed.set_params(ensemble=2).final_fit(*data, time_limit=1)
    assert len(resumed.members_) <= 2


@pytest.mark.parametrize("size", [1, 2])
def test_ensemble_needs_score_of_final_network(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    needs_score: list[bool] = []

    def run(final: Final) -> Trial:
        needs_score.append(final.needs_score)
        return final.winner

    monkeypatch.setattr(Final, "run", run)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, ensemble=size).fit(*data, time_limit=5)
    with pytest.warns(UserWarning, match="nothing was trained"):
        classifier.final_fit(*data, time_limit=1)
    assert needs_score == [size > 1] * 2


# -- time and calibration at the end of a fit


def test_final_trainings_leave_time_to_save_model() -> None:
    def seconds_reserved(width: int, seconds: float = 600.0) -> float:
        graph, clock = mlp((1000,), 10, width=width), Clock()
        trial = Trial(
            0, Proposal(graph, (), Recipe()), graph, Outcome("finished", 0.5, epochs=1, images_per_second=1e9)
        )
        return seconds - deadline_before_saving(clock.deadline(seconds), trial, 0).left

    assert 0.5 <= seconds_reserved(8) < 0.51
    assert 2.0 < seconds_reserved(5000) < 3.0  # 120 MB
    assert seconds_reserved(5000, seconds=1.0) < 0.15, "about a tenth of a short time at most"


@pytest.mark.parametrize(
    ("scale", "wrong", "bounds"),
    [
        (8.0, 0, [(1.2, 4.0), (1.0, 1.0), (1.0, 1.0)]),
        (1.0, 0, [(0.25, 0.5), (0.25, 0.5), (0.5, 0.75)]),
        (8.0, 10, [(2.0, 4.0), (2.0, 4.0), (1.4, 2.0)]),
    ],
)
def test_proxy_temperature_has_less_effect_after_fewer_epochs(
    scale: float, wrong: int, bounds: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that are confident and right on 30 examples, which may be chance; unsure and right; confident and wrong.

    bounds: for the final network itself, and for proxies trained for 6 epochs and for 1.
    """
    y = torch.arange(30) % 3
    predicted = y.clone()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    held_out = Examples(torch.zeros(30, 4), y)
    task = Task(held_out, held_out, Classification(3), torch.zeros(4), torch.ones(4))
    monkeypatch.setattr(
        "morphnas.estimators.fitting.predict",
        lambda *_, **__: scale * torch.nn.functional.one_hot(predicted, 3).double(),
    )
    graph = mlp((4,), 3, width=2)
    network = Network(graph, fresh_weights(graph, torch.Generator().manual_seed(0)))
    temperatures = [calibration_temperature(network, task, False, NEVER, epochs) for epochs in (None, 6, 1)]
    for temperature, (low, high) in zip(temperatures, bounds, strict=True):
        assert low <= temperature <= high


def test_mirrored_predictions_count_twice(data: Data) -> None:
    problem = Problem.infer(*data, None, None, 0, torch.device("cpu"))
    plain, mirrored = (predictions_at_end(problem, Recipe(augment=Augment(flip=flip)), 1) for flip in (False, True))
    assert mirrored == 2 * plain > 0


@pytest.mark.parametrize(("seconds", "reserved"), [(10.0, 0.2), (3600.0, 0.5)])
def test_search_without_final_training_leaves_time_to_save(seconds: float, reserved: float) -> None:
    unused: Any = None
    fitting = Fitting(unused, unused, unused, unused, 0, Clock().deadline(seconds), refit=False)
    assert fitting.search_end().left == pytest.approx(seconds - reserved)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"search_type": "random"}, "search_type='random'"),
        ({"searcher_args": {"trainer_args": {"lr": (0.1, 0.5)}}}, r"ranges in trainer_args \(lr\)"),
        ({"limits": {"morphs": ("deeper",)}}, "limits of morphs"),
    ],
)
def test_search_settings_without_time_to_search_warn(
    settings: dict[str, Any], names: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MIN_SEARCH_NETWORKS", 1000)
    with pytest.warns(UserWarning, match=f"there is no time to search, so these settings have no effect: {names}"):
        ImageClassifier(tmp_path / "run", device="cpu", **settings).fit(*data, time_limit=2)


# -- final fits


def test_final_fit_checks_its_data(tmp_path: Path) -> None:
    """It warns of problems that the fit did not warn of."""
    x, y = stripes(300)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=TINY, device="cpu", refit=False)
    classifier.fit(x, y, time_limit=10)
    classifier.final_fit(x, y, time_limit=0.5)
    with pytest.warns(morphnas.DataWarning, match="class 2 has no example in x any more"):
        classifier.final_fit(x[y != 2], y[y != 2], time_limit=0.5)
    with pytest.raises(ValueError, match="there is one example only: there is nothing to learn from x"):
        classifier.final_fit(x[:1], y[:1], time_limit=0.5)


def test_final_fit_does_not_score_on_examples_seen_by_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a final fit holds out other examples than the fit, only trainings from fresh weights can be scored."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 6)
    x, y = stripes(300)
    held_out = stripes(60, seed=1)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=TINY, device="cpu", refit=False)
    classifier.fit(x, y, time_limit=10, validation_data=held_out)
    measured: list[int | None] = []

    def temperature(network: Network, task: Task, mirrors: bool, deadline: Deadline, epochs: int | None) -> float:
        measured.append(epochs)
        return 2.0

    def kinds(start: int) -> set[str]:
        """The kinds of the final trainings from that trial on."""
        return {trial.proposal.why["final"] for trial in load_run(classifier.path_).trials[start:]}

    monkeypatch.setattr("morphnas.estimators.fitting.calibration_temperature", temperature)
    before, n_before = classifier._model.temperature, len(load_run(classifier.path_).trials)
    both = np.concatenate([x, held_out[0]]), np.concatenate([y, held_out[1]])
    for other_x, other_y in ((x, y), (x[::-1], y[::-1]), both):
        classifier.final_fit(other_x, other_y, time_limit=10)
        assert kinds(n_before) == {"everything"}
        assert (measured, classifier._model.temperature) == ([], before)
    classifier.final_fit(x, y, retrain=True, time_limit=10)
    assert "fresh" in kinds(n_before)
    assert classifier._model.temperature == 2.0
    last = load_run(classifier.path_).trials[-1]
    classifier.final_fit(x, y, trial=last.id, time_limit=10)
    assert kinds(last.id + 1) == {"everything"}


@pytest.mark.parametrize("args", [{"batch_size": 100_000}, {"batch_size": 100_000, "lr": 0.1}])
def test_batch_size_is_limited_by_number_of_examples(
    args: dict[str, Any], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the learning rate for that batch size, and a final training."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 20)
    settings: dict[str, Any] = {"default_model_width": 4, "trainer_args": args}
    classifier = ImageClassifier(tmp_path / "run", searcher_args=settings, max_trials=1, device="cpu", random_state=0)
    classifier.fit(*data, time_limit=20)
    trials = load_run(classifier.path_).trials
    n = trials[0].proposal.recipe.batch_size
    assert n < len(data[0])
    assert all(trial.proposal.recipe.batch_size == n for trial in trials)
    assert trials[0].proposal.recipe.lr == args.get("lr", default_learning_rate("muon", n))
    assert classifier.final_trial_ != classifier.best_trial_
    assert classifier.score(*data) > 0.8


def test_starter_without_an_epoch_is_trained_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a final fit, and by a resumed fit: if there was no time for its first epoch, no other network is tried."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 8)
    x, y = stripes(300)
    starts = [cnn((1, 6, 6), 3, width=8, depth=2)]
    settings: dict[str, Any] = {"initial_networks": starts, "random_state": 0, "device": "cpu"}
    with pytest.warns(UserWarning, match="the time limit was too short to score a network: the model is hardly train"):
        classifier = ImageClassifier(tmp_path / "run", **settings).fit(x, y, time_limit=0.01)
    first = load_run(classifier.path_).trial(classifier.final_trial_)
    assert first.outcome is not None
    assert first.outcome.epochs == 0
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    classifier.final_fit(x, y, trainer_args={"epochs": 8}, time_limit=60)
    assert classifier.score(x, y) > 0.9
    resumed = ImageClassifier(tmp_path / "other", resume=True, **settings).fit(x, y, time_limit=20)
    assert resumed.score(x, y) > 0.9


def test_final_fit_on_other_data_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks normalise by their own training data; Pareto fronts hold scores on the data of the search only."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 4)
    x, y = stripes(300)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=TINY, device="cpu", refit=False)
    classifier.fit(x, y, time_limit=20)
    raw, before, classifier.mirrors_ = torch.from_numpy(x)[:, None], load_run(classifier.path_), False
    logits, front = classifier.to_module()(raw) * classifier._model.temperature, before.front()
    classifier.final_fit(x // 4, y, retrain=True, time_limit=20)
    scored = [trial for trial in load_run(classifier.path_).trials if trial.score is not None]
    assert len(scored) > 1
    assert load_run(classifier.path_).front() == front
    assert [trial.id for trial in classifier.results_summary().run.trials] == [0]
    assert torch.allclose(classifier.to_module(0)(raw), logits, atol=1e-5)
    model, darker, classifier.mirrors_ = classifier._model, raw // 4, False
    assert torch.allclose(
        classifier.to_module(model.trial)(darker), classifier.to_module()(darker) * model.temperature, atol=1e-4
    )
    assert model.mean != before.about["scales"][before.data][0]
    about = tmp_path / "run" / "run.json"
    for invalid in ([[1.0], [0.0]], [[1.0]], 3, [["a"], [1.0]]):
        about.write_text(json.dumps(json.loads(about.read_text()) | {"scales": {before.data: invalid}}))
        with pytest.raises(RunError, match=r"run\.json does not hold the mean and deviation of examples"):
            classifier.to_module(0)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"scales": 3}))
    classifier.to_module(0)


def test_final_fit_keeps_flip_decision_of_fit(tmp_path: Path) -> None:
    args = {"default_model_width": 4, "trainer_args": {"augment": morphnas.Augment(flip=True), "epochs": 2}}
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=args, device="cpu", refit=False)
    classifier.fit(*stripes(200), time_limit=20)
    undecided = {"augment": morphnas.Augment(shift=None, flip=None, zoom=0.1), "epochs": 2}
    assert classifier.final_fit(*stripes(200), trainer_args=undecided, time_limit=20).mirrors_
    assert load_run(classifier.path_).trials[-1].proposal.recipe.augment.zoom == 0.1


# -- failed trainings


def fail_trainings(monkeypatch: pytest.MonkeyPatch, which: Callable[[Job], bool]) -> None:
    """Make the trainings of the jobs selected by `which` fail."""

    def work_or_fail(job: Job, *args: Any, **kwargs: Any) -> Any:
        failed = Outcome("failed", error='Traceback\n  File "x.py"\nbad shape')
        return (failed, None) if which(job) else work(job, *args, **kwargs)

    monkeypatch.setattr("morphnas.run.executors.work", work_or_fail)


def test_failed_search_trainings_warn(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning if at least half of them fail, otherwise in the log."""
    fail_trainings(monkeypatch, lambda job: bool(job.morphs))
    classifier = ImageClassifier(
        tmp_path, max_trials=4, searcher_args=TINY, device="cpu", refit=False, search_type="random"
    )
    with pytest.warns(UserWarning, match="2 of the search's 4 trainings failed, the first with: bad shape") as warned:
        classifier.fit(*data, time_limit=20)
    assert [warning.filename for warning in warned] == [__file__]
    graph, finished, failed = mlp((4,), 2), Outcome("finished", -0.5, 0.8), Outcome("failed", error="out of luck")
    outcomes = [finished, finished, finished, failed, finished]
    Fitting._warn_of_failures([
        Trial(i, Proposal(graph, (), Recipe()), graph, outcome) for i, outcome in enumerate(outcomes)
    ])  # fmt: skip
    assert "1 of the search's 5 trainings failed, the first with: out of luck" in caplog.text


def test_failed_final_training_warns(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_trainings(monkeypatch, lambda job: not job.scored)
    classifier = ImageClassifier(tmp_path, max_trials=1, searcher_args=TINY, device="cpu")
    with pytest.warns(UserWarning, match=r"1 of \d final trainings failed, so that the model may be worse: bad shape"):
        classifier.fit(*data, time_limit=8)
    assert classifier.evaluate(*data) > 0.3


def test_final_fit_warns_if_no_training_succeeds(
    fitted_classifier: ImageClassifier, data: Data, tmp_path: Path
) -> None:
    classifier = morphnas.load(shutil.copytree(fitted_classifier.path_, tmp_path / "run"))
    with pytest.warns(
        UserWarning, match="no final training succeeded, so that nothing was gained: the training l"
    ) as warned:
        classifier.final_fit(*data, trainer_args={"lr": 1e5, "optimizer": "sgd"}, time_limit=4)
    assert [warning.filename for warning in warned] == [__file__]
    assert classifier.final_trial_ == fitted_classifier.final_trial_


def test_final_fit_without_validation_data_keeps_longer_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that was trained for longer is kept, although a final fit has no validation data."""
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 12)
    x, y = stripes(200)
    classifier = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=TINY, device="cpu")
    classifier.fit(x, y, time_limit=20, validation_data=stripes(60, seed=1))
    before = classifier.final_trial_
    monkeypatch.setattr("morphnas.run.final.MAX_FINAL_EPOCHS", 2)
    assert classifier.final_fit(x, y, time_limit=10).final_trial_ == before


def test_run_folder_survives_change_of_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Data
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    classifier = ImageClassifier("run", max_trials=2, searcher_args=TINY, device="cpu", refit=False)
    classifier.fit(*data, time_limit=20, each_epoch=lambda report: monkeypatch.chdir(tmp_path / "other"))
    assert len(load_run(tmp_path / "one" / "run").trials) == 2
    assert not list((tmp_path / "other").iterdir())
    assert classifier.predict(data[0][:2]).shape == (2,)
