"""Anti-aliased drawing with signed distances, batched in torch.

A shape is its signed distance: a tensor (N, H, W), negative inside, in the units of the coordinates that it was
computed from. :class:`Canvas` paints shapes one over the other; an edge covers a pixel in proportion to the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

Point = tuple[Tensor, Tensor]


def per_image(values: Tensor) -> Tensor:
    """Shape ``(N,)`` to ``(N, 1, 1)``, so that a parameter of each image meets its pixels."""
    return values[:, None, None]


def ellipse(p: Point, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Distance to an ellipse around the origin (first order: exact on its edge, which is all that is seen)."""
    x, y = p
    inside = torch.hypot(x / radius_x, y / radius_y)
    slope = torch.hypot(x / radius_x**2, y / radius_y**2).clamp_min(1e-6)
    return inside * (inside - 1) / slope


def box(p: Point, half_x: Tensor | float, half_y: Tensor | float, corner: Tensor | float) -> Tensor:
    """Distance to an axis-parallel box around the origin with rounded corners."""
    dx = p[0].abs() - half_x + corner
    dy = p[1].abs() - half_y + corner
    outside = torch.hypot(dx.clamp_min(0), dy.clamp_min(0))
    return outside + torch.maximum(dx, dy).clamp_max(0) - corner


def segment(
    p: Point,
    start: tuple[Tensor | float, Tensor | float],
    end: tuple[Tensor | float, Tensor | float],
    radius: Tensor | float,
) -> Tensor:
    """Distance to a thick line from ``start`` to ``end`` with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = p[0] - start[0], p[1] - start[1]
    along = ((px * dx + py * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(px - along * dx, py - along * dy) - radius


def arc(p: Point, half_width: Tensor | float, sag: Tensor | float, radius: Tensor | float) -> Tensor:
    """Distance to a thick parabola through (0, sag) and (+-half_width, 0); first order, ends cut round."""
    end = torch.as_tensor(half_width)
    x = p[0].clamp(-end, end)
    curve = sag * (1 - (x / half_width) ** 2)
    slope = 2 * sag * x / half_width**2
    return torch.hypot(p[0] - x, (p[1] - curve) / torch.sqrt(1 + slope**2)) - radius


def smooth_union(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two shapes whose meeting is rounded over ``radius``."""
    mix = (0.5 + 0.5 * (b - a) / radius).clamp(0, 1)
    return b + (a - b) * mix - radius * mix * (1 - mix)


def moved(p: Point, dx: Tensor | float, dy: Tensor | float) -> Point:
    """The coordinates as seen from (dx, dy)."""
    return p[0] - dx, p[1] - dy


def turned(p: Point, angle: Tensor | float) -> Point:
    """The coordinates as seen from axes turned by ``angle`` radians."""
    angle = torch.as_tensor(angle)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return p[0] * cos + p[1] * sin, p[1] * cos - p[0] * sin


class Canvas:
    """RGB images (N, 3, H, W) in [0, 1] that shapes are painted onto.

    Args:
        background: the first layer, (N, 3, H, W).
        pixel: size of a pixel in the units of the distances, (N, 1, 1).
    """

    def __init__(self, background: Tensor, pixel: Tensor) -> None:
        self.pixels = background
        self.pixel = pixel

    def coverage(self, distance: Tensor, softness: float = 0.0) -> Tensor:
        """How much of each pixel a shape covers, (N, H, W) in [0, 1]; ``softness`` blurs the edge."""
        return (0.5 - distance / (self.pixel + softness)).clamp(0, 1)

    def paint(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0, softness: float = 0.0) -> None:
        """Paint a shape in a colour, (N, 3) for one per image or (N, 3, H, W) for one per pixel."""
        if colour.ndim == 2:
            colour = colour[:, :, None, None]
        cover = (self.coverage(distance, softness) * opacity)[:, None]
        self.pixels = self.pixels + (colour - self.pixels) * cover
