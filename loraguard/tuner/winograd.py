"""3x3 convolutions with a quarter of the multiplications: F(4x4, 3x3) of Lavin and Gray, arXiv 1509.09308.

An output tile of 4x4 pixels depends on 6x6 input pixels. Along each axis both are coefficients of polynomials, and a
convolution multiplies polynomials, which can be done value by value at six points, one of them infinity. So a layer
becomes 36 matrix products over channels, with a small fixed linear map before and after them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_KERNEL, _TILE, _SPAN = 3, 4, 6
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""And infinity. Rounding in float32 grows with the spread of the points' powers, and is least near these; they are
binary fractions, so that the maps of tiles are exact."""

_TILES, _CHANNELS = 256, 64
"""Input tiles and output channels at once: enough for matrix products, and few enough for what is between them to stay
in the cache. A kernel's values at the points are made anew for each 256 tiles, in an eighth of their time."""


@cache
def _maps(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """From products to outputs (16, 36), from kernels (36, 9) and from input tiles (36, 36)."""
    with torch.inference_mode(False):  # they outlive the mode that the first call came in
        points = torch.tensor(_POINTS, dtype=torch.float64, device="cpu")

        def values(degree: int) -> Tensor:
            at_infinity = torch.eye(degree, dtype=torch.float64, device="cpu")[-1:]
            return torch.cat([points[:, None] ** torch.arange(degree, device="cpu"), at_infinity])

        # The denominators of interpolation go to the kernels, so that the other two maps are exact.
        differences = points[:, None] - points
        scale = torch.cat([differences.fill_diagonal_(1).prod(1), points.new_ones(1)])[:, None]
        outputs, kernels = values(_TILE).T, values(_KERNEL) / scale
        inputs = torch.linalg.inv(values(_SPAN)).T * scale
        outputs, kernels, inputs = (torch.kron(one, one).to(dtype) for one in (outputs, kernels, inputs))
        return outputs, kernels, inputs


def winograd(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """What `F.conv2d` computes, without autograd, in the memory format of `x`.

    With few tiles, what is done to the weight makes it slower than torch.

    Args:
        x: (N, in, H, W), contiguous or, for speed, in channels_last.
        weight: (out, in, 3, 3).
        padding: with zeros, of height and width.

    Returns:
        (N, out, H', W').

    Example:
        >>> x, weight = torch.randn(1, 2, 6, 5).double(), torch.randn(4, 2, 3, 3).double()
        >>> torch.allclose(winograd(x, weight, (1, 1)), F.conv2d(x, weight, padding=1))
        True
    """
    outputs, kernels, inputs = _maps(x.dtype)
    n, _, *size = x.shape
    height, width = (length + 2 * p - _KERNEL + 1 for length, p in zip(size, padding, strict=True))
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    right, low = padding[1] + _TILE * columns - width, padding[0] + _TILE * rows - height
    memory_format = memory_format_of(x)
    # First of all, as memory that stays in use would else come to lie between what is freed soon.
    shape = (n, len(weight), _TILE * rows, _TILE * columns)
    image = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    into = image.permute(0, 2, 3, 1).view(n, rows, _TILE, columns, _TILE, -1).transpose(2, 3)
    x = F.pad(x, (padding[1], right, padding[0], low))
    images, band = max(1, _TILES // (rows * columns)), max(1, _TILES // columns)
    for first in range(0, n, images):
        for top in range(0, rows, band):
            part = into[first : first + images, top : top + band]
            pixels = x[first : first + images, :, _TILE * top :]
            values = _map(inputs, _tiles(pixels, part.shape[:3]))
            for kernel, channels in zip(weight.split(_CHANNELS), part.split(_CHANNELS, dim=-1), strict=True):
                at_points = (kernels @ kernel.flatten(2).flatten(0, 1).T).view(_SPAN**2, *kernel.shape[:2])
                channels.copy_(_map(outputs, _multiply(values, at_points)).view(channels.shape))
    if image.shape[2:] == (height, width) and memory_format == torch.channels_last:
        return image
    # Not a view: autograd would forbid whoever gets it to write to it.
    return image[..., :height, :width].clone(memory_format=memory_format)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last where `x`, (N, C, H, W), is in it and not contiguous as well."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _tiles(x: Tensor, count: torch.Size) -> Tensor:
    """From padded pixels to (tiles, 36, in)."""
    along_n, along_c, along_h, along_w = x.stride()
    strides = (along_n, _TILE * along_h, _TILE * along_w, along_h, along_w, along_c)
    return x.as_strided((*count, _SPAN, _SPAN, x.shape[1]), strides, x.storage_offset()).reshape(
        -1, _SPAN**2, x.shape[1]
    )


def _map(matrix: Tensor, tiles: Tensor) -> Tensor:
    return torch.bmm(matrix.expand(len(tiles), -1, -1), tiles)


def _multiply(values: Tensor, weight: Tensor) -> Tensor:
    """At each point, from (tiles, 36, in) by (36, out, in) to (tiles, 36, out)."""
    tiles, points, channels = values.shape
    if values.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return torch.bmm(values.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    # oneDNN has vector instructions for processors where MKL, and so bmm, goes without. To it, a tile is a pixel and a
    # point a group. The stride does nothing along an axis of length 1, but has torch call oneDNN for 1x1 kernels.
    x = values.view(1, 1, tiles, -1).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight.reshape(-1, channels, 1, 1), stride=(2, 1), groups=points)
    return y.permute(0, 2, 3, 1).reshape(tiles, points, -1)
