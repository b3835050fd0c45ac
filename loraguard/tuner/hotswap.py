"""Hotswapping, right for every layer, rank and pattern.

`peft.utils.hotswap` knows linear layers and ungrouped 2d convolutions. Beyond these it is silently wrong or raises: it
looks up `rank_pattern` and `alpha_pattern` by the names of parameters, which they do not match; it puts a smaller rank
of a grouped convolution into the wrong groups; it refuses 1d and 3d convolutions; and it pads no layer of ours. There
is no hook, so `register` wraps two of its functions. Adapters of other methods pass through untouched.
"""

import functools
import math
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from peft.utils import hotswap
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .config import GatedLoraConfig
from .folding import FoldingLayer
from .layer import GatedLoraLayer
from .swapping import FACTORS, by_rank, check_swap, ranks_of


def install() -> None:
    """Wrap PEFT's functions, once."""
    for name, wrapper in (("hotswap_adapter_from_state_dict", _swapping), ("_pad_lora_weights", _padding)):
        given = getattr(hotswap, name)
        if not hasattr(given, "__wrapped__"):
            setattr(hotswap, name, wrapper(given))


def pad_rank(factor: Tensor, kind: str, groups: int, rank: int) -> Tensor:
    """The weight of A, of B or of a gate per rank (`kind`), with zeros for further ranks, group after group.

    Raises:
        ValueError: If it has more ranks than that already, or if the groups do not divide them.

    Example:
        >>> pad_rank(torch.tensor([[1.0], [2.0]]), "lora_A", groups=2, rank=4).T
        tensor([[1., 0., 2., 0.]])
    """
    ranks = ranks_of(factor, kind, groups)
    if rank < ranks or rank % groups:
        raise ValueError(f"Cannot pad an adapter of rank {ranks} to {rank}, on a layer of {groups} groups.")
    if kind == "lora_B":
        return torch.cat([factor, factor.new_zeros(len(factor), (rank - ranks) // groups, *factor.shape[2:])], 1)
    by_group = factor.unflatten(0, (groups, -1))
    more = factor.new_zeros(groups, (rank - ranks) // groups, *factor.shape[1:])
    return torch.cat([by_group, more], 1).flatten(0, 1)


def _swapping(original: Any) -> Any:
    @functools.wraps(original)
    def hotswap_adapter_from_state_dict(
        model: nn.Module,
        state_dict: dict[str, Tensor],
        adapter_name: str,
        config: Any,
        parameter_prefix: str = "lora_",
    ) -> None:
        if not isinstance(config, GatedLoraConfig):
            return original(model, state_dict, adapter_name, config, parameter_prefix)
        if config.use_dora:
            raise ValueError(
                "Adapters with use_dora=True cannot be hotswapped: their magnitudes are of their own start."
            )
        check_swap(model, state_dict, adapter_name, config)
        ranks: dict[str, int] = {}
        padded = dict(state_dict)
        for key, value in state_dict.items():
            name, kind, _, parameter = key.rsplit(".", 3) if key.count(".") > 2 else ("", "", "", "")
            try:
                layer: Any = model.get_submodule(name)
                if parameter != "weight" or kind not in by_rank(layer, adapter_name):
                    continue
            except (AttributeError, KeyError):
                continue  # PEFT says which keys do not fit
            mine, theirs = len(layer.lora_A[adapter_name].weight), ranks_of(value, kind, layer.groups)
            ranks[name] = theirs
            if theirs < mine:
                padded[key] = pad_rank(value, kind, layer.groups, mine)
        original(model, padded, adapter_name, config, parameter_prefix)
        for name, rank in ranks.items():
            _set_scale(model.get_submodule(name), name, adapter_name, rank, config)
        for layer in model.modules():
            if isinstance(layer, FoldingLayer):
                layer.forget()
        return None

    return hotswap_adapter_from_state_dict


def _set_scale(layer: Any, name: str, adapter: str, rank: int, config: GatedLoraConfig) -> None:
    name = name.removeprefix("_orig_mod.").removeprefix("base_model.model.")
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha)
    # What set_scale and unscale_layer go back to: the adapter's own rank, whatever it is padded to.
    layer.r[adapter], layer.lora_alpha[adapter] = rank, alpha
    hotswap._update_scaling(layer, adapter, alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _padding(original: Any) -> Any:
    @functools.wraps(original)
    def _pad_lora_weights(model: nn.Module, target_rank: int) -> bool:
        found = original(model, target_rank=target_rank)
        for layer in model.modules():
            if isinstance(layer, GatedLoraLayer):
                found = True
                for adapter in layer.lora_A:
                    _pad_layer(layer, adapter, target_rank)
        return found

    return _pad_lora_weights


def _pad_layer(layer: GatedLoraLayer, adapter: str, rank: int) -> None:
    fresh = dict(zip(FACTORS, layer.make_factors(rank, layer.lora_bias[adapter]), strict=True))
    for kind in by_rank(layer, adapter):
        part = getattr(layer, kind)[adapter]
        old, bias = part.weight, getattr(part, "bias", None)
        part = fresh.get(kind, part).train(layer.training)
        part.weight = nn.Parameter(pad_rank(old.detach(), kind, layer.groups, rank), requires_grad=old.requires_grad)
        if bias is not None:
            part.bias = bias
        getattr(layer, kind)[adapter] = part
