"""Where a cropped picture stood in the whole one, for readers whose message has a place in the picture.

Of each axis between 90% and all is taken to be left. 64 places are tried, so many that no crop of a tenth is further
than about 1.5 of 64 pixels from one of them; around each of the three of which the reader is surest, 9, most of a
pixel apart. How sure it is, the mean of |logit| over bits, does not depend on the word that is looked for: the place is
chosen from the picture alone, and one place is all that is compared with a word.

Where only the corners are read (:class:`~loraguard.mark.network.CornerNetwork`), a crop is looked for that took the
same share of both axes and no more than 13 pixels of the shorter one and 32, a corner, of the longer: beyond that too
little of a corner is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import SIZE, CornerNetwork, MarkNetwork

Placement = tuple[tuple[float, float], tuple[float, float]]
"""What is left of height and of width, and where it begins, in parts of the whole."""

_AXIS = (
    (1.0, 0.0),
    *((0.95, 0.05 * i / 2) for i in range(3)),
    *((0.9, 0.1 * i / 3) for i in range(4)),
)  # fmt: skip
PLACEMENTS: tuple[Placement, ...] = tuple(product(_AXIS, _AXIS))
"""The 64 that are tried first; the whole picture is one of them."""
_APART = 1.5
"""Pixels between the places that are tried of corners."""
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
    down, across = map(network.pixel, images.shape[-2:])
    places = [((1.0, y * down), (1.0, x * across)) for y, x in _AROUND]
    return torch.stack([network(placed(one[None], places, network)).mean(0) for one in images])


def read_cropped(network: MarkNetwork, image: Tensor) -> tuple[Tensor, Placement]:
    """Logits (bits,) of a picture (1, 3, H, W) at the place in a larger one where the network is surest, and the place.

    Example:
        >>> logits, place = read_cropped(MarkNetwork(), torch.zeros(1, 3, 50, 70))
        >>> logits.shape, len(place)
        (torch.Size([48]), 2)
    """
    down, across = map(network.pixel, image.shape[-2:])
    tried = PLACEMENTS
    if isinstance(network, CornerNetwork) and max(image.shape[-2:]) > SIZE:
        tried = corner_placements(*(max(side, SIZE) for side in image.shape[-2:]))
    sure = torch.cat([network(placed(image, some, network)).abs().mean(1) for some in _batches(tried)])
    found = [
        ((part_y, top + y * down), (part_x, left + x * across))
        for (part_y, top), (part_x, left) in (tried[i] for i in sure.topk(min(_REFINED, len(tried))).indices.tolist())
        for y, x in product(_STEPS, _STEPS)
    ]
    logits = network(placed(image, found, network))
    surest = int(logits.abs().mean(1).argmax())
    return logits[surest], found[surest]


def _batches(places: Sequence[Placement], size: int = 64) -> Iterator[Sequence[Placement]]:
    return (places[i : i + size] for i in range(0, len(places), size))


def corner_placements(height: int, width: int) -> tuple[Placement, ...]:
    """Where a picture of 64 pixels a side or more may have stood, if crops took one share of both its axes.

    Example:
        >>> len(corner_placements(256, 256)), max(1 - rows[0] for rows, _ in corner_placements(256, 256)) <= 13 / 256
        (285, True)
    """
    shorter, longer = sorted((height, width))
    most = min(0.1 * shorter, CornerNetwork.most_cropped, SIZE / 2 * shorter / longer)
    gone = [step * _APART / shorter for step in range(int(most / _APART) + 1)]
    every = (product(_starts(share, height), _starts(share, width)) for share in gone)
    return tuple(placement for some in every for placement in some)


def _starts(gone: float, side: int) -> list[tuple[float, float]]:
    """Of a side: what is left of it, and where that may begin."""
    count = max(1, round(gone * side / _APART))
    return [(1 - gone, gone * i / count) for i in range(count + 1)] if gone else [(1.0, 0.0)]


def placed(image: Tensor, places: Sequence[Placement], network: MarkNetwork) -> Tensor:
    """What a network looks at of a picture (1, 3, H, W) put where it may have stood: (len(places), 3, 64, 64).

    The picture's edges go on beyond it. Places are in single precision: in half, they would be pixels off.

    Example:
        >>> placed(torch.zeros(1, 3, 50, 70), PLACEMENTS, MarkNetwork()).shape
        torch.Size([64, 3, 64, 64])
    """
    seen = network.sized(image).float()
    across, down = (
        torch.stack([(network.lines(side) - start) / part for part, start in axis])
        for side, axis in zip(reversed(seen.shape[-2:]), ([x for _, x in places], [y for y, _ in places]), strict=True)
    )
    grid = torch.stack([across[:, None].expand(-1, SIZE, -1), down[:, :, None].expand(-1, -1, SIZE)], 3) * 2 - 1
    source = seen.expand(len(places), -1, -1, -1)
    found = F.grid_sample(source, grid.to(seen), padding_mode="border", align_corners=False)
    return found.to(image)
