"""Cropping, scaled back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import keeps_format
from .resize import bicubic


@dataclass(frozen=True)
class CropResize:
    """Crop each image at a random place, and scale the part back to the whole's size, bicubic.

    Args:
        part: of the sides, rounded to whole pixels.

    Raises:
        ValueError: for a part outside of (0, 1].

    Example:
        >>> channel = CropResize(part=0.8)
        >>> channel(torch.rand(2, 3, 31, 20)).shape
        torch.Size([2, 3, 31, 20])
    """

    part: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise ValueError(f"part={self.part!r} must be above 0 and at most 1.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Parts of images, as (N, C, H, W), differentiable."""
        size = images.shape[-2:]
        height, width = (max(1, round(side * self.part)) for side in size)
        tops = torch.randint(size[0] - height + 1, (len(images),)).tolist()
        lefts = torch.randint(size[1] - width + 1, (len(images),)).tolist()
        parts = [image[:, y : y + height, x : x + width] for image, y, x in zip(images, tops, lefts, strict=True)]
        return bicubic(torch.stack(parts), size)

    def differentiable(self) -> CropResize:
        """Itself; each call draws anew."""
        return self
