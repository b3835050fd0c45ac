"""Which parts of a model are in train mode while its adapter learns."""

from __future__ import annotations

from peft import PeftModel

from loraguard.tuner import GatedLoraLayer


def train_adapter(model: PeftModel, adapter: str) -> None:
    """Train mode, but for what draws in the base network: targets, outputs and the adversary would see other masks.

    These are its layers without parameters or buffers, dropout and stochastic depth; the adapter's own still drop.
    """
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, GatedLoraLayer)]
    own = {id(layer.lora_dropout[adapter]) for layer in layers if adapter in layer.lora_dropout}
    for module in model.modules():
        leaf = not any(True for _ in module.children())
        if leaf and id(module) not in own and not module._parameters and not module._buffers:
            module.eval()
