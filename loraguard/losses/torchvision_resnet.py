"""Torchvision's ResNet-50 as a feature encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from loraguard.channels.base import clip
from loraguard.weights import load_published

from .loading import file_digest


class ResNetFeatures(nn.Module):
    """A torchvision ResNet without its classifier: pooled features (N, D), or those of each position (N, L, D).

    Args:
        network: of `torchvision.models`.
        features: "pooled" or "patch".

    Example:
        >>> from torchvision.models import resnet18
        >>> ResNetFeatures(resnet18().eval(), "patch")(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 4, 512])
    """

    def __init__(self, network: nn.Module, features: str) -> None:
        super().__init__()
        if features not in ("pooled", "patch"):
            raise ValueError(
                f"There are no features {features!r} of torchvision's ResNets; choose 'pooled' or 'patch'."
            )
        self.features = features
        self.layers = nn.Sequential(*list(network.children())[:-2])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, h, w) to features."""
        positions = self.layers(images).flatten(2)
        return positions.mean(2) if self.features == "pooled" else positions.transpose(1, 2)


class WeightsPreprocessing:
    """The preprocessing that torchvision gives with its weights, for images in [-1, 1].

    Args:
        weights: as torchvision names them.

    Example:
        >>> WeightsPreprocessing(ResNet50_Weights.IMAGENET1K_V1)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 3, 224, 224])
    """

    def __init__(self, weights: ResNet50_Weights) -> None:
        self.transform: Any = weights.transforms()

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to normalised ones of the weights' own size, in float32."""
        return self.transform((clip(images) + 1) / 2)

    def settings(self) -> dict[str, Any]:
        """Sizes, filter, mean and standard deviation, as JSON takes them."""
        transform = self.transform
        return {
            "size": {"shortest_edge": transform.resize_size[0]},
            "crop_size": {"height": transform.crop_size[0], "width": transform.crop_size[0]},
            "resample": transform.interpolation.value,
            "image_mean": transform.mean,
            "image_std": transform.std,
        }


def load_resnet50(
    path: str | Path | None, weights: str, features: str, local_files_only: bool
) -> tuple[nn.Module, Callable[[Tensor], Tensor], dict[str, Any]]:
    """The network, its preprocessing and where it comes from; see `FeatureEncoder.from_torchvision`."""
    if weights not in ResNet50_Weights.__members__:
        names = ", ".join(map(repr, ResNet50_Weights.__members__))
        raise ValueError(f"Torchvision has no weights {weights!r} of ResNet-50; choose from {names}.")
    published = ResNet50_Weights[weights]
    with torch.device("meta"):  # weights are the file's; none are drawn first
        network = ResNetFeatures(base := resnet50(), features)
    file = load_published(base, published.url, path, name="torchvision's ResNet-50", local_files_only=local_files_only)
    source = {
        "model": "torchvision resnet50",
        "weights": published.name,
        "file": file.name,
        "sha256": file_digest(file),
    }
    return network.float(), WeightsPreprocessing(published), source
