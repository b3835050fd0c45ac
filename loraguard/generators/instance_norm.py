"""Instance norm with an activation, and a memory format that CPUs compute convolutions faster in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loraguard.tuner.fast_conv import only_autograd_looks_at


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm with the running statistics that official checkpoints hold, which no output depends on.

    The official code never calls `eval()`, so that its networks always normalise each image by its own statistics. This
    norm does so in train and in eval mode, and leaves the buffers as they were loaded.

    On a CPU, features in channels_last take a path of their own, as torch's has a slow backward pass for them. It keeps
    nothing but its input until then, where a norm and a ReLU of torch keep the output as well, and is differentiated
    once, not twice.

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
            return self._written_out(features)
        # Group norm with one channel a group is the same function, computed faster on CPUs.
        normal = F.group_norm(features, self.num_features, self.weight, self.bias, self.eps)
        return normal.relu_() if self.relu else normal

    def _written_out(self, features: Tensor) -> Tensor:
        """For the compiler to fuse, in the memory format that it gave the convolution; torch's own norms change it."""
        x = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        scale = (variance + self.eps).rsqrt() * self.weight[:, None, None]
        normal = (x - mean) * scale + self.bias[:, None, None]
        return (normal.relu() if self.relu else normal).to(features.dtype)

    def extra_repr(self) -> str:
        """Show the ReLU as well."""
        return f"{super().extra_repr()}, relu={self.relu}"


def can_be_channels_last(features: Tensor) -> bool:
    """Whether a network gains by running these, (N, C, H, W), in channels_last: on CPUs, where torch works as usual."""
    floating = features.dtype in (torch.float32, torch.float64)
    return only_autograd_looks_at(features) and features.dim() == 4 and floating


class _InstanceNorm(torch.autograd.Function):
    """`relu(weight * normal + bias)` with `normal = (x - mean) / std`, in few passes over features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        # Centred before it is squared, in one pass: mean(x^2) - mean(x)^2, as torch has it here, loses digits.
        spare = F.mse_loss(x, mean.expand_as(x), reduction="none")
        rstd = (spare.mean((2, 3), keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.relu = relu
        scale = rstd * weight[:, None, None]
        y = torch.addcmul(bias[:, None, None] - mean * scale, x, scale, out=spare)
        return y.relu_() if relu else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        scale, pixels = rstd * weight[:, None, None], x.shape[2] * x.shape[3]
        spare = torch.empty_like(x)
        if ctx.relu:
            y = torch.addcmul(bias[:, None, None] - mean * scale, x, scale, out=spare)
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        sums = gradient.sum((2, 3), keepdim=True)
        # Of gradient * normal.
        products = (torch.mul(gradient, x, out=spare).sum((2, 3), keepdim=True) - mean * sums) * rstd
        # scale * (gradient - mean(gradient) - normal * mean(gradient * normal))
        slope = -scale * rstd * products / pixels
        to_x = torch.addcmul(-scale * sums / pixels - mean * slope, x, slope, out=spare).addcmul_(gradient, scale)
        return to_x, products.sum((0, 2, 3)), sums.sum((0, 2, 3)), None, None
