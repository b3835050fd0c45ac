"""The figures of one image, and of a set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from loraguard.channels import quantize
from loraguard.describing import describe
from loraguard.fingerprint import generator_fingerprint
from loraguard.metrics import (
    LPIPS,
    Brisque,
    ClipSimilarity,
    identity_disruption,
    masked_squared_error,
    mean_squared_error,
    psnr,
    ssim,
)
from loraguard.stamp import StampDetector

from .made import edit_made, stamp_made

MOST_GAIN = 8.0
"""Outputs that have lost more contrast are not brought back: little but rounding is left of them."""

Encoded = Callable[[nn.Module, str], Tensor]
"""What an encoder gives for the "target" or the "photo" of a batch."""

BEYOND, MOST_BEYOND = 0.25, 0.25
"""Where more than this part of the values leaves [-1, 1] by more than this, outputs are of another range. Networks
without a tanh at their end overshoot here and there."""


def as_saved(generator: str, outputs: Any, images: Tensor) -> Tensor:
    """Outputs as a file would hold them: clipped to [-1, 1] and rounded to 8 bits.

    Args:
        generator: whose outputs they are, for messages.
        outputs: what it gave for the images.
        images: (N, 3, H, W).

    Raises:
        FloatingPointError: for outputs that are not finite.
        ValueError: for what are no images, one for each, or lie in another range, such as [0, 255].

    Example:
        >>> as_saved("mine", torch.tensor([0.0, 1.1, -2.0]).reshape(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)).flatten()
        Traceback (most recent call last):
        ...
        ValueError: The generator 'mine' gives values from -2 to 1.1; expected outputs in [-1, 1].
    """
    who = f"The generator {generator!r} gives"
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or len(outputs) != len(images):
        what = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"{who} {what} for images {tuple(images.shape)}; expected ({len(images)}, C, H, W).")
    if not torch.isfinite(outputs).all():
        raise FloatingPointError(f"{who} outputs that are not finite.")
    if float((outputs.abs() > 1 + BEYOND).float().mean()) > MOST_BEYOND:
        low, high = float(outputs.min()), float(outputs.max())
        raise ValueError(f"{who} values from {low:.4g} to {high:.4g}; expected outputs in [-1, 1].")
    return quantize(outputs)


_MAY_BE_INFINITE = ("psnr", "brisque")
"""Equal images are infinitely alike, and an image of one colour is as unnatural as can be."""


@dataclass(frozen=True)
class Measures:
    """What is measured on each output.

    Always MSE, DSR, PSNR and SSIM; how much of the edit is made; the MSE under CMUA's mask where outputs are as large
    as photos; the stamp where there is a detector; LPIPS and features where there are networks for them. Encoders and
    detectors, which may work in place, get copies of what they look at.

    Args:
        detectors: by generator, what looks for its stamp; on outputs of one that has none, each looks for its own, and
            the stamp is found where one of them finds it.
        lpips: the network of LPIPS, from `LPIPS.load`.
        identity: a face encoder, images (N, 3, H, W) to embeddings (N, D), whose cosine between output and target is
            measured, and the CIDR.
        features: an encoder, images (N, 3, H, W) to (N, D), for the Fréchet distance between sets of outputs.
        brisque: what measures BRISQUE.
        clip: what measures the similarity between outputs and the names of their edits.
    """

    detectors: Mapping[str, StampDetector] = field(default_factory=dict)
    lpips: LPIPS | None = None
    features: nn.Module | None = None
    identity: nn.Module | None = None
    brisque: Brisque | None = None
    clip: ClipSimilarity | None = None

    @torch.no_grad()
    def __call__(
        self,
        generator: str,
        preds: Tensor,
        target: Tensor,
        untouched: Tensor,
        images: Tensor,
        encoded: Encoded | None = None,
        edits: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """By metric, a figure for each image, (N,).

        Args:
            generator: whose outputs they are.
            preds: its outputs, as :func:`as_saved` gives them, (N, 3, H', W').
            target: what they should be, likewise.
            untouched: the untouched generator's outputs on the photos, likewise.
            images: the photos, (N, 3, H, W).
            encoded: what an encoder gives for the target, or for the photos, if somebody has kept it; it takes the
                encoder and "target" or "photo".
            edits: the name of each image's edit, for CLIP.
        """
        found = {
            "mse": mean_squared_error(preds, target),
            "psnr": psnr(preds, target),
            "ssim": ssim(preds, target),
            "mse_without_cast": _without_cast(preds, target),
        }
        if preds.shape[1] == images.shape[1]:
            found["edit_made"] = edit_made(preds, target, images)
        if preds.shape == images.shape:
            found["masked_mse"] = masked_squared_error(preds - target + untouched, untouched, images)
        if self.lpips is not None:
            found["lpips"] = self.lpips(preds, target)
        if self.identity is not None:
            kept = encoded or (lambda network, of: network(target if of == "target" else images))
            wanted, photo = kept(self.identity, "target"), kept(self.identity, "photo")
            mine = self.identity(preds.clone())
            check_encoder("identity", photo, images)
            found["identity"] = cosine_similarity(mine, wanted)
            found["cidr"] = identity_disruption(mine, wanted, photo)
        if self.clip is not None:
            found["clip"] = self.clip(preds.clone(), edits)
        if self.brisque is not None:
            found["brisque"] = self.brisque(preds.clone())
        if self.detectors:
            own = self.detectors.get(generator)
            looking = list(self.detectors.values()) if own is None else [own]
            if own is not None:
                found["stamp_made"] = stamp_made(preds, target, untouched)
            found["stamp_score"] = torch.stack([one.score(preds.clone()) for one in looking]).amax(0)
            found["stamp_rate"] = torch.stack([one(preds.clone()) for one in looking]).any(0).to(preds)
        check_figures(generator, found)
        return found

    @property
    def made_by(self) -> list[Any]:
        """What computes the figures, as far as somebody else may have written it."""
        detectors = [self.detectors[name] for name in sorted(self.detectors)]
        return [self.features, self.lpips, self.identity, *detectors, *filter(None, (self.clip, self.brisque))]

    def settings(self) -> dict[str, Any]:
        """All that the figures depend on, and what computes them, as JSON takes it."""
        return {
            "detectors": {
                name: {"stamp": describe(one.stamp), **one.settings()} for name, one in self.detectors.items()
            },
            "lpips": None if self.lpips is None else generator_fingerprint(self.lpips),
            "identity": None if self.identity is None else generator_fingerprint(self.identity),
            **({} if self.clip is None else {"clip": generator_fingerprint(self.clip)}),
            **({} if self.brisque is None else {"brisque": self.brisque.settings()}),
            "features": None
            if self.features is None
            else {"class": type(self.features).__name__, "sha256": generator_fingerprint(self.features)},
        }


def check_figures(generator: str, figures: Mapping[str, Tensor]) -> None:
    """Refuse figures that are none: one photo without would be lost in a mean, or make it one that nobody can read.

    Raises:
        FloatingPointError: for one that is not a number, or infinite where the metric has no such value.

    Example:
        >>> check_figures("mine", {"psnr": torch.tensor([float("inf")]), "lpips": torch.tensor([float("nan")])})
        Traceback (most recent call last):
        ...
        FloatingPointError: The lpips of 1 of 1 outputs of 'mine' is no number (nan on photo 0 of its batch). ...
    """
    for name, values in figures.items():
        bad = values.isnan() if name in _MAY_BE_INFINITE else ~values.isfinite()
        if bad.any():
            first = int(bad.nonzero()[0])
            raise FloatingPointError(
                f"The {name} of {int(bad.sum())} of {len(values)} outputs of {generator!r} is no number "
                f"({float(values[first])} on photo {first} of its batch). What computes it must give one for each "
                "photo; look at its network on this photo, or leave it out."
            )


def check_encoder(name: str, codes: Tensor, images: Tensor) -> None:
    """Refuse an encoder that tells no photos apart: everything would be alike to it.

    Args:
        name: what it measures.
        codes: what it gives for the images, (N, D).
        images: (N, C, H, W).

    Raises:
        ValueError: if images differ, and what it gives does not.

    Example:
        >>> check_encoder("identity", torch.ones(2, 4), torch.rand(2, 3, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: The encoder of identity gives the same for 2 different photos, so that its figures would say ...
    """
    alike = (codes - codes[:1]).abs().max() <= 1e-6 * codes.abs().max()
    if bool(alike) and not torch.equal(images, images[:1].expand_as(images)):
        raise ValueError(
            f"The encoder of {name} gives the same for {len(images)} different photos, so that its figures would say "
            "that nothing ever changes. Are its weights loaded, and does it take images in [-1, 1]? Give another one."
        )


def _without_cast(preds: Tensor, target: Tensor) -> Tensor:
    """The MSE that is left when colours are put right by their means and contrasts alone, (N,).

    Channels may stand for one another and be inverted; each one's mean is set to the target's, and its contrast where
    some is lost.
    """
    preds, target = ((one - one.mean((2, 3), keepdim=True)).flatten(2) for one in (preds, target))
    of_preds, of_target = (one.square().mean(2) for one in (preds, target))
    with_each = target @ preds.transpose(1, 2) / preds.shape[2]  # (N, C, C): channels of the target, of the outputs
    gain = with_each / of_preds[:, None].clamp_min(1e-12)
    gain = gain.abs().clamp(1, MOST_GAIN).copysign(gain)
    left = (of_target[:, :, None] - 2 * gain * with_each + gain.square() * of_preds[:, None]).clamp_min(0)
    channels = range(preds.shape[1])
    orders = permutations(channels) if len(channels) <= 3 else [tuple(channels)]
    return torch.stack([left[:, channels, order].mean(1) for order in orders]).amin(0)
