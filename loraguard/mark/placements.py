"""Where a cropped picture may have stood in the whole one, for readers whose message has a place in the picture.

Of each axis between 90% and all is taken to be left, at so many places that no crop of a tenth is further than about
1.5 of 64 pixels from one of them, which is what the shipped reader was trained to bear.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import shrunk

_AXIS = (
    (1.0, 0.0),
    *((0.95, 0.05 * i / 2) for i in range(3)),
    *((0.9, 0.1 * i / 3) for i in range(4)),
)  # fmt: skip
"""What is left of an axis, and where it begins, in parts of the whole."""

PLACEMENTS: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = tuple(product(_AXIS, _AXIS))[1:]
"""What is left of height and width; 63 of them, without the whole picture."""


def placed(image: Tensor) -> Tensor:
    """A picture (1, 3, H, W) put back where it may have stood, its edges going on beyond it: (63, 3, 64, 64).

    Example:
        >>> placed(torch.zeros(1, 3, 50, 70)).shape
        torch.Size([63, 3, 64, 64])
    """
    small = shrunk(image)
    matrices = torch.tensor([
        [[1 / part_x, 0, (1 - 2 * left) / part_x - 1], [0, 1 / part_y, (1 - 2 * top) / part_y - 1]]
        for (part_y, top), (part_x, left) in PLACEMENTS
    ])  # fmt: skip
    grid = F.affine_grid(matrices.to(small), [len(PLACEMENTS), *small.shape[1:]], align_corners=False)
    whole = small.expand(len(PLACEMENTS), -1, -1, -1)
    return F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
