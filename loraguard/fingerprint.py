"""Hashes of weights: the same for a generator as it is and as PEFT has adapted it, and for a patch and its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

GENERATOR = "generator"
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|trainable_tokens_\w+)(?=\.([^.]+)(?:\.|$))")
_WRAPPER = re.compile(r"\b(?:base_layer|original_module|token_adapter)\.")  # PEFT's, around a layer
_COUNTER = "num_batches_tracked"  # no output depends on it, and old checkpoints lack it


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: names, types, shapes and every bit of the values; neither device nor order count.

    Of a patch, what its file holds.

    Example:
        >>> from peft import get_peft_model, get_peft_model_state_dict
        >>> from loraguard import GatedLoraConfig
        >>> model = get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), GatedLoraConfig(r=2), adapter_name="mine")
        >>> digest(get_peft_model_state_dict(model, adapter_name="mine")) == fingerprint(model)["mine"]
        True
    """
    sha: Any = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return str(sha.hexdigest())


def generator_fingerprint(generator: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers, whatever adapters it has on; merged ones count as weights.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> network = nn.Sequential(nn.Conv2d(3, 3, 1))
        >>> before = generator_fingerprint(network)
        >>> generator_fingerprint(get_peft_model(network, GatedLoraConfig(r=2))) == before
        True
    """
    adapters = getattr(generator, "peft_config", {})
    base = generator.get_base_model() if isinstance(generator, PeftModel) else generator
    own = {}
    for key, value in base.state_dict().items():
        adapted = any(name in adapters for name in _ADAPTER.findall(key))
        if not adapted and not key.endswith(_COUNTER) and isinstance(value, Tensor):
            own[_WRAPPER.sub("", key)] = value
    return digest(own)


def fingerprint(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the generator's own weights and of each patch's, so that a figure says what it is about.

    That of "generator" is :func:`generator_fingerprint`'s; a patch's is the :func:`digest` of what its file holds.
    """
    adapters = model.peft_config if isinstance(model, PeftModel) else ()
    patches = {name: digest(get_peft_model_state_dict(model, adapter_name=name)) for name in adapters}
    return {GENERATOR: generator_fingerprint(model), **patches}
