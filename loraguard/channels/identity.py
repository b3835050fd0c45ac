"""Nothing at all, to compare the others with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import keeps_format


@dataclass(frozen=True)
class Identity:
    """Leave images as they are: the control.

    Example:
        >>> import torch
        >>> images = torch.rand(1, 3, 8, 8)
        >>> torch.equal(Identity()(images), images)
        True
    """

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), the same."""
        return images

    def differentiable(self) -> Identity:
        """Itself."""
        return self
