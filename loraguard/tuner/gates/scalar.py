"""One number for a layer, the gate of the paper."""

from .base import Shape, StaticGate


class ScalarGate(StaticGate):
    """One learnable number per adapted layer, the gate of arXiv 2510.03747: `sigmoid(g) * s * B A x`.

    Example:
        >>> import torch
        >>> from loraguard.tuner.gates.base import Layout
        >>> gate = ScalarGate(init=-1.0, layout=Layout(out=2))
        >>> gate.opening.detach()
        tensor([[[0.2689]]])
        >>> gate(torch.ones(1, 2), torch.nn.Identity(), scale=2.0).detach()
        tensor([[0.5379, 0.5379]])
    """

    @staticmethod
    def shape(groups: int, out: int, rank: int) -> Shape:
        """The same everywhere."""
        return 1, 1, 1
