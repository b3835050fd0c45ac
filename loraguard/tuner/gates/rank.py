"""One number for each rank."""

from .base import Shape, StaticGate


class RankGate(StaticGate):
    """One learnable number per rank: `s * B (sigmoid(g) * A x)`, so that a layer can close ranks that it does not need.

    Gates between the factors are those of SoRA (arXiv 2311.11696), which prunes them; here they stay in (0, 1).

    Example:
        >>> import torch
        >>> from loraguard.tuner.gates.base import Layout
        >>> gate = RankGate(init=0.0, layout=Layout(rank=3))
        >>> gate(torch.ones(1, 3), lambda hidden: hidden.sum(-1, keepdim=True), scale=2.0).detach()
        tensor([[3.]])
    """

    @staticmethod
    def shape(groups: int, out: int, rank: int) -> Shape:
        """Another for each rank."""
        return groups, 1, rank
