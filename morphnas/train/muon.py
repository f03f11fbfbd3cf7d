"""Muon: momentum whose steps turn a convolution's filters evenly in all directions (Jordan et al. 2024, "Muon: an
optimizer for hidden layers in neural networks")."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.6
"""Of the filters' steps."""

HALVED = 96
"""Rows or columns, the fewer of them, from which on a CPU multiplies matrices faster in bfloat16, where it can at all:
converting smaller ones takes longer than that saves (`benchmarks/muon.py`)."""

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of an iteration that brings singular values from (0, 1] nearer to 1 with every round; Jordan does five,
three are done here."""


class Muon(torch.optim.SGD):
    """SGD, but for groups with `turned`: there every step is nearly orthogonal, as long as `lr` times the weights, and
    leaves these as long as they were.

    Relative steps suit weights of any scale, fresh and inherited ones. Before a batch norm their length is of no
    matter, but it would grow with every step, by a share: without end. They see no weight decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            if group["turned"] and (weights := [p for p in group["params"] if p.grad is not None]):
                self._turn(weights, [p.grad for p in weights], group["lr"])
                for weight in weights:
                    weight.grad = None  # SGD has nothing to do here
        return super().step(closure)

    def _turn(self, weights: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """All weights at once where that can be: on a GPU each operation on one of them takes as long."""
        for weight in weights:
            if "turning" not in self.state[weight]:
                self.state[weight]["turning"] = torch.zeros_like(weight)
        turning: list[Tensor] = [self.state[weight]["turning"] for weight in weights]
        torch._foreach_mul_(turning, MOMENTUM)
        torch._foreach_add_(turning, gradients)
        updates = [
            # the channels come last, which is how images and filters lie in memory
            orthogonal(each.movedim(1, -1).flatten(1)).view(each.movedim(1, -1).shape).movedim(-1, 1)
            for each in torch._foreach_add(gradients, turning, alpha=MOMENTUM)
        ]
        lengths = _lengths(weights)
        shares = -lr * lengths / _lengths(updates).clamp(min=1e-12)
        for weight, update, share in zip(weights, updates, shares, strict=True):
            weight.addcmul_(update, share)
        shares = lengths / _lengths(weights).clamp(min=1e-12)
        for weight, share in zip(weights, shares, strict=True):
            weight.mul_(share)


def _lengths(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32))


def orthogonal(matrix: Tensor, rounds: int = 3) -> Tensor:
    """(rows, columns) float32 with nearly the same singular vectors, and singular values nearer to 1; zero stays zero.

    In between in the precision of `torch.autocast`, where that is on and faster. A Newton-Schulz iteration (Bernstein
    and Newhouse 2024, arXiv:2409.20325, appendix A).
    """
    a, b, c = _QUINTIC
    x: Tensor = matrix / matrix.norm().clamp(min=1e-12)
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind)
    small = cast and kind == "cpu" and min(x.shape) < HALVED
    if cast and not small:
        x = x.to(torch.get_autocast_dtype(kind))
    if tall := len(x) > x.shape[1]:
        x = x.T
    with torch.autocast(kind, enabled=False) if small else nullcontext():
        for _ in range(rounds):
            square = x @ x.T
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
