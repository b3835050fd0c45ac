"""Convolutions on CPUs whose weight gets no gradient, by faster algorithms than torch's.

torch knows one algorithm for a convolution and for its gradient towards images. `folded` asks for no other gradient, so
that it can choose for each direction: Winograd's algorithm (see `winograd`), a kernel taken apart into its rows, or
torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .winograd import memory_format_of, winograd

_MANY, _FEW = 128, 8  # channels
_TALL = 5  # rows of a kernel
_PIXELS, _PIXELS_3X3 = 1024, 4096  # of a batch; fewer do not pay for what is done to the weight

Padding = tuple[int, int]


def convolve(x: Tensor, weight: Tensor, padding: Padding) -> Tensor:
    """What `F.conv2d` computes, for weights of layers that are `faster`, without autograd.

    Args:
        x: (N, in, H, W).
        weight: (out, in, k, l).
        padding: with zeros, of height and width.
    """
    if weight.shape[2] == 3:
        return winograd(x, weight, padding)
    return by_rows(x, weight, padding) if len(weight) < weight.shape[1] else F.conv2d(x, weight, padding=padding)


def adjoint(gradient: Tensor, weight: Tensor, padding: Padding) -> Tensor:
    """The gradient of a convolution's input, from that of its output; weight and padding are the convolution's."""
    back = (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1])
    return convolve(gradient, weight.flip(2, 3).transpose(0, 1), back)


def by_rows(x: Tensor, weight: Tensor, padding: Padding) -> Tensor:
    """A tall kernel from many channels to few, as one convolution for all of its rows.

    torch computes few output channels no faster than 16. The rows of a kernel of height k make k times as many channels
    of them, which are then shifted and added up.

    Example:
        >>> x, weight = torch.randn(1, 9, 12, 10).double(), torch.randn(2, 9, 7, 5).double()
        >>> torch.allclose(by_rows(x, weight, (3, 2)), F.conv2d(x, weight, padding=(3, 2)))
        True
    """
    rows = weight.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2)
    by_row = F.conv2d(x, rows, padding=padding).unflatten(1, (weight.shape[2], -1))
    height = by_row.shape[3] - weight.shape[2] + 1
    total = by_row[:, 0, :, :height].clone(memory_format=torch.contiguous_format)
    for row in range(1, weight.shape[2]):
        total += by_row[:, row, :, row : row + height]
    return total


def faster(host: Any) -> bool:
    """Whether a layer is one that `convolve` computes faster than torch does.

    That is, among convolutions of stride 1 without dilation and groups, in float32 and float64, on a CPU:

    - kernels of 3x3 with at least 128 channels on either side, and
    - kernels of at least 5 rows with at most 8 channels on one side and at least four times as many on the other.
    """
    if not is_plain(host) or host.weight.device.type != "cpu":
        return False
    if host.weight.dtype not in (torch.float32, torch.float64):
        return False
    if host.padding_mode == "zeros" and (
        isinstance(host.padding, str) or any(p >= k for p, k in zip(host.padding, host.kernel_size, strict=True))
    ):
        return False
    if host.kernel_size == (3, 3):
        return min(host.weight.shape[:2]) >= _MANY
    return is_of_images(host)


def is_plain(host: Any) -> bool:
    """Whether a layer is a convolution in two dimensions of stride 1 without dilation and groups."""
    return isinstance(host, nn.Conv2d) and (*host.stride, *host.dilation, host.groups) == (1, 1, 1, 1, 1)


def is_of_images(host: Any) -> bool:
    """Whether a plain convolution has 5 rows or more, and 8 channels or fewer on a side beside 4 times as many."""
    few, many = sorted(host.weight.shape[:2])
    return host.kernel_size[0] >= _TALL and few <= _FEW and many >= 4 * few


def can_run(x: Tensor, weight: Tensor) -> bool:
    """Whether this call is one for a fast algorithm: an ordinary batch that only `torch.autograd` looks at."""
    return (
        only_autograd_looks_at(x)
        and x.dim() == weight.dim() == 4
        and x.shape[0] * x.shape[2] * x.shape[3] >= (_PIXELS_3X3 if weight.shape[2] == 3 else _PIXELS)
        and x.shape[1] == weight.shape[1]
        and min(x.shape[2:]) >= max(weight.shape[2:])
        and x.dtype == weight.dtype
        and x.device == weight.device
    )


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


def run(host: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`host` with another weight and bias; gradients reach `x`, once.

    Args:
        host: a `faster` layer, whose padding it is.
        x: (N, in, H, W), as `can_run` wants it.
        weight: in the shape of the host's; it gets no gradient.
        bias: (out,), which gets no gradient.

    Example:
        >>> host, x = nn.Conv2d(16, 2, 5, padding=2), torch.randn(1, 16, 32, 32)
        >>> torch.allclose(run(host, x, host.weight.detach(), host.bias.detach()), host(x), atol=1e-4)
        True
    """
    padding = host.padding
    if host.padding_mode != "zeros":
        x, padding = F.pad(x, host._reversed_padding_repeated_twice, host.padding_mode), (0, 0)
    result: Tensor = _Conv.apply(x, weight, padding)
    return result if bias is None else result + bias[:, None, None]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Padding) -> Tensor:
        ctx.weight, ctx.padding, ctx.memory_format = weight, padding, memory_format_of(x)
        return convolve(x, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # What comes before x in the network is slow where gradients come in another memory format.
        return adjoint(gradient.contiguous(memory_format=ctx.memory_format), ctx.weight, ctx.padding), None, None


def run_learning(
    fold: Callable[[], Tensor],
    host: Any,
    x: Tensor,
    bias: Tensor | None,
    update: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    """As `run`, with gradients for adapters that are part of the weight.

    The output and the input's gradient take one convolution each. The adapters' gradients are those of their low-rank
    form, which is computed in the backward pass alone. Nothing but `x` is kept until then.

    Args:
        fold: makes W + dW; called in both passes.
        host: a `faster` layer, whose padding it is; it pads with zeros.
        x: (N, in, H, W), as `can_run` wants it.
        bias: (out,), which gets no gradient.
        update: from x to dW * x.
        parameters: those of `update` that learn.

    Example:
        >>> host, x = nn.Conv2d(16, 2, 5, padding=2).requires_grad_(False), torch.randn(1, 16, 32, 32)
        >>> gain = torch.ones(1, requires_grad=True)
        >>> fold = lambda: host.weight * gain.detach()
        >>> run_learning(fold, host, x, host.bias, lambda x: gain * host(x), [gain]).sum().backward()
        >>> torch.allclose(gain.grad, host(x).sum(), rtol=1e-3)
        True
    """
    result: Tensor = _LearningConv.apply(x, fold, host.padding, update, *parameters)
    return result if bias is None else result + bias[:, None, None]


class _LearningConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: Any, padding: Padding, update: Any, *parameters: Tensor) -> Tensor:
        # Parameters are saved for autograd to notice when they change before the backward pass.
        ctx.save_for_backward(x, *parameters)
        ctx.fold, ctx.padding, ctx.update = fold, padding, update
        return convolve(x, fold(), padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=memory_format_of(x))
        to_input = adjoint(gradient, ctx.fold(), ctx.padding) if ctx.needs_input_grad[0] else None
        with torch.enable_grad():
            update = ctx.update(x.detach())
        return to_input, None, None, None, *torch.autograd.grad(update, parameters, gradient)
