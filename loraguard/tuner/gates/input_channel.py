"""One number for each feature and position, by the update there."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import FactorB, InputGateBase, Layout

_POINTWISE: dict[int, Callable[..., Tensor]] = {0: F.linear, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class InputChannelGate(InputGateBase):
    """A number for each feature and position, from a 1x1 convolution: `sigmoid(w u + c) * u` with `u = s * B A x`.

    Attributes:
        weight: w, of shape (out, out, 1...), 0 at the start.
        bias: c, of shape (out,), `init` at the start.

    Example:
        >>> gate = InputChannelGate(init=0.0, layout=Layout(out=2, dims=1))
        >>> gate(torch.ones(4, 2, 3), torch.nn.Identity(), scale=2.0)[0].detach()
        tensor([[1., 1., 1.], [1., 1., 1.]])
    """

    def __init__(self, init: float, layout: Layout) -> None:
        features = layout.groups * layout.out
        super().__init__(init, layout, (features, features, *[1] * layout.dims))

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update."""
        update = factor_b(hidden) * scale
        return update * torch.sigmoid(_POINTWISE[self.layout.dims](update, self.weight, self.bias))
