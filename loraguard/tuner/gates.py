"""Gates: what scales the update of an adapted layer, and learns to.

Below, `u = s * B(A*x)` is the update of LoRA; a gate adds `gate * u` to the output of the host. *Static* gates do not
look at `u`, so that they can be merged into the host's weight. Each gate starts at `sigmoid(init)` everywhere.

| `gate_type` | gate | parameters | mergeable |
|---|---|---|---|
| `"scalar"` | `sigmoid(g)`, of the paper (arXiv 2510.03747) | 1 | yes |
| `"channel"` | `sigmoid(g[channel])` | out | yes |
| `"input"` | `sigmoid(w * mean(u) + b)`, the mean over each sample | 2 | no |
| `"input_channel"` | `sigmoid(w*u + b)`, a 1x1 convolution, for each channel and position | out * out + out | no |
| `"none"` | 1: plain LoRA | 0 | yes |
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FactorB = Callable[[Tensor], Tensor]

_POINTWISE: dict[int, Callable[..., Tensor]] = {0: F.linear, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Gate(nn.Module):
    """What every gate does.

    Args:
        init: The logit to start from.
        channels: Output channels of the host.
        dims: Spatial dimensions of the host; 0 for a linear layer, whose channels come last.

    Attributes:
        mergeable: Whether the gate is static.
    """

    mergeable = True

    def __init__(self, init: float, channels: int, dims: int) -> None:
        super().__init__()
        self.init, self.channels, self.dims = init, channels, dims

    @property
    def opening(self) -> Tensor:
        """What a static gate multiplies with, in (0, 1), of shape (1,) or (channels,).

        For an input-dependent gate, what it multiplies with where the update is 0.
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Put the gate back to where it starts."""

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update `gate * s * B(hidden)`, from `hidden` = A*x."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the initial logit."""
        return f"init={self.init}"


class ScalarGate(Gate):
    """One learnable number per adapted layer, the gate of arXiv 2510.03747: `sigmoid(g) * s * B(A*x)`.

    Attributes:
        weight: The logit g, of shape (1,); a 0-d parameter could not be sharded.

    Example:
        >>> gate = ScalarGate(init=-1.0, channels=2, dims=0)
        >>> gate.opening.detach()
        tensor([0.2689])
        >>> gate(torch.ones(1, 2), nn.Identity(), scale=2.0).detach()
        tensor([[0.5379, 0.5379]])
    """

    def __init__(self, init: float, channels: int, dims: int) -> None:
        super().__init__(init, channels, dims)
        self.weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the logit back to where it starts."""
        nn.init.constant_(self.weight, self.init)

    @property
    def opening(self) -> Tensor:
        """sigmoid(g), of shape (1,)."""
        return torch.sigmoid(self.weight)

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update. B is linear: scaling before it touches r channels, not all."""
        return factor_b(hidden * (self.opening * scale))


class ChannelGate(ScalarGate):
    """One learnable number per output channel of an adapted layer: `sigmoid(g)[:, None, None] * s * B(A*x)`.

    Attributes:
        weight: The logits g, of shape (channels,).

    Example:
        >>> gate = ChannelGate(init=0.0, channels=2, dims=1)
        >>> gate(torch.ones(1, 2, 3), nn.Identity(), scale=2.0).detach()
        tensor([[[1., 1., 1.], [1., 1., 1.]]])
    """

    def __init__(self, init: float, channels: int, dims: int) -> None:
        super().__init__(init, channels, dims)
        self.weight = nn.Parameter(torch.full((channels,), float(init)))

    @property
    def opening(self) -> Tensor:
        """sigmoid(g), of shape (channels,)."""
        return torch.sigmoid(self.weight)

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update."""
        return factor_b(hidden) * (self.opening * scale).view(-1, *[1] * self.dims)


class InputGate(Gate):
    """A number for each sample, from the mean of its update: `sigmoid(w * mean(u) + b) * u` with `u = s * B(A*x)`.

    Attributes:
        weight: w, of shape (1, 1), 0 at the start.
        bias: b, of shape (1,), `init` at the start.

    Example:
        >>> gate = InputGate(init=0.0, channels=2, dims=1)
        >>> gate(torch.ones(4, 2, 3), nn.Identity(), scale=2.0)[0].detach()
        tensor([[1., 1., 1.], [1., 1., 1.]])
    """

    mergeable = False

    def __init__(self, init: float, channels: int, dims: int) -> None:
        super().__init__(init, channels, dims)
        self.weight = nn.Parameter(torch.empty(1, 1))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as a scalar gate: the same for each input."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.init)

    @property
    def opening(self) -> Tensor:
        """sigmoid(b), the gate where the update is 0, of shape (1,)."""
        return torch.sigmoid(self.bias)

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update. The first dimension counts samples, unless there is none beyond a sample's own."""
        update = factor_b(hidden) * scale
        own = range(int(update.dim() > self.dims + 1), update.dim())
        return update * torch.sigmoid(update.mean(tuple(own), keepdim=True) * self.weight[0, 0] + self.bias[0])


