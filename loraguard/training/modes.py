"""Which parts of a model are in train mode while its adapter learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch.nn.modules.batchnorm import _NormBase

from loraguard.tuner import GatedLoraLayer


def train_adapter(model: PeftModel, adapter: str) -> None:
    """Train mode, but for layers of the base network that draw, or change by being called.

    Targets, outputs and the adversary would each see another mask of dropout or stochastic depth, which have neither
    parameters nor buffers, and a spectral norm's buffers would move. The adapter's own dropout still drops. What
    `freeze_norm_stats` says of norms stays as the tuner has it.
    """
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, GatedLoraLayer)]
    own = {id(layer.lora_dropout[adapter]) for layer in layers if adapter in layer.lora_dropout}
    for module in model.modules():
        leaf = not any(True for _ in module.children())
        moves = module._buffers and not isinstance(module, _NormBase)
        if leaf and id(module) not in own and (moves or not module._parameters):
            module.eval()


@contextmanager
def adapter_training(model: PeftModel, adapter: str) -> Iterator[None]:
    """Within it modes are as :func:`train_adapter` has them, and afterwards as they were before."""
    modes = {module: module.training for module in model.modules()}
    train_adapter(model, adapter)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
