"""EditShield: latents that are moved away from the photo's, under small transforms (Chen et al., arXiv 2311.12066)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.generators.base import Condition

from .iterative import IterativeDefense
from .latent_terms import latents_in
from .terms import Term, away_from

_TURN, _SHIFT, _ZOOM = 5.0, 0.04, 0.04
"""Most of a turn in degrees, of a shift in parts of the photo, and of a change of size."""


@dataclass(frozen=True)
class EditShield(IterativeDefense):
    """Perturb each photo to maximise `|E(T(x + d)) - E(x)|^2`, T a small random transform, drawn anew in each step.

    White-box, per image. Made against editors that take instructions, and to survive cropping and turning. Known from
    the paper, not from its code: 4 to 8/255; here, T turns by up to 5 degrees, shifts by up to 4% and changes the size
    by up to 4%, and steps and their size are our own.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "8/255" is 8 levels of 255.
        steps: sign steps.
        step_size: of one step; 0.2 * `eps` by default.
        layer: the latents, by a layer's name in the generator; by default its `latent_layer`.
        restarts: attacks from as many starts.
        eot: draws of T in each step.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> EditShield(steps=2)(TAEF2(**TAEF2.small), torch.zeros(1, 3, 16, 16), {}).shape
        torch.Size([1, 3, 16, 16])
    """

    reach = 1.0

    eps: float = 0.05
    steps: int = 30
    step_size: float | None = None
    layer: str | None = None
    restarts: int = 1
    eot: int = 1

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance from the photo's own latents, of what a transform leaves."""
        return [replace(away_from(latents_in(generator, self.layer), images, condition), channel=slightly_moved)]


def slightly_moved(images: Tensor) -> Tensor:
    """Images (N, C, H, W), each turned, shifted and resized a little at random, their edges repeated."""
    turn, right, down, zoom = (2 * torch.rand(4, len(images)) - 1).to(images)
    angle, size = turn * _TURN * torch.pi / 180, 1 + zoom * _ZOOM
    cosine, sine = size * angle.cos(), size * angle.sin()
    rows = [cosine, -sine, 2 * _SHIFT * right, sine, cosine, 2 * _SHIFT * down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
