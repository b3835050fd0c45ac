"""What GATED_LORA uses of PEFT that PEFT does not promise to keep, each with what it is relied on for.

`import loraguard` compares PEFT with this list before anything is registered, so that a PEFT that differs is an error
which says where, instead of a traceback from within or another result. Nothing here imports PEFT before `check` runs.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any, NamedTuple


class Part(NamedTuple):
    """Something private of PEFT.

    Attributes:
        module: Where it is.
        name: What it is called there.
        parameters: Of a function, what it is called with; those that come first, in their order.
        purpose: What it is relied on for.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    purpose: str


_MODEL, _LAYER, _BASE = "peft.tuners.lora.model", "peft.tuners.lora.layer", "peft.tuners.tuners_utils"
_OTHER, _SWAP = "peft.utils.other", "peft.utils.hotswap"

PARTS = (
    # The closed enumeration of methods.
    Part("peft", "PeftType._member_names_", (), "a new method takes its place in the enumeration"),
    Part("peft", "PeftType._member_map_", (), "PeftType['GATED_LORA'] finds it"),
    Part("peft", "PeftType._value2member_map_", (), "PeftType('GATED_LORA') finds it"),
    Part("peft.utils", "register_peft_method", ("name", "config_cls", "model_cls", "prefix"), "PEFT knows the method"),
    # The tuner's model.
    Part(_MODEL, "LoraModel._prepare_adapter_config", ("peft_config", "model_config"), "layers are found and checked"),
    Part(_MODEL, "LoraModel._check_target_module_exists", (), "PEFT asks which layers are meant"),
    Part(_MODEL, "LoraModel._create_new_module", ("lora_config", "adapter_name", "target"), "layers are made"),
    Part(_MODEL, "LoraModel._replace_module", ("parent", "child_name", "new_module", "child"), "and put in place"),
    Part(_MODEL, "LoraModel._unload_and_optionally_merge", ("merge",), "all layers are merged or none"),
    Part(
        _MODEL,
        "LoraModel._remap_adapter_state_dict_for_load",
        ("model", "config", "adapter_name", "state_dict"),
        "tensors are checked as they arrive, and gates are not dropped",
    ),
    Part(_MODEL, "LoraModel._check_add_weighted_adapter", ("adapters",), "weighted sums are checked"),
    Part(_MODEL, "LoraModel._convert_state_dict_for_initial_model", (), "a conversion is refused"),
    Part(_MODEL, "LoraModel._enable_peft_forward_hooks", (), "calls of several threads are told apart"),
    # Its layers.
    Part(_LAYER, "LoraLayer._check_forward_args", ("x",), "arguments of a call are checked"),
    Part(_LAYER, "LoraLayer._cast_input_dtype", ("x", "dtype"), "the adapter computes in its precision"),
    Part(_LAYER, "LoraLayer._get_in_out_features", ("module",), "sizes of layers are told"),
    Part(_LAYER, "LoraLayer._mixed_batch_forward", ("x",), "an adapter for each sample"),
    Part(_LAYER, "LoraLayer._move_adapter_to_device_of_base_layer", ("adapter_name",), "devices and precision"),
    Part(_BASE, "BaseTunerLayer.enable_adapters", ("enabled",), "adapters are switched off"),
    Part(_BASE, "BaseTunerLayer.set_adapter", ("adapter_names", "inference_mode"), "adapters are chosen"),
    # Functions.
    Part(_BASE, "_maybe_include_all_linear_layers", ("peft_config", "model"), "target_modules='all-linear'"),
    Part(_BASE, "check_adapters_to_merge", ("module", "adapter_names"), "what is to be merged"),
    Part(_OTHER, "_freeze_adapter", ("model", "adapter_name"), "weighted sums do not learn"),
    Part(_OTHER, "_get_input_embeddings_name", ("model", "default"), "trainable_token_indices"),
    Part(_OTHER, "get_pattern_key", ("pattern_keys", "key_to_match"), "rank_pattern and alpha_pattern"),
    Part(_OTHER, "AuxiliaryTrainingWrapper", (), "modules_to_save"),
    Part(_SWAP, "hotswap_adapter_from_state_dict", ("model", "state_dict", "adapter_name", "config"), "hotswap"),
    Part(_SWAP, "_pad_lora_weights", ("model", "target_rank"), "hotswap of compiled models"),
    Part(_SWAP, "_update_scaling", ("lora_module", "adapter_name", "scaling"), "scales after a hotswap"),
    Part(_SWAP, "CONFIG_KEYS_TO_CHECK", (), "what may differ in a hotswap"),
    Part("peft.config", "PeftConfigMixin._get_peft_type", ("model_id",), "configs of strangers are read safely"),
    Part("peft.config", "PeftConfigMixin.from_json_file", ("path_json_file",), "configs of strangers are read safely"),
    Part("peft", "PeftModel.load_adapter", ("model_id", "adapter_name"), "a patch is loaded whole or not at all"),
    Part("peft", "PeftModel.from_pretrained", ("model", "model_id"), "a patch is loaded whole or not at all"),
    Part("peft.tuners.lora.config", "LoraConfig._register_custom_module", (), "it is refused"),
)


def differences(*, loaded: bool = False) -> list[str]:
    """What of PEFT is not as it is relied on, in words; empty where all is.

    Args:
        loaded: Whether to look at modules alone that are imported already, as while PEFT itself is being imported.
    """
    found = []
    for part in PARTS:
        if loaded and part.module not in sys.modules:
            continue
        try:
            value: Any = import_module(part.module)
            for name in part.name.split("."):
                value = getattr(value, name)
        except (ImportError, AttributeError):
            found.append(f"{part.module}.{part.name} is gone ({part.purpose})")
            continue
        if part.parameters:
            taken = [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
            if tuple(taken[: len(part.parameters)]) != part.parameters:
                found.append(f"{part.module}.{part.name} takes {', '.join(taken)} ({part.purpose})")
    return found


def check(*, loaded: bool = False) -> None:
    """Raise a RuntimeError that names what of the installed PEFT differs, and what to do; see `differences`."""
    if found := differences(loaded=loaded):
        from importlib.metadata import requires, version

        asked = [one for one in requires("loraguard") or [] if one.startswith("peft")] or ["peft"]
        more = f", and {len(found) - 2} more" if len(found) > 2 else ""
        raise RuntimeError(
            f"peft {version('peft')} is not as GATED_LORA knows it: {'; '.join(found[:2])}{more}. Install a PEFT that "
            f'this version of loraguard asks for (pip install "{asked[0]}"), or a later loraguard.'
        )
