"""Linear base layers with quantized weights: torchao's weight-only kinds, and bitsandbytes' 8 and 4 bits.

Unmerged, an adapter's update acts beside such a layer, in the precision of the adapter, and is trained as on any other.
There is no floating-point weight to add to, so that `merge_and_unload` first makes a plain layer of what the quantized
numbers stand for. Quantizing the sum again would round the update away where it is smaller than half a step.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

_PACKS = "support_avx512bf16_for_cpu"  # of bitsandbytes' layers


def is_quantized(layer: nn.Module) -> bool:
    """Whether the weight of a layer is one of torchao's or bitsandbytes' tensors.

    Example:
        >>> is_quantized(nn.Linear(2, 2))
        False
    """
    weight = layer._parameters.get("weight")
    # The types of others have no names that torch.compile can follow.
    return weight is not None and type(weight) is not nn.Parameter and _library(layer) is not None


def quantized_as(layer: nn.Module) -> str:
    """What the weight is, for messages."""
    return f"{type(layer._parameters['weight']).__name__} of {_library(layer)}"


def reason_against(layer: Any) -> str | None:
    """Why a quantized layer cannot be adapted; None where it can."""
    weight = layer._parameters["weight"]
    if not isinstance(layer, nn.Linear):
        return f"it is a {type(layer).__name__}, and only quantized linear layers are adapted"
    if _library(layer) == "torchao":
        if type(layer).forward is not nn.Linear.forward:
            return f"its {type(layer).__name__} has a forward of its own"
        own = any("dequantize" in vars(cls) for cls in type(weight).__mro__ if cls.__module__.startswith("torchao."))
        return None if own else "torchao cannot dequantize such a weight, which merging needs"
    if type(layer).__name__ not in ("Linear8bitLt", "Linear4bit", "LinearFP4", "LinearNF4"):
        return f"its {type(layer).__name__} is not one of bitsandbytes' two kinds of linear layers"
    if getattr(weight, "has_fp16_weights", False):
        return "has_fp16_weights=True keeps it in half precision and quantizes it at each forward"
    if weight.is_floating_point():
        return "it is not quantized yet: move the network to its device first, by .to(device)"
    return None


@torch.no_grad()
def dequantized(layer: Any) -> Tensor:
    """What the numbers stand for, (out, in), in the floating-point type that the library gives them."""
    weight = layer._parameters["weight"]
    if _library(layer) == "torchao":
        return weight.dequantize()
    if not hasattr(weight, "quant_state"):
        maxima = layer.state.SCB if layer.state.SCB is not None else weight.SCB
        return weight.data.float() * (maxima.float().view(-1, 1) / 127)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(*_unpacked(weight.data, weight.quant_state))


def _unpacked(data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Numbers and scales as bitsandbytes makes them, of a 4-bit weight that it may have packed since."""
    if not getattr(state, "packing_format_for_cpu", False):
        return data, state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    state = copy.deepcopy(state)
    state.original_nested = False  # or the scales would be quantized once more
    data, state = _convert_weight_packed_for_cpu_inverse(data, state)
    state.absmax = state.absmax.T.reshape(-1).float()  # from (blocks of a row, rows), as the kernel wants them
    return data, state


def forbid_packing(layer: Any) -> None:
    """Keep the numbers of a 4-bit layer of bitsandbytes as they are, or make them so again.

    On processors with AVX512-BF16 its first forward in eval mode packs them for a kernel that multiplies in bfloat16,
    rounds their scales to it for good, and gives no gradient any more: attacks and training would go around the layer.
    """
    if hasattr(layer, _PACKS):
        weight = layer._parameters["weight"]
        weight.data, weight.quant_state = _unpacked(weight.data, weight.quant_state)
        layer.quant_state = weight.quant_state
        setattr(layer, _PACKS, False)


def allow_packing(layer: Any) -> None:
    """Leave it to bitsandbytes again."""
    if hasattr(layer, _PACKS):
        from bitsandbytes.functional import has_avx512bf16

        setattr(layer, _PACKS, has_avx512bf16())


def plain_layer(layer: Any) -> nn.Linear:
    """A layer with the dequantized weight and the same bias, in the bias' type; a warning says what that means."""
    weight, bias = dequantized(layer), layer.bias
    dtype = weight.dtype if bias is None else bias.dtype
    warnings.warn(
        f"Merging into a {type(layer).__name__} with a weight that is {quantized_as(layer)}: the merged layer is a "
        f"plain Linear in {dtype}, {weight.numel() * dtype.itemsize:,} bytes large, whose values are rounded by up to "
        f"{torch.finfo(dtype).eps / 2:.1g} of themselves. What the quantized layer did to its inputs is gone.",
        stacklevel=2,
    )
    plain = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    plain.bias = bias
    return plain.train(layer.training)


def _library(layer: nn.Module) -> str | None:
    kind = type(layer._parameters.get("weight"))
    if kind in (Tensor, nn.Parameter):  # before its module's name is read, which torch.compile does not do
        return None
    library = kind.__module__.partition(".")[0]
    return library if library in ("torchao", "bitsandbytes") else None
