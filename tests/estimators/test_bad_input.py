"""Errors for invalid input: they say what to do, and come before anything is trained or written."""

from __future__ import annotations

import datetime
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, TensorDataset

import morphnas
from morphnas import ImageClassifier, RunError
from morphnas.estimators.labels import ClassTarget
from morphnas.estimators.settings import Settings
from morphnas.graph import mlp
from tests.estimators.conftest import Data, stripes

X, Y = stripes(60)
GRAPH = mlp((1, 6, 6), 3)


FLOATS = X.astype(float)
MIXED_SIZES = np.empty(60, dtype=object)
MIXED_SIZES[:] = [np.zeros((6, 6 + i % 2)) for i in range(60)]


def with_value(x: NDArray[Any], index: int | tuple[int, ...], value: Any) -> NDArray[Any]:
    """A copy of x with one value replaced."""
    x = x.copy()
    x[index] = value
    return x


class Animal(str, enum.Enum):  # noqa: UP042  # str() of a member is "Animal.CAT"
    CAT = "cat"
    DOG = "dog"


class UnknownKeys(Dataset[Any]):
    """A dataset whose image is under a key that is not recognised."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return {"picture": np.zeros((6, 6)), "label": i}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (with_value(FLOATS, (7, 0, 0), np.nan), Y, r"NaN or infinity.*first in x\[7\]"),
        (with_value(FLOATS, (3, 0, 0), np.inf), Y, r"NaN or infinity.*first in x\[3\]"),
        (with_value(FLOATS, (3, 0, 0), 1e300), Y, "too large for float32"),
        (X[0, 0], Y[:6], r"rows \(n, d\) or images .* but its shape is \(6,\)"),
        (X[:, :, :, None, None, None], Y, r"its shape is \(60, 6, 6, 1, 1, 1\)"),
        (X, Y[:-1], "x has 60 examples but y has 59 labels"),
        (X, np.zeros(60, int), "one class only, 0: a classifier"),
        (X, np.eye(3)[Y], r"one-hot.*y.argmax\(1\)"),
        (X, np.stack([Y, Y], 1), "2 columns"),
        (X, np.linspace(0, 1, 60), "[Uu]nknown label type|continuous"),
        (X, np.where(Y == 0, np.nan, 1.0), "y contains NaN"),
        (X, None, "y is missing"),
        (X, [*"ab" * 29, "a", None], r"y\[59\] is None"),
        (X, np.array(["2020-01-01", "NaT"] * 30, "datetime64[D]"), "y contains NaT"),
        (np.ma.masked_equal(X, X[3, 0, 0]), Y, r"x is an array with [\d,]+ masked values"),
        (with_value(MIXED_SIZES, 5, np.ma.masked_all((6, 6))), Y, r"x\[5\] is an array with 36 masked values"),
        (X, np.ma.masked_equal(Y, 2), "y is an array with 20 masked values"),
        (X, [{}] * 60, "cannot be hashed"),
        (X, [("a", np.nan), ("b", 1.0)] * 30, "a label holds nan, which cannot be saved"),
        (X, [np.inf, "a"] * 30, "a label holds inf"),
        (X, [datetime.date(2020, 1, 1 + i % 2) for i in range(60)], "cannot be saved"),
        (X[:0], Y[:0], "empty"),
        (np.zeros((60, 0)), Y, "empty"),
        (with_value(MIXED_SIZES, 5, "cat.png"), Y, r"x\[5\] is not an image .*: its shape is \(\)"),
        (with_value(MIXED_SIZES, 5, np.zeros((0, 6))), Y, r"x\[5\] is empty, its shape is \(0, 6\)"),
        (with_value(MIXED_SIZES, 5, np.zeros((6, 6, 2))), Y, r"images of \[1, 2\] channels"),
        (with_value(MIXED_SIZES, 5, np.full((4, 4), np.nan)), Y, r"first in x\[5\]"),
        (with_value(MIXED_SIZES, 5, np.full((4, 4), {})), Y, "not numbers"),
        (X.astype(complex), Y, "Complex data not supported"),
        (X.astype(str), Y, "must hold numbers, but its dtype is <U"),
        ([["a", None]] * 60, Y, "not numbers"),
        ({"a": 1}, Y, r"rows \(n, d\) or images .*, not {'a': 1}"),
        (TensorDataset(torch.zeros(2, 1, 6, 6), torch.zeros(2), torch.zeros(2)), None, "not a tuple of length 3"),
        (UnknownKeys(), None, "the parts picture, label: one must be named image or img or pixel_values"),
        (None, Y, r"rows \(n, d\) or images .*, not None"),
        (map(abs, X), Y, "x must be rows .*, not <map object"),
        (["a.png", None], [0, 1], r"x\[1\] is not a file name, as others are, but None"),
        (["a.png", "b.png"], [0, 1], "'a.png' cannot be read as an image: .*No such file"),
        (np.array(["a.png", "b.png"]), [0, 1], "'a.png' cannot be read as an image"),
        ([Path("a.png"), Path("b.png")], [0, 1], "'a.png' cannot be read as an image"),
        ([*X[:59], None], Y, r"x\[59\] is not an image .*: its shape is \(\)"),
        (X, {0, 1, 2}, r"y must be \(n,\) or \(n, 1\), not {0, 1, 2}"),
        (X, iter(Y), r"y must be \(n,\) or \(n, 1\), not <.*iterator"),
    ],
)  # fmt: skip
def test_fit_rejects_invalid_data(tmp_path: Path, x: Any, y: Any, message: str) -> None:
    path = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        ImageClassifier(path).fit(x, y)
    assert not path.exists(), "nothing is written"


def test_fit_rejects_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", x=X)
    with np.load(tmp_path / "digits.npz") as file, pytest.raises(ValueError, match=r"rows .*, not NpzFile"):
        ImageClassifier().fit(file, Y)


@pytest.mark.parametrize("name", ["NA", "NaT"])
def test_missing_pandas_label_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=r"y\[2\] is <?" + name):
        ClassTarget.infer(["a", "b", getattr(pd, name), "a"], 4)


@pytest.mark.parametrize("validation_data", [(X, Y, None, 1), [*X], X, 0.2, {"x": X, "y": Y}, (X,)])
def test_validation_data_must_be_a_pair(validation_data: Any) -> None:
    with pytest.raises(ValueError, match=r"validation_data must be \(x, y\)"):
        ImageClassifier().fit(X, Y, validation_data=validation_data)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), "60", True])
def test_fit_rejects_invalid_time_limit(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(ValueError, match="time_limit must be a positive number of seconds"):
        ImageClassifier(tmp_path / "run").fit(X, Y, time_limit=limit)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_trials": 0}, "max_trials must be None or a positive integer"),
        ({"max_trials": 2.5}, "max_trials"),
        ({"search_patience": 0}, "search_patience must be None or a positive integer"),
        ({"resume": "yes"}, 'True, False or "auto"'),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"search_type": "pareto", "keep": 3}, 'keep must be "all" for search_type="pareto"'),
        ({"search_type": "evolution", "keep": 3}, 'keep must be "all" for search_type="evolution": it needs the weigh'),
        ({"search_type": "climbing", "keep": 9}, 'keep must be "all" for search_type="climbing"'),
        (
            {"search_type": "pareto", "searcher_args": {"cost": "size"}},
            "searcher_args: cost must be one of param",
        ),
        (
            {"search_type": "bayes"},
            "one of bayesian, random, evolution, greedy, climbing, grid, halving, pareto, or a callable",
        ),
        ({"search_type": 3}, "or a callable"),
        ({"searcher_args": {"cooling": 0.9, "tempo": 3}}, r"searcher_args: unknown \['tempo'\], there are .*cooling"),
        ({"searcher_args": {"trainer_args": {"rate": 1}}}, r"unknown \['rate'\], there are epochs.*max_iter_num"),
        ({"searcher_args": {"trainer_args": {"lr": "fast"}}}, "lr must be a number"),
        ({"device": "gpu"}, "device must be"),
        ({"device": "cuda:93"}, "is not available"),
        ({"image_shape": (5, 6)}, r"image_shape \(5, 6\) has 30 values, but an example has shape \(6, 6\)"),
        ({"image_shape": (36,)}, "image_shape must be"),
        ({"image_size": 0}, r"image_size must be a positive integer or \(height, width\), not 0"),
        ({"image_size": (6, 6, 3)}, r"image_size must be .*, not \(6, 6, 3\)"),
        ({"image_size": (6, -1)}, "image_size must be"),
        ({"image_size": True}, "image_size must be .*, not True"),
        ({"image_size": np.array([6, 6])}, r"image_size must be .*, not array"),
        ({"image_shape": (True, 36)}, r"image_shape must be .*, not \(True, 36\)"),
        (
            {"normalization": 3},
            r"normalization must be \(mean, std\), .* in the units of x, of which there are 1, not 3",
        ),
        ({"normalization": ([1, 2, 3], 5)}, r"of which there are 1, not \(\[1, 2, 3\], 5\)"),
        ({"normalization": (0, 1, 2)}, "normalization must be"),
        ({"normalization": (100, 0)}, "finite and with std above 0"),
        ({"normalization": (float("nan"), 50)}, "finite and with std above 0"),
        ({"normalization": ("a", 50)}, "normalization must be"),
        ({"normalization": (0.5, 0.25)}, "x has values from 0 to 209, .* multiply a mean and std meant for .* by 255"),
        ({"executor": "ray", "per_trial": float("inf")}, "per_trial must be None or a positive number"),
        ({"overwrite": "no"}, "overwrite must be True or False, not 'no'"),
        ({"random_state": -1}, "random_state must be None, a whole number .*, not -1"),
        ({"random_state": np.random.default_rng(0)}, "random_state must be .*RandomState, not Generator"),
        ({"image_size": 6, "image_shape": (6, 6)}, "image_shape is for rows of equal lengths"),
        ({"limits": 3}, "limits must be"),
        (
            {"initial_networks": [mlp((36,), 3)]},
            r"initial_networks\[0\] takes inputs of shape \(36,\), .* are \(1, 6, 6\)",
        ),
        (
            {"initial_networks": [GRAPH, mlp((1, 6, 6), 4)]},
            r"initial_networks\[1\] gives \(4,\), but 3 outputs are needed",
        ),
        (
            {"initial_networks": [GRAPH], "limits": {"max_params": 9}},
            r"initial_networks\[0\] exceeds .* parameters, at most 9",
        ),
        ({"searcher_args": {"trainer_args": {"layers": "last"}}}, 'layers "last" keeps all other layers as they are'),
        (
            {"initial_networks": [GRAPH], "searcher_args": {"trainer_args": {"layers": "last"}}},
            "initial_networks must be networks with weights whose last layer is dense",
        ),
        ({"initial_networks": GRAPH}, "initial_networks must be None or a list of morphnas.Graph"),
        ({"initial_networks": [GRAPH.to_json()]}, "initial_networks must be None or a list of morphnas.Graph"),
        ({"limits": {"max_params": -1}}, "max_params must be None or a positive integer"),
        ({"limits": {"morphs": ("deep",)}}, r"unknown morphs \['deep'\]"),
        ({"random_state": "a"}, "cannot be used to seed"),
        ({"searcher_args": {"startup": "x"}}, "searcher_args: startup must be a whole number of at least 0, not 'x'"),
        ({"searcher_args": {"candidates": 0}}, "searcher_args: candidates must be a whole number of at least 1, not 0"),
        ({"searcher_args": {"far": 2.0}}, "searcher_args: far must be a whole number"),
        ({"searcher_args": {"near": True}}, "searcher_args: near must be a whole number"),
        ({"searcher_args": {"cooling": float("nan")}}, "cooling must be a finite number of at least 0, not nan"),
        ({"search_type": "grid", "searcher_args": {"widths": (8, -1)}}, "widths must be whole numbers of at least 1"),
        ({"search_type": "grid", "searcher_args": {"depths": ()}}, "depths must be whole numbers of at least 1"),
        ({"search_type": "halving", "searcher_args": {"factor": None}}, "factor must be a whole number of at least 1"),
        ({"searcher_args": [1]}, "must be dicts"),
        ({"searcher_args": {"trainer_args": 3}}, "must be dicts"),
        ({"searcher_args": {"default_model_width": 0}}, "default_model_width must be a positive integer, not 0"),
        ({"searcher_args": {"default_model_len": "a"}}, "default_model_len must be a positive integer"),
        ({"searcher_args": {"default_model_len": 10**6}}, "default_model_len must be at most 500, not 1,000,000"),
        ({"augment": "yes"}, "augment must be True, False or None"),
        (
            {"augment": False, "searcher_args": {"trainer_args": {"augment": morphnas.Augment(shift=0.1)}}},
            "augment is given twice: as an argument, and in trainer_args",
        ),
        ({"max_memory": 10**6, "limits": {"max_memory": 10**5}}, "max_memory is given twice"),
        *(
            ({"max_memory": memory}, "max_memory must be None or a positive integer")
            for memory in (0, -1, 1.5, True, "1 GB")
        ),
        *(({"ensemble": size}, "ensemble must be a positive integer") for size in (0, -1, True, "all", 1.5, None)),
        *(({"keep": n}, 'keep must be "all" or a positive integer') for n in (0, -1, True, "best", 1.5, None)),
    ],
)
def test_fit_rejects_invalid_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "run"
    if options.get("resume") is True:
        path.mkdir()
    with pytest.raises(ValueError, match=message):
        ImageClassifier(path, **options).fit(X, Y)
    assert not path.exists() or not list(path.iterdir()), "nothing is written"


def test_image_size_is_rejected_for_rows() -> None:
    with pytest.raises(ValueError, match=r"image_size is for images .*, but x has shape \(60, 36\)"):
        ImageClassifier(image_size=6).fit(X.reshape(60, 36), Y)


def test_search_type_must_return_a_searcher(tmp_path: Path, data: Data) -> None:
    classifier = ImageClassifier(tmp_path / "run", search_type=lambda *_, **__: 5, max_trials=1)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"search_type must make a searcher, with a method ask\(trials, budget\), not 5"
    ):
        classifier.fit(*data, time_limit=5)


@pytest.mark.parametrize("path", [5, "", b"run"])
def test_fit_rejects_invalid_path(path: Any) -> None:
    with pytest.raises(ValueError, match="path must be None or the name of a folder"):
        ImageClassifier(path).fit(X, Y)


def test_unusable_run_folders_are_rejected(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.png").write_bytes(b"cat")
    choices: list[dict[str, Any]] = [{}, {"overwrite": True}, {"resume": "auto"}]
    for options in choices:
        with pytest.raises(RunError, match=r"holds other files \(cat\.png\)"):
            ImageClassifier(foreign, **options).fit(X, Y)
    assert [path.name for path in foreign.iterdir()] == ["cat.png"]
    with pytest.raises(RunError, match="is a file"):
        ImageClassifier(foreign / "cat.png").fit(X, Y)
    with pytest.raises(ValueError, match=r"cannot be written|is a file"):
        ImageClassifier(foreign / "cat.png" / "run").fit(X, Y)
    with pytest.raises(RunError, match="holds no run"):
        ImageClassifier.load(foreign)


def test_predict_and_evaluate_reject_invalid_input(fitted_classifier: ImageClassifier, data: Data) -> None:
    x, y = data
    with pytest.raises(ValueError, match=r"shape \(6, 5\), but the model was fitted on \(6, 6\)"):
        fitted_classifier.predict(x[:, :, :5])
    with pytest.raises(ValueError, match=r"one example of shape \(6, 6\): add an axis in front, x_test\[None\]"):
        fitted_classifier.predict(x[0])
    with pytest.raises(ValueError, match="NaN"):
        fitted_classifier.predict(with_value(x.astype(float), (0, 0, 0), np.nan))
    with pytest.raises(ValueError, match="fit did not see: 8, 9; the classes are"):
        fitted_classifier.evaluate(x[:2], [8, 9])
    with pytest.raises(ValueError, match="150 examples but y has 149"):
        fitted_classifier.evaluate(x, y[1:])


def test_doubtful_shapes_and_settings_warn(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"default_model_width": 2, "trainer_args": {"epochs": 1}}
    args: dict[str, Any] = {"max_trials": 1, "searcher_args": sizes, "refit": False}
    with pytest.warns(UserWarning, match=r"image_shape=\(8, 8\)"):
        ImageClassifier(tmp_path / "a", **args).fit(np.random.default_rng(0).random((60, 64)), Y)
    with pytest.warns(UserWarning, match="look channels first"):
        ImageClassifier(tmp_path / "b", **args).fit(np.random.default_rng(0).random((60, 3, 8, 8)), Y)
    sizes["t_min"] = 1e-4
    with pytest.warns(UserWarning, match="t_min belongs to AutoKeras's old kernel"):
        ImageClassifier(tmp_path / "c", **args).fit(X, Y)


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "Ärger </script>"], [b"a", b"b"], [True, False], [1.0, 2.0], [np.int8(3), np.int8(-3)],
        [("a", 1), ("b", 2), ("a", ("c",))], ["x", 3, 2.5, b"y", ("t",)], [(np.int64(1), "a"), (np.int64(2), "b")],
        [np.int64(3), "a"],
        list(np.array(["2020-01-01", "2021-02-03"], dtype="datetime64[D]")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_column", [False, True])
def test_labels_of_any_type_round_trip(labels: list[Any], as_column: bool) -> None:
    def plain(label: Any) -> Any:
        return label if isinstance(label, tuple) else np.asarray(label).tolist()

    y: Any = [labels[i % len(labels)] for i in range(20)]
    expected = [plain(label) for label in y]
    if as_column:
        y = np.empty((20, 1), dtype=object)
        for i in range(20):
            y[i, 0] = labels[i % len(labels)]
    target, codes = ClassTarget.infer(y, 20)
    loaded = ClassTarget.from_json(json.loads(json.dumps(target.to_json())))
    assert loaded.classes.dtype == target.classes.dtype
    assert [plain(label) for label in loaded.classes[codes]] == expected
    assert (loaded.encode(y, 20) == codes).all()


def test_datetime_labels_match_in_any_unit() -> None:
    days = np.array(["2020-01-01", "2021-02-03"] * 10, dtype="datetime64[D]")
    for fit_unit, unit in (("D", "ns"), ("ns", "D"), ("s", "ms")):
        target, codes = ClassTarget.infer(days.astype(f"datetime64[{fit_unit}]"), 20)
        assert (target.encode(days.astype(f"datetime64[{unit}]"), 20) == codes).all()
        assert target.read(days.astype(f"datetime64[{unit}]"), 20) == target.classes[codes].tolist()
    target, _ = ClassTarget.infer(days, 20)
    with pytest.raises(ValueError, match="labels that fit did not see"):
        target.encode(days.astype("datetime64[h]") + np.timedelta64(1, "h"), 20)


def test_string_labels_are_not_truncated() -> None:
    animals, codes = ClassTarget.infer([*Animal] * 2, 4)
    assert ClassTarget.from_json(json.loads(json.dumps(animals.to_json()))).classes.tolist() == ["cat", "dog"]
    assert codes.tolist() == [0, 1, 0, 1]
    for labels in (np.array(["a", "a\0"] * 2, dtype=object), ["a", "a\0"] * 2, [b"a", b"a\0"] * 2):
        target, codes = ClassTarget.infer(labels, 4)
        assert target.classes.tolist() == list(labels[:2])
        assert codes.tolist() == [0, 1, 0, 1]


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="this NumPy has no StringDType")
def test_numpy_string_dtype_labels_are_read() -> None:
    target, codes = ClassTarget.infer(np.array(["long text", "b"] * 2, dtype=np.dtypes.StringDType()), 4)
    assert target.classes.tolist() == ["b", "long text"]
    assert codes.tolist() == [1, 0, 1, 0]


def test_validation_data_errors_name_validation_data() -> None:
    with pytest.raises(ValueError, match="validation_data: y holds labels that fit did not see: 2"):
        ImageClassifier().fit(X[Y < 2], Y[Y < 2], validation_data=(X, Y))
    with pytest.raises(ValueError, match="validation_data: x has 60 examples but y has 59 labels"):
        ImageClassifier().fit(X, Y, validation_data=(X, Y[1:]))


def test_equal_labels_in_object_array_are_one_class() -> None:
    target, codes = ClassTarget.infer(np.array(["a", "b", "a"], dtype=object), 3)
    assert target.classes.tolist() == ["a", "b"]
    assert codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("trainer_args", "message"),
    [
        ("lr", "trainer_args must be a dict, not 'lr'"),
        (["lr"], "trainer_args must be a dict"),
        ({"lr": -1}, "lr must be"),
        ({"examples": 20}, "final_fit trains on all examples, it takes no 'examples'"),
    ],
)
def test_final_fit_rejects_invalid_trainer_args(
    fitted_classifier: ImageClassifier, data: Data, trainer_args: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_classifier.final_fit(*data, trainer_args=trainer_args)


def test_numpy_starter_sizes_become_python_integers() -> None:
    sizes = {"default_model_len": np.int64(1), "default_model_width": np.uint8(3)}
    settings = Settings.of(ImageClassifier(searcher_args=sizes))
    assert (settings.depth, settings.width) == (1, 3)
    assert (type(settings.depth), type(settings.width)) == (int, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["red", "blue"], "column 'colour' has 'red'; encode it first"),
        ([pd.NA, 1], "column 'colour' has <NA>; fill in missing values first"),
    ],
)
def test_non_numeric_column_is_named(values: list[Any], message: str) -> None:
    frame = pd.DataFrame({"size": np.arange(60), "colour": pd.array(values * 30, dtype=object)})
    with pytest.raises(ValueError, match=message):
        ImageClassifier(device="cpu").fit(frame, Y, time_limit=1)


def test_examine_suggests_regression_for_continuous_y() -> None:
    with pytest.raises(ValueError, match="regression=True"):
        morphnas.examine(np.random.default_rng(0).random((60, 8, 8)), np.linspace(0, 1, 60))
