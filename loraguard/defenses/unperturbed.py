"""No perturbation at all: what a patch that is trained on clean images alone has for an adversary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense


@dataclass(frozen=True)
class Unperturbed(Defense):
    """Photos as they are.

    As the adversary of training it makes both losses of a step the clean one, computed twice: the gradient is that of
    the clean loss, of the same scale as with an adversary, so that learning rate and clipping mean the same.

    Example:
        >>> import torch
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> torch.equal(Unperturbed()(nn.Identity(), photos, {}), photos)
        True
    """

    eps = 0.0  # no setting: nothing is perturbed

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """The images (N, C, H, W); the generator is not looked at."""
        return images
