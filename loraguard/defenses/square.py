"""Square attack: a random search that needs no gradients (Andriushchenko et al., arXiv 1912.00049)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .base import Defense, check_budget
from .terms import away_from

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the squares' area is halved (section 4.2); in proportion for other numbers."""


@dataclass(frozen=True)
class Square(Defense):
    """Perturb each photo on its own to maximise `MSE(G(x + d, c), G(x, c))` by looking at outputs alone.

    Black-box, per image. It starts from vertical stripes of +-eps; each query then moves one square, at a random
    place, to +-eps in each channel, and keeps it if the distance grows; the squares shrink on a schedule (arXiv
    1912.00049, algorithms 1 and 2, L-infinity). Where it beats a gradient attack, the network hides its gradients
    and the gradient attack proves nothing.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        queries: forward passes for each image, the stripes' among them; 10,000 in the paper.
        p: the first squares' area as a share of the image. The paper takes 0.05 for 10,000 queries on photos of 299
            pixels; few queries and smaller images want larger squares, 0.8 as in AutoAttack.

    Raises:
        ValueError: for settings outside their range.

    Example:
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> Square(eps=0.05, queries=20)(nn.Conv2d(3, 3, 3), photos, {}).abs().unique()
        tensor([0.0500])
    """

    eps: float = 0.05
    queries: int = 1000
    p: float = 0.8

    def __post_init__(self) -> None:
        check_budget(self.eps)
        if self.queries < 1 or not 0 < self.p <= 1:
            raise ValueError(f"Expected queries >= 1 and p in (0, 1], got queries={self.queries}, p={self.p}.")

    @torch.no_grad()
    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """The worst that was tried; see :class:`~loraguard.defenses.base.Defense`."""
        distance = away_from(generator, images, condition, clean)
        n, channels, height, width = images.shape
        best = (images + self.eps * _signs(images, n, channels, 1, width)).clamp(-1, 1)
        worst = distance(best)
        for query in range(1, self.queries):
            window = _windows(images, self.side(query, height, width))
            square = images + self.eps * _signs(images, n, channels, 1, 1)
            proposed = torch.where(window, square.clamp(-1, 1), best)
            found = distance(proposed)
            better = found > worst
            best = torch.where(better[:, None, None, None], proposed, best)
            worst = torch.where(better, found, worst)
        return best

    @property
    def passes(self) -> int:
        """As many as queries."""
        return self.queries

    def side(self, query: int, height: int, width: int) -> int:
        """Of the squares at a query, in pixels.

        Example:
            >>> [Square(queries=10_000).side(query, 64, 64) for query in (1, 11, 51, 9000)]
            [57, 40, 29, 4]
        """
        share = self.p / 2 ** bisect_left(HALVINGS, query * 10_000 / self.queries)
        return min(max(round((share * height * width) ** 0.5), 1), height, width)


def _signs(images: Tensor, *shape: int) -> Tensor:
    return torch.randint(2, shape, device=images.device).to(images) * 2 - 1


def _windows(images: Tensor, side: int) -> Tensor:
    """A square at a random place for each image, as a mask (N, 1, H, W)."""

    def span(length: int) -> Tensor:
        first = torch.randint(length - side + 1, (len(images), 1), device=images.device)
        places = torch.arange(length, device=images.device)
        return (places >= first) & (places < first + side)

    return span(images.shape[2])[:, None, :, None] & span(images.shape[3])[:, None, None, :]
