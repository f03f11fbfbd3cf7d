"""Calibrating new batch norms: statistics of real inputs, with scale and bias changed so that outputs stay the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def calibrate(module: nn.Module, names: Iterable[str], x: Tensor) -> None:
    """Set the running statistics of the named batch norms to those of their inputs, and keep the network's function.

    A new batch norm that is the identity in evaluation mode is not the identity in training mode, where it normalises
    by the batch's mean and variance. With these as its running statistics, and a weight and bias that undo them, it is
    the identity in both modes (on this batch). All other batch norms run in training mode, and keep their running
    statistics. The module is left in training mode.

    names: of the batch norms to calibrate, as in `module.named_modules()`. x: a batch of normalised examples.
    """
    handles = []
    norms = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    counts = [buffer for name, buffer in module.named_buffers() if name.endswith("num_batches_tracked")]
    momenta = {name: layer.momentum for name, layer in norms.items()}

    def set_statistics(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        assert layer.running_mean is not None and layer.running_var is not None
        values = inputs[0].double()
        axes = [0, *range(2, values.ndim)]
        mean, var = values.mean(axes), values.var(axes, correction=0)
        scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
        offset = layer.bias.double() - scale * layer.running_mean.double()
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        layer.weight.copy_(scale * (var + layer.eps).sqrt())
        layer.bias.copy_(offset + scale * mean)

    try:
        for name in names:
            handles.append(norms[name].register_forward_pre_hook(set_statistics))
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
