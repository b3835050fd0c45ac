"""TAEF2, the tiny autoencoder of FLUX.2's latents: what its latent editors begin and end with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from loraguard.channels.base import clip

from .checkpoint import read_checkpoint
from .fitting import network_from
from .preprocessing import check_size, preprocessing
from .published import PublishedGenerator

HALVES = ("encoder", "decoder")
_GROUPS = 4


class Block(nn.Module):
    """Three 3x3 convolutions beside a skip connection, perhaps after 1x1 convolutions beside one of their own.

    Args:
        width: feature maps.
        pool: whether there are the 1x1 convolutions, with a group norm between them.
    """

    def __init__(self, width: int, pool: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)]
        self.conv = nn.Sequential(*layers)
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(_GROUPS, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, width, H, W) to features of the same shape."""
        if self.pool is not None:
            features = features + self.pool(features)
        return torch.relu(features + self.conv(features))


class Squash(nn.Module):
    """Latents to `3 tanh(z / 3)`, which keeps them in (-3, 3)."""

    def forward(self, latents: Tensor) -> Tensor:
        """Latents of any shape."""
        return 3 * torch.tanh(latents / 3)


class TAEF2(
    PublishedGenerator,
    license="mit",
    repo_url="https://github.com/madebyollin/taesd",
    tags=["taesd"],
):
    """The round trip `D(E(x))` of TAEF2, with the official tensors and outputs; see docs/generators/taef2.md.

    `TAEF2.from_checkpoint("taef2_encoder.pth")` loads the official weights, of which the other half lies beside the
    file. Outputs are clipped to [-1, 1], as the official code clips what it shows.

    Args:
        width: feature maps.
        latent_channels: of latents, which have an eighth of the image's sides.
        size: of the photo's shorter side that `transform` makes; a multiple of 8.

    Raises:
        ValueError: if `size` is no multiple of 8.

    Example:
        >>> TAEF2(width=4, latent_channels=2)(torch.zeros(1, 3, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
    """

    latent_layer = "encoder"
    size_multiple = 8
    model_tags: ClassVar[list[str]] = [*PublishedGenerator.model_tags, "taesd"]
    small: ClassVar[dict[str, Any]] = {"width": 4, "latent_channels": 2}

    def __init__(self, width: int = 64, latent_channels: int = 32, *, size: int = 256) -> None:
        super().__init__()
        check_size(size, self.size_multiple)
        self.size = size
        self.encoder = nn.Sequential(
            _conv(3, width),
            Block(width),
            *_down(width),
            *_down(width),
            *_down(width, pool=True),
            _conv(width, latent_channels),
        )
        self.decoder = nn.Sequential(
            Squash(),
            _conv(latent_channels, width),
            nn.ReLU(),
            *_up(width, pool=True),
            *_up(width),
            *_up(width),
            Block(width),
            _conv(width, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] there and back, H and W multiples of 8."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to latents (N, latent_channels, H / 8, W / 8)."""
        return self.encoder((images + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, latent_channels, h, w) to images (N, 3, 8 h, 8 w) in [-1, 1]."""
        return clip(2 * self.decoder(latents) - 1)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The middle square of a photo, resized; the official code takes photos as they are."""
        from torchvision import transforms

        return transforms.Compose([_middle_square, preprocessing(self.size)])

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, key: str | None = None, **settings: Any) -> TAEF2:
        """The network from an official checkpoint, in evaluation mode.

        Args:
            path: either of the two official files, `taef2_encoder.pth` or `taef2_decoder.pth`, with the other beside
                it; or one file with both halves.
            key: as :meth:`PublishedGenerator.from_checkpoint` has it, for one file.
            settings: of the class.

        Raises:
            FileNotFoundError: if a file is not there.
            ValueError: if it is damaged, or does not fit.
        """
        path = Path(path)
        half = next((name for name in HALVES if path.stem.endswith(name)), None)
        if half is None or key is not None:
            return super().from_checkpoint(path, key=key, **settings)
        both: dict[str, Tensor] = {}
        for name in HALVES:
            state = read_checkpoint(path.with_name(path.stem.removesuffix(half) + name + path.suffix))
            both |= {f"{name}.{tensor}": value for tensor, value in state.items()}
        return network_from(cls, both, str(path), settings)

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`width` and `latent_channels`."""
        first, latents = state.get("encoder.0.weight"), state.get("decoder.1.weight")
        if first is None or latents is None or first.ndim != 4 or latents.ndim != 4:
            return {}
        return {"width": first.shape[0], "latent_channels": latents.shape[1]}


def _conv(inputs: int, outputs: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def _down(width: int, pool: bool = False) -> list[nn.Module]:
    """Half the size, and three blocks."""
    return [_conv(width, width, stride=2, bias=False), *(Block(width, pool) for _ in range(3))]


def _up(width: int, pool: bool = False) -> list[nn.Module]:
    """Three blocks, and twice the size."""
    return [*(Block(width, pool) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]


def _middle_square(photo: Image.Image) -> Image.Image:
    side = min(photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    return photo.crop((left, top, left + side, top + side))
