"""Tests of the ensemble of a run's networks: selected by the score on held-out examples, around the final network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphnas.graph import Dense, Graph, Input, Limits, Node
from morphnas.run import ensemble as module
from morphnas.run import predictions
from morphnas.run.ensemble import build_ensemble, count_evaluated, select_members
from morphnas.run.store import Store
from morphnas.search.trial import Proposal, Trial
from morphnas.train.data import Examples, Task
from morphnas.train.deadline import Deadline
from morphnas.train.goal import Classification, CustomGoal
from morphnas.train.predict import predict
from morphnas.train.recipe import Outcome
from tests.run.doubles import RECIPE, new_store

LINEAR = Graph((Node("x", Input((3,))), Node("dense_1", Dense(3), ("x",))))


def make_task(n: int = 90) -> Task:
    """Three classes, each indicated by one feature; features have independent noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2 * n) % 3
    x = 2.0 * torch.eye(3)[y] + torch.randn(2 * n, 3, generator=generator)
    return Task.of(Examples(x[:n], y[:n]), Examples(x[n:], y[n:]), Classification(3))


TASK = make_task()


def linear_weights(*rows: tuple[float, float, float]) -> dict[str, torch.Tensor]:
    return {"dense_1.weight": torch.tensor(rows, dtype=torch.float32), "dense_1.bias": torch.zeros(3)}


FIRST = linear_weights((3, 0, 0), (0, 0.3, 0), (0, 0, 0.3))
"""Confident about the first class; SECOND about the two others."""
SECOND = linear_weights((0.3, 0, 0), (0, 3, 0), (0, 0, 3))
WRONG = linear_weights((-3, 0, 0), (0, -3, 0), (0, 0, -3))


def add_trial(store: Store, weights: dict[str, torch.Tensor], score: float | None = -0.5, **why: Any) -> Trial:
    trial = store.claim(Proposal(LINEAR, (), RECIPE, why))
    return store.finish(trial.id, Outcome("finished", score, 0.8, epochs=2, best_epoch=2, examples=40), weights)


def select(store: Store, final: Trial, size: int = 3, **changes: Any) -> dict[int, float]:
    settings = {"task": TASK, "selection_set": None, "mirrors": False, "deadline": Deadline.after(600)} | changes
    return select_members(store, final, size=size, **settings)


def ensemble_loss(store: Store, shares: dict[int, float]) -> float:
    assert TASK.valid is not None
    logits = build_ensemble(store, shares).to_module()(TASK.normalised(TASK.valid.x)).detach().double()
    temperature = TASK.goal.temperature(logits, TASK.valid.y)
    return torch.nn.functional.cross_entropy(logits / temperature, TASK.valid.y).item()


