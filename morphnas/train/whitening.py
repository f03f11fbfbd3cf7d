"""First filters that whiten: they make a network's input as strong in all directions, and need no training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PATCHES = 2**20
"""Patches that are looked at, at most: of more, those every few pixels along both axes."""

LEAST = 5e-4
"""Added to the variance along every direction of the patches, which are of normalised images."""


@torch.no_grad()
def whitening(x: Tensor, like: Tensor) -> Tensor:
    """Filters that whiten the patches of images, along the strongest directions first, and then their negatives, which
    a relu tells apart (after Jordan 2024, arXiv:2404.00498, section 3.2, where every filter has its negative).

    x: normalised images (n, channels, h, w). like: a convolution's weights (filters, channels, kernel, kernel), whose
    shape and length the result has. There are negatives only of what is more than one for each direction, and beyond
    two for each all are repeated.
    """
    kernel = like.shape[2:]
    positions = math.prod(size - side + 1 for size, side in zip(x.shape[2:], kernel, strict=True))
    step = max(1, math.ceil(math.sqrt(len(x) * positions / PATCHES)))
    patches = x
    for axis, side in enumerate(kernel, start=2):
        patches = patches.unfold(axis, side, step)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, like[0].numel()).double()
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    found = (directions / (variances + LEAST).sqrt()).T.flip(0)
    found = torch.cat([found, -found])
    found = found.repeat(-(-len(like) // len(found)), 1)[: len(like)].view_as(like)
    scaled: Tensor = found * (like.double().norm() / found.norm())
    return scaled.to(like.dtype)
