"""One convolution per adapted layer instead of three, where adapters do not learn."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .layer import GatedLoraLayer


@contextmanager
def folded(model: nn.Module) -> Iterator[nn.Module]:
    """Run the adapted layers of `model` with W + dW, computed once per layer and set of active adapters.

    Meant for inner loops that differentiate by the images (PGD) and for inference: gradients reach the inputs, and
    never A, B, the gate or the host. The stored weights stay as they are. Contexts nest; disabled and merged adapters,
    `set_adapter` and scaling work as outside. The parameters must not change inside, and dropout is off.

    Args:
        model: A PEFT model with GATED_LORA adapters, or a module that contains one.

    Yields:
        The same model.

    Raises:
        ValueError: If the model has no layer adapted by GATED_LORA.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from loraguard.tuner import GatedLoraConfig
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> model = get_peft_model(net, GatedLoraConfig(init_lora_weights="paper"))
        >>> images = torch.zeros(1, 3, 8, 8, requires_grad=True)
        >>> with folded(model):
        ...     gradient, = torch.autograd.grad(model(images).square().mean(), images)
        >>> gradient.shape
        torch.Size([1, 3, 8, 8])
    """
    layers = [module for module in model.modules() if isinstance(module, GatedLoraLayer)]
    if not layers:
        raise ValueError(f"Nothing to fold: {type(model).__name__} has no layer adapted by GATED_LORA.")
    opened = [layer for layer in layers if layer._folds is None]
    try:
        for layer in opened:
            layer._folds = {}
        yield model
    finally:
        for layer in opened:
            layer._folds = None
