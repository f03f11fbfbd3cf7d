"""Muon: updates of convolutions are orthogonal and relative to the weights' norm; the others are those of SGD."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from morphnas.graph import cnn, to_module
from morphnas.train import step
from morphnas.train.deadline import NEVER
from morphnas.train.muon import BFLOAT16_MIN_SIZE, Muon, orthogonal
from morphnas.train.predict import evaluate
from morphnas.train.recipe import Recipe
from morphnas.train.trainer import train
from tests.train.tasks import image_task, seeded


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-6, 1e6), st.integers(0, 1000))
def test_orthogonal_equalises_singular_values(rows: int, columns: int, scale: float, seed: int) -> None:
    matrix = scale * torch.randn(rows, columns, generator=seeded(seed))
    found = orthogonal(matrix)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    after = left.T @ found @ right.T
    assert torch.allclose(after - after.diagonal().diag(), torch.zeros_like(after), atol=1e-3)
    large = values > 0.1 * values.max()
    assert ((after.diagonal() > 0.5) & (after.diagonal() < 1.3))[large].all()


def test_orthogonal_of_zeros_is_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_orthogonal_returns_float32_under_autocast() -> None:
    """Autocast to bfloat16 would be slower for small matrices on a CPU: these are multiplied in float32."""
    for rows, is_exact in ((BFLOAT16_MIN_SIZE - 1, True), (BFLOAT16_MIN_SIZE, False)):
        matrix = torch.randn(rows, 4 * rows, generator=seeded())
        with torch.autocast("cpu", torch.bfloat16):
            found = orthogonal(matrix)
        assert found.dtype == torch.float32
        assert torch.equal(found, orthogonal(matrix)) == is_exact
        assert torch.allclose(found, orthogonal(matrix), atol=0.05)


def make_muon(weight: nn.Parameter, lr: float = 0.1) -> Muon:
    return Muon([{"params": [weight], "orthogonalised": True}], lr=lr, momentum=0.9, nesterov=True)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_step_length_is_relative_to_the_weights(weights: float, gradients: float) -> None:
    """Whatever the scales of weights and gradient: a batch norm after the layer is invariant to them."""
    start, gradient = torch.randn(6, 3, 3, 3, generator=seeded(1)), torch.randn(6, 3, 3, 3, generator=seeded(2))
    results = []
    for weight_scale, gradient_scale in ((1.0, 1.0), (weights, gradients)):
        weight = nn.Parameter(start * weight_scale)
        weight.grad = gradient * gradient_scale
        make_muon(weight).step()
        length = (weight.detach() - start * weight_scale).norm().item()
        assert length == pytest.approx(0.1 * weight_scale * start.norm().item(), rel=0.02)
        assert weight.norm().item() == pytest.approx(weight_scale * start.norm().item(), rel=1e-5)
        results.append(weight.detach() / weight_scale)
    assert torch.allclose(results[0], results[1], atol=1e-4)
    assert ((results[0] - start) * gradient).sum() < 0  # downhill


def test_norm_of_weights_is_constant_over_many_steps() -> None:
    """Otherwise every relative step would increase the norm by a factor, and thousands of steps would overflow."""
    weight = nn.Parameter(torch.randn(6, 3, 3, 3, generator=seeded(1)))
    before, optimizer, random = weight.norm().item(), make_muon(weight, 0.3), seeded(2)
    for _ in range(3000):
        weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()
    assert weight.norm().item() == pytest.approx(before, rel=1e-3)


def test_weights_of_zero_or_without_gradient_do_not_change() -> None:
    for weight, gradient in ((torch.zeros(2, 2, 3), torch.ones(2, 2, 3)), (torch.ones(2, 2, 3), None)):
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient
        make_muon(parameter).step()
        assert torch.equal(parameter.detach(), weight)


def test_only_convolutions_are_updated_unlike_sgd() -> None:
    networks = [to_module(cnn((2, 8, 8), 3, width=4)) for _ in range(2)]
    for module, kind in zip(networks, ("muon", "sgd"), strict=True):
        optimizer = step.make_optimizer(module, Recipe(optimizer=kind))  # type: ignore[arg-type]
        for _ in range(2):
            for i, p in enumerate(module.parameters()):
                p.grad = torch.randn(p.shape, generator=seeded(i))
            optimizer.step()
    for (name, one), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other) == (one.ndim < 3), name


def test_convolutions_with_a_bias_are_not_orthogonalised() -> None:
    """There may be no batch norm after them, so the norm of the weights matters, above all if it is 0 at first."""
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    nn.init.zeros_(module[2].weight)  # type: ignore[arg-type]
    optimizer = step.make_optimizer(module, Recipe(optimizer="muon", lr=0.1))
    module(torch.randn(8, 2, 5, 5, generator=seeded(0))).square().sum().backward()  # the outputs are the bias, at first
    optimizer.step()
    assert module[2].weight.norm() > 0.01  # type: ignore[operator]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_networks_learn_with_every_optimizer_and_precision(optimizer: str, precision: str) -> None:
    task = image_task(60, 20)
    recipe = Recipe(epochs=8, batch_size=16, lr=0.01 if optimizer == "adamw" else 0.1)
    recipe = replace(recipe, optimizer=optimizer, precision=precision)  # type: ignore[arg-type]
    module = to_module(cnn((2, 8, 8), 3, width=4))
    before = evaluate(module, task.evaluation_set, task)[0]
    outcome = train(module, task, recipe, NEVER, seeded())
    assert outcome.status == "finished"
    assert outcome.score is not None
    assert outcome.score > before + 0.1
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert evaluate(module, task.evaluation_set, task)[0] == pytest.approx(outcome.score, rel=1e-6)  # in float32
