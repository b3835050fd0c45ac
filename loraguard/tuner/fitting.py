"""Whether the file of a patch fits a network: names, shapes and types, and then what its values do."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .computed import own_tensors
from .layer import GatedLoraLayer
from .loading import DTYPES, FLOATS, Header, Shape, check_file_hash, largest_values
from .messages import shown
from .targets import base_layer_of, token_layers, unwrapped, walk

PREFIX = "base_model.model."

LARGEST_UPDATE = 1e6
"""Of a weight, in multiples of the layer's largest one, or of 1."""
_HEADROOM = 16  # what is left, in half precision, for the sums that a layer makes


class Place(NamedTuple):
    """Where a tensor of a file goes.

    Attributes:
        shape: Which it must have.
        dtype: Which it must have; None for any floating-point one.
        same: The tensor of the base network that it must be equal to, as it takes its place; None elsewhere.
        most: The largest magnitude that it may hold.
    """

    shape: Shape
    dtype: torch.dtype | None = None
    same: Tensor | None = None
    most: float = math.inf


def check_patch(header: Header, model: nn.Module, config: Any, targets: Mapping[str, Any]) -> None:
    """Refuse a file that this network would not take whole, or that would set anything but the adapter.

    Sizes are compared first; only then is a tensor read.

    Args:
        header: Of the file.
        model: The network, adapted or not.
        config: The adapter's settings.
        targets: By name, the layers to adapt as they would be, with an adapter "new".

    Raises:
        ValueError: At the first mismatch, with what was expected and what was found.
    """
    expected = expected_places(model, config, targets)
    places = {**expected, **_copies(header, model, config, expected)}
    unexpected = [name for name in header.shapes if name not in places]
    for name, place in places.items():
        if name not in header.shapes:
            raise ValueError(_missing(header, model, name, place.shape, unexpected))
        _check_place(header, model, name, place)
    if unexpected:
        raise ValueError(
            f"{header.name}: {shown(unexpected[0])} fits nothing in this {type(model).__name__} with these settings; "
            f"it takes {len(expected)} tensors, the first {next(iter(expected))!r:.150}."
        )
    same = {name: place.same for name, place in places.items() if place.same is not None}
    sizes: dict[str, dict[str, float]] = {}
    for key, size in largest_values(header, places, same).items():
        if size > places[key].most:
            raise ValueError(
                f"{header.name}: {key!r:.200} holds {size}, which is infinite in this network's precision."
            )
        layer_name, _, part = key.rpartition(".lora_")
        sizes.setdefault(layer_name, {})[f"lora_{part}"] = size
    for name, layer in _layers(targets):
        full = f"{PREFIX}{name}"
        check_effect(f"{header.name}: {full!r:.200}", layer, layer.scaling["new"], layer.r["new"], sizes[full])
    check_file_hash(header.name, header.file, config.provenance)


def expected_places(model: nn.Module, config: Any, targets: Mapping[str, Any]) -> dict[str, Place]:
    """What a file for this network and config holds, by name; see :func:`check_patch`."""
    places = {
        f"{name}.{kind}.{parameter_name}": Place(tuple(parameter.shape))
        for name, layer in _layers(targets)
        for kind in ("lora_A", "lora_B", "lora_gate")
        for parameter_name, parameter in getattr(layer, kind)["new"].named_parameters()
    }
    places |= {
        f"{name}.lora_magnitude_vector": Place(tuple(cast(Tensor, magnitude.weight).shape))
        for name, layer in _layers(targets)
        for magnitude in layer.lora_magnitude_vector.values()
    }
    places |= {
        f"{name}.token_adapter.trainable_tokens_delta": Place(
            (len(tokens), embedding.embedding_dim), most=_largest_of(embedding.weight.dtype)
        )
        for name, (embedding, tokens) in token_layers(model, config.trainable_token_indices).items()
    }
    for name, module in walk(model):
        if any(name.endswith(saved) for saved in config.modules_to_save or ()):
            state = unwrapped(module).state_dict()
            places |= {f"{name}.{key}": Place(tuple(value.shape), value.dtype) for key, value in state.items()}
        bias = base_layer_of(module)._parameters.get("bias")
        if bias is not None and (name in targets if config.bias == "lora_only" else config.bias == "all"):
            place = Place(tuple(bias.shape), bias.dtype, bias)
            places.setdefault(f"{name}.base_layer.bias" if name in targets else f"{name}.bias", place)
    return {f"{PREFIX}{name}": place for name, place in places.items()}


