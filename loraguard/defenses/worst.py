"""The worst of several attacks for each image: what an audit's conclusion has to withstand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense, check_images

Distance = Callable[[Tensor], Tensor]
"""From perturbed images (N, 3, H, W) to how badly the generator fails on each: (N,), larger is worse."""


def output_distance(generator: nn.Module, condition: Condition, clean: Tensor) -> Distance:
    """`MSE(G(x, c), clean)` of each image, as a function of the images x.

    Args:
        generator: a network.
        condition: the edit c.
        clean: what it should give, (N, 3, H, W).

    Example:
        >>> distance = output_distance(nn.Identity(), {}, torch.zeros(2, 3, 8, 8))
        >>> distance(torch.full((2, 3, 8, 8), 0.5))
        tensor([0.2500, 0.2500])
    """
    return lambda images: (generator(images, **condition) - clean).square().flatten(1).mean(1)


def clean_outputs(generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
    """The outputs G(x, c) without gradients, or `clean` where the caller has them already."""
    if clean is not None:
        return clean
    with torch.no_grad():
        return generator(images, **condition)


def keep_worst(attacks: Sequence[Callable[[], Tensor]], distance: Distance, images: Tensor) -> Tensor:
    """Run attacks one after another and keep, image by image, the perturbation that is worst for the generator.

    Args:
        attacks: each gives perturbed images (N, 3, H, W). The result of a single one is not measured.
        distance: how badly the generator fails on each image.
        images: originals, (N, 3, H, W), kept where no attack gives a distance that is a number.

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
class WorstOf:
    """Several attacks on each photo, of which the one with the largest `MSE(G(x + d, c), G(x, c))` is kept.

    No attack is the strongest against every network, and one that is blind to a network (gradients that are masked,
    steps that overshoot) makes it look safe. As in AutoAttack (Croce & Hein, arXiv 2003.01690), the verdict is that of
    the ensemble. Each attack keeps its own budget.

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

    defenses: tuple[Defense, ...]

    def __post_init__(self) -> None:
        if not self.defenses:
            raise ValueError("The worst of no attack is not defined; give at least one, as in WorstOf((APGD(),)).")

    @property
    def eps(self) -> float:
        """The largest budget among them."""
        return max(defense.eps for defense in self.defenses)

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        """Perturbed images (N, 3, H, W) in [-1, 1]; see :class:`~loraguard.defenses.base.Defense`."""
        check_images(images)
        clean = clean_outputs(generator, images, condition, clean)
        attacks = [partial(defense, generator, images, condition, clean) for defense in self.defenses]
        return keep_worst(attacks, output_distance(generator, condition, clean), images)
