"""Whitening filters for a first convolution: its outputs have equal variance in all directions, without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_PATCHES = 2**20
"""Approximate maximum number of patches that the filters are computed from: if there are more, only those at every few
pixels along both axes are used."""

EPSILON = 5e-4
"""Added to the variance of patches of normalised images in every direction."""


@torch.no_grad()
def whitening(x: Tensor, like: Tensor) -> Tensor:
    """Filters that whiten patches of images, after Jordan 2024, arXiv:2404.00498, section 3.2.

    First come the principal directions of the patches, those of largest variance first, each divided by its standard
    deviation; then the negatives of all of them, which differ after a relu; then all again, as far as there are filters
    (Jordan gives every filter its negative).

    x: normalised images (n, channels, h, w). like: weights (filters, channels, kernel, kernel) of a convolution, whose
    shape, dtype and norm the result has.
    """
    kernel = like.shape[2:]
    positions = math.prod(size - side + 1 for size, side in zip(x.shape[2:], kernel, strict=True))
    step = max(1, math.ceil(math.sqrt(len(x) * positions / MAX_PATCHES)))
    patches = x
    for axis, side in enumerate(kernel, start=2):
        patches = patches.unfold(axis, side, step)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, like[0].numel()).double()
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (directions / (variances + EPSILON).sqrt()).T.flip(0)
    filters = torch.cat([filters, -filters])
    filters = filters.repeat(-(-len(like) // len(filters)), 1)[: len(like)].view_as(like)
    scaled: Tensor = filters * (like.double().norm() / filters.norm())
    return scaled.to(like.dtype)