def _layers(targets: Mapping[str, Any]) -> list[tuple[str, GatedLoraLayer]]:
    """The adapted layers by name; of an attention each of its projections."""
    return [
        (f"{name}.{inner}" if inner else name, layer)
        for name, target in targets.items()
        for inner, layer in target.named_modules()
        if isinstance(layer, GatedLoraLayer)
    ]


_WRAPPERS = ("base_layer", "original_module", "modules_to_save")


def _copies(header: Header, model: Any, config: Any, expected: Mapping[str, Place]) -> dict[str, Place]:
    """What a file holds of the base network itself: biases and embeddings, which PEFT saves where it is asked to.

    They would take the place of the network's own, and so have to be the same.
    """
    embeddings = _embeddings(model)
    own: dict[str, Tensor] = {}
    for name, module in walk(model):
        base = base_layer_of(unwrapped(module))
        whole = any(base is one for one in embeddings)
        for key, value in base.state_dict().items() if whole or base is not module or not base._modules else ():
            if whole or (config.bias == "all" and key.endswith("bias")):
                own[f"{name}.{key}"] = value
    found = {}
    for name in header.shapes:
        parts = name.removeprefix(PREFIX).split(".")
        value = own.get(".".join(part for part in parts if part not in _WRAPPERS))
        if value is not None and name not in expected and name.startswith(PREFIX):
            # A second copy of what modules_to_save names is there for people alone: PEFT sets the first.
            same = None if "modules_to_save" in parts else value
            found[name] = Place(tuple(value.shape), value.dtype, same)
    return found


def _embeddings(model: Any) -> list[nn.Module]:
    """The layers that `save_pretrained(save_embedding_layers=True)` saves whole, too."""
    found = []
    for end in ("input", "output"):
        with suppress(NotImplementedError, AttributeError):
            layer = getattr(model, f"get_{end}_embeddings")()
            found += [] if layer is None else [base_layer_of(unwrapped(layer))]
    return found


def _missing(header: Header, model: nn.Module, name: str, shape: Shape, unexpected: list[str]) -> str:
    instead = f"It holds {shown(unexpected[0])} instead" if unexpected else "Nothing is there in its place"
    return (
        f"{header.name}: no tensor {name!r:.200} of shape {shape}, which this {type(model).__name__} takes. {instead}: "
        "the patch is of another generator, or its adapter_config.json was changed."
    )


def _check_place(header: Header, model: nn.Module, name: str, place: Place) -> None:
    shape, dtype = header.shapes[name], header.dtypes[name]
    if shape != place.shape:
        raise ValueError(
            f"{header.name}: {name!r:.200} has shape {shown(shape)}, and this {type(model).__name__} takes "
            f"{place.shape}. The patch is of another generator, or its r and patterns in adapter_config.json were "
            "changed."
        )
    if place.dtype is None and dtype not in FLOATS.values():
        raise ValueError(f"{header.name}: {name!r:.200} holds {dtype}; expected one of {sorted(FLOATS.values())}.")
    if place.dtype is not None and dtype != DTYPES.get(place.dtype, dtype):
        raise ValueError(
            f"{header.name}: {name!r:.200} holds {dtype}, and this {type(model).__name__} has {place.dtype} there. "
            "Load the network in the precision that the patch was trained in."
        )


def _largest_of(dtype: torch.dtype) -> float:
    return torch.finfo(dtype if dtype in FLOATS else torch.float32).max


def check_effect(name: str, layer: Any, scale: float, rank: int, sizes: Mapping[str, float]) -> None:
    """Refuse an update by which weights, or what a layer gives, would be infinite.

    `|gate * s * B A| <= s * r * max|A| * max|B|` for each weight.

    Args:
        name: Of the layer, for messages.
        layer: The adapted layer.
        scale: s.
        rank: r.
        sizes: The largest magnitudes of the adapter's tensors, by names such as "lora_A.weight".

    Raises:
        ValueError: If so.
    """
    weight = own_tensors(base_layer_of(layer))[0]
    most = _largest_of(weight.dtype)
    for part, size in sizes.items():
        if size > most:
            raise ValueError(f"{name} holds {size} in {part}, which is infinite in this layer's {weight.dtype}.")
    A, B = (max(size for part, size in sizes.items() if part.startswith(kind)) for kind in ("lora_A", "lora_B"))
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype in FLOATS and not weight.is_meta
    limit = min(LARGEST_UPDATE * max(1.0, float(weight.detach().abs().max()) if plain else 0.0), most / _HEADROOM)
    if not (update := scale * rank * A * B) <= limit:
        raise ValueError(
            f"{name}: its update may be as large as {update:.3g} by its lora_alpha in adapter_config.json and the "
            f"values in the file; at most {limit:.3g} is taken."
        )
