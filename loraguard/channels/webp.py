"""WebP, lossy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import in_colours, keeps_format
from .files import check_quality, through_files


@dataclass(frozen=True)
class WebP:
    """Compress as lossy WebP and decompress, by Pillow's codec (libwebp), with its default effort.

    Args:
        quality: 1 to 100, as libwebp counts it.
        pass_through: give gradients as if nothing were compressed (straight-through); outcomes stay the codec's own.

    Raises:
        ValueError: for a quality that is not a whole number from 1 to 100.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 3, 16, 16)
        >>> bool((WebP(quality=80)(images) - images).abs().max() < 0.02)
        True
    """

    quality: int = 80
    pass_through: bool = False

    def __post_init__(self) -> None:
        check_quality(self.quality)

    @in_colours
    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they come back."""
        sent = through_files(images, [{"format": "WEBP", "quality": self.quality}] * len(images))
        return sent + (images - images.detach()) if self.pass_through else sent

    def differentiable(self) -> WebP:
        """The same, straight-through."""
        return WebP(self.quality, pass_through=True)
