"""No gate."""

from typing import Any

import torch
from torch import Tensor

from .base import FactorB, Gate, Layout, Shape, StaticGate


class NoGate(StaticGate):
    """Always open: plain LoRA. It has no parameters.

    Example:
        >>> from loraguard.tuner.gates.base import Layout
        >>> NoGate(init=-1.0, layout=Layout(out=2))(torch.ones(1, 2), torch.nn.Identity(), scale=2.0)
        tensor([[2., 2.]])
    """

    weight: Any = None

    def __init__(self, init: float, layout: Layout) -> None:
        Gate.__init__(self, init, layout)

    @staticmethod
    def shape(groups: int, out: int, rank: int) -> Shape:
        """The same everywhere."""
        return 1, 1, 1

    def reset_parameters(self) -> None:
        """There is nothing to put back."""

    @property
    def opening(self) -> Tensor:
        """1, of shape (1, 1, 1)."""
        return torch.ones(1, 1, 1)

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The update."""
        if getattr(factor_b, "bias", None) is not None:
            return factor_b(hidden) * scale
        return factor_b(hidden * scale)
