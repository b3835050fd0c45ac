"""What attacks share that take gradient steps on each photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition
from loraguard.generators.layers import up_to

from .ascent import Objective, Update, ascend, ball, sign
from .base import Defense, check_settings, jitter
from .terms import Term, away_from, in_turn
from .worst import keep_worst


class IterativeDefense(Defense):
    """Projected gradient ascent on each photo on its own, within an L-infinity ball of radius `eps`.

    A subclass is a frozen dataclass with `eps`, `steps` and `step_size`, and with `restarts` and `layer` if it has
    them. By default it takes steps along the gradient's sign, as long as :meth:`step_length` says, from beside the
    photo, and maximises `MSE(G(x + d, c), G(x, c))`; at the photo itself the gradient of that is exactly zero. Each
    part is a method to override: what is maximised (:meth:`terms`, :meth:`objective`), where it starts
    (:meth:`start`), how a gradient becomes a step (:meth:`update`), and how long that is (:meth:`step_length`).

    Attributes:
        first_step: the length of a step by default, in budgets.
        reach: how far from the photo an attack begins at most, in budgets.
        layer: an inner layer, by its name in the generator, whose output the distance is taken at; the generator's own
            output where it is None.
        eot: draws of each step's gradient, of which the mean is taken (expectation over transformation; Athalye et al.,
            arXiv 1707.07397). More than 1 where a network or a channel before it draws at random.

    Example:
        >>> from dataclasses import dataclass
        >>> from loraguard.defenses.ascent import Adam
        >>> @dataclass(frozen=True)
        ... class AdamAttack(IterativeDefense):
        ...     eps: float = 0.05
        ...     steps: int = 10
        ...     step_size: float | None = None
        ...     def update(self):
        ...         return Adam()
        >>> AdamAttack()(nn.Conv2d(3, 3, 3), torch.zeros(1, 3, 8, 8), {}).abs().max() <= 0.05
        tensor(True)
    """

    first_step: ClassVar[float] = 0.2
    reach: ClassVar[float] = 0.01

    steps: int
    layer: str | None = None
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self.eps, self.steps, self.step_size, self.restarts)
        if self.eot < 1:
            raise ValueError(f"Expected eot >= 1, the number of draws of each gradient, got eot={self.eot}.")

    @property
    def passes(self) -> int:
        """About how many forward and backward passes a batch takes."""
        return super().passes * (1 if self.eot == 1 else self.eot + self.eot // 2)

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """The end of the way; of several, each image's worst for the generator."""
        terms = [replace(term, draws=self.eot) for term in self.terms(generator, images, condition, clean)]
        attack = partial(self._attack, terms, images)
        return keep_worst([attack] * self.restarts, lambda x: torch.stack([term(x) for term in terms]).sum(0), images)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distances that are to grow; their sum is also what restarts are compared by."""
        if self.layer is not None:
            return [away_from(up_to(generator, self.layer), images, condition)]
        return [away_from(generator, images, condition, clean)]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """What the steps go along, anew for each restart."""
        return in_turn(terms)

    def start(self, images: Tensor) -> Tensor:
        """Where an attack begins: beside the photo by uniform noise of `reach` budgets, 0.01 by default."""
        return jitter(images, self.reach * self.eps)

    def update(self) -> Update:
        """The rule that makes a direction of a gradient, anew for each restart."""
        return sign

    def step_length(self, step: int) -> float:
        """The length of a step by its number, from 0: `step_size`, or `first_step` budgets, 0.2 by default."""
        return self.step_size or self.first_step * self.eps

    def _attack(self, terms: Sequence[Term], images: Tensor) -> Tensor:
        low, high = ball(images, self.eps)
        return ascend(
            self.objective(terms),
            self.start(images),
            low=low,
            high=high,
            steps=self.steps,
            step_size=self.step_length,
            update=self.update(),
        )
