"""BlurGuard: any protection, its perturbation blurred region by region (NeurIPS 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraguard.channels.base import clip
from loraguard.generators.base import Condition

from .base import Defense, check_budget

SIGMAS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Standard deviations that a region's blur is chosen from, in pixels."""

REGIONS = 4
"""Regions of a photo: quarters of its pixels by lightness."""


@dataclass(frozen=True)
class BlurGuard(Defense):
    """A protection whose perturbation is blurred in each region of the photo until it looks as natural as the photo.

    Fine noise is what purifiers take off first. Each region's blur is the weakest under which the perturbation has, in
    that region, no larger a share of fine detail than the photo has. The protection is crafted through the blur,
    `x + B(d)`, and blurring leaves L-infinity budgets alone. The paper finds regions by a segmentation network, and
    learns the blurs along with the perturbation; here, regions are quarters of the pixels by lightness, and their blurs
    are chosen once, after a first run of the protection.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        base: the protection, as the command line names it; its budget becomes `eps`.

    Raises:
        ValueError: for a protection that is unknown, or has no budget to set.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> network, photos = TAEF2(**TAEF2.small), torch.rand(1, 3, 16, 16)
        >>> defended = BlurGuard(base="photoguard:steps=2")(network, photos, {})
        >>> (defended - photos).abs().max() <= 0.05 + 1e-6
        tensor(True)
    """

    eps: float = 0.05
    base: str = "photoguard"

    def __post_init__(self) -> None:
        check_budget(self.eps)
        self.inner()

    def inner(self) -> Defense:
        """The protection at this budget."""
        from .registry import parse_defense

        inner = parse_defense(self.base).varied(eps=self.eps)
        if inner is None or inner.budget is not None or inner.must_be_fitted:
            raise ValueError(f"base={self.base!r} has no L-infinity budget to set; name one that has, as photoguard.")
        return inner

    @property
    def passes(self) -> int:
        """Twice the protection's."""
        return 2 * self.inner().passes

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """Run the protection, choose blurs, and run it again through them."""
        inner = self.inner()
        rough = inner.perturb(generator, images, condition, clean) - images
        blur = RegionBlur(images, rough)
        crafted = inner.perturb(Blurred(generator, images, blur, self.eps), images, condition, clean)
        return (images + blur(crafted - images)).clamp(-1, 1)


class RegionBlur:
    """Blurs a perturbation, in each region of the photo by that region's own Gaussian.

    Args:
        images: the photos, (N, C, H, W).
        perturbation: the one that blurs are chosen for, (N, C, H, W).
    """

    def __init__(self, images: Tensor, perturbation: Tensor) -> None:
        self.regions = regions_of(images)
        natural = _fine_share(images, self.regions)
        chosen = torch.full_like(natural, len(SIGMAS) - 1, dtype=torch.long)
        for i in reversed(range(len(SIGMAS))):
            share = _fine_share(_blurred(perturbation, SIGMAS[i]), self.regions)
            chosen = torch.where(share <= natural, i, chosen)
        self.chosen = chosen

    def __call__(self, perturbation: Tensor) -> Tensor:
        """The perturbation (N, C, H, W), blurred; its largest value does not grow."""
        layers = [_blurred(perturbation, sigma) for sigma in SIGMAS]
        weights = torch.zeros_like(perturbation[:, :1]).expand(-1, len(SIGMAS), -1, -1).clone()
        for region in range(self.regions.shape[1]):
            weights.scatter_add_(
                1, self.chosen[:, region, None, None, None].expand(-1, 1, *perturbation.shape[-2:]),
                self.regions[:, region, None],
            )  # fmt: skip
        return sum(weights[:, i, None] * layer for i, layer in enumerate(layers))  # type: ignore[return-value]


class Blurred(nn.Module):
    """A generator that sees `x + B(x' - x)` of perturbed photos x'; its attributes are this module's, too."""

    def __init__(self, generator: nn.Module, images: Tensor, blur: RegionBlur, eps: float) -> None:
        super().__init__()
        self.generator, self.images, self.blur, self.eps = generator, images, blur, eps

    def forward(self, images: Tensor, **condition: Tensor) -> Tensor:
        """Edit images (N, C, H, W), their perturbation blurred; a picture that is no perturbed photo as it is."""
        moved = images - self.images
        if moved.detach().abs().max() > self.eps + 1e-4:
            return self.generator(images, **condition)
        return self.generator(clip(self.images + self.blur(moved)), **condition)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "generator":
                raise
            return getattr(self.generator, name)


def regions_of(images: Tensor) -> Tensor:
    """Quarters of each photo's pixels by lightness, with soft borders: (N, 4, H, W), which add up to 1."""
    lightness = _blurred(images.mean(1, keepdim=True), 2.0)
    ranks = lightness.flatten(1).argsort(1).argsort(1).view_as(lightness)
    quarters = (ranks * REGIONS // ranks[0].numel()).clamp_max(REGIONS - 1)
    hard = torch.cat([(quarters == i).to(images) for i in range(REGIONS)], 1)
    soft = _blurred(hard, 1.0)
    return soft / soft.sum(1, keepdim=True)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    if not sigma:
        return images
    kernel = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(images, (kernel, kernel), (sigma, sigma), border_type="replicate")


def _fine_share(images: Tensor, regions: Tensor) -> Tensor:
    """Which part of an image's energy in each region is finer than a Gaussian of one pixel: (N, 4)."""
    centred = images - images.mean((2, 3), keepdim=True)
    fine = (centred - _blurred(centred, 1.0)).square().mean(1, keepdim=True)
    whole = centred.square().mean(1, keepdim=True)
    energy = (fine * regions).sum((2, 3)), (whole * regions).sum((2, 3))
    return energy[0] / energy[1].clamp_min(torch.finfo(images.dtype).tiny)
