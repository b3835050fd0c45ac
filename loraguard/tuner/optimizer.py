"""Gates that learn at a rate of their own."""

from typing import Any

from torch import nn

from .gates.base import Gate


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
        >>> import torch
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
