"""The small network that reads the mark (an invisible watermark), and the patterns that write it.

With `b` the bits of a word as +1 and -1, `P_i` a learned pattern for each bit and `w` a window, a marked image is

    y = x + a * sum_i b_i w P_i / |sum_i b_i w P_i|,   w = exp(-(u^2 + v^2) / REACH^2),

the pattern stretched to the image's size, `a` the strength, `u` and `v` the distances to the nearest edges beside and
above or below. Any image is shrunk or stretched to 64x64 before it is read: the message has a place in the picture, not
in its pixels, so that resizing costs it little.

The window is for the generators that are to learn such patterns. A convolutional network knows from its padding alone
where in the picture it is: near a corner exactly, along an edge in one direction, in the middle hardly at all.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64
"""Pixels a side that an image is read at."""
GRID = 32
"""Cells a side of a pattern."""
BAND = (0.03, 0.15)
"""Cycles per pixel at 64x64 that the patterns begin with: slow enough for JPEG, blur and small shifts."""
REACH = 22.0
"""Pixels at 64x64 from an edge at which the window has fallen to 1 / e."""


class MarkNetwork(nn.Module):
    """A residual network at a quarter of the resolution, beside a linear reader, and the patterns that both look for.

    Args:
        bits: of a word.
        width: feature maps of the residual blocks.
        blocks: residual blocks, of two convolutions each.
        seed: of the first patterns.

    Example:
        >>> network = MarkNetwork()
        >>> network(torch.zeros(2, 3, 100, 80)).shape, network.pattern(torch.ones(1, 48)).shape
        (torch.Size([2, 48]), torch.Size([1, 3, 32, 32]))
    """

    window: Tensor
    most_cropped: int | None = None
    """Pixels a side that a crop may have taken for the mark to be looked for; None for any number."""

    def __init__(self, bits: int = 48, width: int = 48, blocks: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.bits = bits
        self.patterns = nn.Parameter(band_limited(bits, seed))
        self.register_buffer("window", window(), persistent=False)
        self.stem = nn.Conv2d(48, width, 3, padding=1)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.narrow = nn.Conv2d(width, 8, 1)
        self.head = nn.Linear(8 * (SIZE // 4) ** 2, bits)
        self.linear = nn.Linear(3 * GRID**2, bits, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(whitened(self.patterns * self.window).flatten(1))

    def pattern(self, bits: Tensor) -> Tensor:
        """What words (N, bits) of +1 and -1 add to an image: (N, 3, 32, 32), of root mean square 1."""
        summed = torch.einsum("nb,bchw->nchw", bits.to(self.patterns), self.patterns * self.window)
        return summed / summed.square().mean((1, 2, 3), keepdim=True).sqrt()

    def sized(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) at the size that they are looked at: shrunk or stretched to 64x64."""
        return shrunk(images)

    def view(self, images: Tensor) -> Tensor:
        """What is looked at of images (N, 3, H, W), (N, 3, 64, 64): the whole picture."""
        return self.sized(images)

    def lines(self, side: int) -> Tensor:
        """Where the 64 lines of a view lie in a picture of `side` pixels, in parts of the side: (64,)."""
        return (torch.arange(SIZE, device="cpu") + 0.5) / SIZE

    def pixel(self, side: int) -> float:
        """How much of a side of `side` pixels a pixel of the view is."""
        return 1 / SIZE

    def change(self, words: Tensor, height: int, width: int) -> Tensor:
        """What words (N, bits) of +1 and -1 add to images of a size, (N, 3, height, width), of root mean square 1."""
        return stretched(self.pattern(words), height, width)

    def forward(self, images: Tensor) -> Tensor:
        """How much each bit of images (N, 3, H, W) in [-1, 1] looks like 1 (above 0) or 0: logits (N, bits)."""
        small = self.view(images)
        features = self.stem(F.pixel_unshuffle(small, 4))
        for block in self.blocks:
            features = features + block(features)
        return self.head(self.narrow(F.relu(features)).flatten(1)) + self.linear(F.avg_pool2d(small, 2).flatten(1))


