"""Several defenses in turn, for training against more than one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense
from .plain import AnyDefense, as_defense, needs_fitting


@dataclass(frozen=True)
class Mixture(Defense):
    """One of several defenses at each call, drawn by weight from torch's global generator; `eps` is the largest budget.

    Args:
        defenses: what to draw from.
        weights: how often each, in any unit; equally often by default.

    Raises:
        ValueError: for no defense, or weights that are not one non-negative number for each, not all 0.

    Example:
        >>> from loraguard.defenses import Disrupting, RandomNoise
        >>> mixture = Mixture((Disrupting(eps=0.05), RandomNoise(eps=0.1)), weights=(3, 1))
        >>> mixture.eps
        0.1
        >>> mixture(nn.Identity(), torch.zeros(1, 3, 8, 8), {}).shape
        torch.Size([1, 3, 8, 8])
    """

    defenses: tuple[AnyDefense, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.defenses:
            raise ValueError("A mixture needs at least one defense.")
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.defenses)
            or not all(w >= 0 for w in weights)
            or not 0 < sum(weights) < float("inf")
        ):
            raise ValueError(f"Expected a weight >= 0 for each of {len(self.defenses)} defenses, not all 0: {weights}.")
        object.__setattr__(self, "eps", max(as_defense(defense).eps for defense in self.defenses))

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """What the one that is drawn gives; see :class:`~loraguard.defenses.base.Defense`."""
        weights = torch.tensor(self.weights or [1.0] * len(self.defenses), dtype=torch.float64)
        drawn = int(torch.multinomial(weights, 1))
        return self.defenses[drawn](generator, images, condition, clean)

    @property
    def passes(self) -> int:
        """Of the one that takes most."""
        return max(as_defense(defense).passes for defense in self.defenses)

    @property
    def must_be_fitted(self) -> bool:
        """Whether one of them has to be."""
        return any(map(needs_fitting, self.defenses))
