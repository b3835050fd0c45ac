"""One number for each sample, by its update."""

import torch
from torch import Tensor

from .base import FactorB, InputGateBase, Layout


class InputGate(InputGateBase):
    """A number for each sample, from the mean of its update: `sigmoid(w * mean(u) + c) * u` with `u = s * B A x`.

    Attributes:
        weight: w, of shape (1, 1), 0 at the start.
        bias: c, of shape (1,), `init` at the start.

    Example:
        >>> gate = InputGate(init=0.0, layout=Layout(out=2, dims=1))
        >>> gate(torch.ones(4, 2, 3), torch.nn.Identity(), scale=2.0)[0].detach()
        tensor([[1., 1., 1.], [1., 1., 1.]])
    """

    def __init__(self, init: float, layout: Layout) -> None:
        super().__init__(init, layout, (1, 1))

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update. The first dimension counts samples, unless there is none beyond a sample's own."""
        update = factor_b(hidden) * scale
        own = range(int(update.dim() > self.layout.dims + 1), update.dim())
        return update * torch.sigmoid(update.mean(tuple(own), keepdim=True) * self.weight[0, 0] + self.bias[0])
