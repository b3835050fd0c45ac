"""From a GATED_LORA adapter to a plain LoRA adapter that PEFT loads without loraguard, exact where there is one."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from .attention import GatedLoraMultiheadAttention
from .config import GatedLoraConfig
from .embedding import GatedLoraEmbedding
from .layer import GatedLoraLayer

# What both kinds of adapters mean the same by.
_SHARED = (
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "lora_dropout",
    "bias",
    "modules_to_save",
    "target_modules",
    "exclude_modules",
    "trainable_token_indices",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
)


@torch.no_grad()
def to_lora(
    model: PeftModel, path: str | Path | None = None, adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter as plain LoRA, with its gates multiplied into B: the same outputs, with or without loraguard.

    Dropout before convolutions is the one difference: PEFT's takes single values, GATED_LORA's whole channels.

    Args:
        model: A PEFT model with GATED_LORA adapters.
        path: A folder to save it in, if any, as `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: Which adapter.

    Returns:
        Its config, and its tensors by the names that `peft.set_peft_model_state_dict` takes.

    Raises:
        ValueError: If there is no such adapter, its gates depend on the input, or it adapts a layer on which PEFT's
            LoRA computes something else (transposed, dilated or padded otherwise than by zeros). Merge it instead.

    Example:
        >>> from peft import get_peft_model
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
        >>> model = get_peft_model(net, GatedLoraConfig(r=2))
        >>> config, tensors = to_lora(model)
        >>> config.peft_type.value, sorted(tensors)[0]
        ('LORA', 'base_model.model.0.lora_A.weight')
    """
    config, tensors = plain_tensors(model, adapter_name)
    plain = LoraConfig(**{name: getattr(config, name) for name in _SHARED})
    if path is not None:
        plain.save_pretrained(str(path))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(path, SAFETENSORS_WEIGHTS_NAME))
    return plain, tensors


@torch.no_grad()
def plain_tensors(model: Any, adapter_name: str, *, scaled: bool = False) -> tuple[GatedLoraConfig, dict[str, Tensor]]:
    """The settings of an adapter, and its tensors as plain LoRA has them.

    Args:
        model: A PEFT model, or a network with adapters in it.
        adapter_name: Which adapter.
        scaled: Whether B is to have the scale in it, too: the update is then B A, as with lora_alpha = r.

    Raises:
        ValueError: As `to_lora`.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, GatedLoraConfig):
        there = sorted(getattr(model, "peft_config", {}))
        raise ValueError(f"There is no GATED_LORA adapter {adapter_name!r}; there are {there}.")
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name)
    tensors = {name: tensor for name, tensor in tensors.items() if ".lora_gate." not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, GatedLoraLayer) and adapter_name in layer.lora_A:
            _check_layer(name.removeprefix("base_model.model."), layer, adapter_name)
            factors = _plain_factors(layer, adapter_name, scaled)
            if isinstance(layer, GatedLoraEmbedding):  # which PEFT's LoRA keeps as bare parameters
                del tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
                factors = {
                    part if "magnitude" in part else f"lora_embedding_{part[5]}": tensor
                    for part, tensor in factors.items()
                }
            tensors |= {f"{name}.{part}": tensor for part, tensor in factors.items()}
    return config, tensors


def _check_layer(name: str, layer: GatedLoraLayer, adapter: str) -> None:
    base = layer.base_layer
    unlike = []
    if isinstance(base, nn.modules.conv._ConvNd):
        if base.transposed:
            unlike.append("it is transposed")
        if base.padding_mode != "zeros":
            unlike.append(f"padding_mode={base.padding_mode!r}")
        if set(base.dilation) != {1}:
            unlike.append(f"dilation={base.dilation}")
        if layer.groups > 1 and layer.use_dora[adapter]:
            unlike.append(f"use_dora with groups={layer.groups}")
    if isinstance(layer, GatedLoraMultiheadAttention):
        unlike.append("the update of its out_proj is added twice, by PEFT 0.21.2")
    if unlike:
        raise ValueError(
            f"PEFT's LoRA is not the same on {name!r} ({type(base).__name__}: {', '.join(unlike)}), so that the "
            "adapter cannot be plain LoRA. Share it as GATED_LORA, or merge it: "
            "model.merge_and_unload(safe_merge=True)."
        )


def _plain_factors(layer: Any, adapter: str, scaled: bool) -> dict[str, Tensor]:
    """A as PEFT stores it, and B with the gate and any changed scale in it; with the whole scale, if so asked."""
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    r = layer.r[adapter]
    own_scale = 1.0 if scaled else layer.lora_alpha[adapter] / (math.sqrt(r) if layer.use_rslora[adapter] else r)
    gained = layer.gain(adapter) / own_scale * layer.factor_groups(adapter)[1]
    factors = {"lora_A.weight": a.detach().clone(), "lora_B.weight": gained.reshape(b.shape).to(b.dtype)}
    if (bias := layer.get_delta_bias(adapter)) is not None:
        factors["lora_B.bias"] = bias / own_scale
    if layer.use_dora[adapter]:
        magnitude = layer.lora_magnitude_vector[adapter].weight
        factors["lora_magnitude_vector"] = magnitude.view(1, -1, *[1] * layer.dims) if layer.dims else magnitude
    if layer.groups > 1:
        # PEFT's A sees all features: the ranks of a group get zeros for those of other groups.
        whole = a.new_zeros(len(a), layer.in_features, *a.shape[2:])
        rank, width = len(a) // layer.groups, a.shape[1]
        for g in range(layer.groups):
            rows = slice(g * rank, (g + 1) * rank)
            whole[rows, g * width : (g + 1) * width] = a[rows]
        factors["lora_A.weight"] = whole
    return factors
