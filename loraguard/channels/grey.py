"""Taking colour away."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import in_colours, keeps_format


@dataclass(frozen=True)
class Grey:
    """Replace colours by their luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), in all three of them.

    Example:
        >>> import torch
        >>> Grey()(torch.tensor([0.5, -0.5, 0.0]).reshape(1, 3, 1, 1)).flatten()
        tensor([-0.1440, -0.1440, -0.1440])
    """

    @in_colours
    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Grey images (N, 3, H, W), differentiable."""
        from kornia.color import rgb_to_grayscale

        return rgb_to_grayscale(images).expand_as(images)

    def differentiable(self) -> Grey:
        """Itself."""
        return self
