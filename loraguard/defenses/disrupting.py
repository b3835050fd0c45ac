"""Disrupting: make a generator fail on a photo by gradient steps on the photo (Ruiz et al., arXiv 2003.01279)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import jitter
from .iterative import IterativeDefense

METHODS = ("fgsm", "ifgsm", "pgd")


@dataclass(frozen=True)
class Disrupting(IterativeDefense):
    """Perturb each photo on its own to maximise `MSE(G(x + d, c), G(x, c))`, with `|d| <= eps` at every pixel.

    White-box, per image. Arxiv 2003.01279, section 3: *FGSM* is one step of size `eps`; *I-FGSM* takes `steps` steps
    from the photo itself; *PGD* starts at a uniform draw from the ball. At the photo itself the objective's gradient is
    exactly zero, so FGSM and I-FGSM begin beside it, by uniform noise of a hundredth of `eps`.

    Defenses that take the same steps along another objective are subclasses, and override the methods of
    :class:`~loraguard.defenses.iterative.IterativeDefense`.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        steps: sign steps; for "fgsm" they become 1, whatever is given.
        step_size: of one step; by default `eps` for "fgsm" and 0.2 * `eps` otherwise, 0.01 at the paper's budget.
        method: "fgsm", "ifgsm" or "pgd".
        restarts: attacks from as many starts, of which the worst for the generator is kept, image by image.
        layer: an inner layer, by its name in the generator, whose output the distance is taken at; by default the
            generator's own output.
        eot: draws of each step's gradient, of which the mean is taken; more than 1 where something draws at random.

    Example:
        >>> import torch
        >>> generator = torch.nn.Conv2d(3, 3, 3, padding=1)
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
    eot: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}.")
        super().__post_init__()
        if self.method == "fgsm":
            object.__setattr__(self, "steps", 1)

    def start(self, images: Tensor) -> Tensor:
        """Anywhere in the ball for "pgd", else beside the photo."""
        return jitter(images, self.eps) if self.method == "pgd" else super().start(images)

    def step_length(self, step: int) -> float:
        """`step_size`, or `eps` for "fgsm" and 0.2 * `eps` otherwise."""
        return self.step_size or (self.eps if self.method == "fgsm" else super().step_length(step))
