"""Salt and pepper: single pixels, or single values, that turn white or black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import keeps_format


@dataclass(frozen=True)
class SaltPepper:
    """Turn pixels white (salt) or black (pepper) at random.

    Args:
        amount: the share of pixels, or values, that are replaced.
        salt: the share of those that become white; the others become black.
        each: what is drawn for: a "pixel" with all of its colours together, or each "value" by itself, as the Proactive
            Defense Benchmark does.

    Raises:
        ValueError: for a share outside of [0, 1], or another `each`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> noisy = SaltPepper(amount=0.1)(torch.zeros(1, 3, 100, 100))
        >>> noisy.unique().tolist(), round((noisy != 0).float().mean().item(), 2)
        ([-1.0, 0.0, 1.0], 0.1)
    """

    amount: float = 0.05
    salt: float = 0.5
    each: Literal["pixel", "value"] = "pixel"

    def __post_init__(self) -> None:
        if not (0 <= self.amount <= 1 and 0 <= self.salt <= 1):
            raise ValueError(f"Expected amount and salt in [0, 1], got {self.amount!r} and {self.salt!r}.")
        if self.each not in ("pixel", "value"):
            raise ValueError(f"each={self.each!r} must be 'pixel' or 'value'.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Noisy images (N, C, H, W), differentiable where pixels are left."""
        drawn = torch.rand_like(images if self.each == "value" else images[:, :1])
        replaced = torch.where(drawn < self.amount * self.salt, 1.0, -1.0).to(images)
        return torch.where(drawn < self.amount, replaced, images)

    def differentiable(self) -> SaltPepper:
        """Itself; each call draws anew."""
        return self
