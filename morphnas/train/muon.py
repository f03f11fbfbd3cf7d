"""Muon: momentum whose steps turn a convolution's filters evenly in all directions (Jordan et al. 2024, "Muon: an
optimizer for hidden layers in neural networks")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.6
"""Of the filters' steps."""

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of an iteration that brings singular values from (0, 1] to about 0.7 to 1.2 in few rounds."""


class Muon(torch.optim.SGD):
    """SGD, but for groups with `turned`: there every step is orthogonal, as long as `lr` times the weights, and leaves
    these as long as they were.

    Relative steps suit weights of any scale, fresh and inherited ones. Before a batch norm their length is of no
    matter, but it would grow with every step, by a share: without end. They see no weight decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            if group["turned"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._turn(weight, weight.grad, group["lr"])
                        weight.grad = None  # SGD has nothing to do here
        return super().step(closure)

    def _turn(self, weight: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[weight]
        if "turning" not in state:
            state["turning"] = torch.zeros_like(gradient)
        turning: Tensor = state["turning"]
        turning.mul_(MOMENTUM).add_(gradient)
        update = orthogonal(gradient.add(turning, alpha=MOMENTUM).flatten(1))
        length = weight.norm()
        weight.sub_(update.view_as(weight) * (lr * length / update.norm().clamp(min=1e-12)))
        weight.mul_(length / weight.norm().clamp(min=1e-12))


def orthogonal(matrix: Tensor, rounds: int = 3) -> Tensor:
    """(rows, columns) with nearly the same singular vectors and singular values near 1; zero stays zero.

    A Newton-Schulz iteration (Bernstein and Newhouse 2024, arXiv:2409.20325, appendix A).
    """
    a, b, c = _QUINTIC
    x: Tensor = matrix / matrix.norm().clamp(min=1e-12)
    if tall := len(x) > x.shape[1]:
        x = x.T
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
