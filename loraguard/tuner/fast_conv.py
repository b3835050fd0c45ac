"""Convolutions whose weight stays the same for many calls and gets no gradient, on CPUs.

torch prepares a convolution anew at each call and knows one algorithm for it. `folded` calls the same W + dW dozens of
times and asks for the gradient of images alone, so that it pays to prepare weights once and to choose for each
direction: Winograd's algorithm (see `winograd`), a kernel taken apart into its rows, or torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .winograd import Winograd

_MANY, _FEW = 128, 8  # channels
_TALL = 5  # rows of a kernel
_TILES = 64

Padding = tuple[int, int]


class Algorithm(Protocol):
    """A convolution and its adjoint; both take the convolution's padding."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        """From (N, in, H, W) to (N, out, H', W')."""
        ...

    def adjoint(self, gradient: Tensor, padding: Padding) -> Tensor:
        """From (N, out, H', W') to (N, in, H, W)."""
        ...


class Rows:
    """A tall kernel between many channels and few, as convolutions of its rows.

    torch computes few output channels no faster than 16, and the gradient towards few input channels neither. The rows
    of a kernel of height k make k times as many channels of it, which are then shifted and added up.

    Args:
        weight: (out, in, k, l), with few channels on one side.

    Example:
        >>> x, weight = torch.randn(1, 9, 12, 10).double(), torch.randn(2, 9, 7, 5).double()
        >>> torch.allclose(Rows(weight).forward(x, (3, 2)), F.conv2d(x, weight, padding=(3, 2)))
        True
    """

    def __init__(self, weight: Tensor) -> None:
        self.narrows = weight.shape[0] < weight.shape[1]
        backwards = weight.flip(2, 3).transpose(0, 1).contiguous()
        narrowing = weight if self.narrows else backwards
        self._rows = narrowing.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2).contiguous()
        self._whole = backwards if self.narrows else weight
        self._height, self._width = weight.shape[2:]

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        """From (N, in, H, W) to (N, out, H', W')."""
        return self._narrow(x, padding) if self.narrows else F.conv2d(x, self._whole, padding=padding)

    def adjoint(self, gradient: Tensor, padding: Padding) -> Tensor:
        """From (N, out, H', W') to (N, in, H, W)."""
        back = (self._height - 1 - padding[0], self._width - 1 - padding[1])
        return F.conv2d(gradient, self._whole, padding=back) if self.narrows else self._narrow(gradient, back)

    def _narrow(self, x: Tensor, padding: Padding) -> Tensor:
        # One row's result at a time would be read and written as often; all rows' together are one convolution.
        by_row = F.conv2d(x, self._rows, padding=padding).unflatten(1, (self._height, -1))
        height = by_row.shape[3] - self._height + 1
        total = by_row[:, 0, :, :height].clone(memory_format=torch.contiguous_format)
        for row in range(1, self._height):
            total += by_row[:, row, :, row : row + height]
        return total


def algorithm_for(host: nn.Module, weight: Tensor) -> Algorithm | None:
    """The algorithm of `kind_for` with the weights that it needs, for `host` with another weight."""
    kind = kind_for(host)
    return None if kind is None else kind(weight)


def kind_for(host: Any) -> type[Winograd] | type[Rows] | None:
    """What computes a layer faster than torch does; None where nothing does.

    That is, among convolutions of stride 1 without dilation and groups, in float32 and float64, on a CPU:

    - kernels of 3x3 with at least 128 channels on either side, and
    - kernels of at least 5 rows with at most 8 channels on one side and at least four times as many on the other.
    """
    if not isinstance(host, nn.Conv2d) or host.weight.device.type != "cpu":
        return None
    if host.weight.dtype not in (torch.float32, torch.float64):
        return None
    if (*host.stride, *host.dilation, host.groups) != (1, 1, 1, 1, 1):
        return None
    if host.padding_mode == "zeros" and (
        isinstance(host.padding, str) or any(p >= k for p, k in zip(host.padding, host.kernel_size, strict=True))
    ):
        return None
    few, many = sorted(host.weight.shape[:2])
    if host.kernel_size == (3, 3) and few >= _MANY:
        return Winograd
    return Rows if host.kernel_size[0] >= _TALL and few <= _FEW and many >= 4 * few else None


