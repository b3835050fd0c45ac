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

    def forward(self, images: Tensor) -> Tensor:
        """How much each bit of images (N, 3, H, W) in [-1, 1] looks like 1 (above 0) or 0: logits (N, bits)."""
        small = shrunk(images)
        features = self.stem(F.pixel_unshuffle(small, 4))
        for block in self.blocks:
            features = features + block(features)
        return self.head(self.narrow(F.relu(features)).flatten(1)) + self.linear(F.avg_pool2d(small, 2).flatten(1))


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
