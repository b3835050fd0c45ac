"""Instance norm with an activation, and a memory format that CPUs compute convolutions faster in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.tuner.fast_conv import only_autograd_looks_at

_AT_ONCE = 2**20
"""Values that the backward pass takes: few enough to stay in the cache from one pass over them to the next."""


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with the running statistics that official checkpoints hold, which no output depends on.

    The official code never calls `eval()`, so that its networks always normalise each image by its own statistics. This
    norm does so in train and in eval mode, and leaves the buffers as they were loaded.

    On a CPU, features in channels_last take a path of their own, as torch's has a slow backward pass for them. It keeps
    nothing but its input until then, where a norm and a ReLU of torch keep the output as well.

    Args:
        channels: of the features.
        relu: whether a ReLU follows.

    Example:
        >>> norm, features = InstanceNorm(2, relu=True), torch.randn(1, 2, 8, 8)
        >>> fast = norm(features.contiguous(memory_format=torch.channels_last))
        >>> torch.allclose(fast, norm(features), atol=1e-5), fast.min().item()
        (True, 0.0)
    """

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels, affine=True, track_running_stats=True)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of the same shape."""
        if not features.is_contiguous() and can_be_channels_last(features):
            result: Tensor = _InstanceNorm.apply(features, self.weight, self.bias, self.eps, self.relu)
            return result
        if torch.compiler.is_compiling() and features.is_cuda:
            return written_out(features, self.weight, self.bias, self.eps, self.relu)
        return _stock(features, self.weight, self.bias, self.eps, self.relu)

    def extra_repr(self) -> str:
        """Show the ReLU as well."""
        return f"{super().extra_repr()}, relu={self.relu}"


def can_be_channels_last(features: Tensor) -> bool:
    """Whether a network gains by running these, (N, C, H, W), in channels_last: on CPUs, where torch works as usual."""
    floating = features.dtype in (torch.float32, torch.float64)
    return only_autograd_looks_at(features) and features.dim() == 4 and floating


def written_out(features: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    """Instance norm for a compiler to fuse, in the memory format of `features`; torch's own norms change it."""
    x = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    normal = (x - mean) * (variance + eps).rsqrt() * weight[:, None, None] + bias[:, None, None]
    return (normal.relu() if relu else normal).to(features.dtype)


class _InstanceNorm(torch.autograd.Function):
    """`relu(weight * normal + bias)` with `normal = (x - mean) / std`, in few passes over features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        # Centred before it is squared: mean(x^2) - mean(x)^2, as torch has it here, loses digits.
        y = torch.sub(x, mean).square_()
        rstd = (y.mean((2, 3), keepdim=True) + eps).rsqrt()
        _affine(x, mean, rstd * weight[:, None, None], bias, y)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps, ctx.relu = eps, relu
        return y.relu_() if relu else y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated as well
            wanted = ctx.needs_input_grad
            inputs = [one for one, want in zip((x, weight, bias), wanted, strict=False) if want]
            y = _stock(x, weight, bias, ctx.eps, ctx.relu)
            found = iter(torch.autograd.grad(y, inputs, gradient, create_graph=True))
            return tuple(next(found) if want else None for want in wanted)
        to_x, sums, products = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        pixels, images = x.shape[2] * x.shape[3], max(1, _AT_ONCE // x[0].numel())
        tensors = (x, gradient, to_x, mean, rstd, sums, products)
        for x, g, into, mean, rstd, total, product in zip(*(one.split(images) for one in tensors), strict=True):
            scale = rstd * weight[:, None, None]
            if ctx.relu:
                g = torch.ops.aten.threshold_backward(g, _affine(x, mean, scale, bias, into), 0)
            torch.sum(g, (2, 3), keepdim=True, out=total)
            # Of the gradient times `normal`.
            product.copy_((torch.mul(g, x, out=into).sum((2, 3), keepdim=True) - mean * total) * rstd)
            # scale * (gradient - mean(gradient) - normal * mean(gradient * normal))
            slope = -scale * rstd * product / pixels
            torch.addcmul(-scale * total / pixels - mean * slope, x, slope, out=into).addcmul_(g, scale)
        return to_x, products.sum((0, 2, 3)), sums.sum((0, 2, 3)), None, None


def _stock(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    # Group norm with one channel a group is the same function, computed faster on CPUs.
    normal = F.group_norm(x, len(weight), weight, bias, eps)
    return normal.relu_() if relu else normal


def _affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, into: Tensor) -> Tensor:
    return torch.addcmul(bias[:, None, None] - mean * scale, x, scale, out=into)
