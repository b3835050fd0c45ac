"""Resizing down and back up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .base import clip, keeps_format


@dataclass(frozen=True)
class Resize:
    """Scale down and back up to the same size, both bicubic and antialiased, as Pillow does.

    Args:
        scale: of the smaller image's sides, rounded to whole pixels.

    Raises:
        ValueError: for a scale outside of (0, 1].

    Example:
        >>> import torch
        >>> stripes = torch.tensor([-0.5, 0.5]).repeat(8).expand(1, 3, 16, 16)
        >>> bool(Resize(scale=0.5)(stripes)[..., 4:-4].abs().max() < 0.03)
        True
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale={self.scale!r} must be above 0 and at most 1.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) with less detail, differentiable."""
        size = images.shape[-2:]
        return bicubic(bicubic(images, [max(1, round(side * self.scale)) for side in size]), size)

    def differentiable(self) -> Resize:
        """Itself."""
        return self


def bicubic(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) at another size, clipped to [-1, 1], as bicubic interpolation overshoots at edges."""
    return clip(F.interpolate(images, list(size), mode="bicubic", antialias=True))
