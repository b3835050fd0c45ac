"""DoRA (arXiv 2402.09353, eq. 5) with a gate: magnitude and direction of a weight, learnt apart.

    W' = m * (W + dW) / norm(W + dW),    dW = gate * s * B A

with a number m and a norm for each output feature: of a convolution over its inputs and its kernel, of an embedding
over its vectors. m starts at the norm of W + dW. As in the paper (section 4.3) and in PEFT, the norm gets no gradient.

Added to what the base layer computes, that is an update by the weight `W' - W`, so that everything which adds, merges
or folds weights holds for it, and the updates of several adapters add up. W is the weight without what is merged.
"""

import torch
from torch import Tensor, nn


class Magnitude(nn.Module):
    """m, of shape (out,), as `weight`.

    Example:
        >>> Magnitude(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])).weight.tolist()
        [5.0, 2.0]
    """

    def __init__(self, matrices: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrices.detach().norm(dim=2).flatten())

    def forward(self, base: Tensor, update: Tensor) -> Tensor:
        """`W' - W` as group matrices (G, out / G, in / G * prod(k)), from W and dW in that form."""
        whole = base + update
        # Where a row is 0, as in the last layer of a ControlNet, it has no direction.
        norms = whole.detach().norm(dim=2, keepdim=True).clamp_min(torch.finfo(whole.dtype).tiny)
        return self.weight.to(whole.dtype).view(len(whole), -1, 1) / norms * whole - base
