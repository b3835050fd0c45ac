"""One number for each output feature."""

from .base import Shape, StaticGate


class ChannelGate(StaticGate):
    """One learnable number per output feature of an adapted layer: `sigmoid(g)[:, None, None] * s * B A x`.

    Example:
        >>> import torch
        >>> from loraguard.tuner.gates.base import Layout
        >>> gate = ChannelGate(init=0.0, layout=Layout(out=2, dims=1))
        >>> gate(torch.ones(1, 2, 3), torch.nn.Identity(), scale=2.0).detach()
        tensor([[[1., 1., 1.], [1., 1., 1.]]])
    """

    @staticmethod
    def shape(groups: int, out: int, rank: int) -> Shape:
        """Another for each output feature."""
        return groups, out, 1
