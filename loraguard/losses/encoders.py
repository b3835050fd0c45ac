"""Frozen networks whose features are compared: what MMFA sees an image through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loraguard.pixels import from_bytes

from .functional import FEATURE_DISTANCES, at_least_float32, chosen


class FeatureEncoder(nn.Module):
    """A frozen network that turns images into features, with gradients for the images and for nothing else.

    It stays in evaluation mode whatever is called, so each image's features depend on that image alone. Images are
    preprocessed in float32 or better, features computed in the network's own precision; autocast has no effect inside.

    Args:
        network: from what `preprocess` gives to features (N, D), or (N, L, D) with one vector for each patch.
        preprocess: from images (N, 3, H, W) in [-1, 1] to what the network takes: a tensor, or tensors by name.
        distance: "mse" or "cosine".
        weight: of the distance in the loss.
        name: of the term in logs.
        source: where the network comes from, as JSON takes it; goes into :meth:`settings`.

    Raises:
        ValueError: if the distance or the weight cannot be used.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> encoder = FeatureEncoder(network, lambda images: images / 0.5, distance="cosine", name="tiny")
        >>> encoder(torch.zeros(2, 3, 16, 16)).shape, any(p.requires_grad for p in encoder.train().parameters())
        (torch.Size([2, 8]), False)
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Callable[[Tensor], Any],
        *,
        distance: str = "mse",
        weight: float = 0.1,
        name: str = "encoder",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_term(distance, weight)
        if not name or "." in name or name == "pixel":
            raise ValueError(f"name={name!r} must not be empty, contain a dot or be 'pixel'.")
        self.network, self.preprocess = network, preprocess
        self.distance, self.weight, self.name, self.source = distance, float(weight), name, dict(source or {})
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        features: str = "pooled",
        distance: str = "mse",
        weight: float = 0.1,
        name: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> FeatureEncoder:
        """The image side of a vision or vision-language model that `transformers` loads, with its own preprocessing.

        Weights are read from safetensors alone and no code of a repository is run.

        Args:
            model: a folder with `config.json`, `preprocessor_config.json` and `model.safetensors`, or a repository on
                the Hub, such as "microsoft/resnet-50".
            features: "pooled" (the model's `pooler_output`), "cls" (the class token), "patch" (`last_hidden_state`,
                every token) or "projected" (the embedding in the space shared with text).
            distance: "mse" or "cosine".
            weight: of the distance in the loss.
            name: of the term in logs; by default the model's name without its owner.
            revision: branch, tag or commit on the Hub.
            cache_dir: of the Hub's files, in place of the usual one.
            local_files_only: download nothing.
            dtype: of weights and features' computation.

        Raises:
            OSError: if a file cannot be had; the message says where it was looked for and what to pass instead.
            ValueError: if the model has no such features, is none of `transformers`, or if its preprocessing cannot be
                reproduced with gradients.

        Example:
            >>> import tempfile
            >>> from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel
            >>> folder = tempfile.mkdtemp()
            >>> ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
            >>> _ = ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
            >>> encoder = FeatureEncoder.from_pretrained(folder, name="resnet")
            >>> encoder(torch.zeros(2, 3, 64, 64)).shape
            torch.Size([2, 16])
        """
        from .loading import load_tower

        check_term(distance, weight)
        tower, preprocess, source = load_tower(
            model, features, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, dtype=dtype
        )
        name = name or source["model"].rpartition("/")[2].replace(".", "-")
        encoder = cls(
            tower, preprocess, distance=distance, weight=weight, name=name, source={**source, "features": features}
        )
        encoder.check()
        return encoder

    @classmethod
    def from_torchvision(
        cls,
        path: str | Path | None = None,
        *,
        weights: str = "IMAGENET1K_V2",
        features: str = "pooled",
        distance: str = "mse",
        weight: float = 0.1,
        name: str = "resnet50",
        local_files_only: bool = False,
    ) -> FeatureEncoder:
        """Torchvision's ResNet-50, with the preprocessing of its weights.

        Args:
            path: a state dict of `torchvision.models.resnet50`, from `torch.save` (read with `weights_only=True`) or in
                safetensors; by default torchvision's own file, from its cache or else downloaded.
            weights: "IMAGENET1K_V1" or "IMAGENET1K_V2": which file, and which preprocessing goes with it.
            features: "pooled", (N, 2048), or "patch", (N, L, 2048).
            distance: "mse" or "cosine".
            weight: of the distance in the loss.
            name: of the term in logs.
            local_files_only: download nothing.

        Raises:
            OSError: if the file is not there.
            ValueError: if it holds no such state dict.

        Example:
            >>> FeatureEncoder.from_torchvision("nowhere.pth")
            Traceback (most recent call last):
            ...
            FileNotFoundError: There is no file nowhere.pth with weights of torchvision's ResNet-50...
        """
        from .torchvision_resnet import load_resnet50

        check_term(distance, weight)
        network, preprocess, source = load_resnet50(path, weights, features, local_files_only)
        source = {**source, "features": features}
        return cls(network, preprocess, distance=distance, weight=weight, name=name, source=source)

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which features are computed: that of the network's first parameter."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (N, 3, H, W) in [-1, 1].

        Returns:
            (N, D) or (N, L, D), at least in float32.
        """
        with torch.autocast(images.device.type, enabled=False):
            inputs = self.preprocess(images.to(torch.promote_types(self.dtype, torch.float32)))
            return at_least_float32(self.network(self._cast(inputs)))

    def train(self, mode: bool = True) -> FeatureEncoder:
        """Stays in evaluation mode."""
        return super().train(False)

    def check(self) -> None:
        """Run the encoder on a test picture, so that what cannot work is said before training starts.

        Raises:
            ValueError: if it gives no features of a shape that can be compared.
        """
        from .preprocessing import probe_picture

        with torch.no_grad():
            features = self(from_bytes(probe_picture()))
        if features.ndim not in (2, 3) or not torch.isfinite(features).all():
            raise ValueError(
                f"The encoder {self.name} gives {tuple(features.shape)} for one image, or values that are not finite; "
                "expected finite features (1, D), or (1, L, D) for patches."
            )

    def settings(self) -> dict[str, Any]:
        """Name, source, distance, weight, precision and preprocessing, as JSON takes them."""
        describe = getattr(self.preprocess, "settings", None)
        return {
            "name": self.name,
            **self.source,
            "distance": self.distance,
            "weight": self.weight,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"preprocessing": describe()} if describe else {}),
        }

    def extra_repr(self) -> str:
        """Name, distance and weight."""
        return f"{self.name!r}, distance={self.distance!r}, weight={self.weight}"

    def _cast(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return {key: self._cast(value) for key, value in inputs.items()}
        return inputs.to(self.dtype) if inputs.is_floating_point() else inputs


def check_term(distance: str, weight: float) -> None:
    """Refuse a distance that does not exist and a weight that is not positive and finite."""
    chosen(FEATURE_DISTANCES, distance, "feature distance")
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight={weight!r} must be greater than 0 and finite.")