def can_run(x: Tensor, weight: Tensor) -> bool:
    """Whether this call is one for a fast algorithm: an ordinary batch that only `torch.autograd` looks at."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dim() == weight.dim() == 4
        and x.shape[0] * x.shape[2] * x.shape[3] >= 16 * _TILES
        and x.shape[1] == weight.shape[1]
        and min(x.shape[2:]) >= max(weight.shape[2:])
        and x.dtype == weight.dtype
        and x.device == weight.device
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def run(algorithm: Algorithm, host: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """`host` with the weight of `algorithm`, and another bias; gradients reach `x`, once.

    Args:
        algorithm: of `algorithm_for`.
        host: whose padding it is.
        x: (N, in, H, W), as `can_run` wants it.
        bias: (out,), which gets no gradient.

    Example:
        >>> host, x = nn.Conv2d(16, 2, 5, padding=2), torch.randn(1, 16, 32, 32)
        >>> rows = algorithm_for(host, host.weight.detach())
        >>> torch.allclose(run(rows, host, x, host.bias.detach()), host(x), atol=1e-4)
        True
    """
    padding = host.padding
    if host.padding_mode != "zeros":
        x, padding = F.pad(x, host._reversed_padding_repeated_twice, host.padding_mode), (0, 0)
    result: Tensor = _Conv.apply(x, algorithm, padding)
    return result if bias is None else result + bias[:, None, None]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, algorithm: Algorithm, padding: Padding) -> Tensor:
        ctx.algorithm, ctx.padding = algorithm, padding
        return algorithm.forward(x, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.algorithm.adjoint(gradient, ctx.padding), None, None


def run_learning(
    prepare: Callable[[], Algorithm],
    host: Any,
    x: Tensor,
    bias: Tensor | None,
    update: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    """As `run`, with gradients for adapters that are part of the algorithm's weight.

    The output and the input's gradient take one convolution each. The adapters' gradients are those of their low-rank
    form, which is computed in the backward pass alone. Nothing but `x` is kept until then: to prepare the weights again
    takes less time than they would take memory.

    Args:
        prepare: makes the algorithm of `algorithm_for` for W + dW; called in both passes.
        host: whose padding it is; it pads with zeros.
        x: (N, in, H, W), as `can_run` wants it.
        bias: (out,), which gets no gradient.
        update: from x to dW * x.
        parameters: those of `update` that learn.

    Example:
        >>> host, x = nn.Conv2d(16, 2, 5, padding=2).requires_grad_(False), torch.randn(1, 16, 32, 32)
        >>> gain = torch.ones(1, requires_grad=True)
        >>> prepare = lambda: algorithm_for(host, host.weight * gain.detach())
        >>> run_learning(prepare, host, x, host.bias, lambda x: gain * host(x), [gain]).sum().backward()
        >>> torch.allclose(gain.grad, host(x).sum(), rtol=1e-3)
        True
    """
    result: Tensor = _LearningConv.apply(x, prepare, host.padding, update, *parameters)
    return result if bias is None else result + bias[:, None, None]


class _LearningConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prepare: Any, padding: Padding, update: Any, *parameters: Tensor) -> Tensor:
        # Parameters are saved for autograd to notice when they change before the backward pass.
        ctx.save_for_backward(x, *parameters)
        ctx.prepare, ctx.padding, ctx.update = prepare, padding, update
        return prepare().forward(x, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        to_input = ctx.prepare().adjoint(gradient, ctx.padding) if ctx.needs_input_grad[0] else None
        with torch.enable_grad():
            update = ctx.update(x.detach())
        return to_input, None, None, None, *torch.autograd.grad(update, parameters, gradient)
