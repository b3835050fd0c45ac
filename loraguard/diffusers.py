"""Patches for networks and pipelines of diffusers: saved, and loaded again with their gates.

The loaders of diffusers 0.42 make plain LoRA of every file that they read. What `save_patch` writes they refuse, and
what `save_lora` writes they load exactly.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from peft.functional import (
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_adapter,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from loraguard.files import whole_files, writable_folder
from loraguard.hub.local import read_patch
from loraguard.hub.names import CONFIG, WEIGHTS
from loraguard.tuner.before import unchanged_if_refused
from loraguard.tuner.config import GatedLoraConfig
from loraguard.tuner.export import plain_tensors
from loraguard.tuner.layer import GatedLoraLayer

_PREFIX = "base_model.model."
_METADATA = "lora_adapter_metadata"  # which diffusers makes a LoraConfig of, after it took a prefix off
_REFUSAL = "GATED_LORA, which diffusers' own loaders do not know: use loraguard.diffusers.load_patch"
_LORA_FILE = "pytorch_lora_weights.safetensors"


def save_patch(model: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Write a patch of a network, or of every patched network in a pipeline.

    Of a network, the folder holds what PEFT's `save_pretrained` writes: `adapter_config.json` and
    `adapter_model.safetensors`. Of a pipeline, it holds such a folder for each patched network, by the name that the
    pipeline has for it. diffusers' own loaders refuse these files instead of dropping the gates.

    Args:
        model: A network such as `AutoencoderKL` or `UNet2DConditionModel`, or a `DiffusionPipeline`.
        folder: Where to.
        adapter_name: Which adapter.

    Raises:
        ValueError: If there is no such adapter.
        OSError: If the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from diffusers import AutoencoderKL
        >>> vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
        >>> vae.add_adapter(GatedLoraConfig(r=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_patch(vae, folder)
        ...     loaded = load_patch(AutoencoderKL(block_out_channels=(4,), norm_num_groups=2), folder)
        >>> list(loaded.peft_config)
        ['default']
    """
    networks = _patched(model, adapter_name)
    refusal = json.dumps({_REFUSAL: True, _PREFIX + _REFUSAL: True})
    with whole_files(writable_folder(folder)) as draft:
        for name, network in networks.items():
            part = draft / name
            part.mkdir(exist_ok=True)
            tensors = get_peft_model_state_dict(network, adapter_name=adapter_name)
            tensors = {f"{_PREFIX}{key.removeprefix(_PREFIX)}": _stored(one) for key, one in tensors.items()}
            save_file(tensors, part / WEIGHTS, metadata={"format": "pt", _METADATA: refusal})
            network.peft_config[adapter_name].save_pretrained(str(part))  # with the hash of that file


def load_patch(model: Any, folder: str | Path, adapter_name: str = "default", *, is_trainable: bool = False) -> Any:
    """Load what `save_patch` wrote, PEFT's `save_pretrained` or a training; the patch is then the active adapter.

    All of it is loaded, or nothing: what does not fit is said before the model has changed.

    Args:
        model: The network, or the pipeline with the networks.
        folder: With the patch; of a pipeline, with a folder for each of its networks that has one.
        adapter_name: What to call it.
        is_trainable: Whether it is to learn.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: If the folder holds no patch, or one of something else.
        ValueError: If the patch is broken or does not fit, the name is taken, or a network has no weights yet (because
            of `enable_sequential_cpu_offload`, for instance).
    """
    parts = {name: (network, Path(folder, name)) for name, network in _networks(model, Path(folder)).items()}
    found = {name: (network, read_patch(path)) for name, (network, path) in parts.items()}
    for name, (network, _) in found.items():
        if adapter_name in getattr(network, "peft_config", {}):
            raise ValueError(
                f"{name or type(network).__name__} already has an adapter {adapter_name!r}; give another adapter_name, "
                "or delete that one first."
            )
        if any(parameter.is_meta for parameter in network.parameters()):
            raise ValueError(
                f"{name or type(network).__name__} has no weights at the moment; load the patch before "
                "enable_sequential_cpu_offload() or before whatever took them away."
            )
    with ExitStack() as all_or_nothing:
        for network, _ in found.values():
            all_or_nothing.enter_context(unchanged_if_refused(network))
        for network, patch in found.values():
            patch.config.inference_mode = not is_trainable
            inject_adapter_in_model(patch.config, network, adapter_name)
            set_peft_model_state_dict(network, patch.tensors, adapter_name)
            set_adapter(network, adapter_name, inference_mode=not is_trainable)
            if hasattr(network, "_hf_peft_config_loaded"):
                network._hf_peft_config_loaded = True  # without it, diffusers' methods find no adapters
    return model


