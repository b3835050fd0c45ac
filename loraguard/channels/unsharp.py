"""Sharpening by an unsharp mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from loraguard.pixels import LEVELS_PER_UNIT

from .base import keeps_format
from .blur import WIDEST

PASSES = 3
"""Box blurs one after another that stand in for a Gaussian, in Pillow as here."""


@dataclass(frozen=True)
class Unsharp:
    """Sharpen by an unsharp mask, as Pillow does: add to each value how far it is from its blurred neighbourhood.

    `x + percent / 100 * (x - blur(x))` where the difference exceeds the threshold, and x elsewhere, which is Pillow's
    `ImageFilter.UnsharpMask`. The blur is Pillow's for a Gaussian: three box blurs with a fractional edge (Gwosdek et
    al., 2011). Pillow rounds each blur to 8 bits; this does not, and gradients pass through it.

    Args:
        radius: standard deviation of the blur, in pixels.
        percent: how much of the difference is added.
        threshold: differences up to this many of the 255 levels are left alone.

    Raises:
        ValueError: for a radius that is not above 0, or a percentage or threshold below 0.

    Example:
        >>> import torch
        >>> edge = torch.tensor([-0.5, 0.5]).repeat_interleave(4).expand(1, 3, 8, 8)
        >>> Unsharp(radius=1, percent=50)(edge)[0, 0, 0, 3:5]
        tensor([-0.6481,  0.6481])
    """

    radius: float = 2.0
    percent: float = 150.0
    threshold: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.radius <= WIDEST / 6:
            raise ValueError(f"radius={self.radius!r} must be above 0 and at most {WIDEST // 6}; it is in pixels.")
        if not (0 <= self.percent < math.inf and 0 <= self.threshold < math.inf):
            raise ValueError(f"Expected percent >= 0 and threshold >= 0, got {self.percent!r} and {self.threshold!r}.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Sharpened images (N, C, H, W), differentiable."""
        difference = images - _blurred(images, box_radius(self.radius))
        kept = difference.detach().abs() * LEVELS_PER_UNIT > self.threshold
        return images + self.percent / 100 * difference * kept

    def differentiable(self) -> Unsharp:
        """Itself."""
        return self


def box_radius(sigma: float) -> float:
    """The radius of a box, so many of which in a row have a standard deviation of sigma (Gwosdek et al., eq. 7-14).

    Example:
        >>> round(box_radius(2.0), 4)
        1.375
    """
    variance = sigma**2 / PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + edge


def _blurred(images: Tensor, radius: float) -> Tensor:
    """Box blurs along rows, then along columns; beyond the border, images go on as they are at it."""
    whole = math.floor(radius)
    kernel = images.new_ones(2 * whole + 3)
    kernel[[0, -1]] = radius - whole
    kernel = kernel / (2 * radius + 1)
    planes = images.reshape(-1, 1, *images.shape[-2:])
    for shape, pad in (
        (kernel[None, :], (whole + 1, whole + 1, 0, 0)),
        (kernel[:, None], (0, 0, whole + 1, whole + 1)),
    ):
        for _ in range(PASSES):
            planes = F.conv2d(F.pad(planes, pad, mode="replicate"), shape[None, None])
    return planes.reshape(images.shape)
