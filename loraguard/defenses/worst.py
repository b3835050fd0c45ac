"""The worst of several attacks for each image: what an audit's conclusion has to withstand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense
from .plain import AnyDefense, as_defense, needs_fitting
from .terms import away_from

Distance = Callable[[Tensor], Tensor]
"""From perturbed images (N, C, H, W) to how badly the generator fails on each: (N,), larger is worse."""


def keep_worst(attacks: Sequence[Callable[[], Tensor]], distance: Distance, images: Tensor) -> Tensor:
    """Run attacks one after another and keep, image by image, the perturbation that is worst for the generator.

    Args:
        attacks: each gives perturbed images (N, C, H, W). The result of a single one is not measured.
        distance: how badly the generator fails on each image.
        images: originals, (N, C, H, W), kept where no attack gives a distance that is a number.

    Example:
        >>> photos = torch.zeros(2, 3, 1, 1)
        >>> left, right = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1), torch.tensor([0.2, 0.2]).view(2, 1, 1, 1)
        >>> kept = keep_worst([lambda: photos + left, lambda: photos + right], lambda x: x.mean((1, 2, 3)), photos)
        >>> kept[:, 0, 0, 0]
        tensor([0.2000, 0.3000])
    """
    if len(attacks) == 1:
        return attacks[0]()
    best, worst = images, torch.full((len(images),), -1.0).to(images)
    for attack in attacks:
        perturbed = attack()
        with torch.no_grad():
            found = distance(perturbed)
        better = found > worst
        best = torch.where(better[:, None, None, None], perturbed, best)
        worst = torch.where(better, found, worst)
    return best


@dataclass(frozen=True)
class WorstOf(Defense):
    """Several attacks on each photo, of which the one with the largest `MSE(G(x + d, c), G(x, c))` is kept.

    No attack is the strongest against every network, and one that is blind to a network (gradients that are masked,
    steps that overshoot) makes it look safe. As in AutoAttack (Croce & Hein, arXiv 2003.01690), the verdict is that of
    the ensemble. Each attack keeps its own budget; `eps` is the
    largest among them.

    Args:
        defenses: the attacks.

    Raises:
        ValueError: for none.

    Example:
        >>> from loraguard.defenses import APGD, Disrupting, Square
        >>> attack = WorstOf((Disrupting(steps=5), APGD(steps=5), Square(queries=10)))
        >>> attack.eps
        0.05
        >>> attack(nn.Conv2d(3, 3, 3), torch.zeros(2, 3, 16, 16), {}).shape
        torch.Size([2, 3, 16, 16])
    """

    defenses: tuple[AnyDefense, ...]

    def __post_init__(self) -> None:
        if not self.defenses:
            raise ValueError("The worst of no attack is not defined; give at least one, as in WorstOf((APGD(),)).")
        object.__setattr__(self, "eps", max(as_defense(defense).eps for defense in self.defenses))

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """Of each photo the worst perturbation; see :class:`~loraguard.defenses.base.Defense`."""
        distance = away_from(generator, images, condition, clean)
        attacks = [partial(defense, generator, images, condition, distance.reference) for defense in self.defenses]
        return keep_worst(attacks, distance, images)

    @property
    def passes(self) -> int:
        """Of all of them."""
        return sum(as_defense(defense).passes for defense in self.defenses)

    @property
    def must_be_fitted(self) -> bool:
        """Whether one of them has to be."""
        return any(map(needs_fitting, self.defenses))