def test_only_networks_that_lower_the_loss_are_selected(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        final, good, bad = add_trial(store, FIRST), add_trial(store, SECOND), add_trial(store, WRONG)
        shares = select(store, final)
        assert set(shares) == {final.id, good.id}
        assert sum(shares.values()) == pytest.approx(1)
        assert ensemble_loss(store, shares) < min(ensemble_loss(store, {id: 1.0}) for id in (final.id, good.id, bad.id))
        assert select(store, final, size=1) == {final.id: 1.0}


def test_user_defined_metric_selects_members(tmp_path: Path) -> None:
    """It selects a network that the loss would leave out."""

    class ErrorRate:
        name = "error rate"

        def __call__(self, outputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None) -> float:
            return float((outputs.argmax(1) != y).double().mean())

    with new_store(tmp_path / "run") as store:
        final, good, bad = add_trial(store, FIRST), add_trial(store, SECOND), add_trial(store, WRONG)
        shares = select(store, final, task=replace(TASK, goal=CustomGoal(TASK.goal, ErrorRate())))
        assert set(shares) == {final.id, bad.id}
        assert good.id in select(store, final)


def test_size_limits_number_of_members(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        final = add_trial(store, WRONG)
        for i in range(5):
            rows = [tuple(3.0 * (j == k == i % 3) for k in range(3)) for j in range(3)]
            add_trial(store, linear_weights(*rows))  # type: ignore[arg-type]
        for size in (1, 2, 3):
            shares = select(store, final, size=size)
            assert final.id in shares
            assert len(shares) == size


def test_scored_training_stands_in_for_unscored_final(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        scored, good = add_trial(store, FIRST, final="inherited"), add_trial(store, SECOND)
        final = add_trial(store, WRONG, None, final="everything", score_of=scored.id)
        assert final.scored_by == scored.id
        shares = select(store, final)
        assert shares == {final.id if id == scored.id else id: share for id, share in select(store, scored).items()}
        assert set(shares) == {final.id, good.id}


def test_final_is_the_only_member_if_not_comparable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with new_store(tmp_path / "run") as store:
        searched, _ = add_trial(store, FIRST), add_trial(store, SECOND)
        final = add_trial(store, WRONG, None, final="everything", score_of=searched.id)
        assert select(store, final) == {final.id: 1.0}
        alone = {searched.id: 1.0}
        assert select(store, searched, task=Task.of(TASK.train, None, Classification(3))) == alone
        assert select(store, searched, deadline=Deadline.after(0)) == alone
        assert select(store, searched, data="other") == alone
        messages = [record.getMessage() for record in caplog.records]
        assert [text.partition(": ")[0] for text in messages] == ["the model is not an ensemble"] * 4
        for text, reason in zip(messages, ("no time to score", "held out", "in time", "other data"), strict=True):
            assert reason in text
        assert select(store, searched) != alone


def test_unreadable_network_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with new_store(tmp_path / "run") as store:
        final, good, broken = add_trial(store, FIRST), add_trial(store, SECOND), add_trial(store, SECOND, -0.1)
        (store.path / "trials" / f"{broken.id:05d}" / "weights.safetensors").write_bytes(b"nothing")
        assert set(select(store, final)) == {final.id, good.id}
        assert f"trial {broken.id} cannot be evaluated" in caplog.text


def test_networks_trained_on_other_data_are_left_out(tmp_path: Path) -> None:
    """They may have been trained on the examples that are held out here."""
    with new_store(tmp_path / "run", data={"hash": "old"}) as store:
        child = add_trial(store, SECOND)
        final = add_trial(store, FIRST, final="inherited", data="new")
        other = add_trial(store, SECOND, final="fresh", data="old")
        assert select(store, final, data="new") == {final.id: 1.0}
        assert set(select(store, other, data="old")) <= {other.id, child.id}
        assert select(store, child, data="new") == {child.id: 1.0}
        same = add_trial(store, SECOND, final="fresh", data="new")
        assert set(select(store, final, data="new")) == {final.id, same.id}


def test_network_with_nan_outputs_is_left_out(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        final = add_trial(store, FIRST)
        add_trial(store, linear_weights((float("nan"), 0, 0), (0, 1, 0), (0, 0, 1)))
        assert select(store, final) == {final.id: 1.0}


def test_count_evaluated_matches_predicted_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counting_predict(network: Any, x: Any, *settings: Any) -> Any:
        counts.append(len(x))
        return predict(network, x, *settings)

    monkeypatch.setattr(predictions, "predict", counting_predict)
    monkeypatch.setattr(module, "MAX_EXAMPLES", 50)
    with new_store(tmp_path / "run") as store:
        final = add_trial(store, SECOND)
        for _ in range(module.LIBRARY_SIZE + 3):
            add_trial(store, SECOND)
        assert final.id in select(store, final, selection_set=TASK.train)
    for_selection = count_evaluated(3, TASK, TASK.train) - 2 * len(TASK.evaluation_set)
    assert sum(counts) == for_selection == module.LIBRARY_SIZE * 50
    assert count_evaluated(1, TASK, None) == 0
    assert count_evaluated(10**9, TASK, None) == count_evaluated(module.ROUNDS, TASK, None), "there are no more votes"


def test_best_networks_are_considered_if_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARY_SIZE", 2)
    with new_store(tmp_path / "run") as store:
        final, _, good = add_trial(store, FIRST), add_trial(store, WRONG, -2.0), add_trial(store, SECOND, -0.4)
        assert set(select(store, final)) == {final.id, good.id}


def test_ensemble_as_a_whole_meets_limits(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        final, good = add_trial(store, FIRST), add_trial(store, SECOND)
        size = build_ensemble(store, {final.id: 0.5, good.id: 0.5}).graph.parameters
        assert set(select(store, final, limits=Limits(max_params=size))) == {final.id, good.id}
        assert select(store, final, limits=Limits(max_params=size - 1)) == {final.id: 1.0}
