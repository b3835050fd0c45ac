"""Calling a network without its adapters, in a loop."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer


@contextmanager
def without_adapters(model: PeftModel) -> Iterator[None]:
    """Switch all adapters off inside, as `model.disable_adapter()` does.

    PEFT's own counts all parameters and describes every layer first, to warn where some adapters are off and others
    on. On a small network that takes longer than a forward pass; here it is left to PEFT where that is so.

    Args:
        model: A network with adapters.

    Raises:
        RuntimeError: If another thread is inside a call; see `threads`.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from loraguard.tuner import GatedLoraConfig
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> model = get_peft_model(net, GatedLoraConfig(r=1, init_lora_weights="paper"))
        >>> with without_adapters(model):
        ...     bool((model(torch.ones(2)) == model.get_base_model()[0].base_layer(torch.ones(2))).all())
        True
    """
    off = {layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    if len(off) != 1 or not isinstance(model.base_model, BaseTuner):
        with model.disable_adapter():
            yield
        return
    try:
        model.base_model.disable_adapter_layers()
        yield
    finally:
        if off == {False}:
            model.base_model.enable_adapter_layers()
