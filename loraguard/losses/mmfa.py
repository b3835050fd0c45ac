"""The multi-modal feature alignment loss, D(y, t) of arXiv 2510.03747."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .cache import FeatureCache, sketch
from .encoders import FeatureEncoder
from .functional import PIXEL_DISTANCES, FeaturePair, chosen, mmfa_terms

WIDEST = 2.0
"""Values beyond this are no images in [-1, 1], not even those of a generator that overshoots a little."""


@dataclass(frozen=True)
class PreparedTarget:
    """A batch of targets with their features, for several losses against the same targets.

    Attributes:
        images: t, (N, 3, H, W) in [-1, 1].
        features: by the encoder's name, E(t), (N, D) or (N, L, D).
    """

    images: Tensor
    features: dict[str, Tensor]


class MMFALoss(nn.Module):
    """`D(y, t) = w_0 d_0(y, t) + sum_k w_k d_k(E_k(y), E_k(t))`: pixels, and features of frozen encoders.

    Targets are constants: gradients reach the outputs alone. The loss of a batch is the mean of its images' losses.
    Encoders see images clipped to [-1, 1], as a file would hold them; where outputs overshoot, the pixel term alone
    pulls them back. As a module it moves with `.to(device)`; no parameter of it learns, and it is always in evaluation
    mode.

    Args:
        encoders: E_k with their distances and weights; none leaves the pixel term.
        pixel: d_0, "mse" or "l1".
        pixel_weight: w_0.
        cache: keeps targets' features between epochs, where :meth:`prepare` is given keys.

    Raises:
        TypeError: if an encoder is no :class:`FeatureEncoder`.
        ValueError: if two encoders have one name, or a setting cannot be used.

    Example:
        >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> loss = MMFALoss([FeatureEncoder(network, lambda images: images, distance="cosine", name="thumbnail")])
        >>> y, t = torch.full((2, 3, 16, 16), 0.5), torch.full((2, 3, 16, 16), -0.5)
        >>> loss(y, t), loss.terms(y, loss.prepare(t))
        (tensor(1.2000), {'pixel': tensor(1.), 'thumbnail': tensor(0.2000)})
    """

    def __init__(
        self,
        encoders: Sequence[FeatureEncoder] = (),
        *,
        pixel: str = "mse",
        pixel_weight: float = 1.0,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        chosen(PIXEL_DISTANCES, pixel, "pixel distance")
        if not 0 <= pixel_weight < float("inf") or (pixel_weight == 0 and not encoders):
            raise ValueError(f"pixel_weight={pixel_weight!r} must be finite and, without encoders, greater than 0.")
        for encoder in encoders:
            if not isinstance(encoder, FeatureEncoder):
                raise TypeError(f"encoders must be FeatureEncoders, got {type(encoder).__name__}.")
        names = [encoder.name for encoder in encoders]
        if len(set(names)) < len(names):
            raise ValueError(f"Encoders must have names of their own, got {', '.join(names)}: pass name= to each.")
        self.encoders = nn.ModuleList(encoders)
        self.pixel, self.pixel_weight, self.cache = pixel, float(pixel_weight), cache
        self.eval()

    @classmethod
    def paper(
        cls,
        resnet: str | Path = "microsoft/resnet-50",
        blip: str | Path = "Salesforce/blip-image-captioning-base",
        *,
        cache: FeatureCache | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> MMFALoss:
        """The paper's loss: pixel MSE, 0.1 MSE of ResNet-50's pooled features, 0.1 (1 - cosine) of BLIP's embedding.

        BLIP's image embedding is the class token of its image encoder, which is what its projections read; the
        captioning checkpoint is the one that the authors' release names.

        Args:
            resnet: a folder or a repository on the Hub.
            blip: likewise.
            cache: as for the class.
            cache_dir: of the Hub's files, in place of the usual one.
            local_files_only: download nothing.

        Raises:
            OSError: if an encoder cannot be had; the message says where it was looked for and what to pass instead.
        """
        where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        encoders = [
            FeatureEncoder.from_pretrained(resnet, features="pooled", distance="mse", name="resnet-50", **where),
            FeatureEncoder.from_pretrained(blip, features="cls", distance="cosine", name="blip", **where),
        ]
        return cls(encoders, cache=cache)

    def prepare(self, targets: Tensor, keys: Sequence[Hashable] | None = None) -> PreparedTarget:
        """Compute targets' features once, without gradients, for several calls against the same targets.

        Args:
            targets: t, (N, 3, H, W) in [-1, 1].
            keys: what each target is known by in the cache, such as (index of the sample, name of the edit); see
                :class:`FeatureCache`. Features are computed anew without keys or cache. With both, those that the cache
                lacks are computed one image at a time, so that they do not depend on the batch they came in.

        Raises:
            ValueError: if targets are no such images, or keys are not as many as targets.
        """
        _check_images(targets, "Targets")
        targets = targets.detach()
        if not float(targets.abs().max()) <= WIDEST:  # one wait for the device; NaN does not pass either
            raise ValueError(
                f"Targets must be finite images in [-1, 1], got values from {float(targets.min()):.4g} to "
                f"{float(targets.max()):.4g}. Scale images in [0, 255] by x / 127.5 - 1, those in [0, 1] by 2 * x - 1."
            )
        if self.cache is None or keys is None:
            return PreparedTarget(targets, self._features(targets))
        if len(keys) != len(targets):
            raise ValueError(f"There must be one key for each target, got {len(keys)} for {len(targets)}.")
        return PreparedTarget(targets, self._cached_features(targets, keys, self.cache))

    def terms(self, outputs: Tensor, targets: Tensor | PreparedTarget) -> dict[str, Tensor]:
        """The weighted terms, `pixel` and one by each encoder's name; the loss is their sum.

        Args:
            outputs: y, (N, 3, H, W) in [-1, 1].
            targets: t, of the same shape, or what :meth:`prepare` made of it.

        Raises:
            ValueError: if they are no images of one shape, or targets were prepared by a loss with other encoders.
        """
        _check_images(outputs, "Outputs")
        prepared = targets if isinstance(targets, PreparedTarget) else self.prepare(targets)
        names = [encoder.name for encoder in self._encoders]
        if list(prepared.features) != names:
            raise ValueError(
                f"Targets were prepared for the encoders {list(prepared.features)}, but the loss has {names}."
            )
        if outputs.shape != prepared.images.shape:
            raise ValueError(
                f"Outputs {tuple(outputs.shape)} and targets {tuple(prepared.images.shape)} must have one shape."
            )
        pairs = {
            encoder.name: FeaturePair(
                encoder(outputs), prepared.features[encoder.name], encoder.distance, encoder.weight
            )
            for encoder in self._encoders
        }
        return mmfa_terms(outputs, prepared.images, pairs, pixel=self.pixel, pixel_weight=self.pixel_weight)

    def forward(self, outputs: Tensor, targets: Tensor | PreparedTarget) -> Tensor:
        """D(y, t), a scalar, at least in float32; arguments and errors as those of :meth:`terms`."""
        return torch.stack(list(self.terms(outputs, targets).values())).sum()

    def train(self, mode: bool = True) -> MMFALoss:
        """Stays in evaluation mode."""
        return super().train(False)

    def settings(self) -> dict[str, Any]:
        """Everything that the loss depends on, as JSON takes it."""
        return {
            "class": type(self).__name__,
            "pixel": self.pixel,
            "pixel_weight": self.pixel_weight,
            "encoders": [encoder.settings() for encoder in self._encoders],
        }

    @property
    def _encoders(self) -> list[FeatureEncoder]:
        return [encoder for encoder in self.encoders if isinstance(encoder, FeatureEncoder)]

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {encoder.name: encoder(images) for encoder in self._encoders}

    def _cached_features(self, targets: Tensor, keys: Sequence[Hashable], cache: FeatureCache) -> dict[str, Tensor]:
        rows = []
        for key, thumbnail, target in zip(keys, sketch(targets), targets, strict=True):
            kept = cache.get(key, thumbnail)
            if kept is None:
                kept = {name: values[0] for name, values in self._features(target[None]).items()}
                cache.put(key, thumbnail, kept)
            rows.append(kept)
        return {
            encoder.name: torch.stack([row[encoder.name].to(targets.device) for row in rows])
            for encoder in self._encoders
        }


def _check_images(images: Tensor, what: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"{what} must be floating images (N, 3, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}."
        )
