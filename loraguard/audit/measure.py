"""The figures of one image, and of a set of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loraguard.describing import describe
from loraguard.fingerprint import generator_fingerprint
from loraguard.metrics import (
    DSR_THRESHOLD,
    LPIPS,
    defense_succeeds,
    masked_squared_error,
    mean_squared_error,
    psnr,
    ssim,
)
from loraguard.stamp import StampDetector


@dataclass(frozen=True)
class Measures:
    """What is measured on each output.

    Always MSE, DSR, PSNR and SSIM; the MSE under CMUA's mask where outputs are as large as photos; the stamp where
    there is a detector; LPIPS and features where there are networks for them.

    Args:
        detectors: by generator, what looks for its stamp; where a generator has none, the first one is taken.
        lpips: the network of LPIPS, from `LPIPS.load`.
        features: an encoder, images (N, 3, H, W) to (N, D), for the Fréchet distance between sets of outputs.
    """

    detectors: Mapping[str, StampDetector] = field(default_factory=dict)
    lpips: LPIPS | None = None
    features: nn.Module | None = None

    @torch.no_grad()
    def __call__(
        self, generator: str, outputs: Tensor, target: Tensor, untouched: Tensor, images: Tensor
    ) -> dict[str, Tensor]:
        """By metric, a figure for each image, (N,).

        Args:
            generator: whose outputs they are.
            outputs: (N, 3, H', W') in [-1, 1].
            target: what they should be, of the same shape.
            untouched: the untouched generator's outputs on the photos.
            images: the photos, (N, 3, H, W).

        Raises:
            FloatingPointError: for outputs that are not finite.
        """
        if not torch.isfinite(outputs).all():
            raise FloatingPointError(f"The generator {generator!r} gives outputs that are not finite.")
        found = {
            "mse": mean_squared_error(outputs, target),
            "dsr": defense_succeeds(outputs, target),
            "psnr": psnr(outputs, target),
            "ssim": ssim(outputs, target),
        }
        if outputs.shape == images.shape:
            found["masked_mse"] = masked_squared_error(outputs - target + untouched, untouched, images)
        if self.lpips is not None:
            found["lpips"] = self.lpips(outputs, target)
        if self.detectors:
            detector = self.detectors.get(generator) or next(iter(self.detectors.values()))
            found["stamp_score"] = detector.score(outputs)
            found["stamp_rate"] = detector(outputs).to(outputs)
        return found

    def settings(self) -> dict[str, Any]:
        """All that the figures depend on, and what computes them, as JSON takes it."""
        return {
            "dsr_threshold": DSR_THRESHOLD,
            "detectors": {
                name: {"stamp": describe(one.stamp), **one.settings()} for name, one in self.detectors.items()
            },
            "lpips": None if self.lpips is None else generator_fingerprint(self.lpips),
            "features": None
            if self.features is None
            else {"class": type(self.features).__name__, "sha256": generator_fingerprint(self.features)},
        }
