"""Batch norms that are new: what they compute stays, and becomes that of their inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def calibrate(module: nn.Module, names: Iterable[str], x: Tensor) -> None:
    """Give the named batch norms the statistics of the normalised batch x and keep what the network computes.

    A fresh batch norm that is neutral in evaluation mode is not so in training mode, where it normalises by the batch.
    With the batch's mean m and variance v as its statistics, and a scale and bias that undo them, it is in both. The
    batch norms not named see the batch as in training, and keep their statistics.
    """
    handles = []
    norms = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    counts = [buffer for name, buffer in module.named_buffers() if name.endswith("num_batches_tracked")]
    momenta = {name: layer.momentum for name, layer in norms.items()}

    def fit(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        assert layer.running_mean is not None and layer.running_var is not None
        values = inputs[0].double()
        axes = [0, *range(2, values.ndim)]
        mean, var = values.mean(axes), values.var(axes, correction=0)
        slope = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
        height = layer.bias.double() - slope * layer.running_mean.double()
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        layer.weight.copy_(slope * (var + layer.eps).sqrt())
        layer.bias.copy_(height + slope * mean)

    try:
        for name in names:
            handles.append(norms[name].register_forward_pre_hook(fit))
        for layer in norms.values():
            layer.momentum = 0.0
        module.train()
        before = [count.clone() for count in counts]
        module(x)
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in norms.items():
            layer.momentum = momenta[name]