class CornerNetwork(MarkNetwork):
    """The same network for pictures of any size: it looks at their corners, 32 pixels each way, put together.

    A convolutional network knows its distance from an edge in pixels, and within so many of them as its padding is
    seen. A mark that is stretched with the picture is therefore out of its reach in large ones; one in corners of so
    many pixels stands where it can write, whatever the size, and one patch serves every size that it was trained on.
    Who reads has to know the size that the picture had when it was made, since resizing moves the corners.

    Sides below 64 pixels are stretched to 64; of a picture of 64x64 it reads what :class:`MarkNetwork` reads.

    Args:
        bits, width, blocks, seed: as :class:`MarkNetwork` takes them.

    Example:
        >>> network, image = CornerNetwork(), torch.rand(1, 3, 200, 150)
        >>> bool((network.view(image)[..., -1, -1] == image[..., -1, -1]).all())
        True
    """

    most_cropped = 13

    def sized(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they are; sides below 64 pixels are stretched to 64."""
        return at_least(images, SIZE)

    def view(self, images: Tensor) -> Tensor:
        """The corners of images (N, 3, H, W), put together to (N, 3, 64, 64)."""
        images = self.sized(images)
        for axis in (-2, -1):
            side = images.shape[axis]
            ends = images.narrow(axis, 0, SIZE // 2), images.narrow(axis, side - SIZE // 2, SIZE // 2)
            images = torch.cat(ends, axis)
        return images

    def lines(self, side: int) -> Tensor:
        """The first and the last 32 lines of a picture, in parts of the side: (64,)."""
        first = (torch.arange(SIZE // 2, device="cpu") + 0.5) * self.pixel(side)
        return torch.cat([first, 1 - first.flip(0)])

    def pixel(self, side: int) -> float:
        """One pixel, of a side of 64 or more."""
        return 1 / max(side, SIZE)

    def change(self, words: Tensor, height: int, width: int) -> Tensor:
        """What words (N, bits) of +1 and -1 add to images, (N, 3, height, width): 0 away from the corners."""
        corners = super().change(words, SIZE, SIZE)
        half, (high, wide) = SIZE // 2, (max(height, SIZE), max(width, SIZE))
        whole = corners.new_zeros(*corners.shape[:2], high, wide)
        for down, across in product((slice(None, half), slice(-half, None)), repeat=2):
            whole[..., down, across] = corners[..., down, across]
        return whole if (high, wide) == (height, width) else stretched(whole, height, width)


def at_least(images: Tensor, side: int) -> Tensor:
    """Images (N, 3, H, W) with sides of `side` or more pixels: shorter ones are stretched, bilinear."""
    height, width = images.shape[-2:]
    if min(height, width) >= side:
        return images
    return F.interpolate(images, (max(height, side), max(width, side)), mode="bilinear", antialias=True)


def _block(width: int) -> nn.Sequential:
    """Two convolutions whose second begins small, so that a block begins near the identity."""
    first, last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    with torch.no_grad():
        last.weight.mul_(0.1)
    return nn.Sequential(nn.ReLU(), first, nn.ReLU(), last)


def shrunk(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) at 64x64, bilinear with antialiasing; of that size they stay as they are."""
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)


def stretched(pattern: Tensor, height: int, width: int) -> Tensor:
    """A pattern (N, 3, 32, 32) at the size of an image, bicubic."""
    return F.interpolate(pattern, (height, width), mode="bicubic", antialias=True)


def window() -> Tensor:
    """How strong patterns are at each cell, (32, 32): 1 in the corners.

    Example:
        >>> bool(window()[0, 0] > 0.99), bool(window()[16, 16] < 0.03)
        (True, True)
    """
    cells = torch.arange(GRID)
    edge = torch.minimum(cells, GRID - 1 - cells) * (SIZE / GRID)
    fall = torch.exp(-(edge / REACH).square())
    return fall[:, None] * fall[None]


def band_limited(count: int, seed: int) -> Tensor:
    """Random patterns (count, 3, 32, 32) in the band :data:`BAND`, of root mean square 1."""
    noise = torch.randn(count, 3, GRID, GRID, generator=torch.Generator().manual_seed(seed))
    radius = _radius()
    kept = (radius >= BAND[0]) & (radius <= BAND[1])
    found = torch.fft.irfft2(torch.fft.rfft2(noise) * kept, s=(GRID, GRID))
    return found / found.square().mean((1, 2, 3), keepdim=True).sqrt()


def whitened(patterns: Tensor) -> Tensor:
    """Matched filters for patterns in pictures, whose spectrum falls with the square of the frequency."""
    filters = torch.fft.irfft2(torch.fft.rfft2(patterns) * _radius().square(), s=(GRID, GRID))
    return filters / filters.flatten(1).norm(dim=1)[:, None, None, None]


def _radius() -> Tensor:
    """Cycles per pixel at 64x64 of each coefficient of a pattern's spectrum."""
    down, across = torch.fft.fftfreq(GRID) * GRID / SIZE, torch.fft.rfftfreq(GRID) * GRID / SIZE
    return torch.hypot(down[:, None], across[None])
