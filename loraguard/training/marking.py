"""A mark, an invisible watermark, in a patch's training: what outputs should look like, and the loss of its bits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.channels import DifferentiableJPEG, GaussianBlur, GaussianNoise, Identity, Resize
from loraguard.mark.network import MarkNetwork

from .step import Loss, settings_of

if TYPE_CHECKING:
    from loraguard.mark import Mark
    from loraguard.stamp import Stamp


@dataclass(frozen=True)
class CropInPlace:
    """Crop images at a random place, and put the part back where it was, as the reader of marks does.

    Its edges go on beyond it, and it is moved at random by up to `shift`: the reader finds its place no better.

    Args:
        part: of the sides, in (0, 1].
        shift: in pixels of what the extractor looks at.
        pixel: how much of a side of so many pixels one of those is; by default a 64th.
        most: pixels that are cropped off a side; None for no limit.

    Example:
        >>> CropInPlace()(torch.zeros(1, 3, 48, 64)).shape
        torch.Size([1, 3, 48, 64])
    """

    part: float = 0.9
    shift: float = 0.6
    pixel: Callable[[int], float] = lambda side: 1 / 64
    most: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), all cropped alike."""
        height, width = images.shape[-2:]
        (top, bottom), (left, right) = (_gone(side, self._left(side)) for side in (height, width))
        part = images[..., top : height - bottom, left : width - right]
        padded = F.pad(part, (left, right, top, bottom), mode="replicate")
        pixels = torch.tensor([[self.pixel(width)], [self.pixel(height)]])
        moved = (2 * torch.rand(2, 1) - 1) * self.shift * 2 * pixels  # in units of half a side, as grids have it
        matrix = torch.cat([torch.eye(2), moved], 1).to(images).expand(len(images), -1, -1)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(padded, grid, padding_mode="border", align_corners=False)

    def _left(self, side: int) -> int:
        """How many pixels of a side are left."""
        left = round(side * self.part)
        return left if self.most is None else max(left, side - self.most)


def _gone(side: int, left: int) -> tuple[int, int]:
    """How much of a side is cropped off before and after a part that is drawn at random."""
    start = int(torch.randint(side - left + 1, ()))
    return start, side - left - start


DAMAGE: tuple[Callable[[Tensor], Tensor], ...] = (
    Identity(), *[DifferentiableJPEG(40, 70)] * 2, GaussianBlur(1.5), GaussianNoise(0.1), GaussianNoise(0.12),
    Resize(0.5), *[CropInPlace()] * 2,
)  # fmt: skip
"""What may happen to an output before its bits are read, one of them drawn for each call."""


@dataclass(frozen=True)
class Layers:
    """What a defensive patch puts on every output: a visible stamp, an invisible mark, or both.

    Args:
        stamp: the stamp, or None.
        mark: the mark, which has to compose; one whose extractor only reads is left to the bits' loss.
    """

    stamp: Stamp | None
    mark: Mark

    @classmethod
    def of(cls, stamp: Stamp | None, mark: Mark | None) -> Stamp | Layers | None:
        """The stamp itself where nothing else can be composed; None where nothing can."""
        return cls(stamp, mark) if mark is not None and mark.composes else stamp

    @torch.no_grad()
    def compose(self, images: Tensor) -> Tensor:
        """Put the layers onto images (N, 3, H, W): first the stamp, then the mark."""
        if self.stamp is not None:
            images = self.stamp.compose(images)
        return self.mark.compose(images)


class MarkedLoss(nn.Module):
    """D(y, t) + weight * mean over bits of log(1 + exp(-b * R(C(y)))): pixels and bits.

    R is the mark's extractor, b its word as +1 and -1, C damage that is drawn anew for each call (:data:`DAMAGE`).

    Args:
        loss: D, of outputs and targets.
        mark: whose word outputs are to carry; its `weight` is the bits'.

    Example:
        >>> from loraguard.mark import Mark
        >>> loss, grey = MarkedLoss(F.mse_loss, Mark("c0de")), torch.zeros(1, 3, 64, 64)
        >>> bool(loss(Mark("c0de").compose(grey), grey) < loss(Mark("beef").compose(grey), grey))
        True
    """

    def __init__(self, loss: Loss, mark: Mark) -> None:
        super().__init__()
        self.loss, self.mark, self.network = loss, mark, mark.network

    def prepare(self, targets: Tensor, keys: Sequence[Hashable] | None = None) -> Any:
        """What D makes of targets."""
        return self.loss.prepare(targets, keys) if hasattr(self.loss, "prepare") else targets

    def forward(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss of outputs (N, 3, H, W) in [-1, 1] and what :meth:`prepare` made of targets."""
        channel = DAMAGE[int(torch.randint(len(DAMAGE), ()))]
        if isinstance(channel, CropInPlace) and isinstance(self.network, MarkNetwork):
            channel = replace(channel, pixel=self.network.pixel, most=self.network.most_cropped)
        logits = self.mark.logits(channel(outputs.float())).float()
        bits = F.softplus(-logits * self.mark.target.to(logits)).mean()
        return self.loss(outputs, targets) + self.mark.weight * bits

    def train(self, mode: bool = True) -> MarkedLoss:
        """Stays in evaluation mode."""
        return super().train(False)

    def settings(self) -> dict[str, Any]:
        """D's settings, and the mark's."""
        return {"class": type(self).__name__, "loss": settings_of(self.loss), "mark": self.mark.settings()}


def marked(loss: Loss, mark: Mark | None) -> Loss:
    """The loss itself, or with the bits of a mark."""
    return loss if mark is None else MarkedLoss(loss, mark)
