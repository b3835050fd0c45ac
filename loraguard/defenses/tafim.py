"""TAFIM: a network that turns manipulations white (Aneja et al., ECCV 2022, arXiv 2112.09151)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.channels import Channel
from loraguard.generators import Condition

from .fitted import Target
from .protector import TrainedDefense, UNet, twice


@dataclass(frozen=True)
class TAFIM(TrainedDefense):
    """Targeted protection by one forward pass: a U-Net on a photo and a global noise, trained to make G give white.

    For x' = clip(x + d), with d once the network's and once the noise's:
    `MSE(G(C(x'), c), white) + fidelity * MSE(x', x)`, C being what a photo goes through. Loss, optimizer and sizes are
    those of the official code. There d has no limit but the second term; here it is also clipped to +-eps, so that
    defenses are compared at one budget (eps=2 never clips). The attention that the paper adds for several generators
    is not here: their losses are averaged.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].
        steps: of the optimizer; once through 5,000 photos, as many as the official code takes. How often it goes
            through them is unsure.
        batch_size: photos a step.
        learning_rate: of Adam.
        width: feature maps of the U-Net's first layer.
        depth: how often the U-Net halves the size.
        fidelity: weight of the distance to the photo.
        channel: C in training, by its differentiable stand-in: none by default; the paper's robust networks are trained
            through JPEG of a random quality, `JPEG(1, 99)`.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> defense = TAFIM(steps=2, batch_size=2, width=4, depth=2)
        >>> defense = defense.fit(nn.Conv2d(3, 3, 3, padding=1), DemoFaces(4, size=16), disable_tqdm=True)
        >>> photos = torch.zeros(1, 3, 16, 16)
        >>> bool(((defense(nn.Identity(), photos, {}) - photos).abs() <= 0.05).all())
        True
    """

    depth: int = 6
    fidelity: float = 10.0
    channel: Channel | str | None = None

    unsaved: ClassVar[tuple[str, ...]] = ("channel",)
    recipe: ClassVar[str] = "tafim"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1 or self.fidelity < 0:
            raise ValueError(f"Expected depth >= 1 and fidelity >= 0, got {self.depth} and {self.fidelity}.")

    def network(self) -> nn.Module:
        """The U-Net."""
        return UNet(6, self.width, self.depth)

    def loss(self, target: Target, images: Tensor, perturbed: Tensor, condition: Condition) -> Tensor:
        """How far outputs are from white, and photos from what they were."""
        received = perturbed
        if isinstance(self.channel, Channel):
            received = self.channel.differentiable()(perturbed)
        outputs = target.generator(received, **twice(condition))
        from_photo = F.mse_loss(perturbed, torch.cat([images, images]))
        return F.mse_loss(outputs, torch.ones_like(outputs)) + self.fidelity * from_photo
