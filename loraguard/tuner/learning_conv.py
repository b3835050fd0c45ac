"""Convolutions on CPUs that adapters learn on, as one with W + dW.

The adapters' gradients then come from their low-rank form or, where that is faster, from the gradient of the whole
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from .fast_conv import PIXELS, Geometry, can_run, is_of_images, only_autograd_looks_at
from .winograd import memory_format_of


class TorchGeometry(NamedTuple):
    """How any layer in two dimensions that pads with zeros runs over inputs of one size, by torch's own algorithms.

    Attributes:
        size: height and width of the inputs.
        settings: `stride`, `padding`, `dilation` and `groups`, as torch's functions take them.
        output_padding: of a transposed convolution; None where it is none.
    """

    size: Sequence[int]
    settings: dict[str, Any]
    output_padding: tuple[int, ...] | None

    @classmethod
    def of(cls, layer: Any, size: Sequence[int]) -> TorchGeometry:
        """Of a layer, for inputs of (H, W)."""
        settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        return cls(size, settings, layer.output_padding if isinstance(layer, nn.ConvTranspose2d) else None)

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output, without autograd."""
        if self.output_padding is None:
            return F.conv2d(x, weight, **self.settings)
        return F.conv_transpose2d(x, weight, output_padding=self.output_padding, **self.settings)

    def run_back(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input, from that of the output."""
        if self.output_padding is None:
            size = (len(gradient), weight.shape[1] * self.settings["groups"], *self.size)
            return conv2d_input(size, weight, gradient, **self.settings)
        return F.conv2d(gradient, weight, **self.settings)

    def weight_gradient(self, x: Tensor, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the weight, from that of the output."""
        large, small = (x, gradient) if self.output_padding is None else (gradient, x)
        return conv2d_weight(large, shape, small, **self.settings)


def whole_weight_pays(layer: Any, x: Tensor, rank: int) -> bool:
    """Whether a layer that learns adapters takes the gradient of its whole weight in less time than of their factors.

    A convolution with out channels costs 1 in each direction. Beside a layer that gives its input a gradient, factors
    of rank r cost 3 r / out, for A x and the gradients of x and of A, and the whole weight costs 1.

    Args:
        layer: the layer, in whatever setting.
        x: its input.
        rank: of all adapters together.
    """
    return (
        isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        and only_autograd_looks_at(x)
        and x.dim() == 4
        and x.dtype == layer.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not isinstance(layer.padding, str)
        and 3 * rank > layer.out_channels
        and x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS
    )


def run_learning(
    fold: Callable[[], Tensor],
    layer: Any,
    x: Tensor,
    bias: Tensor | None,
    update: Callable[[Tensor], Tensor],
    deltas: Callable[[], list[Tensor]],
    parameters: Sequence[Tensor],
) -> Tensor:
    """As `run`, with gradients for adapters that are part of the weight.

    The output and the input's gradient take one convolution each. Where the layer `can_run` and has many outputs, the
    adapters' gradients are those of their low-rank form, which is computed in the backward pass alone; elsewhere they
    come from the gradient of the whole weight. Nothing but `x` is kept until then.

    Args:
        fold: makes W + dW; called in both passes.
        layer: one of which `can_run` or `whole_weight_pays` is true, whose padding it is; it pads with zeros.
        x: (N, in, H, W), as `can_run` wants it.
        bias: (out,), which gets no gradient.
        update: from x to dW * x.
        deltas: makes the parts of dW, and of what `update` adds to the bias.
        parameters: those of `update` that learn.

    Example:
        >>> layer, x = nn.Conv2d(16, 2, 5, padding=2).requires_grad_(False), torch.randn(1, 16, 32, 32)
        >>> gain = torch.ones(1, requires_grad=True)
        >>> fold = lambda: layer.weight * gain.detach()
        >>> delta = lambda: [gain * layer.weight, gain * layer.bias]
        >>> run_learning(fold, layer, x, layer.bias, lambda x: gain * layer(x), delta, [gain]).sum().backward()
        >>> torch.allclose(gain.grad, layer(x).sum(), rtol=1e-3)
        True
    """
    fast = can_run(layer, x)
    geometry = (Geometry if fast else TorchGeometry).of(layer, x.shape[2:])
    of_weight = not fast or (is_of_images(layer) and layer.out_channels < layer.in_channels)
    result: Tensor = _LearningConv.apply(x, fold, geometry, None if of_weight else update, deltas, *parameters)
    return result if bias is None else result + bias[:, None, None]


class _LearningConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: Any, geometry: Any, update: Any, deltas: Any, *parameters: Tensor) -> Tensor:
        # Parameters are saved for autograd to notice when they change before the backward pass.
        ctx.save_for_backward(x, *parameters)
        ctx.fold, ctx.geometry, ctx.update, ctx.deltas = fold, geometry, update, deltas
        result: Tensor = geometry.run(x, fold())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=memory_format_of(x))
        with torch.autocast("cpu", enabled=False):  # as in the forward pass
            weight = ctx.fold()
            to_input = ctx.geometry.run_back(gradient, weight) if ctx.needs_input_grad[0] else None
            if ctx.update is not None:
                with torch.enable_grad():
                    made = [ctx.update(x.detach())]
                along = [gradient]
            else:
                with torch.enable_grad():
                    made = [one for one in ctx.deltas() if one.requires_grad]
                whole = ctx.geometry.weight_gradient(x, gradient, weight.shape)
                along = [whole if one.dim() > 1 else gradient.sum((0, 2, 3)) for one in made]
        return to_input, None, None, None, None, *torch.autograd.grad(made, parameters, along)
