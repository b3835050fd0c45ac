"""Where a cropped picture stood in the whole one, for readers whose message has a place in the picture.

Of each axis between 90% and all is taken to be left. 64 places are tried, so many that no crop of a tenth is further
than about 1.5 of 64 pixels from one of them; around each of the three of which the reader is surest, 9, most of a
pixel apart. How sure it is, the mean of |logit| over bits, does not depend on the word that is looked for: the place is
chosen from the picture alone, and one place is all that is compared with a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import SIZE, MarkNetwork, shrunk

Placement = tuple[tuple[float, float], tuple[float, float]]
"""What is left of height and of width, and where it begins, in parts of the whole."""

_AXIS = (
    (1.0, 0.0),
    *((0.95, 0.05 * i / 2) for i in range(3)),
    *((0.9, 0.1 * i / 3) for i in range(4)),
)  # fmt: skip
PLACEMENTS: tuple[Placement, ...] = tuple(product(_AXIS, _AXIS))
"""The 64 that are tried first; the whole picture is one of them."""
_REFINED = 3
_STEPS = (-0.75, 0.0, 0.75)
_AROUND = ((0.0, 0.0), (-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0))
"""Pixels of 64 by which a whole picture is moved before it is read, down and across."""


def read_whole(network: MarkNetwork, images: Tensor) -> Tensor:
    """Logits (N, bits) of images (N, 3, H, W): the mean over five places a pixel apart, which averages noise out.

    Example:
        >>> read_whole(MarkNetwork(), torch.zeros(2, 3, 50, 70)).shape
        torch.Size([2, 48])
    """
    small = shrunk(images)
    places = [((1.0, down / SIZE), (1.0, across / SIZE)) for down, across in _AROUND]
    logits = [network(placed(one[None], places)).mean(0) for one in small]
    return torch.stack(logits)


def read_cropped(network: MarkNetwork, image: Tensor) -> tuple[Tensor, Placement]:
    """Logits (bits,) of a picture (1, 3, H, W) at the place in a larger one where the network is surest, and the place.

    Example:
        >>> logits, place = read_cropped(MarkNetwork(), torch.zeros(1, 3, 50, 70))
        >>> logits.shape, len(place)
        (torch.Size([48]), 2)
    """
    small = shrunk(image)
    sure = network(placed(small, PLACEMENTS)).abs().mean(1)
    found = [
        ((part_y, top + down / SIZE), (part_x, left + across / SIZE))
        for (part_y, top), (part_x, left) in (PLACEMENTS[i] for i in sure.topk(_REFINED).indices.tolist())
        for down, across in product(_STEPS, _STEPS)
    ]
    logits = network(placed(small, found))
    surest = int(logits.abs().mean(1).argmax())
    return logits[surest], found[surest]


def placed(image: Tensor, places: Sequence[Placement]) -> Tensor:
    """A picture (1, 3, H, W) put where it may have stood, its edges going on beyond it: (len(places), 3, 64, 64).

    Example:
        >>> placed(torch.zeros(1, 3, 50, 70), PLACEMENTS).shape
        torch.Size([64, 3, 64, 64])
    """
    small = shrunk(image)
    matrices = torch.tensor([
        [[1 / part_x, 0, (1 - 2 * left) / part_x - 1], [0, 1 / part_y, (1 - 2 * top) / part_y - 1]]
        for (part_y, top), (part_x, left) in places
    ])  # fmt: skip
    grid = F.affine_grid(matrices.to(small), [len(places), *small.shape[1:]], align_corners=False)
    return F.grid_sample(small.expand(len(places), -1, -1, -1), grid, padding_mode="border", align_corners=False)
