"""What every gate does, and what the static ones share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

FactorB = Callable[[Tensor], Tensor]
Shape = tuple[int, int, int]


class Layout(NamedTuple):
    """What a gate is told of the layer that it is on.

    Attributes:
        groups: Groups of the base layer, G.
        out: Output features of each group.
        rank: Ranks of each group, r / G.
        dims: Spatial dimensions; 0 for a linear layer, whose features come last.
    """

    groups: int = 1
    out: int = 1
    rank: int = 1
    dims: int = 0


class Gate(nn.Module):
    """What scales an adapter's update.

    Args:
        init: The logit to start from.
        layout: The layer that it is on.

    Attributes:
        mergeable: Whether the gate is static.
    """

    mergeable = False

    def __init__(self, init: float, layout: Layout) -> None:
        super().__init__()
        self.init, self.layout = init, layout

    @property
    def opening(self) -> Tensor:
        """What the gate multiplies with where the update is 0, in (0, 1)."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Put the gate back to where it starts."""

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update, from `hidden` = A x."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the initial logit."""
        return f"init={self.init}"


class InputGateBase(Gate):
    """A gate `sigmoid(w u + c)` that looks at the update u; w and c are its `weight` and `bias`.

    Args:
        init: c at the start; w is 0 then, so that it starts the same for each input.
        layout: The layer that it is on.
        shape: Of w.
    """

    def __init__(self, init: float, layout: Layout, shape: tuple[int, ...]) -> None:
        super().__init__(init, layout)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the same for each input."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.init)

    @property
    def opening(self) -> Tensor:
        """sigmoid(c), the gate where the update is 0, of c's shape."""
        return torch.sigmoid(self.bias)


class StaticGate(Gate):
    """`sigmoid(g)`, with logits g that do not depend on the input.

    B is read as G matrices (out, rank); a gate declares along which of (groups, out, rank) it varies. It may vary along
    `out` or along `rank`, not along both.

    Attributes:
        weight: The logits g, flat; a 0-d parameter could not be sharded.

    Raises:
        TypeError: If the declared shape is not one of these.

    Example:
        >>> class GroupGate(StaticGate):
        ...     @staticmethod
        ...     def shape(groups, out, rank):
        ...         return groups, 1, 1
        >>> gate = GroupGate(0.0, Layout(groups=2, out=2, rank=4))
        >>> gate(torch.ones(1, 4), nn.Identity(), scale=2.0).detach()
        tensor([[1., 1., 1., 1.]])
    """

    mergeable = True

    def __init__(self, init: float, layout: Layout) -> None:
        super().__init__(init, layout)
        shape = self.shape(*layout[:3])
        if shape != tuple(n if along else 1 for n, along in zip(layout, self.along, strict=False)) or all(
            self.along[1:]
        ):
            raise TypeError(
                f"{type(self).__name__}.shape is {shape} on a layer of (groups, out, rank) = {tuple(layout[:3])}; "
                "expected each of these numbers or 1 in its place, and 1 for out or for rank."
            )
        self.weight = nn.Parameter(torch.empty(shape[0] * shape[1] * shape[2]))
        self.reset_parameters()

    @property
    def along(self) -> tuple[bool, bool, bool]:
        """Whether the gate varies along groups, output features and ranks, were there more than one of each."""
        groups, out, rank = self.shape(2, 2, 2)
        return groups > 1, out > 1, rank > 1

    @staticmethod
    def shape(groups: int, out: int, rank: int) -> Shape:
        """Along what the gate varies: each number in its place, or 1."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Put the logits back to where they start."""
        nn.init.constant_(self.weight, self.init)

    @property
    def opening(self) -> Tensor:
        """sigmoid(g), of the declared shape."""
        groups, out, _ = self.shape(*self.layout[:3])
        return torch.sigmoid(self.weight).view(groups, out, -1)  # hotswap may have padded the ranks

    @property
    def opening_of_bias(self) -> Tensor | float:
        """What the bias of B is multiplied with: 1 where the gate varies along ranks, which that bias has none of."""
        return 1.0 if self.along[2] else self.opening

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update: ranks are scaled before B, output features after it."""
        opening = self.opening
        biased = getattr(factor_b, "bias", None) is not None
        if self.along[2]:
            opening = self._along_features(opening)
            return factor_b(hidden * opening) * scale if biased else factor_b(hidden * (opening * scale))
        if any(self.along):
            by_feature = (opening * scale).expand(-1, self.layout.out, -1)
            return factor_b(hidden) * self._along_features(by_feature)
        gain = opening.view(1) * scale
        return factor_b(hidden) * gain if biased else factor_b(hidden * gain)  # which are r features, not all

    def _along_features(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * self.layout.dims)
