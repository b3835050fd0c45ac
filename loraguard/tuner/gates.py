"""Gates: what scales the update of an adapted layer, and learns to."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ScalarGate(nn.Module):
    """One learnable number per adapted layer, the gate of arXiv 2510.03747: `sigmoid(g) * s * B(A*x)`.

    Attributes:
        weight: The logit g, of shape (1,); a 0-d parameter could not be sharded.

    Example:
        >>> gate = ScalarGate(init=-1.0)
        >>> gate.opening.detach()
        tensor([0.2689])
        >>> gate(torch.ones(1, 2), nn.Identity(), scale=2.0).detach()
        tensor([[0.5379, 0.5379]])
    """

    weight: nn.Parameter

    def __init__(self, init: float) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the logit back to where it starts."""
        nn.init.constant_(self.weight, self.init)

    @property
    def opening(self) -> Tensor:
        """sigmoid(g), of shape (1,), in (0, 1)."""
        return torch.sigmoid(self.weight)

    def forward(self, hidden: Tensor, factor_b: Callable[[Tensor], Tensor], scale: float) -> Tensor:
        """The gated update from `hidden` = A*x. B is linear: scaling before it touches r channels, not all."""
        return factor_b(hidden * (self.opening * scale))

    def extra_repr(self) -> str:
        """Show the initial logit."""
        return f"init={self.init}"
