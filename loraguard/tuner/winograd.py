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

_AT_ONCE = 64
"""Tiles: enough for the matrix products, and few enough for what is between them to stay in the cache."""


@cache
def _maps() -> tuple[Tensor, Tensor, Tensor]:
    """In float64, from products to outputs (16, 36), from kernels (36, 9) and from input tiles (36, 36)."""
    with torch.inference_mode(False):  # they outlive the mode that the first call came in
        points = torch.tensor(_POINTS, dtype=torch.float64, device="cpu")

        def values(degree: int) -> Tensor:
            at_infinity = torch.eye(degree, dtype=torch.float64, device="cpu")[-1:]
            return torch.cat([points[:, None] ** torch.arange(degree, device="cpu"), at_infinity])

        # The denominators of interpolation go to the kernels, which are transformed once and in float64.
        differences = points[:, None] - points
        scale = torch.cat([differences.fill_diagonal_(1).prod(1), points.new_ones(1)])[:, None]
        outputs, kernels = values(_TILE).T, values(_KERNEL) / scale
        inputs = torch.linalg.inv(values(_SPAN)).T * scale
        return torch.kron(outputs, outputs), torch.kron(kernels, kernels), torch.kron(inputs, inputs)


class Winograd:
    """A 3x3 convolution of stride 1 whose weight is transformed once, and its adjoint with the same transform.

    The transformed weight takes four times the memory of the weight. Towards the input, channels change places and
    kernels are flipped, which is the same as to flip the tiles; so both directions share it.

    Args:
        weight: (out, in, 3, 3).

    Example:
        >>> x, weight = torch.randn(1, 2, 6, 5).double(), torch.randn(4, 2, 3, 3).double()
        >>> torch.allclose(Winograd(weight).forward(x, (1, 1)), F.conv2d(x, weight, padding=1))
        True
    """

    def __init__(self, weight: Tensor) -> None:
        outputs, kernels, inputs = _maps()
        taps = weight.to(torch.float64).flatten(2).flatten(0, 1)
        self._weight = (kernels @ taps.T).to(weight.dtype).view(-1, *weight.shape[:2])
        self._outputs, self._inputs = outputs.to(weight.dtype), inputs.to(weight.dtype)

    def forward(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """From (N, in, H, W) to (N, out, H', W')."""
        return _run(x, padding, self._inputs, self._weight, self._outputs)

    def adjoint(self, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
        """From the gradient of outputs, (N, out, H', W'), to that of inputs; `padding`, up to 2, is the forward's."""
        back = (_KERNEL - 1 - padding[0], _KERNEL - 1 - padding[1])
        return _run(gradient, back, self._inputs.flip(1), self._weight.transpose(1, 2), self._outputs.flip(0))


def _run(x: Tensor, padding: tuple[int, int], inputs: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    n, _, *size = x.shape
    height, width = (length + 2 * p - _KERNEL + 1 for length, p in zip(size, padding, strict=True))
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    right, low = padding[1] + _TILE * columns - width, padding[0] + _TILE * rows - height
    x = F.pad(x, (padding[1], right, padding[0], low))
    image = x.new_empty(n, weight.shape[1], _TILE * rows, _TILE * columns)
    images = max(1, _AT_ONCE // (rows * columns))
    band = min(rows, max(1, _AT_ONCE // columns))
    for first in range(0, n, images):
        for top in range(0, rows, band):
            part = slice(_TILE * top, _TILE * (top + band))
            into = image[first : first + images, :, part]
            pixels = x[first : first + images, :, part.start : part.stop + _SPAN - _TILE]
            _run_tiles(pixels, into, inputs, weight, outputs)
    # Not a view: autograd would forbid whoever gets it to write to it.
    return image if image.shape[2:] == (height, width) else image[..., :height, :width].contiguous()


def _run_tiles(x: Tensor, into: Tensor, inputs: Tensor, weight: Tensor, outputs: Tensor) -> None:
    n, channels, (along_n, along_c, along_h, along_w) = len(x), x.shape[1], x.stride()
    rows, columns = into.shape[2] // _TILE, into.shape[3] // _TILE
    tiles = x.as_strided(
        (_SPAN, _SPAN, channels, n, rows, columns),
        (along_h, along_w, along_c, along_n, _TILE * along_h, _TILE * along_w),
        x.storage_offset(),
    )
    values = inputs @ tiles.reshape(len(inputs), -1)
    products = torch.bmm(weight, values.view(len(inputs), channels, -1))
    result = (outputs @ products.view(len(inputs), -1)).view(_TILE, _TILE, -1, n, rows, columns)
    into.unflatten(3, (columns, _TILE)).unflatten(2, (rows, _TILE)).copy_(result.permute(3, 2, 4, 0, 5, 1))
