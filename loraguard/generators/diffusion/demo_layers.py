"""Layers of the embedded latent-diffusion editor: an autoencoder and a denoiser, small enough for one CPU core."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_GROUPS = 8
_FREQUENCIES = 16


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and SiLU, beside a skip connection.

    Args:
        channels: feature maps that go in and come out.
        embedding: length of a vector whose linear map scales and shifts the second norm (FiLM, arXiv 1709.07871); 0 for
            none.
    """

    def __init__(self, channels: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, channels), nn.GroupNorm(_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels) if embedding else None

    def forward(self, features: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Features (N, C, H, W), and vectors (N, embedding), to features of the same shape."""
        hidden = self.norm2(self.conv1(nn.functional.silu(self.norm1(features))))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
            hidden = hidden * (1 + scale) + shift
        return features + self.conv2(nn.functional.silu(hidden))


def encoder_layers(channels: int, width: int) -> nn.Sequential:
    """From images (N, 3, H, W) to latents (N, channels, H / 4, W / 4)."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, width, 3, padding=1),
        ResidualBlock(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        ResidualBlock(2 * width),
        ResidualBlock(2 * width),
        nn.GroupNorm(_GROUPS, 2 * width),
        nn.SiLU(),
        nn.Conv2d(2 * width, channels, 3, padding=1),
    )


def decoder_layers(channels: int, width: int) -> nn.Sequential:
    """From latents (N, channels, H / 4, W / 4) to images (N, 3, H, W) in [-1, 1]."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * width, 3, padding=1),
        ResidualBlock(2 * width),
        ResidualBlock(2 * width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, width, 3, padding=1),
        ResidualBlock(width),
        nn.GroupNorm(_GROUPS, width),
        nn.SiLU(),
        nn.Conv2d(width, 12, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Tanh(),
    )


class Denoiser(nn.Module):
    """A U-Net of two levels: the velocity of noised latents, given those of the photo, the time and the labels.

    Args:
        channels: of latents.
        width: feature maps at the latents' size; twice as many at half of it.
        blocks: residual blocks at half the size.
        num_labels: labels.
    """

    def __init__(self, channels: int, width: int, blocks: int, num_labels: int) -> None:
        super().__init__()
        embedding = 2 * width
        self.embed = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES + num_labels, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(2 * width, embedding) for _ in range(blocks))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = ResidualBlock(width, embedding)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noised: Tensor, times: Tensor, photo: Tensor, labels: Tensor) -> Tensor:
        """Velocities (N, C, h, w) of latents (N, C, h, w) noised to times (N,) in [0, 1]; sides are multiples of 2."""
        embedding = self.embed(torch.cat([waves(times).to(noised), labels.to(noised)], 1))
        outer = self.conv_in(torch.cat([noised, photo], 1))
        inner = self.down(outer)
        for block in self.middle:
            inner = block(inner, embedding)
        wide = self.up(nn.functional.interpolate(inner, scale_factor=2.0))
        features = self.last(self.join(torch.cat([wide, outer], 1)), embedding)
        return self.conv_out(nn.functional.silu(self.norm(features)))


def waves(times: Tensor) -> Tensor:
    """Cosines and sines of times (N,) in [0, 1] at frequencies from 1 to 100 radians: (N, 32).

    Example:
        >>> waves(torch.zeros(1))[0, [0, 16]]
        tensor([1., 0.])
    """
    frequencies = torch.logspace(0, 2, _FREQUENCIES, device=times.device)
    angles = times[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
