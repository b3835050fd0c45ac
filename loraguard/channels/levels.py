"""Rounding to the levels that a photo's file can hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import keeps_format


@dataclass(frozen=True)
class Quantize:
    """Round images (N, C, H, W) in [-1, 1] to evenly spaced levels.

    Args:
        bits: of each value; 8 are a photo's file, fewer are a defense against perturbations (bit-depth reduction, Xu et
            al., arXiv 1704.01155).
        pass_through: give gradients as if nothing were rounded (straight-through; Bengio et al., arXiv 1308.3432).

    Raises:
        ValueError: for bits outside of 1 to 16.

    Example:
        >>> import torch
        >>> images = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
        >>> (Quantize()(images) * 127.5 + 127.5).flatten().tolist()
        [0.0, 128.0, 255.0]
    """

    bits: int = 8
    pass_through: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 16):
            raise ValueError(f"bits={self.bits!r} must be a whole number from 1 to 16.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Rounded images (N, C, H, W)."""
        half = (2**self.bits - 1) / 2
        rounded = ((images.detach().clamp(-1, 1) + 1) * half).round() / half - 1
        return rounded + (images - images.detach()) if self.pass_through else rounded

    def differentiable(self) -> Quantize:
        """The same, straight-through."""
        return Quantize(self.bits, pass_through=True)
