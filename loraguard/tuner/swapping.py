"""Whether an adapter can take another one's place; what a file holds is checked before anything is swapped."""

import math
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .config import GatedLoraConfig
from .fitting import check_effect
from .gates.base import StaticGate
from .layer import GatedLoraLayer
from .loading import FLOATS, check_file_hash, check_finite
from .messages import refusing, shown

FACTORS = ("lora_A", "lora_B")


def ranks_of(weight: Tensor, kind: str, groups: int) -> int:
    """The rank of an adapter by the weight of its A, its B or its gate per rank (`kind`)."""
    return weight.shape[1] * groups if kind == "lora_B" else len(weight)


def by_rank(layer: GatedLoraLayer, adapter: str) -> tuple[str, ...]:
    """The parts of an adapter whose weights grow with the rank."""
    gate = layer.lora_gate[adapter]
    return (*FACTORS, "lora_gate") if isinstance(gate, StaticGate) and gate.along[2] else FACTORS


def check_swap(model: nn.Module, tensors: Mapping[str, Tensor], adapter: str, config: GatedLoraConfig) -> None:
    """Refuse tensors that are no whole adapter of these settings and of this model's layers.

    Layers that are not among them are PEFT's affair: it sets their updates to zero.

    Raises:
        ValueError: At the first mismatch; where a file is swapped in, with its name.
    """
    file, patch = (config.header.name, config.header.source) if config.header else (f"The patch for {adapter!r}", None)
    with refusing(file, patch):
        layers: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            found = re.fullmatch(rf"(.+)\.(lora_(?:A|B|gate))\.{re.escape(adapter)}\.(\w+)", key)
            if found is None:
                raise ValueError(f"{shown(key)} is no part of an adapter; hotswapping takes nothing else.")
            if value.dtype not in FLOATS:
                raise ValueError(f"{shown(key)} holds {value.dtype}; expected one of {sorted(FLOATS.values())}.")
            check_finite(file, key, value)
            layers.setdefault(found[1], {})[f"{found[2]}.{found[3]}"] = value
        for name, parts in layers.items():
            try:
                layer = attrgetter(name)(model)
            except AttributeError:
                raise ValueError(f"{shown(name)} is no layer with an adapter; unexpected keys found.") from None
            if not isinstance(layer, GatedLoraLayer) or adapter not in layer.lora_A:
                raise ValueError(f"{shown(name)} has no adapter {adapter!r}; unexpected keys found.")
            _check_layer(name, layer, parts, adapter, config)
        if config.header is not None:
            check_file_hash(file, config.header.file, config.provenance)


def _check_layer(name: str, layer: Any, parts: dict[str, Tensor], adapter: str, config: GatedLoraConfig) -> None:
    mine = {
        f"{kind}.{key}": value
        for kind in (*FACTORS, "lora_gate")
        for key, value in getattr(layer, kind)[adapter].named_parameters()
    }
    if parts.keys() != mine.keys():
        raise ValueError(f"{shown(name)} has {sorted(parts)} there; it takes {sorted(mine)}.")
    growing = {f"{kind}.weight": kind for kind in by_rank(layer, adapter)}
    ranks = set()
    for part, value in parts.items():
        own, kind = list(mine[part].shape), growing.get(part)
        if kind is not None and value.dim() == len(own):
            own[kind == "lora_B"] = value.shape[kind == "lora_B"]
            ranks.add(ranks_of(value, kind, layer.groups))
        if list(value.shape) != own:
            raise ValueError(f"{shown(f'{name}.{part}')} has shape {tuple(value.shape)}, and takes {tuple(own)}.")
    bare = name.removeprefix("_orig_mod.").removeprefix("base_model.model.")
    ranks_by, alphas_by = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks_by.get(get_pattern_key(list(ranks_by), bare), config.r)
    if ranks != {rank}:
        raise ValueError(f"{shown(name)} has ranks {sorted(ranks)}, and the settings say {rank}.")
    alpha = alphas_by.get(get_pattern_key(list(alphas_by), bare), config.lora_alpha)
    sizes = {part: float(value.abs().max()) for part, value in parts.items()}
    check_effect(shown(name), layer, alpha / (math.sqrt(rank) if config.use_rslora else rank), rank, sizes)
