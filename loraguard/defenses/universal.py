"""One perturbation for all photos."""

from __future__ import annotations

import torch
from torch import Tensor

from .fitted import FittedDefense, Perturber


class Pattern(Perturber):
    """The same perturbation (3, H, W) for every image, resized to the images' size.

    Example:
        >>> pattern = Pattern(torch.full((3, 8, 8), 0.05))
        >>> pattern(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        """The perturbation for images (N, 3, H, W), (1, 3, H, W)."""
        return self.shared(images)


class UniversalDefense(FittedDefense):
    """A defense that adds one perturbation to every photo; `perturbation` is it once it is fitted."""

    def blank(self, size: tuple[int, int]) -> Pattern:
        """No perturbation."""
        return Pattern(torch.zeros(3, *size))

    @property
    def perturbation(self) -> Tensor:
        """(3, H, W) within +-eps, at the size that it was fitted at.

        Raises:
            ValueError: if this defense is not fitted.
        """
        return self._learnt().pattern
