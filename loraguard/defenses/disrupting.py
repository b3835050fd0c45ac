"""Disrupting: make a generator fail on a photo by gradient steps on the photo (Ruiz et al., arXiv 2003.01279)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import check_images, frozen, jitter, sign_ascent
from .worst import clean_outputs, keep_worst, output_distance

METHODS = ("fgsm", "ifgsm", "pgd")


@dataclass(frozen=True)
class Disrupting:
    """Perturb each photo on its own to maximise `MSE(G(x + d, c), G(x, c))`, with `|d| <= eps` at every pixel.

    White-box, per image. Arxiv 2003.01279, section 3: *FGSM* is one step of size `eps`; *I-FGSM* takes `steps` steps
    from the photo itself; *PGD* starts at a uniform draw from the ball. At the photo itself the objective's gradient is
    exactly zero, so FGSM and I-FGSM begin beside it, by uniform noise of a hundredth of `eps`.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        steps: sign steps; 1 for "fgsm" whatever is given.
        step_size: of one step; by default `eps` for "fgsm" and 0.2 * `eps` otherwise, 0.01 at the paper's budget.
        method: "fgsm", "ifgsm" or "pgd".
        restarts: attacks from as many starts, of which the worst for the generator is kept, image by image.

    Example:
        >>> import torch
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

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}.")
        if not 0 < self.eps <= 2:
            raise ValueError(f"eps={self.eps!r} must be in (0, 2]: it is a distance between images in [-1, 1].")
        if self.steps < 1 or self.restarts < 1 or (self.step_size is not None and self.step_size <= 0):
            raise ValueError(
                f"Expected steps >= 1, restarts >= 1 and step_size > 0, got steps={self.steps}, "
                f"restarts={self.restarts}, step_size={self.step_size}."
            )

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        """Perturbed images (N, 3, H, W) in [-1, 1]; see :class:`~loraguard.defenses.base.Defense`."""
        check_images(images)
        clean = clean_outputs(generator, images, condition, clean)
        attack = partial(self._attack, generator, images, condition, clean)
        with frozen(generator):
            return keep_worst([attack] * self.restarts, output_distance(generator, condition, clean), images)

    def _attack(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor) -> Tensor:
        single = self.method == "fgsm"
        return sign_ascent(
            lambda perturbed: (generator(perturbed, **condition) - clean).square().sum(),
            images,
            start=jitter(images, self.eps if self.method == "pgd" else 0.01 * self.eps),
            eps=self.eps,
            steps=1 if single else self.steps,
            step_size=self.step_size or (self.eps if single else 0.2 * self.eps),
        )
