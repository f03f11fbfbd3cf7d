"""Deadlines, recipes and outcomes: validation of their values, and JSON round trips."""

from __future__ import annotations

import json
import math
import time
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from morphnas.train.deadline import Deadline
from morphnas.train.recipe import Augment, Epoch, Outcome, Recipe
from tests.train.tasks import Clock

# -- deadlines


def test_deadline_counts_down_and_passes() -> None:
    clock = Clock()
    deadline = Deadline.after(10, clock)
    assert (deadline.left, deadline.passed) == (10, False)
    clock.now += 9.5
    assert (deadline.left, deadline.passed) == (0.5, False)
    clock.now += 0.5
    assert (deadline.left, deadline.passed) == (0, True)
    clock.now += 100
    assert (deadline.left, deadline.passed) == (0, True)


def test_earlier_deadline_does_not_change_the_original() -> None:
    clock = Clock()
    late = Deadline.after(10, clock)
    early = late.earlier(4)
    assert (early.left, late.left) == (6, 10)
    assert early.clock is clock
    assert late.earlier(0) == late
    assert late.earlier(11).passed


def test_deadline_may_be_infinite() -> None:
    assert Deadline.after(math.inf, Clock()).left == math.inf
    assert not Deadline.after(math.inf).passed


def test_default_clock_is_monotonic() -> None:
    assert Deadline.after(100).clock is time.monotonic
    assert 99 < Deadline.after(100).left <= 100


# -- validation


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"epochs": 0}, "epochs must be from 1 to 100,000, not 0"),
        ({"epochs": 2.5}, "epochs must be an integer, not 2.5"),
        ({"epochs": True}, "epochs must be an integer, not True"),
        ({"batch_size": -1}, "batch_size must be from 1"),
        ({"batch_size": "64"}, "batch_size must be an integer, not '64'"),
        ({"lr": 0}, "lr must be from"),
        ({"lr": math.nan}, "lr must be from .*, not nan"),
        ({"lr": None}, "lr must be a number, not None"),
        ({"momentum": 1}, "momentum must be from 0 to 0.9999"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0"),
        ({"label_smoothing": 1}, "label_smoothing must be from"),
        ({"whiten": 1}, "whiten must be True or False"),
        ({"freeze_norms": "yes"}, "freeze_norms must be True or False, not 'yes'"),
        ({"layers": "first"}, 'layers must be "all" or "last", not \'first\''),
        ({"warmup": 1.5}, "warmup must be from 0 to 1"),
        ({"patience": 0}, "patience must be from 1"),
        ({"patience": 3.0}, "patience must be an integer"),
        ({"optimizer": "adam"}, 'optimizer must be "sgd" or "adamw" or "muon", not \'adam\''),
        ({"precision": "float16"}, 'precision must be "float32" or "bfloat16", not \'float16\''),
        ({"examples": 1}, "examples must be from 2 to"),
        ({"augment": {"shift": 0.1}}, "augment must be an Augment"),
    ],
)
def test_recipe_error_names_invalid_setting(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"recipe: {words}"):
        Recipe(**setting)


def test_recipe_accepts_the_ends_of_ranges() -> None:
    Recipe(epochs=1, batch_size=1, momentum=0, weight_decay=0, label_smoothing=0, warmup=0, patience=1)
    Recipe(warmup=1, lr=1e6, patience=None, optimizer="adamw")


@pytest.mark.parametrize(
    "setting",
    [{"shift": -0.1}, {"shift": 1}, {"shift": math.nan}, {"shift": "0.1"}, {"cutout": 1.0}, {"cutout": None},
     {"cutout": True}, {"flip": "yes"}, {"flip": 1}, {"flip_vertical": None}, {"flip_vertical": 1}, {"zoom": 1},
     {"zoom": -0.1}, {"brightness": "much"}, {"contrast": math.inf}],
)  # fmt: skip
def test_augment_error_names_invalid_setting(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"augment: {next(iter(setting))} "):
        Augment(**setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"status": "fine"}, "status must be one of finished, truncated, diverged, oom, failed, not 'fine'"),
        ({"score": math.nan}, "score must be a finite number or None, not nan"),
        ({"seconds": 10**400}, "seconds must be a finite number from 0 on"),
        ({"score": -math.inf}, "score must be"),
        ({"metric": "0.9"}, "metric must be"),
        ({"morph_error": math.nan}, "morph_error must be"),
        ({"mirrored": math.inf}, "mirrored must be"),
        ({"seconds": None}, "seconds must be"),
        ({"seconds": -1.0}, "seconds must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"best_epoch": -1}, "best_epoch must be"),
        ({"examples": True}, "examples must be"),
        ({"error": 3}, "error must be"),
    ],
)
def test_outcome_error_names_invalid_field(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"outcome: {words}"):
        Outcome(**{"status": "finished", **setting})


@pytest.mark.parametrize("value", [Augment(), Recipe(), Outcome("failed"), Epoch(0, 0, 0, 0), Deadline(0)])
def test_values_are_immutable(value: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, 1)


def test_loss_is_minus_the_score() -> None:
    assert Outcome("finished", -0.25).loss == 0.25
    assert Outcome("failed").loss is None