def save_lora(model: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Write a patch as plain LoRA in diffusers' own format, with gates and scales multiplied into B.

    `pipe.load_lora_weights(folder)` loads what was saved of a pipeline, and
    `network.load_lora_adapter(folder, prefix=None, use_safetensors=True)` what was saved of a network, exactly and
    without loraguard.

    Args:
        model: A network or a pipeline.
        folder: Where to; the file is `pytorch_lora_weights.safetensors`.
        adapter_name: Which adapter.

    Raises:
        ValueError: If there is no such adapter, PEFT's LoRA computes something else on an adapted layer (see
            `loraguard.to_lora`), or there is more to the patch than these loaders read.
        OSError: If the folder cannot be written to.
    """
    networks = _patched(model, adapter_name)
    readable = list(getattr(model, "_lora_loadable_modules", []))
    for name in networks:
        if name and name not in readable:
            raise ValueError(
                f"{name!r} of this {type(model).__name__} is patched, and its load_lora_weights reads {readable} "
                f"alone. Save that one by itself: save_lora(pipe.{name}, folder)."
            )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for name, network in networks.items():
        prefix = f"{name}." if name else ""
        config, own = plain_tensors(network, adapter_name, scaled=True)
        _check_sayable(config, own)
        tensors |= {f"{prefix}{key.removeprefix(_PREFIX)}": _stored(one) for key, one in own.items()}
        metadata |= {f"{prefix}{key}": value for key, value in _settings(network, adapter_name).items()}
    with whole_files(writable_folder(folder)) as draft:
        written = {"format": "pt", _METADATA: json.dumps(metadata, sort_keys=True)}
        save_file(tensors, draft / _LORA_FILE, metadata=written)


def _check_sayable(config: GatedLoraConfig, tensors: dict[str, Tensor]) -> None:
    for name, default in (("modules_to_save", None), ("bias", "none"), ("trainable_token_indices", None)):
        if (value := getattr(config, name)) != default:
            raise ValueError(
                f"{name}={value!r} does not go into a LoRA file of diffusers, which holds factors; use save_patch."
            )
    if embedding := next((key for key in tensors if ".lora_embedding_" in key), None):
        raise ValueError(f"{embedding!r} is of an embedding, which diffusers' loaders leave out; use save_patch.")


def _settings(network: nn.Module, adapter_name: str) -> dict[str, Any]:
    """What diffusers makes a LoraConfig of, so that the update is B A."""
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, GatedLoraLayer) and adapter_name in layer.lora_A
    }
    ranks = {name: len(layer.parts(adapter_name)[0].weight) for name, layer in layers.items()}
    r = max(ranks.values(), key=list(ranks.values()).count)
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    return {
        "r": r,
        "lora_alpha": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "use_dora": any(layer.use_dora[adapter_name] for layer in layers.values()),
        "lora_bias": any(layer.lora_bias[adapter_name] for layer in layers.values()),
        "target_modules": "|".join(map(re.escape, layers)),
    }


def _patched(model: Any, adapter_name: str) -> dict[str, Any]:
    """The networks with such an adapter, by the pipeline's names; by "" where the model is a network itself."""
    candidates = {"": model} if isinstance(model, nn.Module) else _components(model)
    networks = {
        name: network
        for name, network in candidates.items()
        if isinstance(getattr(network, "peft_config", {}).get(adapter_name), GatedLoraConfig)
    }
    if not networks:
        there = sorted({name for network in candidates.values() for name in getattr(network, "peft_config", {})})
        raise ValueError(
            f"There is no GATED_LORA adapter {adapter_name!r} in this {type(model).__name__}; there are {there}."
        )
    return networks


def _networks(model: Any, folder: Path) -> dict[str, Any]:
    """The networks that the folder has patches for."""
    if isinstance(model, nn.Module):
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"There is no patch in {folder}: it has no {CONFIG}.")
        return {"": model}
    components = _components(model)
    if (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} holds a patch for one network; pass it instead of the {type(model).__name__}: one of "
            f"{', '.join(f'pipe.{name}' for name in components)}."
        )
    found = {name: network for name, network in components.items() if (folder / name / CONFIG).is_file()}
    if not found:
        raise FileNotFoundError(f"There is no patch in {folder} for one of {sorted(components, key=len)}.")
    return found


def _components(pipeline: Any) -> dict[str, Any]:
    components = getattr(pipeline, "components", None)
    if not isinstance(components, dict):
        raise TypeError(f"Expected a network or a pipeline of diffusers, not a {type(pipeline).__name__}.")
    return {name: one for name, one in components.items() if isinstance(one, nn.Module)}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
