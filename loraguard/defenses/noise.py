"""Random noise: the control that every defense has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense


@dataclass(frozen=True)
class RandomNoise(Defense):
    """Move every value by `eps` up or down at random, the strongest noise that the budget allows.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].

    Example:
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> RandomNoise(eps=0.05)(nn.Identity(), photos, {}).abs().unique()
        tensor([0.0500])
    """

    eps: float = 0.05

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """Noisy images (N, C, H, W) in [-1, 1]; the generator is not looked at."""
        return (images + self.eps * torch.sign(torch.rand_like(images) - 0.5)).clamp(-1, 1)