# -- confidence interval of an accuracy


@given(st.integers(1, 20_000), st.floats(0, 1))
def test_interval_is_that_of_wilson(examples: int, accuracy: float) -> None:
    correct = round(accuracy * examples)
    interval = Outcome("finished", -1.0, correct / examples, examples=examples).interval
    expected = binomtest(correct, examples).proportion_ci(method="wilson")
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_interval_needs_examples_and_an_accuracy() -> None:
    assert Outcome("finished", -1.0, 0.9).interval is None
    assert Outcome("finished", -1.0, 1.5, examples=10).interval is None
    assert Outcome("finished", -1.0, -0.5, examples=10).interval is None
    assert Outcome("failed", examples=10).interval is None


# -- JSON

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(0, 1e9)
COUNTS = st.integers(0, 10**9)
AUGMENTS = st.builds(
    Augment, st.floats(0, 1, exclude_max=True), st.sampled_from([True, False, None]), st.floats(0, 0.99)
)
RECIPES = st.builds(
    Recipe,
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 5000),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    lr=st.floats(1e-12, 1e6),
    momentum=st.floats(0, 0.9999),
    weight_decay=st.floats(0, 1e6),
    label_smoothing=st.floats(0, 0.999),
    warmup=st.floats(0, 1),
    patience=st.none() | st.integers(1, 100),
    augment=AUGMENTS,
)
OUTCOMES = st.builds(
    Outcome,
    status=st.sampled_from(["finished", "truncated", "diverged", "oom", "failed"]),
    score=st.none() | NUMBERS,
    metric=st.none() | NUMBERS,
    seconds=SECONDS,
    epochs=COUNTS,
    best_epoch=COUNTS,
    curve=st.lists(st.builds(Epoch, SECONDS, NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple),
    examples=COUNTS,
    images_per_second=SECONDS,
    peak_bytes=COUNTS,
    morph_error=st.none() | SECONDS,
    mirrored=st.none() | NUMBERS,
    error=st.none() | st.text(max_size=20),
    micro_batch=COUNTS,
    retries=COUNTS,
    measure=st.text(min_size=1, max_size=20),
    objective=st.text(min_size=1, max_size=20),
    upright=st.none() | NUMBERS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@given(RECIPES)
def test_recipe_round_trips_through_json(recipe: Recipe) -> None:
    assert Recipe.from_json(through_json(recipe.to_json())) == recipe


@given(OUTCOMES)
def test_outcome_round_trips_through_json(outcome: Outcome) -> None:
    assert Outcome.from_json(through_json(outcome.to_json())) == outcome


def test_missing_json_fields_have_defaults() -> None:
    assert Recipe.from_json({}) == Recipe()
    assert Recipe.from_json({"augment": {"shift": 0.2}}).augment == Augment(shift=0.2)
    assert Outcome.from_json({"status": "oom"}) == Outcome("oom")


@given(st.sampled_from([Recipe, Outcome]), st.data())
def test_malformed_json_raises_value_error(kind: Any, data: st.DataObject) -> None:
    """Or it is accepted and gives a valid value, which can be written and read again."""
    malformed = through_json(
        (Recipe() if kind is Recipe else Outcome("finished", -1.0, curve=(Epoch(1, 2, 3, 4),))).to_json()
    )
    target = malformed
    if data.draw(st.booleans(), "deep"):
        target = malformed["augment"] if kind is Recipe else malformed["curve"][0]
    name = data.draw(st.sampled_from(sorted(target)) | st.text(max_size=5), "name")
    if data.draw(st.booleans(), "replace"):
        target[name] = data.draw(JSON, "value")
    else:
        target.pop(name, None)
    try:
        value = kind.from_json(malformed)
    except ValueError:
        return
    assert kind.from_json(through_json(value.to_json())) == value


@pytest.mark.parametrize("kind", [Recipe, Outcome])
@pytest.mark.parametrize("data", [None, 3, "text", [], [1], True, {"nonsense": 1}])
def test_other_json_raises_value_error(kind: Any, data: Any) -> None:
    with pytest.raises(ValueError, match=kind.__name__.lower()):
        kind.from_json(data)


def test_error_names_unknown_field() -> None:
    with pytest.raises(ValueError, match=r"recipe: unknown field \['speed'\], it has epochs"):
        Recipe.from_json({"speed": 3})


def test_recipe_accepts_numpy_numbers() -> None:
    augment: dict[str, Any] = {"shift": np.float32(0.5), "flip": np.True_}
    settings: dict[str, Any] = {"epochs": np.int64(2), "lr": np.float32(0.5), "whiten": np.False_}
    recipe = Recipe(**settings, augment=Augment(**augment))
    expected = Recipe(epochs=2, lr=0.5, augment=Augment(shift=0.5, flip=True))
    assert recipe == expected
    assert json.dumps(recipe.to_json()) == json.dumps(expected.to_json())
    with pytest.raises(ValueError, match=r"epochs must be an integer, not 1\.5"):
        Recipe(**settings | {"epochs": np.float64(1.5)})


def test_replaced_recipe_is_validated() -> None:
    with pytest.raises(ValueError, match="epochs"):
        replace(Recipe(), epochs=0)
