"""DF-RAP: perturbations that outlast social networks' compression (Qu et al., TIFS 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from loraguard.channels import Channel, DifferentiableJPEG
from loraguard.generators.base import Condition

from .disrupting import Disrupting
from .terms import Term

QUALITIES = {
    71: 0.0132, 72: 0.0268, 75: 0.0127, 78: 0.0573, 79: 0.0156, 80: 0.2213, 84: 0.0107, 85: 0.2193, 86: 0.0110,
    88: 0.0107, 89: 0.0120, 90: 0.0120, 91: 0.0171, 92: 0.2272, 100: 0.1331,
}  # fmt: skip
"""How often photos come back from social networks at which JPEG quality, as the authors' release has it."""


@dataclass(frozen=True)
class SocialJPEG(DifferentiableJPEG):
    """Differentiable JPEG at a quality that each image draws anew from what social networks use, :data:`QUALITIES`.

    Example:
        >>> qualities = SocialJPEG().qualities(1000)
        >>> qualities.min().item() >= 71, qualities.max().item()
        (True, 100)
    """

    quality: int = field(default=min(QUALITIES), init=False)
    highest: int | None = field(default=max(QUALITIES), init=False)

    def qualities(self, n: int) -> Tensor:
        """Of each of n images, (N,), drawn from torch's global generator."""
        drawn = torch.multinomial(torch.tensor(list(QUALITIES.values())), n, replacement=True)
        return torch.tensor(list(QUALITIES))[drawn]


@dataclass(frozen=True)
class DFRAP(Disrupting):
    """Perturb each photo to maximise `MSE(G(C(x + d), c), G(x, c))`, C what social networks do to photos.

    White-box, per image: PGD as Disrupting's, through another draw of C in each step. In the paper C is a network
    (ComGAN) that imitates the networks' processing, followed by differentiable JPEG at a quality from a histogram. How
    that network is trained is not public, and its weights are not part of this package: here C is the differentiable
    JPEG alone, over the released histogram of qualities (71 to 100). So this has the paper's objective, not its model
    of social networks; whoever has one gives it as `channel`.

    Args:
        channel: C; differentiable, or with a stand-in that is.
        eps, steps, step_size, method, restarts, layer: as :class:`~loraguard.defenses.Disrupting` has them.

    Example:
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> DFRAP(steps=2)(nn.Conv2d(3, 3, 3, padding=1), photos, {}).abs().max() <= 0.05
        tensor(True)
    """

    channel: Channel = field(default_factory=SocialJPEG)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance behind the channel."""
        (plain,) = super().terms(generator, images, condition, clean)
        return [Term(plain.network, plain.condition, plain.reference, self.channel.differentiable())]
