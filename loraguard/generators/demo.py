"""The embedded default: a small editor of the StarGAN family, trained on drawn faces."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn

from loraguard.data import default_transform
from loraguard.data.demo_faces import ATTRIBUTES

from .published import PublishedGenerator

HAIR_COLOURS = 3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            instance_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            instance_norm(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of the same shape."""
        return features + self.main(features)


def instance_norm(channels: int) -> nn.Module:
    """Affine instance norm, as group norm with one channel a group: the same function, computed faster on CPUs."""
    return nn.GroupNorm(channels, channels)


class DemoEditor(PublishedGenerator, license="apache-2.0"):
    """Edits hair colour, glasses and smile of drawn faces (:class:`~loraguard.data.DemoFaces`).

    The layout is StarGAN's (arXiv 1711.09020), smaller: labels tiled and concatenated to the image, two strided
    convolutions, residual blocks, two transposed convolutions, tanh; instance norm after each convolution.

    Args:
        conv_dim: channels of the first layer; twice and four times as many follow.
        num_blocks: residual blocks.
        num_labels: labels, (N, num_labels) in {0, 1}, in the order of `DemoFaces.attributes`.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> editor = DemoEditor.pretrained()
        >>> face = DemoFaces(split="test")[0]
        >>> edits = editor.conditions(face["labels"][None])
        >>> sorted(edits)
        ['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Eyeglasses', 'Smiling']
        >>> editor(face["image"][None], **edits["Eyeglasses"]).shape
        torch.Size([1, 3, 64, 64])
    """

    attributes = ATTRIBUTES

    def __init__(self, conv_dim: int = 16, num_blocks: int = 3, num_labels: int = len(ATTRIBUTES)) -> None:
        super().__init__()
        d = conv_dim

        def stage(convolution: nn.Module, channels: int) -> list[nn.Module]:
            return [convolution, instance_norm(channels), nn.ReLU(inplace=True)]

        self.main = nn.Sequential(
            *stage(nn.Conv2d(3 + num_labels, d, 7, padding=3, bias=False), d),
            *stage(nn.Conv2d(d, 2 * d, 4, stride=2, padding=1, bias=False), 2 * d),
            *stage(nn.Conv2d(2 * d, 4 * d, 4, stride=2, padding=1, bias=False), 4 * d),
            *(ResidualBlock(4 * d) for _ in range(num_blocks)),
            *stage(nn.ConvTranspose2d(4 * d, 2 * d, 4, stride=2, padding=1, bias=False), 2 * d),
            *stage(nn.ConvTranspose2d(2 * d, d, 4, stride=2, padding=1, bias=False), d),
            nn.Conv2d(d, 3, 7, padding=3, bias=False),
            nn.Tanh(),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 4.
            labels: what the faces are to look like, (N, num_labels) in {0, 1}.

        Returns:
            Images of the same shape and range.
        """
        tiled = labels[:, :, None, None].expand(-1, -1, *images.shape[-2:])
        return self.main(torch.cat([images, tiled.to(images)], 1))

    @staticmethod
    def conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """The five single edits of faces with these labels (N, 5): each hair colour, glasses and smile flipped."""
        colours = {name: {"labels": with_hair(labels, i)} for i, name in enumerate(ATTRIBUTES[:HAIR_COLOURS])}
        flips = {name: {"labels": flipped(labels, i)} for i, name in enumerate(ATTRIBUTES) if i >= HAIR_COLOURS}
        return {**colours, **flips}

    @staticmethod
    def combined_conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """Seven edits that change two or three things at once; patches are not trained on them."""
        both = flipped(flipped(labels, 3), 4)
        edits = {"Eyeglasses+Smiling": {"labels": both}}
        for i, name in enumerate(ATTRIBUTES[:HAIR_COLOURS]):
            edits[f"{name}+Eyeglasses"] = {"labels": with_hair(flipped(labels, 3), i)}
            edits[f"{name}+Smiling"] = {"labels": with_hair(flipped(labels, 4), i)}
        return edits

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From a photo to what it was trained on: the middle square at 64 pixels, (3, 64, 64) in [-1, 1]."""
        return default_transform(64)

    @classmethod
    def pretrained(cls) -> DemoEditor:
        """The network that ships with the package, in evaluation mode; `examples/train_demo_editor.py` made it."""
        editor = cls()
        editor.load_state_dict(
            load(files("loraguard.generators").joinpath("demo_weights/model.safetensors").read_bytes())
        )
        return editor.eval()


def with_hair(labels: Tensor, colour: int) -> Tensor:
    """Labels (N, 5) with this hair colour and no other."""
    hair = torch.zeros_like(labels[:, :HAIR_COLOURS])
    hair[:, colour] = 1
    return torch.cat([hair, labels[:, HAIR_COLOURS:]], 1)


def flipped(labels: Tensor, attribute: int) -> Tensor:
    """Labels (N, 5) with one of the attributes switched."""
    labels = labels.clone()
    labels[:, attribute] = 1 - labels[:, attribute]
    return labels
