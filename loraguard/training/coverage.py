"""Which adapters a generator's forward never reaches, so that training leaves them as they were drawn."""

from __future__ import annotations

import warnings

from torch import nn

from loraguard.tuner import GatedLoraLayer

_NAMED = 8


def unreached_layers(model: nn.Module, adapter: str) -> list[str]:
    """Adapted layers that learn, and of whose adapter no parameter has a gradient after a backward pass.

    A network may read a layer's weight in place of calling the layer (fused projections, `F.linear(x, layer.weight)`),
    or not use the layer for the outputs at hand. A gradient of exactly zero counts as one: at the start B = 0, so that
    A's gradient is zero in every layer.

    Args:
        model: a network with GATED_LORA adapters, after backward and before its gradients are cleared.
        adapter: the adapter that is trained.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> class Reads(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.called, self.read = nn.Linear(3, 3), nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return nn.functional.linear(self.called(x), self.read.weight)
        >>> model = get_peft_model(Reads(), GatedLoraConfig(r=2))
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> unreached_layers(model, "default")
        ['read']
    """
    unreached = []
    for name, layer in model.named_modules():
        if isinstance(layer, GatedLoraLayer) and adapter in layer.lora_A:
            parts = (layer.lora_A[adapter], layer.lora_B[adapter], layer.lora_gate[adapter])
            learning = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
            if learning and all(parameter.grad is None for parameter in learning):
                unreached.append(name.removeprefix("base_model.model."))
    return unreached


def warn_of_unreached_layers(model: nn.Module, adapter: str) -> None:
    """Warn once, with their names, of the layers that :func:`unreached_layers` finds; silent where there are none.

    For the trainer, after the first step's backward passes. No error, as a network may leave parts aside for the edits
    at hand, and the adapters of its other layers are trained all the same.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> model = get_peft_model(nn.Sequential(nn.Linear(3, 3)), GatedLoraConfig(r=2))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_unreached_layers(model, "default")  # no backward pass yet
        >>> str(caught[0].message)
        'The adapters of 1 of 1 layers got no gradient in the first step and are not trained: 0. ...'
    """
    unreached = unreached_layers(model, adapter)
    if not unreached:
        return
    adapted = sum(isinstance(layer, GatedLoraLayer) and adapter in layer.lora_A for layer in model.modules())
    more = f" and {len(unreached) - _NAMED} more" if len(unreached) > _NAMED else ""
    warnings.warn(
        f"The adapters of {len(unreached)} of {adapted} layers got no gradient in the first step and are not trained: "
        f"{', '.join(unreached[:_NAMED]):.200}{more}. The generator does not call these layers for these edits, or "
        "reads their weights itself (fused projections do). Unfuse them, or leave the layers out with exclude_modules.",
        stacklevel=3,
    )
