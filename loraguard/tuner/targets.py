"""Which layers of a network can be adapted, and why another cannot."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, _get_input_embeddings_name
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .attention import GatedLoraMultiheadAttention
from .computed import computed_by, is_computed, is_known, own_tensors
from .conv import GatedLoraConv, GatedLoraConvTranspose
from .embedding import GatedLoraEmbedding
from .layer import GatedLoraLayer
from .linear import GatedLoraLinear
from .quantized import is_quantized, quantized_as, reason_against

_BY_DEFAULT: tuple[type[GatedLoraLayer], ...] = (GatedLoraLinear, GatedLoraConv, GatedLoraConvTranspose)
LAYER_CLASSES: tuple[type[GatedLoraLayer], ...] = (*_BY_DEFAULT, GatedLoraEmbedding, GatedLoraMultiheadAttention)
ADAPTABLE = ", ".join(base.__name__ for layer in LAYER_CLASSES for base in layer.base_classes)


def walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base model, a shared one under each of its names; PEFT's own modules are not entered."""
    yield name, module
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        computing = "parametrizations" if parametrize.is_parametrized(module) else None
        for child_name, child in module._modules.items():  # named_children would leave out second names
            if child is not None and child_name != computing:
                yield from walk(child, f"{name}.{child_name}" if name else child_name)


def bypassed(model: nn.Module) -> set[str]:
    """Names of the layers that `nn.MultiheadAttention` reads and never calls: an adapter there does nothing."""
    return {f"{name}.out_proj" for name, module in walk(model) if isinstance(module, nn.MultiheadAttention)}


def call_adapted(model: nn.Module) -> list[Any]:
    """Have torch's encoders call their adapted layers; in eval mode they read weights, unless a layer has a hook.

    Returns:
        The `nn.TransformerEncoder`s that no longer make nested tensors of padded ones, which only their own fast way
        takes; `use_nested_tensor` is to be True again when the adapters are gone.
    """
    encoders = []
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            adapted = [layer for layer in module.modules() if isinstance(layer, GatedLoraLayer)]
            for layer in adapted:
                if _is_called not in layer._forward_pre_hooks.values():
                    layer.register_forward_pre_hook(_is_called)
            if adapted and getattr(module, "use_nested_tensor", False):
                cast(Any, module).use_nested_tensor = False
                encoders.append(module)
    return encoders


def _is_called(layer: nn.Module, args: Any) -> None:
    """Nothing; see `call_adapted`."""


def base_layer_of(module: nn.Module) -> nn.Module:
    """The layer below PEFT's adapters, or the module itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def bare_copy(module: nn.Module) -> nn.Module:
    """`base_layer_of`; of an attention a copy, whose out_proj has no adapter and may be given one."""
    base = base_layer_of(module)
    if isinstance(base, nn.MultiheadAttention):
        base = copy.copy(base)
        base._modules = {name: base_layer_of(part) for name, part in base._modules.items() if part is not None}
    return base


def unwrapped(module: nn.Module) -> nn.Module:
    """The module below PEFT's copies for `modules_to_save` and its trainable tokens, or the module itself."""
    return cast(Any, module).original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def token_layers(model: Any, indices: Any) -> dict[str, tuple[nn.Embedding, list[int]]]:
    """By name, the embeddings that `trainable_token_indices` speaks of, and which of their tokens."""
    if indices is None:
        return {}
    by_ending: dict[str, Any] = {cast(str, _get_input_embeddings_name(model, "embed_tokens")): indices}
    by_ending = indices if isinstance(indices, dict) else by_ending
    return {
        name: (base, tokens)
        for name, module in walk(model)
        for ending, tokens in by_ending.items()
        if name.endswith(ending) and isinstance(base := base_layer_of(unwrapped(module)), nn.Embedding)
    }


def layer_class(base: nn.Module) -> type[GatedLoraLayer] | None:
    """The class that adapts such a base layer; None where there is none."""
    return next((cls for cls in LAYER_CLASSES if isinstance(base, cls.base_classes)), None)


def is_default(base: nn.Module) -> bool:
    """Whether `target_modules=None` stands for such a base layer, too: linear and (transposed) convolution layers."""
    return layer_class(base) in _BY_DEFAULT


def check_base_layer(name: str, module: nn.Module) -> type[GatedLoraLayer]:
    """The class that adapts this module, if an adapter on it is right in forward and in merge.

    Raises:
        TypeError: If the module is of another kind, has a forward of its own, or a weight that is neither floating
            point nor quantized in a way that is known.
        ValueError: If it carries another tuner's adapter, or a weight that is not there yet or is computed in an
            unknown way.
    """
    if isinstance(module, BaseTunerLayer) and not isinstance(module, GatedLoraLayer):
        raise ValueError(
            f"{name!r} already carries an adapter of another tuner ({type(module).__name__}); "
            "merge_and_unload() or unload() that one first."
        )
    base = base_layer_of(module)
    cls = layer_class(base)
    way_out = f"Leave it out: exclude_modules=[{name!r}]."
    if cls is None:
        raise TypeError(f"{name!r} is a {type(base).__name__}; GATED_LORA adapts {ADAPTABLE}. {way_out}")
    kind = next(kind for kind in cls.base_classes if isinstance(base, kind))
    if is_computed(base) and not is_known(base):
        raise ValueError(
            f"The weight of {name!r} is computed at each forward by {computed_by(base)}, in a way that loraguard does "
            "not know, so that a merge would be lost. Make it a plain parameter first, or compute it by "
            f"torch.nn.utils.parametrize. {way_out}"
        )
    if is_quantized(base):
        if reason := reason_against(base):
            raise TypeError(
                f"The weight of {name!r} is {quantized_as(base)}, and cannot be adapted: {reason}. {way_out}"
            )
        return cls
    weight = own_tensors(base)[0]
    if is_lazy(weight):
        raise ValueError(f"The weight of {name!r} has no shape yet; run the model once before adapting it.")
    if not weight.is_floating_point():
        raise TypeError(
            f"The weight of {name!r} is {weight.dtype}; GATED_LORA adapts floating-point weights, and linear layers "
            f"that torchao or bitsandbytes quantized. Load the model otherwise. {way_out}"
        )
    own = [m for m in ("forward", "_conv_forward") if getattr(type(base), m, None) is not getattr(kind, m, None)]
    if own:
        raise TypeError(
            f"{name!r} is a {type(base).__name__}, a {kind.__name__} with its own {own[0]}: whether a change of its "
            f"weight adds to its output is not known. {way_out}"
        )
    return cls


def check_not_shared(model: nn.Module, names: set[str]) -> None:
    """Refuse targets whose weight another module uses, too: merging one would change the other.

    Raises:
        ValueError: With both names.
    """
    owner: dict[int, str] = {}
    for name, module in walk(model):
        base = base_layer_of(module)
        weights = own_tensors(base) if layer_class(base) else [base._parameters.get("weight")]
        firsts = [owner.setdefault(id(weight), name) for weight in weights if weight is not None]
        first = next((one for one in firsts if one != name), name)
        if first != name and {first, name} & names:
            raise ValueError(
                f"{first!r} and {name!r} share one weight; an adapter on one of them would change the other when it "
                f"is merged. Copy the weight, or leave both out: exclude_modules=[{first!r}, {name!r}]."
            )
