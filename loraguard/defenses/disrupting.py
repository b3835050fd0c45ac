"""Disrupting: make a generator fail on a photo by gradient steps on the photo (Ruiz et al., arXiv 2003.01279)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition
from loraguard.generators.layers import up_to

from .base import Objective, check_images, check_settings, frozen, jitter, sign_ascent
from .terms import Term, away_from, in_turn
from .worst import keep_worst

METHODS = ("fgsm", "ifgsm", "pgd")


@dataclass(frozen=True)
class Disrupting:
    """Perturb each photo on its own to maximise `MSE(G(x + d, c), G(x, c))`, with `|d| <= eps` at every pixel.

    White-box, per image. Arxiv 2003.01279, section 3: *FGSM* is one step of size `eps`; *I-FGSM* takes `steps` steps
    from the photo itself; *PGD* starts at a uniform draw from the ball. At the photo itself the objective's gradient is
    exactly zero, so FGSM and I-FGSM begin beside it, by uniform noise of a hundredth of `eps`.

    Defenses that take the same steps along another objective are subclasses: they say what the objective consists of,
    :meth:`terms`, and how that goes together, :meth:`objective`.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        steps: sign steps; for "fgsm" they become 1, whatever is given.
        step_size: of one step; by default `eps` for "fgsm" and 0.2 * `eps` otherwise, 0.01 at the paper's budget.
        method: "fgsm", "ifgsm" or "pgd".
        restarts: attacks from as many starts, of which the worst for the generator is kept, image by image.
        layer: an inner layer, by its name in the generator, whose output the distance is taken at; by default the
            generator's own output.

    Example:
        >>> generator = nn.Conv2d(3, 3, 3, padding=1)
        >>> photos = torch.rand(2, 3, 16, 16) * 2 - 1
        >>> defended = Disrupting(eps=0.05, steps=3)(generator, photos, {})
        >>> bool(((defended - photos).abs() <= 0.05 + 1e-6).all()), generator.weight.grad is None
        (True, True)
    """

    eps: float = 0.05
    steps: int = 10
    step_size: float | None = None
    method: str = "pgd"
    restarts: int = 1
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}.")
        check_settings(self.eps, self.steps, self.step_size)
        if self.restarts < 1:
            raise ValueError(f"Expected restarts >= 1, got restarts={self.restarts}.")
        if self.method == "fgsm":
            object.__setattr__(self, "steps", 1)

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        """Perturbed images (N, 3, H, W) in [-1, 1]; see :class:`~loraguard.defenses.base.Defense`."""
        check_images(images)
        with frozen(generator):
            terms = self.terms(generator, images, condition, clean)
            attack = partial(self._attack, terms, images)
            return keep_worst(
                [attack] * self.restarts, lambda x: torch.stack([term(x) for term in terms]).sum(0), images
            )

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distances that are to grow; their sum is also what restarts are compared by."""
        if self.layer is not None:
            return [away_from(up_to(generator, self.layer), images, condition)]
        if clean is not None:
            return [Term(generator, condition, clean)]
        return [away_from(generator, images, condition)]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """What the steps go along, anew for each restart."""
        return in_turn(terms)

    def _attack(self, terms: Sequence[Term], images: Tensor) -> Tensor:
        single = self.method == "fgsm"
        return sign_ascent(
            self.objective(terms),
            images,
            start=jitter(images, self.eps if self.method == "pgd" else 0.01 * self.eps),
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size or (self.eps if single else 0.2 * self.eps),
        )