class InputChannelGate(InputGate):
    """A number for each channel and position, from a 1x1 convolution: `sigmoid(w*u + b) * u` with `u = s * B(A*x)`.

    Attributes:
        weight: w, of shape (channels, channels, 1...), 0 at the start.
        bias: b, of shape (channels,), `init` at the start.

    Example:
        >>> gate = InputChannelGate(init=0.0, channels=2, dims=1)
        >>> gate(torch.ones(4, 2, 3), nn.Identity(), scale=2.0)[0].detach()
        tensor([[1., 1., 1.], [1., 1., 1.]])
    """

    def __init__(self, init: float, channels: int, dims: int) -> None:
        super().__init__(init, channels, dims)
        self.weight = nn.Parameter(torch.zeros(channels, channels, *[1] * dims))
        self.bias = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The gated update."""
        update = factor_b(hidden) * scale
        return update * torch.sigmoid(_POINTWISE[self.dims](update, self.weight, self.bias))


class NoGate(Gate):
    """Always open: plain LoRA.

    Example:
        >>> NoGate(init=-1.0, channels=2, dims=0)(torch.ones(1, 2), nn.Identity(), scale=2.0)
        tensor([[2., 2.]])
    """

    @property
    def opening(self) -> Tensor:
        """1, of shape (1,)."""
        return torch.ones(1)

    def forward(self, hidden: Tensor, factor_b: FactorB, scale: float | Tensor) -> Tensor:
        """The update."""
        return factor_b(hidden * scale)


GATES: dict[str, type[Gate]] = {
    "scalar": ScalarGate,
    "channel": ChannelGate,
    "input": InputGate,
    "input_channel": InputChannelGate,
    "none": NoGate,
}


def parameter_groups(model: nn.Module, lr: float, gate_lr: float, **gate_options: Any) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch that give gates a learning rate of their own.

    A gate scales a whole layer, so that a step which suits the factors may close it for good (its gradient vanishes as
    `sigmoid(g)` does), or one that suits it be too long for them.

    Args:
        model: A model with GATED_LORA adapters; parameters that need no gradient are left out.
        lr: Learning rate of everything else that learns.
        gate_lr: Learning rate of the gates.
        gate_options: Further settings of the gates' group, such as `weight_decay=0.0`.

    Returns:
        One group, or two if there are gates that learn.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard.tuner import GatedLoraConfig
        >>> model = get_peft_model(nn.Sequential(nn.Linear(3, 3)), GatedLoraConfig(r=2))
        >>> groups = parameter_groups(model, lr=1e-3, gate_lr=1e-2)
        >>> [(group["lr"], len(group["params"])) for group in groups]
        [(0.001, 2), (0.01, 1)]
        >>> optimizer = torch.optim.Adam(groups)
    """
    gates = {id(p): p for m in model.modules() if isinstance(m, Gate) for p in m.parameters() if p.requires_grad}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in gates]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
    if gates:
        groups.append({"params": list(gates.values()), "lr": gate_lr, **gate_options})
    return groups
