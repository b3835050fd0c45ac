"""Anti-Forgery: perturb the colours of a photo, not its lightness (Wang et al., arXiv 2206.00477)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from loraguard.channels import published, quantize
from loraguard.generators.base import Condition

from .ascent import Adam, Objective, ascend
from .base import Defense, check_settings
from .terms import Term, away_from, in_turn
from .transferable import check_edits, for_each

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
"""Of a pixel's shift; the last leaves room for what conversion from Lab and back adds."""


@dataclass(frozen=True)
class AntiForgery(Defense):
    """Shift the channels a and b of each photo in CIE Lab to maximise `MSE(G(x', c), G(x, c))`, L as it was.

    White-box, per image. Gradient ascent by Adam on the shifts, which are kept within the budget after each step. At no
    shift at all, where the paper starts, the gradient is exactly zero; so shifts start at uniform noise of a hundredth
    of `eps`. A step is about `step_size` long: the paper's 100 steps of 1e-4 (500 in its other experiments) use about a
    quarter of its budget of 0.05 on drawn faces. An audit that wants all of it takes more or longer ones.

    The budget is not one on images: a shift of 0.05 can move a channel of a saturated colour by 0.3 and more.

    Colours that no screen shows are clipped to the nearest value of each channel, which moves L a little, too. Where
    clipping, or rounding to 8 bits for publication, would leave the budget (it can, in dark colours above all), the
    shift at that pixel is shortened until it does not.

    Args:
        eps: the budget, L-infinity, on a / 110 and b / 110.
        steps: of Adam.
        step_size: Adam's learning rate, in units of the budget; by default `eps` / 500, 1e-4 at the paper's budget.
        edits: conditions of one row, by name, of which each step attacks the next, as the paper does it;
            :func:`~loraguard.defenses.transferable.edits_of` finds them. By default the condition of the call alone.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> defended = AntiForgery(steps=5)(nn.Conv2d(3, 3, 3, padding=1), photos, {})
        >>> bool(((to_lab(defended) - to_lab(photos))[:, 0].abs() < 1e-4).all())
        True
    """

    budget: ClassVar[str | None] = "L-infinity on a / 110 and b / 110 of CIE Lab (0.05 is 5.5 units of a and of b)"

    eps: float = 0.05
    steps: int = 100
    step_size: float | None = None
    edits: Mapping[str, Condition] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_settings(self.eps, self.steps, self.step_size)
        check_edits(self.edits)

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """Photos with other colours; see :class:`~loraguard.defenses.base.Defense`.

        Raises:
            ValueError: for images of other than three colours.
        """
        if images.shape[1] != 3:
            raise ValueError(f"AntiForgery moves colours of RGB images (N, 3, H, W), got {tuple(images.shape)}.")
        lab = to_lab(images)
        shifts = ascend(
            self._objective(lab, self.terms(generator, images, condition, clean)),
            0.01 * self.eps * (2 * torch.rand_like(lab[:, 1:]) - 1),
            low=-self.eps,
            high=self.eps,
            steps=self.steps,
            step_size=self.step_size or self.eps / 500,
            update=Adam(),
        )
        return self._within_budget(images, lab, shifts)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance that is to grow, or that of each of the edits."""
        if self.edits:
            return [away_from(generator, images, for_each(images, edit)) for edit in self.edits.values()]
        return [away_from(generator, images, condition, clean)]

    def _objective(self, lab: Tensor, terms: Sequence[Term]) -> Objective:
        """Of shifts (N, 2, H, W): one term a step."""
        objective = in_turn(terms)
        return lambda shifts: objective(shifted(lab, shifts))

    def movement(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """How far a / 110 or b / 110 of each photo was moved: (N,)."""
        return (to_lab(perturbed) - to_lab(images))[:, 1:].abs().flatten(1).amax(1)

    def _within_budget(self, images: Tensor, lab: Tensor, shifts: Tensor) -> Tensor:
        """The photo with as much of each pixel's shift as is in the budget when clipped and published."""
        rounded = to_lab(quantize(images))
        kept = images
        for share in SHARES:
            candidate = shifted(lab, share * shifts)
            fits = self._fits(candidate, lab) & self._fits(published(candidate, images), rounded)
            kept = torch.where(fits, candidate, kept)
        return kept

    def _fits(self, images: Tensor, lab: Tensor) -> Tensor:
        return (to_lab(images) - lab)[:, 1:].abs().amax(1, keepdim=True) <= self.eps


def to_lab(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], as sRGB, to ((L - 50) / 100, a / 110, b / 110), by kornia (D65, 2 degrees)."""
    from kornia.color import rgb_to_lab

    lightness, a, b = rgb_to_lab((images.clamp(-1, 1) + 1) / 2).unbind(1)
    return torch.stack([(lightness - 50) / 100, a / 110, b / 110], 1)


def shifted(lab: Tensor, shifts: Tensor) -> Tensor:
    """The images (N, 3, H, W) in [-1, 1] that have these colours with a and b shifted (N, 2, H, W), clipped."""
    from kornia.color import lab_to_rgb

    lightness, a, b = lab.unbind(1)
    moved = torch.stack([100 * lightness + 50, 110 * (a + shifts[:, 0]), 110 * (b + shifts[:, 1])], 1)
    return lab_to_rgb(moved, clip=True) * 2 - 1
