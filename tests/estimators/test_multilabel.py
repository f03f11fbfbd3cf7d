"""Multi-label classification: fit, prediction, stored runs, export, data checks and resuming."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import accuracy_score

import morphnas
from morphnas import DataWarning, ImageClassifier, RunError, examine, load_run
from morphnas.cli import main
from morphnas.estimators.inputs import Problem
from morphnas.estimators.splits import split
from morphnas.estimators.targets import MultiLabelTarget, classification_target, target_from_json

MultiLabel = tuple[NDArray[np.uint8], NDArray[np.int64]]
SMALL: dict[str, Any] = {"default_model_width": 8, "trainer_args": {"epochs": 6}}


def labelled_images(n: int, seed: int = 0) -> MultiLabel:
    """Images (n, 8, 8) of noise: a bright row (tag 0), a bright column (1), a dark middle (2), in all combinations."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, 3))
    x = rng.integers(60, 120, (n, 8, 8))
    for image, (row, column, middle) in zip(x, y, strict=True):
        image[1] += 120 * row
        image[:, 6] += 120 * column
        image[3:6, 2:5] -= 60 * middle
    return x.clip(0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def data() -> MultiLabel:
    return labelled_images(400)


@pytest.fixture(scope="module")
def fitted_classifier(tmp_path_factory: pytest.TempPathFactory, data: MultiLabel) -> ImageClassifier:
    """A fitted classifier that tests must not modify."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return ImageClassifier(path, max_trials=3, random_state=0, searcher_args=SMALL).fit(*data, time_limit=5)


def test_predict_score_and_evaluate(fitted_classifier: ImageClassifier) -> None:
    x, y = labelled_images(200, seed=1)
    predictions, probabilities = fitted_classifier.predict(x), fitted_classifier.predict_proba(x)
    assert predictions.shape == probabilities.shape == (200, 3)
    assert predictions.dtype == np.int64
    assert (predictions == (probabilities >= 0.5)).all()
    assert (
        fitted_classifier.score(x, y)
        == accuracy_score(y, predictions)
        == pytest.approx(fitted_classifier.evaluate(x, y))
    )
    assert fitted_classifier.score(x, y) > 0.9
    with pytest.raises(ValueError, match="sample_weight must be finite numbers"):
        fitted_classifier.score(x, y, np.full(200, np.nan))
    for invalid in (y[:, 0], y[:, :2], y[1:]):
        with pytest.raises(ValueError, match=r"y must be \(200, 3\), one column for each label"):
            fitted_classifier.score(x, invalid)
    assert fitted_classifier.multilabel_
    assert fitted_classifier.__sklearn_tags__().classifier_tags.multi_label
    assert fitted_classifier.classes_.tolist() == [0, 1, 2]
    assert not np.allclose(probabilities.sum(1), 1), "the probabilities of the labels are independent"


def test_loaded_classifier_predicts_the_same(fitted_classifier: ImageClassifier) -> None:
    x, _ = labelled_images(20, seed=1)
    loaded = morphnas.load(fitted_classifier.path_)
    assert isinstance(loaded, ImageClassifier)
    assert loaded.multilabel_
    assert (loaded.predict_proba(x) == fitted_classifier.predict_proba(x)).all()
    with pytest.raises(RunError, match="another estimator than ImageRegressor"):
        morphnas.ImageRegressor.load(fitted_classifier.path_)


def test_module_and_export_return_a_logit_for_each_label(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    x, _ = labelled_images(20, seed=1)
    tensor = torch.from_numpy(x)[:, None]
    morphnas.export(fitted_classifier.path_, tmp_path / "net.py")
    assert "network(images).sigmoid()" in (tmp_path / "net.py").read_text()
    for module in (fitted_classifier.to_module(), runpy.run_path(str(tmp_path / "net.py"))["load"]()):
        with torch.no_grad():
            assert module(tensor).double().sigmoid().numpy() == pytest.approx(
                fitted_classifier.predict_proba(x), abs=1e-6
            )


@pytest.mark.slow
def test_onnx_and_pt2_files_describe_their_outputs(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    morphnas.export(fitted_classifier.path_, tmp_path / "net.pt2")
    extra = {"labels.json": "", "gives.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert {name: json.loads(text) for name, text in extra.items()} == {
        "labels.json": None,
        "gives.json": "logits of tags",
    }
    morphnas.export(fitted_classifier.path_, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert [output.name for output in model.graph.output] == ["logits"]
    assert {entry.key: entry.value for entry in model.metadata_props}["gives"] == "logits of tags"


def test_columns_of_a_data_frame_are_names_of_labels(
    tmp_path: Path, data: MultiLabel, capsys: pytest.CaptureFixture[str]
) -> None:
    pandas = pytest.importorskip("pandas")
    names = ["red", "very wide", "old"]
    x, y = data[0], pandas.DataFrame(data[1], columns=names)
    clf = ImageClassifier(tmp_path / "run", max_trials=1, searcher_args=SMALL, refit=False).fit(x, y, time_limit=20)
    for classifier in (clf, morphnas.load(tmp_path / "run")):
        assert isinstance(classifier, ImageClassifier)
        assert classifier.classes_.tolist() == names
        assert classifier.evaluate(x, y) == classifier.evaluate(x, data[1])
    message = r"the columns of y must be .*, as in the fit, not \('old', 'red', 'very wide'\)"
    with pytest.raises(ValueError, match=message):
        clf.evaluate(x, y[sorted(names)])
    morphnas.export(clf, tmp_path / "net.py")
    assert runpy.run_path(str(tmp_path / "net.py"))["LABELS"] == names
    np.savez(tmp_path / "x.npz", x=x[:30])
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "x.npz")]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "example,tags,probability_red,probability_very wide,probability_old"
    expected = [[names[i] for i in np.flatnonzero(row)] for row in clf.predict(x[:30])]
    assert [[tag for tag in row.split(",")[1].split("; ") if tag] for row in rows] == expected


def test_history_and_report_show_subset_accuracy(fitted_classifier: ImageClassifier) -> None:
    run = load_run(fitted_classifier.path_)
    entry = run.history[0]
    assert entry["measure"] == "accuracy"
    low, high = entry["interval"]
    assert low <= entry["metric_value"] <= high
    assert '"tags": 3' in json.dumps(run.about["data"])
    assert "ImageClassifier · 400 examples of 8 x 8 · 3 labels" in morphnas.write_report(run).read_text()


@pytest.mark.slow
def test_resume_final_fit_and_ablate(tmp_path: Path, data: MultiLabel) -> None:
    settings: dict[str, Any] = {"searcher_args": SMALL, "random_state": 0}
    ImageClassifier(tmp_path / "run", max_trials=1, refit=False, **settings).fit(*data, time_limit=20)
    with pytest.raises(RunError, match="other data"):
        ImageClassifier(tmp_path / "run", resume=True, **settings).fit(data[0], data[1][:, 0], time_limit=6)
    resumed = ImageClassifier(tmp_path / "run", max_trials=3, resume=True, ensemble=2, refit=False, **settings)
    resumed.fit(*data, time_limit=20)
    assert len(load_run(tmp_path / "run").trials) == 3
    x_test, y_test = labelled_images(60, seed=2)
    resumed.final_fit(*data, x_test, y_test, time_limit=4)
    assert resumed.test_metric_ == pytest.approx(resumed.evaluate(x_test, y_test))
    with pytest.raises(ValueError, match=r"one column for each label .*, but its shape is \(400, 2\)"):
        resumed.final_fit(data[0], data[1][:, :2], time_limit=5)
    assert morphnas.ablate(tmp_path / "run", *data, time_limit=3, repeats=1).measure == "accuracy"


def frame(y: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(y)


TYPES_OF_Y = {
    "bool": lambda y: y.astype(bool),
    "float": lambda y: y.astype(float),
    "list": lambda y: y.tolist(),
    "tensor": torch.tensor,
    "sparse": csr_matrix,
    "objects": lambda y: y.astype(object),
    "frame": frame,
    "nullable frame": lambda y: frame(y).astype("Int64"),
    "mixed frame": lambda y: frame(y).astype({0: bool}),
}


@pytest.mark.parametrize("kind", TYPES_OF_Y)
def test_target_accepts_many_types_of_y(kind: str, data: MultiLabel) -> None:
    _, y = data
    converted = TYPES_OF_Y[kind](y)
    target, codes = classification_target(converted, len(y))
    assert isinstance(target, MultiLabelTarget)
    assert codes.dtype == np.float32
    assert (codes == y).all()


def test_fit_on_dataset_with_weights_and_groups(tmp_path: Path, data: MultiLabel) -> None:
    x, y = data
    pairs = [(torch.from_numpy(image)[None], torch.from_numpy(tags)) for image, tags in zip(x, y, strict=True)]
    groups, weights = np.arange(400) // 4, np.linspace(0.5, 2, 400)
    clf = ImageClassifier(tmp_path / "run", max_trials=1, random_state=0, searcher_args=SMALL, refit=False)
    clf.fit(pairs_dataset(pairs), time_limit=20, groups=groups, sample_weight=weights)
    assert clf.predict(x[:5]).shape == (5, 3)
    with pytest.raises(ValueError, match="sample_weight must be None or numbers"):
        ImageClassifier().fit(x, y, time_limit=5, sample_weight="balanced")


def pairs_dataset(pairs: list[Any]) -> Any:
    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, i: int) -> Any:
            return pairs[i]

    return Pairs()


def test_split_is_stratified_by_labels(data: MultiLabel) -> None:
    _, y = data
    target, codes = classification_target(y, 400)
    parts = split(target.strata(codes), seed=0)
    assert parts.valid is not None
    overall, held_out = y.mean(0), y[parts.valid].mean(0)
    assert np.abs(overall - held_out).max() < 0.2
    strata = target.strata(codes)
    assert np.bincount(strata[parts.valid]).tolist() == [3] * 20, "3 of every 20 similar examples"


def test_target_is_restored_from_json() -> None:
    restored = target_from_json(json.loads(json.dumps(MultiLabelTarget(7).to_json())))
    assert isinstance(restored, MultiLabelTarget)
    assert restored.k == 7


@pytest.mark.parametrize("names", [["a"], ["a", 2], "ab", None])
def test_target_from_json_rejects_invalid_names(names: Any) -> None:
    with pytest.raises(ValueError, match="are not the names of 2 labels"):
        target_from_json({"tags": 2, "names": names})


@pytest.mark.parametrize("count", [1, True, "3", None])
def test_target_from_json_rejects_invalid_counts(count: Any) -> None:
    with pytest.raises(ValueError, match="does not give the number of labels"):
        target_from_json({"tags": count})


Y = labelled_images(20)[1]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.eye(3)[np.arange(20) % 3], r"is one-hot.*argmax"),
        (Y * 2, "for several labels per example pass"),
        (Y - 1.0, "for several labels per example pass"),
        (Y.astype(str), "for several labels per example pass"),
        (np.ones((20, 3)), r"nothing to learn: y is \[1, 1, 1\] for all 20 samples"),
        (np.zeros((20, 3)), r"nothing to learn: y is \[0, 0, 0\] for all 20 samples"),
        (Y[:19], r"y must be \(20, 3\), one column for each label"),
        (np.where(Y == 1, np.nan, 0.0), "for several labels per example pass"),
        (np.ma.masked_array(Y, Y == 1), "y .*mask"),
        ([[0], [0, 1], [2]] * 6 + [[1], [2]], "y cannot be converted to an array of labels.*MultiLabelBinarizer"),
        (Y[:, :, None], r"y must be \(n,\) or \(n, 1\), but its shape"),
    ],
)
def test_fit_rejects_invalid_y(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier().fit(labelled_images(20)[0], y, time_limit=5)


def test_evaluate_rejects_invalid_y(fitted_classifier: ImageClassifier) -> None:
    x, y = labelled_images(20)
    with pytest.raises(ValueError, match="y must be 0 or 1 everywhere"):
        fitted_classifier.evaluate(x, y * 2)
    with pytest.raises(ValueError, match=r"one column for each label .*, but its shape"):
        fitted_classifier.evaluate(x, y[:, 0])
    with pytest.raises(ValueError, match="y is missing"):
        fitted_classifier.evaluate(x)


def test_constant_labels_are_found(data: MultiLabel) -> None:
    x, y = data
    y = np.column_stack([y, np.zeros(400, int), np.ones(400, int)])
    findings = {
        finding.numbers["tags"][0]: finding for finding in examine(x, y).found if finding.kind == "constant_tags"
    }
    assert findings[3].text == "no training example has label 3: nothing to learn about it"
    assert findings[4].text == "all training examples have label 4: nothing to learn about it"
    assert not examine(x, data[1]).found
    validation_data = x[:50], np.where(np.arange(3) == 1, 0, data[1][:50])
    kinds = [finding.kind for finding in examine(x[50:], data[1][50:], validation_data).found]
    assert kinds == ["unjudged"]
    with pytest.warns(DataWarning, match="no example in validation_data has label 1"):
        ImageClassifier(max_trials=1, searcher_args=SMALL, refit=False).fit(x[50:], data[1][50:], 5, validation_data)


def test_incomplete_one_hot_labels_are_found(data: MultiLabel) -> None:
    x, y = data
    rows = np.eye(8, dtype=int)[y @ [1, 2, 4]]
    rows[7] = 0
    (finding,) = (finding for finding in examine(x, rows).found if finding.kind == "one_hot")
    assert finding.text.startswith(
        "399 of 400 examples have exactly one label: if y should be one-hot, the others lack"
    )


def test_shuffled_labels_are_found() -> None:
    x, y = labelled_images(1500)
    assert not examine(x, y).found
    (finding,) = examine(x, np.random.default_rng(0).permutation(y)).found
    assert finding.kind == "signal"
    assert "labels cannot be predicted from images better than by chance" in finding.text


def test_contradictory_labels_are_found(data: MultiLabel) -> None:
    x, y = data[0].copy(), data[1].copy()
    x[200:260], y[200:260] = x[:60], 1 - y[:60]
    texts = [finding.text for finding in examine(x, y).found if finding.kind == "contradictory"]
    assert len(texts) == 1
    assert "occur with different labels: x[" in texts[0]


def test_multilabel_on_the_command_line(tmp_path: Path, data: MultiLabel, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data
    np.savez(tmp_path / "tags.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    path, file = str(tmp_path / "run"), str(tmp_path / "tags.npz")
    flags = ["--time-limit", "8", "--max-trials", "1", "--width", "8", "--seed", "0", "--no-refit", "--quiet", "--json"]
    assert main(["fit", file, *flags, "--path", path]) == 0
    result = json.loads(capsys.readouterr().out)
    clf = ImageClassifier.load(path)
    assert result["test_accuracy"] == pytest.approx(clf.evaluate(x[:30], y[:30]))
    assert main(["predict", path, file]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "example,tags,probability_0,probability_1,probability_2"
    for row, predicted, probabilities in zip(rows, clf.predict(x[:30]), clf.predict_proba(x[:30]), strict=True):
        _, tags, *numbers = row.split(",")
        assert [int(tag) for tag in tags.split()] == np.flatnonzero(predicted).tolist()
        assert [float(number) for number in numbers] == pytest.approx(probabilities, abs=1e-6)
    assert main(["predict", path, file, "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["examples"]
    assert first["tags"] == np.flatnonzero(clf.predict(x[:1])[0]).tolist()


def test_baseline_is_the_share_of_the_commonest_label_set(data: MultiLabel) -> None:
    problem = Problem.infer(*data, None, None, 0, torch.device("cpu"))
    _, counts = np.unique(problem.task.train.y, axis=0, return_counts=True)
    assert problem.baseline_metric == pytest.approx(counts.max() / counts.sum())
