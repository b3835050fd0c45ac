"""Convolutions on CPUs whose weight gets no gradient, by faster algorithms than torch's.

torch knows one algorithm for a convolution and for its gradient towards images. `folded` asks for no other gradient, so
that it can choose for each direction: Winograd's algorithm (see `winograd`), a kernel taken apart into its rows, or
torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .winograd import Pair, memory_format_of, rows_first, winograd, winograd_transposed

_STRIDES = {3: 1, 4: 2}
"""Of the square kernels that Winograd's algorithm pays for."""

_MANY, _FEW = 128, 8  # channels
_TALL = 5  # rows of a kernel
PIXELS, _PIXELS_WINOGRAD = 1024, 2048  # of a batch; fewer do not pay for what is done to the weight


class Geometry(NamedTuple):
    """How a layer that is `faster` runs over inputs of one size, padded with zeros.

    Attributes:
        size: height and width, of a convolution's inputs or a transposed one's outputs.
        padding: of both.
        stride: of both.
        transposed: whether the layer is a transposed convolution.
    """

    size: Pair
    padding: Pair
    stride: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, layer: Any, size: Sequence[int]) -> Geometry:
        """Of a layer, for inputs of (H, W), to which other padding than with zeros was added."""
        transposed, stride = isinstance(layer, nn.ConvTranspose2d), layer.stride[0]
        padding = layer.padding if layer.padding_mode == "zeros" else (0, 0)
        if transposed:
            beside = zip(size, layer.kernel_size, padding, layer.output_padding, strict=True)
            size = [(n - 1) * stride + k - 2 * p + more for n, k, p, more in beside]
        height, width = size
        return cls((height, width), padding, stride, transposed)

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output, without autograd.

        Args:
            x: (N, in, H, W).
            weight: in the shape of the layer's.
        """
        return self._conv_transpose(x, weight) if self.transposed else self._conv(x, weight)

    def run_back(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input, from that of the output."""
        return self._conv(gradient, weight) if self.transposed else self._conv_transpose(gradient, weight)

    def weight_gradient(self, x: Tensor, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the weight, from that of the output, of a layer from many channels to few."""
        return stacked_rows_weight_gradient(x, gradient, shape, self.padding)

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.shape[2] in _STRIDES:
            return winograd(x, weight, self.padding, self.stride)
        return _between_few_and_many(x, weight, self.padding)

    def _conv_transpose(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.shape[2] in _STRIDES:
            return winograd_transposed(x, weight, self.padding, self.stride, self.size)
        padding = (weight.shape[2] - 1 - self.padding[0], weight.shape[3] - 1 - self.padding[1])
        return _between_few_and_many(x, weight.flip(2, 3).transpose(0, 1), padding)


def _between_few_and_many(x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    return stacked_rows(x, weight, padding) if len(weight) < weight.shape[1] else F.conv2d(x, weight, padding=padding)


def stacked_rows(x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    """A tall kernel from many channels to few, as one convolution for all of its rows.

    torch computes few output channels no faster than 16. The rows of a kernel of height k make k times as many channels
    of them, which are then shifted and added up.

    Example:
        >>> x, weight = torch.randn(1, 9, 12, 10).double(), torch.randn(2, 9, 7, 5).double()
        >>> torch.allclose(stacked_rows(x, weight, (3, 2)), F.conv2d(x, weight, padding=(3, 2)))
        True
    """
    rows = weight.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2)
    by_row = F.conv2d(x, rows, padding=padding).unflatten(1, (weight.shape[2], -1))
    height = by_row.shape[3] - weight.shape[2] + 1
    total = by_row[:, 0, :, :height].clone(memory_format=torch.contiguous_format)
    for row in range(1, weight.shape[2]):
        total += by_row[:, row, :, row : row + height]
    return total


def stacked_rows_weight_gradient(x: Tensor, gradient: Tensor, shape: Sequence[int], padding: Pair) -> Tensor:
    """The gradient of the weight of `stacked_rows`, of this shape, as one convolution's for all of its rows.

    Example:
        >>> x, weight = torch.randn(1, 9, 12, 10).double(), torch.randn(2, 9, 7, 5).double().requires_grad_()
        >>> y = F.conv2d(x, weight, padding=(3, 2))
        >>> expected = torch.autograd.grad(y.sum(), weight)[0]
        >>> torch.allclose(stacked_rows_weight_gradient(x, torch.ones_like(y), weight.shape, (3, 2)), expected)
        True
    """
    few, many, height, width = shape
    batch, _, rows, columns = gradient.shape
    by_row = gradient.new_zeros(batch, height, few, rows + height - 1, columns)
    for row in range(height):
        by_row[:, row, :, row : row + rows] = gradient
    of_rows = conv2d_weight(x, (height * few, many, 1, width), by_row.flatten(1, 2), padding=padding)
    return of_rows.view(height, few, many, width).permute(1, 2, 0, 3)


def faster(layer: Any) -> bool:
    """Whether a layer is one that is computed faster here than by torch.

    That is, in two dimensions, without dilation and groups, in float32 and float64, on a CPU:

    - convolutions and transposed ones of 3x3 with a stride of 1 and of 4x4 with a stride of 2, with at least 128
      channels on either side, and
    - convolutions of stride 1 with kernels of at least 5 rows, with at most 8 channels on one side and at least four
      times as many on the other,

    where padding with zeros is given in numbers smaller than the kernel.
    """
    return _is_ours(layer) and (_is_for_winograd(layer) or (is_plain(layer) and is_of_images(layer)))


def _is_ours(layer: Any) -> bool:
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) or (*layer.dilation, layer.groups) != (1, 1, 1):
        return False
    if layer.weight.device.type != "cpu" or layer.weight.dtype not in (torch.float32, torch.float64):
        return False
    if max(layer.output_padding) >= min(layer.stride):  # an error of torch's
        return False
    return layer.padding_mode != "zeros" or (
        not isinstance(layer.padding, str) and all(p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))
    )


def _is_for_winograd(layer: Any) -> bool:
    rows, columns = layer.kernel_size
    stride = _STRIDES.get(rows)
    return rows == columns and layer.stride == (stride, stride) and min(layer.weight.shape[:2]) >= _MANY


def is_plain(layer: Any) -> bool:
    """Whether a layer is a convolution in two dimensions of stride 1 without dilation and groups."""
    return isinstance(layer, nn.Conv2d) and (*layer.stride, *layer.dilation, layer.groups) == (1, 1, 1, 1, 1)


def is_of_images(layer: Any) -> bool:
    """Whether a plain convolution has 5 rows or more, and 8 channels or fewer on a side beside 4 times as many."""
    few, many = sorted(layer.weight.shape[:2])
    return layer.kernel_size[0] >= _TALL and few <= _FEW and many >= 4 * few


def can_run(layer: Any, x: Tensor) -> bool:
    """Whether this call of a `faster` layer is an ordinary batch that only `torch.autograd` looks at, and large enough.

    Args:
        layer: the layer.
        x: its input.
    """
    if not (only_autograd_looks_at(x) and x.dim() == 4 and faster(layer)):
        return False
    weight, pixels = layer.weight, x.shape[0] * x.shape[2] * x.shape[3]
    if isinstance(layer, nn.Conv2d):
        pixels //= layer.stride[0] ** 2
    return (
        pixels >= (_PIXELS_WINOGRAD if _is_for_winograd(layer) else PIXELS)
        and x.shape[1] == layer.in_channels
        and min(x.shape[2:]) >= max(weight.shape[2:])
        and x.dtype == weight.dtype
    )


def laid_out(layer: Any, weight: Tensor) -> Tensor:
    """A weight of a `faster` layer, in memory as it runs fastest if it does so many times."""
    return rows_first(weight) if _is_for_winograd(layer) else weight


def only_autograd_looks_at(x: Tensor) -> bool:
    """Whether `x` is a tensor on a CPU outside autocast, compilation, tracing, forward AD and `torch.func`."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def keeping_no_input(x: Tensor) -> AbstractContextManager[Any]:
    """Within it, a layer keeps no more of `x` than its shape until the backward pass.

    torch's convolutions keep all of it for the gradient of a weight, also of one that gets none.

    Example:
        >>> x = torch.randn(1, 2, 8, 8, requires_grad=True)
        >>> with keeping_no_input(x):
        ...     y = F.conv2d(x, torch.ones(2, 2, 3, 3))
        >>> torch.autograd.grad(y.sum(), x)[0][0, 0, 4, 4].item()
        18.0
    """
    if not (only_autograd_looks_at(x) and torch.is_grad_enabled() and x.requires_grad):
        return nullcontext()

    # Not x itself, which would live as long as the hook.
    data, shape = x.data_ptr(), x.shape

    def pack(kept: Tensor) -> Any:
        same = kept.data_ptr() == data and kept.shape == shape
        return (kept.shape, kept.stride(), kept.dtype) if same else kept

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else torch.empty_strided(kept[0], kept[1], dtype=kept[2])

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def run(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`layer` with another weight and bias; gradients reach `x`, once.

    Args:
        layer: a `faster` layer, whose padding it is.
        x: (N, in, H, W), as `can_run` wants it.
        weight: in the shape of the layer's; it gets no gradient.
        bias: (out,), which gets no gradient.

    Example:
        >>> layer, x = nn.Conv2d(16, 2, 5, padding=2), torch.randn(1, 16, 32, 32)
        >>> torch.allclose(run(layer, x, layer.weight.detach(), layer.bias.detach()), layer(x), atol=1e-4)
        True
    """
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, layer.padding_mode)
    result: Tensor = _Conv.apply(x, weight, Geometry.of(layer, x.shape[2:]))
    return result if bias is None else result + bias[:, None, None]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.weight, ctx.geometry, ctx.memory_format = weight, geometry, memory_format_of(x)
        return geometry.run(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # What comes before x in the network is slow where gradients come in another memory format.
        gradient = gradient.contiguous(memory_format=ctx.memory_format)
        with torch.autocast("cpu", enabled=False):  # as in the forward pass
            return ctx.geometry.run_back(gradient, ctx.weight), None, None
