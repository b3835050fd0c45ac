"""A photo as it is published: rounded to 8 bits within its budget."""

from __future__ import annotations

from torch import Tensor

from loraguard.pixels import LEVELS_PER_UNIT

from .levels import Quantize

quantize = Quantize()
"""To 8 bits, the 256 levels that a photo's file can hold."""


def published(perturbed: Tensor, images: Tensor) -> Tensor:
    """The photo as it is published: 8 bits a channel, never further from the original than the perturbation was.

    The perturbation is rounded towards zero, counted from the original's own 8-bit levels, so that an L-infinity budget
    that held before still holds.

    Args:
        perturbed: perturbed images (N, 3, H, W) in [-1, 1].
        images: the originals.

    Example:
        >>> import torch
        >>> photo = quantize(torch.rand(1, 3, 4, 4) * 2 - 1)
        >>> shown = published((photo + 0.05).clamp(-1, 1), photo)
        >>> bool(((shown - photo).abs() <= 0.05 + 1e-5).all())
        True
    """
    original = quantize(images)
    levels = (perturbed.clamp(-1, 1) - original) * LEVELS_PER_UNIT
    levels = (levels + 1e-3 * levels.sign()).trunc()  # 7.9999 levels are 8, rounded on the way here
    return original + levels / LEVELS_PER_UNIT
