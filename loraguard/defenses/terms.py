"""What sign-gradient defenses maximise: distances of outputs, one or several, in turn or together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loraguard.generators.base import Condition

from .ascent import Objective


@dataclass(frozen=True)
class Term:
    """The squared distance of what a network gives for perturbed images from what it should give: `|F(C(x), c) - r|^2`.

    Args:
        network: F, from images and a condition to outputs or to features (:func:`~loraguard.generators.up_to`).
        condition: c, as it is passed on.
        reference: r, what F is to be driven away from.
        channel: C, what happens to the images first, differentiable; nothing by default.
        draws: of whatever is random in F or C, over which the distance is averaged (expectation over transformation).

    Example:
        >>> term = Term(torch.nn.Identity(), {}, reference=torch.zeros(2, 3, 4, 4), channel=lambda images: images / 2)
        >>> term(torch.ones(2, 3, 4, 4)).tolist()
        [12.0, 12.0]
    """

    network: Callable[..., Tensor]
    condition: Condition
    reference: Tensor
    channel: Callable[[Tensor], Tensor] | None = None
    draws: int = 1

    def __call__(self, images: Tensor) -> Tensor:
        """The distance for each image, summed over its values: (N,). Of several draws one graph at a time is kept."""
        if self.draws == 1:
            return self._once(images)
        return torch.stack([checkpoint(self._once, images, use_reentrant=False) for _ in range(self.draws)]).mean(0)

    def _once(self, images: Tensor) -> Tensor:
        seen = images if self.channel is None else self.channel(images)
        return (self.network(seen, **self.condition) - self.reference).square().flatten(1).sum(1)


def away_from(
    network: Callable[..., Tensor], images: Tensor, condition: Condition, clean: Tensor | None = None
) -> Term:
    """The distance from what the network gives for the images themselves, or from `clean` where that is known."""
    if clean is None:
        with torch.no_grad():
            clean = network(images, **condition)
    return Term(network, condition, clean)


def in_turn(terms: Sequence[Term]) -> Objective:
    """One term a step, the first again after the last."""
    upcoming = itertools.cycle(terms)
    return lambda images: next(upcoming)(images).sum()


def together(terms: Sequence[Term], *, balanced: bool = False) -> Objective:
    """All terms in every step: gradients are added up, and only one term's graph is in memory at a time.

    Args:
        terms: what to add up.
        balanced: divide each term's gradient by its L2 norm, image by image, so that all count alike.

    Returns:
        An objective that has the right gradient; its value means nothing.

    Example:
        >>> network, photo = torch.nn.Identity(), torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
        >>> terms = [Term(network, {}, torch.zeros(1, 3, 2, 2)), Term(network, {}, -torch.ones(1, 3, 2, 2))]
        >>> torch.autograd.grad(together(terms)(photo), photo)[0].unique()
        tensor([4.])
    """

    def objective(images: Tensor) -> Tensor:
        point = images.detach().requires_grad_()
        total = torch.zeros_like(images)
        for term in terms:
            (gradient,) = torch.autograd.grad(term(point).sum(), point)
            if balanced:
                norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
                gradient = gradient / norms.clamp_min(torch.finfo(norms.dtype).tiny)
            total += gradient
        return (total * images).sum()

    return objective
