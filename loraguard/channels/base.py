"""What a channel is, and a generator that is reached through one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Channel(Protocol):
    """What happens to a photo between its publication and its misuse.

    `channel(images)` takes images (N, 3, H, W) in [-1, 1] and returns some of the same shape, range, device and dtype.
    What it draws comes from torch's global generator, anew at each call and for each image.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Send images through the channel."""
        ...

    def differentiable(self) -> Channel:
        """The channel itself where gradients pass through it, and otherwise what stands in for it in an attack."""
        ...


class Through(nn.Module):
    """A generator that gets to see photos only through a channel: `G(C(x), c)`, differentiable where C is.

    A defense that is crafted on it knows of the channel. Where C draws at random, each step of the defense sees another
    draw: expectation over transformation by one sample a step (Athalye et al., arXiv 1707.07397).

    Args:
        generator: what edits images; its attributes are this module's, too.
        channel: C, or the stand-in for it, as :meth:`Channel.differentiable` gives it.

    Example:
        >>> import torch
        >>> from loraguard.channels import Quantize
        >>> network = Through(nn.Identity(), Quantize().differentiable())
        >>> images = torch.zeros(1, 3, 8, 8, requires_grad=True)
        >>> torch.autograd.grad(network(images).sum(), images)[0].unique()
        tensor([1.])
    """

    def __init__(self, generator: nn.Module, channel: Channel) -> None:
        super().__init__()
        self.generator, self.channel = generator, channel

    def forward(self, images: Tensor, **condition: Tensor) -> Tensor:
        """Edit images (N, 3, H, W) as they come out of the channel."""
        return self.generator(self.channel(images), **condition)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "generator":  # while this is being made or copied
                raise
            return getattr(self.generator, name)
