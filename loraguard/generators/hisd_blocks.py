"""The parts that HiSD is made of; all norms and activations stand before the convolution that they belong to.

Names of modules are those in the official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
EPS = 1e-5


def activate(features: Tensor) -> Tensor:
    """LeakyReLU of slope 0.2."""
    return F.leaky_relu(features, SLOPE)


def normalise(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Instance norm as HiSD has it: `(x - mean) / (std + eps) * weight + bias`.

    The standard deviation is the unbiased one and eps is added to it, not to the variance: `nn.InstanceNorm2d` gives
    other values.

    Args:
        features: (N, C, H, W) with at least two positions.
        weight: (N, C, 1), or (1, C, 1) for one that all images share.
        bias: likewise.
    """
    flat = features.flatten(2)
    flat = (flat - flat.mean(-1, keepdim=True)) / (flat.std(-1, keepdim=True) + EPS)
    return (flat * weight + bias).view_as(features)


class InstanceNorm(nn.Module):
    """:func:`normalise` with a learnt weight and bias, (1, C, 1) each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of the same shape."""
        return normalise(features, self.weight, self.bias)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one without bias; the sum is divided by sqrt(2) to keep its variance.

    Args:
        in_channels: C of the input.
        middle: channels between the two convolutions.
        out_channels: C of the output.
    """

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv2 = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.sc = nn.Conv2d(in_channels, out_channels, 1, bias=False)


class DownBlock(ResidualBlock):
    """Halves height and width by averaging; with instance norms in the encoder, without in the extractors."""

    def __init__(self, in_channels: int, out_channels: int, norms: bool) -> None:
        super().__init__(in_channels, in_channels, out_channels)
        self.in1 = InstanceNorm(in_channels) if norms else nn.Identity()
        self.in2 = InstanceNorm(in_channels) if norms else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in, H, W) to (N, out, H // 2, W // 2)."""
        halved = F.avg_pool2d(self.conv1(activate(self.in1(features))), 2)
        main = self.conv2(activate(self.in2(halved)))
        return (F.avg_pool2d(self.sc(features), 2) + main) / math.sqrt(2)


class UpBlock(ResidualBlock):
    """Doubles height and width by repeating each value, with instance norms."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, out_channels)
        self.in1 = InstanceNorm(in_channels)
        self.in2 = InstanceNorm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in, H, W) to (N, out, 2 H, 2 W)."""
        doubled = F.interpolate(activate(self.in1(features)), scale_factor=2, mode="nearest")
        main = self.conv2(activate(self.in2(self.conv1(doubled))))
        return (F.interpolate(self.sc(features), scale_factor=2, mode="nearest") + main) / math.sqrt(2)


class MiddleBlock(ResidualBlock):
    """Keeps height and width; its norms take weight and bias from the style (AdaIN, arXiv 1703.06868)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, out_channels)
        self.sizes = [in_channels, in_channels, out_channels, out_channels]

    def forward(self, features: Tensor, params: Tensor) -> Tensor:
        """Features (N, in, H, W) to (N, out, H, W).

        Args:
            features: of N images.
            params: (N, 2 in + 2 out): bias, then weight minus 1, of the first norm and then of the second.
        """
        bias1, weight1, bias2, weight2 = params.unsqueeze(-1).split(self.sizes, 1)
        main = self.conv1(activate(normalise(features, weight1 + 1, bias1)))
        main = self.conv2(activate(normalise(main, weight2 + 1, bias2)))
        return (self.sc(features) + main) / math.sqrt(2)


class Extractors(nn.Module):
    """From images to their style in every tag, in one network."""

    def __init__(self, channels: Sequence[int], style_dim: int, num_tags: int) -> None:
        super().__init__()
        self.num_tags = num_tags
        self.model = nn.Sequential(
            nn.Conv2d(3, channels[0], 1),
            *(DownBlock(*pair, norms=False) for pair in pairwise(channels)),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels[-1], style_dim * num_tags, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to styles (N, tags, style_dim)."""
        return self.model(images).view(len(images), self.num_tags, -1)


class Translator(nn.Module):
    """Gives one tag of an image a style: new features where a mask says so, the old ones elsewhere."""

    def __init__(self, content: int, channels: Sequence[int], style_dim: int) -> None:
        super().__init__()
        blocks = [MiddleBlock(*pair) for pair in pairwise(channels)]
        self.sizes = [sum(block.sizes) for block in blocks]
        self.model = nn.ModuleList([nn.Conv2d(content, channels[0], 1), *blocks])
        self.style_to_params = nn.Linear(style_dim, sum(self.sizes))
        self.features = nn.Sequential(nn.Conv2d(channels[-1], content, 1))
        self.masks = nn.Sequential(nn.Conv2d(channels[-1], content, 1), nn.Sigmoid())

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """An image's features (N, C, H, W) and a style (N, style_dim) to the edited image's features."""
        first, *blocks = self.model
        middle = first(content)
        for block, params in zip(blocks, self.style_to_params(style).split(self.sizes, 1), strict=True):
            middle = block(middle, params)
        mask = self.masks(middle)
        return self.features(middle) * mask + content * (1 - mask)


class LinearBlock(nn.Module):
    """ReLU, then a linear layer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, in) to (N, out)."""
        return self.linear(x.relu())


class Mapper(nn.Module):
    """Makes styles of one tag from noise: layers that its attributes share, then layers of each attribute."""

    def __init__(
        self, noise_dim: int, shared: Sequence[int], own: Sequence[int], style_dim: int, attributes: int
    ) -> None:
        super().__init__()
        self.pre_model = nn.Sequential(
            nn.Linear(noise_dim, shared[0]), *(LinearBlock(*pair) for pair in pairwise(shared))
        )
        self.post_models = nn.ModuleList(
            nn.Sequential(*(LinearBlock(*pair) for pair in pairwise(own)), nn.Linear(own[-1], style_dim))
            for _ in range(attributes)
        )

    def forward(self, latent: Tensor, attribute: int) -> Tensor:
        """Standard normal codes (N, noise_dim) to styles (N, style_dim) of one attribute."""
        return self.post_models[attribute](self.pre_model(latent))
