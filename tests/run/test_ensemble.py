"""An ensemble of what a run has trained: votes by held-out loss, around the final network."""

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
from tests.run.doubles import RECIPE, store_of

LINEAR = Graph((Node("x", Input((3,))), Node("dense_1", Dense(3), ("x",))))


def task(n: int = 90) -> Task:
    """Three classes, each indicated by one feature; features have independent noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2 * n) % 3
    x = 2.0 * torch.eye(3)[y] + torch.randn(2 * n, 3, generator=generator)
    return Task.of(Examples(x[:n], y[:n]), Examples(x[n:], y[n:]), Classification(3))


TASK = task()


def matrix(*rows: tuple[float, float, float]) -> dict[str, torch.Tensor]:
    return {"dense_1.weight": torch.tensor(rows, dtype=torch.float32), "dense_1.bias": torch.zeros(3)}


FIRST = matrix((3, 0, 0), (0, 0.3, 0), (0, 0, 0.3))
SECOND = matrix((0.3, 0, 0), (0, 3, 0), (0, 0, 3))
WRONG = matrix((-3, 0, 0), (0, -3, 0), (0, 0, -3))


def add(store: Store, weights: dict[str, torch.Tensor], score: float | None = -0.5, **why: Any) -> Trial:
    trial = store.claim(Proposal(LINEAR, (), RECIPE, why))
    return store.finish(trial.id, Outcome("finished", score, 0.8, epochs=2, best_epoch=2, examples=40), weights)


def elected(store: Store, final: Trial, size: int = 3, **changes: Any) -> dict[int, float]:
    given = {"task": TASK, "selection_set": None, "mirrors": False, "deadline": Deadline.after(600)} | changes
    return select_members(store, final, size=size, **given)


def loss(store: Store, shares: dict[int, float]) -> float:
    assert TASK.valid is not None
    logits = build_ensemble(store, shares).to_module()(TASK.normalised(TASK.valid.x)).detach().double()
    heat = TASK.goal.temperature(logits, TASK.valid.y)
    return torch.nn.functional.cross_entropy(logits / heat, TASK.valid.y).item()


def test_networks_that_help_get_votes_and_others_none(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        final, good, bad = add(store, FIRST), add(store, SECOND), add(store, WRONG)
        shares = elected(store, final)
        assert set(shares) == {final.id, good.id}
        assert sum(shares.values()) == pytest.approx(1)
        assert loss(store, shares) < min(loss(store, {id: 1.0}) for id in (final.id, good.id, bad.id))
        assert elected(store, final, size=1) == {final.id: 1.0}


def test_a_metric_of_the_users_own_gives_the_votes(tmp_path: Path) -> None:
    """One selects a network that the loss would leave out."""

    class Wrong:
        name = "wrong"

        def __call__(self, outputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None) -> float:
            return float((outputs.argmax(1) != y).double().mean())

    with store_of(tmp_path / "run") as store:
        final, good, bad = add(store, FIRST), add(store, SECOND), add(store, WRONG)
        shares = elected(store, final, task=replace(TASK, goal=CustomGoal(TASK.goal, Wrong())))
        assert set(shares) == {final.id, bad.id}
        assert good.id in elected(store, final)


def test_no_more_networks_than_asked_for(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        final = add(store, WRONG)
        for i in range(5):
            add(store, matrix(*[tuple(3.0 * (j == k == i % 3) for k in range(3)) for j in range(3)]))  # type: ignore[arg-type]
        for size in (1, 2, 3):
            shares = elected(store, final, size=size)
            assert final.id in shares
            assert len(shares) == size


def test_another_one_votes_for_a_network_that_was_trained_on_the_examples(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        judged, good = add(store, FIRST, final="inherited"), add(store, SECOND)
        final = add(store, WRONG, None, final="everything", score_of=judged.id)
        assert final.scored_by == judged.id
        shares = elected(store, final)
        assert shares == {final.id if id == judged.id else id: share for id, share in elected(store, judged).items()}
        assert set(shares) == {final.id, good.id}


def test_the_final_network_is_alone_where_nobody_can_tell_how_good_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with store_of(tmp_path / "run") as store:
        short, _ = add(store, FIRST), add(store, SECOND)
        final = add(store, WRONG, None, final="everything", score_of=short.id)
        assert elected(store, final) == {final.id: 1.0}
        alone = {short.id: 1.0}
        assert elected(store, short, task=Task.of(TASK.train, None, Classification(3))) == alone
        assert elected(store, short, deadline=Deadline.after(0)) == alone
        assert elected(store, short, data="other") == alone
        told = [record.getMessage() for record in caplog.records]
        assert [text.partition(": ")[0] for text in told] == ["the model is not an ensemble"] * 4
        for text, word in zip(told, ("no time to score", "held out", "in time", "other data"), strict=True):
            assert word in text
        assert elected(store, short) != alone


def test_a_network_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with store_of(tmp_path / "run") as store:
        final, good, broken = add(store, FIRST), add(store, SECOND), add(store, SECOND, -0.1)
        (store.path / "trials" / f"{broken.id:05d}" / "weights.safetensors").write_bytes(b"nothing")
        assert set(elected(store, final)) == {final.id, good.id}
        assert f"trial {broken.id} cannot be evaluated" in caplog.text


def test_networks_that_have_learnt_from_other_data_are_left_out(tmp_path: Path) -> None:
    """They may have been trained on the examples held out here."""
    with store_of(tmp_path / "run", data={"hash": "old"}) as store:
        child = add(store, SECOND)
        final, other = add(store, FIRST, final="inherited", data="new"), add(store, SECOND, final="fresh", data="old")
        assert elected(store, final, data="new") == {final.id: 1.0}
        assert set(elected(store, other, data="old")) <= {other.id, child.id}
        assert elected(store, child, data="new") == {child.id: 1.0}
        same = add(store, SECOND, final="fresh", data="new")
        assert set(elected(store, final, data="new")) == {final.id, same.id}


def test_outputs_that_are_no_numbers_get_no_vote(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        final = add(store, FIRST)
        add(store, matrix((float("nan"), 0, 0), (0, 1, 0), (0, 0, 1)))
        assert elected(store, final) == {final.id: 1.0}


def test_as_few_examples_are_read_as_the_time_was_kept_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(network: Any, x: Any, *settings: Any) -> Any:
        read.append(len(x))
        return predict(network, x, *settings)

    monkeypatch.setattr(predictions, "predict", counted)
    monkeypatch.setattr(module, "MAX_EXAMPLES", 50)
    with store_of(tmp_path / "run") as store:
        final = add(store, SECOND)
        for _ in range(module.LIBRARY_SIZE + 3):
            add(store, SECOND)
        assert final.id in elected(store, final, selection_set=TASK.train)
    assert sum(read) == count_evaluated(3, TASK, TASK.train) - 2 * len(TASK.evaluation_set) == module.LIBRARY_SIZE * 50
    assert count_evaluated(1, TASK, None) == 0
    assert count_evaluated(10**9, TASK, None) == count_evaluated(module.ROUNDS, TASK, None), "no more can have a vote"


def test_the_best_networks_are_asked_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARY_SIZE", 2)
    with store_of(tmp_path / "run") as store:
        final, _, good = add(store, FIRST), add(store, WRONG, -2.0), add(store, SECOND, -0.4)
        assert set(elected(store, final)) == {final.id, good.id}


def test_an_ensemble_is_within_the_limits(tmp_path: Path) -> None:
    """The ensemble as a whole, not each of its networks."""
    with store_of(tmp_path / "run") as store:
        final, good = add(store, FIRST), add(store, SECOND)
        together = build_ensemble(store, {final.id: 0.5, good.id: 0.5}).graph
        enough, few = (Limits(max_params=n) for n in (together.parameters, together.parameters - 1))
        assert set(elected(store, final, limits=enough)) == {final.id, good.id}
        assert elected(store, final, limits=few) == {final.id: 1.0}
