"""MI-FGSM: sign steps along gradients that are added up (Dong et al., CVPR 2018, arXiv 1710.06081)."""

from __future__ import annotations

from dataclasses import dataclass

from .ascent import Momentum, Update
from .iterative import IterativeDefense


@dataclass(frozen=True)
class MIFGSM(IterativeDefense):
    """Perturb each photo to maximise `MSE(G(x + d, c), G(x, c))` by steps with momentum, which transfer better.

    White-box, per image. Algorithm 1: `g <- decay * g + gradient / |gradient|_1` and `x <- clip(x + step_size *
    sign(g))`. The paper starts at the photo itself, where the gradient of this distance is exactly zero; here it starts
    beside it, by uniform noise of a hundredth of `eps`.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        steps: how many.
        step_size: of one step; by default `eps` / `steps`, as in the paper.
        decay: of what was added up; 1 in the paper, and 0 gives I-FGSM.
        restarts: attacks from as many starts, of which the worst for the generator is kept, image by image.
        layer: an inner layer, by its name in the generator, whose output the distance is taken at.

    Raises:
        ValueError: for settings outside their range.

    Example:
        >>> import torch
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> MIFGSM(eps=0.05, steps=5)(torch.nn.Conv2d(3, 3, 3), photos, {}).abs().max() <= 0.05
        tensor(True)
    """

    eps: float = 0.05
    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    restarts: int = 1
    layer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0:
            raise ValueError(f"decay={self.decay!r} must be 0 or more.")

    def update(self) -> Update:
        """Momentum."""
        return Momentum(self.decay)

    def step_length(self, step: int) -> float:
        """`step_size`, or what brings `steps` steps to the edge of the budget."""
        return self.step_size or self.eps / self.steps
