"""`torch.compile` for a generator that is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel

from loraguard.tuner.folding import FoldingLayer


@contextmanager
def compiled(model: PeftModel) -> Iterator[PeftModel]:
    """Within it, the generator is compiled, and run as it is again afterwards.

    W + dW is then made by `folded`, once for all that is run within it.

    On a GPU its frozen convolution kernels are in channels_last meanwhile, which cuDNN's half precision wants: compiled
    code otherwise turns features from one memory format into the other around most layers.

    Args:
        model: whose base model is compiled.

    Yields:
        The same model.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), GatedLoraConfig(r=2))
        >>> with compiled(model):
        ...     model.get_base_model()._compiled_call_impl is None
        False
        >>> model.get_base_model()._compiled_call_impl is None
        True
    """
    generator = model.get_base_model()
    moved = [p for p in generator.parameters() if p.is_cuda and p.dim() == 4 and not p.requires_grad]
    moved = [p for p in moved if p.is_contiguous()]
    for parameter in moved:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    layers = [module for module in model.modules() if isinstance(module, FoldingLayer)]
    generator.compile()
    try:
        for layer in layers:
            layer.is_compiled = True
        yield model
    finally:
        generator._compiled_call_impl = None
        for layer in layers:
            del layer.is_compiled
        for parameter in moved:
            parameter.data = parameter.data.contiguous()
