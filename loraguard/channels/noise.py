"""Random noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import keeps_format


@dataclass(frozen=True)
class GaussianNoise:
    """Add Gaussian noise, a new draw for each value of each image, and clip.

    Args:
        sigma: standard deviation, in units of images in [-1, 1] (0.05 is 6.375/255).

    Raises:
        ValueError: for a sigma below 0.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> round(GaussianNoise(sigma=0.1)(torch.zeros(1, 3, 256, 256)).std().item(), 2)
        0.1
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma={self.sigma!r} must be 0 or more, in units of images in [-1, 1].")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Noisy images (N, C, H, W), differentiable."""
        return images + self.sigma * torch.randn_like(images)

    def differentiable(self) -> GaussianNoise:
        """Itself; each call draws anew."""
        return self
