"""What a channel is, and a generator that is reached through one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

Call = TypeVar("Call", bound=Callable[..., Tensor])


@runtime_checkable
class Channel(Protocol):
    """What happens to a photo between its publication and its misuse.

    `channel(images)` takes images (N, C, H, W) in [-1, 1] and returns some of the same shape, range, device and dtype.
    What it draws comes from torch's global generator, anew at each call and for each image.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Send images through the channel."""
        ...

    def differentiable(self) -> Channel:
        """The channel itself where gradients pass through it, and otherwise what stands in for it in an attack."""
        ...


def keeps_format(call: Call) -> Call:
    """For a channel's `__call__`: what goes in and comes out are images (N, C, H, W) of one dtype, in [-1, 1].

    The outcome is clipped (:func:`clip`). Half precision is computed in float32, under autocast too: bfloat16 cannot
    tell a photo's levels apart.

    Raises:
        ValueError: on a call with anything but floating-point images (N, C, H, W).
    """

    @wraps(call)
    def checked(self: Any, images: Tensor) -> Tensor:
        if images.ndim != 4 or 0 in images.shape[1:] or not images.is_floating_point():
            raise ValueError(
                f"Expected floating-point images (N, C, H, W) in [-1, 1], got {tuple(images.shape)} of {images.dtype}."
            )
        if not len(images):
            return images.clone()
        wide = images.float() if images.dtype.itemsize < 4 else images
        with torch.autocast(images.device.type, enabled=False):
            return clip(call(self, wide)).to(images.dtype)

    return cast(Call, checked)


def in_colours(call: Call) -> Call:
    """For a channel that works on RGB: greyscale images (N, 1, H, W) go through it as grey colours.

    Raises:
        ValueError: on a call with images of other than one or three colours.
    """

    @wraps(call)
    def coloured(self: Any, images: Tensor) -> Tensor:
        if images.ndim == 4 and images.shape[1] == 1:
            return call(self, images.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if images.ndim == 4 and images.shape[1] not in (0, 3):
            raise ValueError(
                f"{type(self).__name__} works on colours: expected images (N, 3, H, W), or grey ones (N, 1, H, W), got "
                f"{tuple(images.shape)}."
            )
        return call(self, images)

    return cast(Call, coloured)


def clip(images: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Images clipped to their range, [-1, 1], with gradients as if nothing were clipped.

    clamp's own gradient is 0 beyond the ends of the range, and in torch 2.15 at the ends, too: white and black areas,
    which a perturbation can change like any others, would be out of sight of an attack or a loss.

    Example:
        >>> values = torch.tensor([-1.0, 0.5, 1.1], requires_grad=True)
        >>> torch.autograd.grad(clip(values).sum(), values)[0]
        tensor([1., 1., 1.])
    """
    return images.detach().clamp(low, high) + (images - images.detach())


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
        """Edit images (N, C, H, W) as they come out of the channel."""
        return self.generator(self.channel(images), **condition)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "generator":  # while this is being made or copied
                raise
            return getattr(self.generator, name)
