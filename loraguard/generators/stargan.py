"""StarGAN, which edits hair colour, sex and age of faces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from .instance_norm import InstanceNorm, can_be_channels_last
from .labels import append_labels, check_attributes, check_labels, only, switched
from .preprocessing import check_size, preprocessing
from .published import PublishedGenerator

ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
LATENT_LAYER = "main.8"
"""The last of :func:`star_layers` before the residual blocks."""

_PIXELS = 2**13
"""Of a batch. Fewer are no faster in channels_last: there, a norm is several calls of torch."""

Norm = Callable[[int, bool], list[nn.Module]]
"""From the number of feature maps, and whether a ReLU follows, to a norm and, if so, the ReLU or its stand-in."""


def fused_norm(channels: int, relu: bool) -> list[nn.Module]:
    """StarGAN's; the module after a norm that has a ReLU within is there for the official names of tensors."""
    return [InstanceNorm(channels, relu=True), nn.Identity()] if relu else [InstanceNorm(channels)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with a norm of so many channels, beside a skip connection."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *norm(channels, True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *norm(channels, False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of the same shape."""
        return features + self.main(features)


def star_layers(num_labels: int, conv_dim: int, num_blocks: int, norm: Norm) -> nn.Sequential:
    """StarGAN's layers, from an image with tiled labels (N, 3 + num_labels, H, W) to an image.

    Args:
        num_labels: channels beside the image's.
        conv_dim: feature maps of the first layer; twice and four times as many follow.
        num_blocks: residual blocks.
        norm: makes what follows each convolution but the last.
    """
    d = conv_dim

    def stage(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
        return [convolution, *norm(convolution.out_channels, True)]

    return nn.Sequential(
        *stage(nn.Conv2d(3 + num_labels, d, 7, padding=3, bias=False)),
        *stage(nn.Conv2d(d, 2 * d, 4, stride=2, padding=1, bias=False)),
        *stage(nn.Conv2d(2 * d, 4 * d, 4, stride=2, padding=1, bias=False)),
        *(ResidualBlock(4 * d, norm) for _ in range(num_blocks)),
        *stage(nn.ConvTranspose2d(4 * d, 2 * d, 4, stride=2, padding=1, bias=False)),
        *stage(nn.ConvTranspose2d(2 * d, d, 4, stride=2, padding=1, bias=False)),
        nn.Conv2d(d, 3, 7, padding=3, bias=False),
        nn.Tanh(),
    )


class StarGAN(
    PublishedGenerator,
    license="mit",
    paper_url="https://arxiv.org/abs/1711.09020",
    repo_url="https://github.com/yunjey/stargan",
    tags=["stargan"],
):
    """The generator of StarGAN (Choi et al., CVPR 2018, arXiv 1711.09020), with the official tensors and outputs.

    `StarGAN.from_checkpoint("200000-G.ckpt")` loads the official weights; see docs/generators/stargan.md.

    Args:
        conv_dim: feature maps of the first layer; twice and four times as many follow.
        c_dim: labels.
        repeat_num: residual blocks.
        size: side of the square images that `transform` makes, 256 or 128 in official checkpoints; a multiple of 4.
            The network itself takes any size.
        attributes: names of the labels, in order (`selected_attrs` of the official code). Those that are hair colours
            exclude each other in edits.

    Raises:
        ValueError: if there are not `c_dim` names, or `size` is no multiple of 4.

    Example:
        >>> import torch
        >>> generator = StarGAN(conv_dim=4, repeat_num=1)
        >>> edits = generator.conditions(torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]]))
        >>> edits["Blond_Hair"]["labels"].tolist()
        [[0.0, 1.0, 0.0, 1.0, 1.0]]
        >>> generator(torch.zeros(1, 3, 16, 16), **edits["Blond_Hair"]).shape
        torch.Size([1, 3, 16, 16])
    """

    attributes: tuple[str, ...] = ATTRIBUTES
    latent_layer = LATENT_LAYER
    model_tags: ClassVar[list[str]] = [*PublishedGenerator.model_tags, "stargan"]
    small: ClassVar[dict[str, Any]] = {"conv_dim": 4, "repeat_num": 1}

    def __init__(
        self,
        conv_dim: int = 64,
        c_dim: int = len(ATTRIBUTES),
        repeat_num: int = 6,
        *,
        size: int = 256,
        attributes: Sequence[str] = ATTRIBUTES,
    ) -> None:
        super().__init__()
        check_size(size, 4)
        self.attributes = check_attributes(attributes, c_dim)
        self.c_dim, self.size = c_dim, size
        self.main = star_layers(c_dim, conv_dim, repeat_num, fused_norm)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 4.
            labels: what the faces are to look like, (N, c_dim) in {0, 1}.

        Returns:
            Images of the same shape and range.
        """
        features = append_labels(images, labels, self.c_dim)
        if can_be_channels_last(features) and features[:, 0].numel() >= _PIXELS:
            features = features.contiguous(memory_format=torch.channels_last)
        return self.main(features).contiguous()

    def conditions(self, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """The edits of the official code, one for each attribute.

        A hair colour is set, and the others are cleared; any other attribute is switched.

        Args:
            labels: of the photos, (N, c_dim) in {0, 1}.
        """
        labels = check_labels(labels, self.attributes)
        hair = [i for i, name in enumerate(self.attributes) if name in HAIR_COLOURS]
        return {
            name: {"labels": only(labels, i, hair) if i in hair else switched(labels, i)}
            for i, name in enumerate(self.attributes)
        }

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing of aligned CelebA photos: the middle 178 pixels, resized."""
        return preprocessing(self.size, crop=178)

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`conv_dim`, `c_dim` and `repeat_num`."""
        first = state.get("main.0.weight")
        if first is None or first.ndim != 4:
            return {}
        blocks = [name for name in state if re.fullmatch(r"main\.\d+\.main\.0\.weight", name)]
        return {"conv_dim": first.shape[0], "c_dim": first.shape[1] - 3, "repeat_num": len(blocks)}

    @classmethod
    def mistaken(cls, state: Mapping[str, Tensor]) -> str | None:
        """StarGAN's discriminator has a bias in its first layer."""
        return "StarGAN's discriminator" if "main.0.bias" in state else None
