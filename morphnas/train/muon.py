"""Muon: momentum with orthogonalised updates, for convolutions (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks")."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.6
"""Momentum of the weights that Muon updates."""

BFLOAT16_MIN_SIZE = 96
"""Length of the smaller side of a matrix from which products in bfloat16 are faster, on a CPU that supports it: for
smaller matrices the conversion takes longer than it saves (`benchmarks/muon.py`)."""

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration. Each step multiplies small singular values by up to 3.4; once they are
large they stay between about 0.7 and 1.2. Jordan does five steps, three are done here."""


class Muon(torch.optim.SGD):
    """SGD, and Muon for parameter groups with `orthogonalised`.

    A Muon update is nearly orthogonal and has `lr` times the norm of the weights, whose norm it leaves unchanged.
    Relative updates suit weights of any scale, fresh and inherited ones. Before a batch norm the norm of the weights
    has no effect, but it would grow by a factor with every step, without bound. These groups have no weight decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            if group["orthogonalised"] and (weights := [p for p in group["params"] if p.grad is not None]):
                self._update(weights, [p.grad for p in weights], group["lr"])
                for weight in weights:
                    weight.grad = None  # SGD has nothing to do here
        return super().step(closure)

    def _update(self, weights: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """Make a Muon step, with multi-tensor operations where possible: on a GPU one for each weight takes as long as
        one for all."""
        for weight in weights:
            if "turning" not in self.state[weight]:  # the momentum buffer, under this name in checkpoints
                self.state[weight]["turning"] = torch.zeros_like(weight)
        momenta: list[Tensor] = [self.state[weight]["turning"] for weight in weights]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        updates = [
            # channels last, which is the memory format of images and filters
            orthogonal(step.movedim(1, -1).flatten(1)).view(step.movedim(1, -1).shape).movedim(-1, 1)
            for step in torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
        ]
        norms = _norms(weights)
        factors = -lr * norms / _norms(updates).clamp(min=1e-12)
        for weight, update, factor in zip(weights, updates, factors, strict=True):
            weight.addcmul_(update, factor)
        factors = norms / _norms(weights).clamp(min=1e-12)
        for weight, factor in zip(weights, factors, strict=True):
            weight.mul_(factor)


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32))


def orthogonal(matrix: Tensor, rounds: int = 3) -> Tensor:
    """Approximately orthogonalise a float32 matrix (rows, columns) by a Newton-Schulz iteration.

    The result has nearly the same singular vectors, and singular values near 1 except for small ones, see `_QUINTIC`;
    zero stays zero. Computed in the precision of `torch.autocast` if that is enabled and faster. See Bernstein and
    Newhouse 2024, arXiv:2409.20325, appendix A.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrix / matrix.norm().clamp(min=1e-12)
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    small = autocast and device == "cpu" and min(x.shape) < BFLOAT16_MIN_SIZE
    if autocast and not small:
        x = x.to(torch.get_autocast_dtype(device))
    if tall := len(x) > x.shape[1]:
        x = x.T
    with torch.autocast(device, enabled=False) if small else nullcontext():
        for _ in range(rounds):
            square = x @ x.T
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
