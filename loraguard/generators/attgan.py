"""AttGAN, which edits thirteen attributes of faces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from .labels import append_labels, check_attributes, check_labels, switched
from .preprocessing import check_size, preprocessing
from .published import PublishedGenerator

ATTRIBUTES = (
    "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses", "Male",
    "Mouth_Slightly_Open", "Mustache", "No_Beard", "Pale_Skin", "Young",
)  # fmt: skip
EXCLUSIVE = (
    ("Bald", "Bangs"),
    ("Receding_Hairline", "Bangs"),
    ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"),
    ("Straight_Hair", "Wavy_Hair"),
    ("Mustache", "No_Beard"),
)
"""Attributes that a face has one of at most."""

MOST_CHANNELS = 1024
INTENSITY = 0.5
EDITED_INTENSITY = 1.0


class Block(nn.Module):
    """Layers one after another, under the official name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of twice or half the size."""
        return self.layers(features)


class AttGAN(
    PublishedGenerator,
    license="mit",
    paper_url="https://arxiv.org/abs/1711.10678",
    repo_url="https://github.com/elvisyjlin/AttGAN-PyTorch",
    tags=["attgan"],
):
    """The generator of AttGAN (He et al., TIP 2019, arXiv 1711.10678), as its PyTorch port has it.

    All of the port's published networks load with `AttGAN.from_checkpoint("weights.199.pth")`: 256_shortcut1_inject0,
    256_shortcut1_inject1, the 128s, and those for CelebA-HQ; see docs/generators/attgan.md. Outputs are the port's in
    eval mode, which it edits in.

    The encoder halves the image `layers` times. The labels are tiled and concatenated to its result, and the decoder
    doubles that as many times; after its first `shortcut_layers` layers the encoder's features of the same size are
    concatenated, after its first `inject_layers` the labels again.

    Args:
        dim: feature maps of the first layer (`enc_dim` and `dec_dim` of the port); they double up to 1,024.
        layers: of the encoder, and of the decoder.
        shortcut_layers: decoder layers that encoder features are concatenated after, fewer than `layers`.
        inject_layers: decoder layers that labels are concatenated after, fewer than `layers`.
        n_attrs: labels.
        size: side of the square images that `transform` makes; a multiple of 2 ** `layers`. The network itself takes
            any such size.
        crop: side of the square that `transform` cuts from a photo first: 170 for CelebA's aligned photos, None for
            CelebA-HQ.
        attributes: names of the labels, in order (`attrs` of the port).

    Raises:
        ValueError: if `shortcut_layers`, `inject_layers` or `size` is out of its range, or if there are not `n_attrs`
            names.

    Example:
        >>> generator = AttGAN(dim=4, layers=2).eval()
        >>> edits = generator.conditions(torch.zeros(1, 13))
        >>> edits["Bald"]["labels"][0, :3]
        tensor([ 1.0000, -0.5000, -0.5000])
        >>> generator(torch.zeros(1, 3, 16, 16), **edits["Bald"]).shape
        torch.Size([1, 3, 16, 16])
    """

    attributes: tuple[str, ...] = ATTRIBUTES
    checkpoint_keys = ("G",)
    model_tags: ClassVar[list[str]] = [*PublishedGenerator.model_tags, "attgan"]
    small: ClassVar[dict[str, Any]] = {"dim": 4, "layers": 2}

    def __init__(
        self,
        dim: int = 64,
        layers: int = 5,
        shortcut_layers: int = 1,
        inject_layers: int = 0,
        n_attrs: int = len(ATTRIBUTES),
        *,
        size: int = 256,
        crop: int | None = 170,
        attributes: Sequence[str] = ATTRIBUTES,
    ) -> None:
        super().__init__()
        for name, value in {"shortcut_layers": shortcut_layers, "inject_layers": inject_layers}.items():
            if not 0 <= value < layers:
                raise ValueError(f"{name}={value!r} must be at least 0 and less than the number of layers, {layers}.")
        self.size_multiple = 2**layers
        check_size(size, self.size_multiple)
        self.attributes = check_attributes(attributes, n_attrs)
        self.shortcut_layers, self.inject_layers = shortcut_layers, inject_layers
        self.latent_layer = f"enc_layers.{layers - 1}"
        self.n_attrs, self.size, self.crop = n_attrs, size, crop

        channels = [min(dim * 2**i, MOST_CHANNELS) for i in range(layers)]
        self.enc_layers = nn.ModuleList(
            Block(nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU())
            for i, o in itertools.pairwise([3, *channels])
        )
        *inputs, last = _decoder_inputs(channels, n_attrs, shortcut_layers, inject_layers)
        self.dec_layers = nn.ModuleList(
            Block(nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in zip(inputs, reversed(channels[1:]), strict=True)
        )
        self.dec_layers.append(Block(nn.ConvTranspose2d(last, 3, 4, stride=2, padding=1), nn.Tanh()))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 2 ** `layers`.
            labels: what the decoder gets, (N, n_attrs): intensities, -0.5 for an attribute that the face
                is to lack and 0.5 for one that it is to have; -1 or 1 for the one that is edited. `conditions` makes
                them from labels in {0, 1}.

        Returns:
            Images of the same shape and range.
        """
        encoded = [images]
        for layer in self.enc_layers:
            encoded.append(layer(encoded[-1]))
        features = append_labels(encoded.pop(), labels, self.n_attrs)
        for i, layer in enumerate(self.dec_layers):
            features = layer(features)
            if i < self.shortcut_layers:
                features = torch.cat([features, encoded.pop()], 1)
            if i < self.inject_layers:
                features = append_labels(features, labels, self.n_attrs)
        return features

    def conditions(self, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """The edits of the official code, one for each attribute: it is switched, at twice the others' intensity.

        Switching one on switches off those that it excludes: Bald and Bangs, hair colours, Mustache and No_Beard.

        Args:
            labels: of the photos, (N, n_attrs) in {0, 1}.
        """
        labels = check_labels(labels, self.attributes)
        edits = {}
        for i, name in enumerate(self.attributes):
            edited = switched(labels, i)
            for other in self._excluded_by(name):
                edited[:, other] *= labels[:, i]  # which are 1 where the edit switches off
            intensities = (2 * edited - 1) * INTENSITY
            intensities[:, i] *= EDITED_INTENSITY / INTENSITY
            edits[name] = {"labels": intensities}
        return edits

    def _excluded_by(self, name: str) -> list[int]:
        others = {other for group in EXCLUSIVE if name in group for other in group} - {name}
        return [i for i, other in enumerate(self.attributes) if other in others]

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing: the middle of a photo, resized."""
        return preprocessing(self.size, crop=self.crop)

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`dim`, `layers`, `shortcut_layers`, `inject_layers` and `n_attrs`."""
        channels = _sizes(state, "enc_layers")
        inputs = _sizes(state, "dec_layers")
        if not channels or not inputs:
            return {}
        count = inputs[0] - channels[-1]
        if len(inputs) != len(channels):  # not whole: loading it will say what is missing
            return {"dim": channels[0], "layers": len(channels), "n_attrs": count}
        further = [i - c for i, c in zip(inputs[1:], reversed(channels[1:]), strict=True)]
        skips = list(reversed(channels[:-1]))
        return {
            "dim": channels[0],
            "layers": len(channels),
            "shortcut_layers": sum(f in (s, s + count) for f, s in zip(further, skips, strict=True)),
            "inject_layers": sum(f in (count, s + count) for f, s in zip(further, skips, strict=True)),
            "n_attrs": count,
        }

    @classmethod
    def mistaken(cls, state: Mapping[str, Tensor]) -> str | None:
        """AttGAN's discriminators end in two branches of linear layers."""
        return "AttGAN's discriminator" if any(name.startswith("fc_adv") for name in state) else None


def _decoder_inputs(channels: list[int], count: int, shortcuts: int, injections: int) -> list[int]:
    """Channels that go into each layer of the decoder."""
    inputs = [channels[-1] + count]
    for i, (own, skip) in enumerate(zip(reversed(channels[1:]), reversed(channels[:-1]), strict=True)):
        inputs.append(own + skip * (i < shortcuts) + count * (i < injections))
    return inputs


def _sizes(state: Mapping[str, Tensor], stack: str) -> list[int]:
    """First dimensions of the weights of a stack's convolutions, as far as they go."""
    sizes: list[int] = []
    while (weight := state.get(f"{stack}.{len(sizes)}.layers.0.weight")) is not None and weight.ndim == 4:
        sizes.append(len(weight))
    return sizes
