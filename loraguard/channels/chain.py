"""Channels one after another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Channel, keeps_format


@dataclass(frozen=True)
class Chain:
    """Several channels, the first one first.

    Args:
        channels: what an image goes through; with none it stays as it is.

    Raises:
        TypeError: for something that is not a channel.

    Example:
        >>> import torch
        >>> from loraguard.channels import JPEG, Resize
        >>> Chain((JPEG(75), Resize(0.5)))(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    channels: tuple[Channel, ...]

    def __post_init__(self) -> None:
        for channel in self.channels:
            if isinstance(channel, type) or not isinstance(channel, Channel):
                raise TypeError(f"{channel!r} is not a channel: it must be callable and have differentiable().")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) at the end of the chain."""
        for channel in self.channels:
            images = channel(images)
        return images

    def differentiable(self) -> Chain:
        """The stand-in of each, in the same order."""
        return Chain(tuple(channel.differentiable() for channel in self.channels))
