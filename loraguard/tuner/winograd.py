"""Convolutions on CPUs with about half of the multiplications, by Winograd's minimal filtering along the height.

Along an axis, inputs and kernel are coefficients of polynomials, and a convolution multiplies polynomials, which can be
done value by value at points enough, one of them infinity: m outputs of a kernel of r take m + r - 1 multiplications
instead of m * r (Winograd 1980; in networks, Lavin and Gray, arXiv 1509.09308). With a stride, this holds for every
stride-th row of an image and of the kernel.

Here an output is a row of an image, a multiplication is a convolution along the width, which torch is as fast at as
ever, and the maps to points and back are matrix products over whole rows. Filtering along both axes multiplies less,
and loses more than that to the maps of its many small tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor
from torch.nn import functional as F

_ROWS = 8
"""Output rows of a tile at most: 10 multiplications instead of 24 for kernels of 3. One row more rounds about one and a
half times as much."""

_EXPONENT = 0.75
"""Draws points together; tuned for the least rounding."""

_VALUES = 2**21
"""Of inputs or outputs at once: enough to pay for the kernel's at the points, and few enough to stay in the cache."""

Pair = tuple[int, int]
Product = Callable[[Tensor, Tensor], Tensor]


@cache
def _maps(rows: int, taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """From products to outputs (rows, points), from kernels (points, taps) and from inputs (points, points)."""
    span = rows + taps - 1
    # With infinity, at equal angles around the projective line.
    tangents = np.tan(np.pi * (np.arange(1, span) / span - 0.5))
    points = np.copysign(np.abs(tangents) ** _EXPONENT, tangents)
    others = [np.delete(points, i) for i in range(span - 1)]

    def values(degree: int) -> np.ndarray:
        return np.vstack([polynomial.polyvander(points, degree - 1), np.eye(degree)[-1]])

    # Lagrange's interpolation, transposed; its denominators go to the kernels.
    numerators = np.zeros((span, span))
    for row, roots in zip(numerators, [*others, points], strict=True):
        row[: len(roots) + 1] = polynomial.polyfromroots(roots)
    denominators = [*(np.prod(point - rest) for point, rest in zip(points, others, strict=True)), 1.0]
    maps = values(rows).T, values(taps) / np.array(denominators)[:, None], numerators
    with torch.inference_mode(False):  # they outlive the mode that the first call came in
        outputs, kernels, inputs = (torch.tensor(one.tolist(), dtype=dtype, device="cpu") for one in maps)
    return outputs, kernels, inputs


def _filter(
    x: Tensor, kernels: Tensor, y: Tensor, product: Product, *, step: int = 1, offset: int, backwards: bool = False
) -> None:
    """Fill `y`: its row j is the sum over taps of `product` of x's rows from step * (j + tap) + offset and a kernel.

    Args:
        x: (N, H, W, in); outside are zeros.
        kernels: (taps, any).
        y: (N, H', W', out), with contiguous rows.
        product: from (M, in, step, W) in channels_last and a kernel to (M, out, 1, W') in channels_last.
        step: rows of `x` that a kernel takes.
        offset: of the first row.
        backwards: whether the last of the kernels is the first tap.
    """
    height = y.shape[1]
    if not height:
        return
    rows = -(-height // -(-height // _ROWS))
    to_outputs, kernels_to, to_points = _maps(rows, len(kernels), x.dtype)
    kernels_to, span = kernels_to.flip(1) if backwards else kernels_to, len(to_points)
    lines, lines_of_y = x.flatten(2), y.flatten(2)
    tiles = [(image, row) for image in range(len(y)) for row in range(0, height, rows)]
    at_once = max(1, _VALUES // (rows * max(step * lines.shape[2], lines_of_y.shape[2])))
    for some in (tiles[i : i + at_once] for i in range(0, len(tiles), at_once)):
        values = x.new_empty(span, len(some), step, lines.shape[2])
        products = x.new_empty(span, len(some), lines_of_y.shape[2])
        for i, (image, row) in enumerate(some):
            for phase in range(step):
                first = step * row + phase + offset
                outside = min(span, max(0, -(first // step)))  # above the image
                inside = lines[image, max(0, first + step * outside) : max(0, first + step * span) : step]
                torch.mm(to_points[:, outside : outside + len(inside)], inside, out=values[:, i, phase])
        for value, kernel_to, into in zip(values.unflatten(3, x.shape[2:]), kernels_to.split(1), products, strict=True):
            result = product(value.permute(0, 3, 1, 2), kernel_to @ kernels)
            into.view(len(some), 1, *y.shape[2:]).copy_(result.permute(0, 2, 3, 1))
        for i, (image, row) in enumerate(some):
            tile = lines_of_y[image, row : row + rows]
            torch.mm(to_outputs[: len(tile)], products[:, i], out=tile)


def winograd(x: Tensor, weight: Tensor, padding: Pair, stride: int = 1) -> Tensor:
    """What `F.conv2d` computes, on a CPU and inside `torch.no_grad`, in the memory format of `x`.

    With few pixels or channels, what is done to weight and rows makes it slower than torch.

    Args:
        x: (N, in, H, W), contiguous or, for speed, in channels_last.
        weight: (out, in, k, l), where `stride` divides k; for speed, as `rows_first` lays it out.
        padding: with zeros, of height and width.
        stride: of both.

    Returns:
        (N, out, H', W').

    Example:
        >>> x, weight = torch.randn(1, 2, 6, 5).double(), torch.randn(4, 2, 3, 3).double()
        >>> torch.allclose(winograd(x, weight, (1, 1)), F.conv2d(x, weight, padding=1))
        True
    """
    size = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True)]
    kernels = weight.permute(2, 0, 3, 1).unflatten(0, (-1, stride)).transpose(1, 2)

    def product(values: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.view(kernels.shape[1:]).permute(0, 3, 1, 2)
        return F.conv2d(values, kernel, stride=(1, stride), padding=(0, padding[1]))

    image = _empty(x, len(weight), size)
    _filter(_rows(x), kernels.flatten(1), _rows(image), product, step=stride, offset=-padding[0])
    return image.contiguous(memory_format=memory_format_of(x))


def winograd_transposed(x: Tensor, weight: Tensor, padding: Pair, stride: int, size: Sequence[int]) -> Tensor:
    """What `F.conv_transpose2d` computes, on a CPU and inside `torch.no_grad`, in the memory format of `x`.

    Args:
        x: (N, in, H, W).
        weight: (in, out, k, l), as for `winograd`.
        padding: with zeros, of height and width.
        stride: of both.
        size: H' and W', of which as many are possible as the stride is.

    Returns:
        (N, out, H', W').

    Example:
        >>> x, weight = torch.randn(1, 2, 6, 5).double(), torch.randn(2, 3, 4, 4).double()
        >>> y = winograd_transposed(x, weight, (1, 1), 2, (12, 10))
        >>> torch.allclose(y, F.conv_transpose2d(x, weight, stride=2, padding=1))
        True
    """
    more = size[1] - ((x.shape[3] - 1) * stride - 2 * padding[1] + weight.shape[3])
    kernels = weight.permute(2, 0, 3, 1).unflatten(0, (-1, stride))

    def product(values: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.view(kernels.shape[2:]).unsqueeze(1).permute(0, 3, 1, 2)
        return F.conv_transpose2d(values, kernel, None, (1, stride), (0, padding[1]), (0, more))

    image, rows = _empty(x, weight.shape[1], size), _rows(x)
    for phase in range(stride):  # which of the kernel's rows an output row is the sum of
        first = (phase - padding[0]) % stride
        offset = (first + padding[0] - phase) // stride - len(kernels) + 1
        part = _rows(image)[:, first::stride]
        _filter(rows, kernels[:, phase].flatten(1), part, product, offset=offset, backwards=True)
    return image.contiguous(memory_format=memory_format_of(x))


def rows_first(weight: Tensor) -> Tensor:
    """The same weight (a, b, k, l), laid out in memory as (k, a, l, b)."""
    return weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last where `x`, (N, C, H, W), is in it and not contiguous as well."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _rows(x: Tensor) -> Tensor:
    """(N, H, W, C) with contiguous rows; of `x` itself where it is in channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _empty(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    # No view: autograd would forbid whoever gets it to write to it.
    shape = (len(x), channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
