"""Whether the file of a patch fits a network."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .layer import GatedLoraLayer
from .loading import Header, Shape, check_header
from .targets import base_layer_of, token_layers, unwrapped, walk

_PREFIX = "base_model.model."


def expected_shapes(model: nn.Module, config: Any, targets: Mapping[str, Any]) -> dict[str, Shape]:
    """What a file for this network and config holds, by name.

    Args:
        model: The network, adapted or not.
        config: The adapter's settings.
        targets: By name, the layers to adapt as they would be, with an adapter "new".
    """
    shapes: dict[str, Any] = {
        ".".join((name, *([inner] if inner else []), kind, parameter_name)): parameter.shape
        for name, target in targets.items()
        for inner, layer in target.named_modules()
        if isinstance(layer, GatedLoraLayer)
        for kind in ("lora_A", "lora_B", "lora_gate")
        for parameter_name, parameter in getattr(layer, kind)["new"].named_parameters()
    }
    shapes |= {
        ".".join((name, *([inner] if inner else []), "lora_magnitude_vector")): magnitude.weight.shape
        for name, target in targets.items()
        for inner, layer in target.named_modules()
        if isinstance(layer, GatedLoraLayer)
        for magnitude in layer.lora_magnitude_vector.values()
    }
    shapes |= {
        f"{name}.token_adapter.trainable_tokens_delta": (len(tokens), embedding.embedding_dim)
        for name, (embedding, tokens) in token_layers(model, config.trainable_token_indices).items()
    }
    for name, module in walk(model):
        if any(name.endswith(saved) for saved in config.modules_to_save or ()):
            shapes |= {f"{name}.{key}": value.shape for key, value in unwrapped(module).state_dict().items()}
        bias = base_layer_of(module)._parameters.get("bias")
        if bias is not None and (name in targets if config.bias == "lora_only" else config.bias == "all"):
            shapes[f"{name}.base_layer.bias" if name in targets else f"{name}.bias"] = bias.shape
    return {f"{_PREFIX}{name}": tuple(shape) for name, shape in shapes.items()}


def check_fits(header: Header, model: nn.Module, config: Any, targets: Mapping[str, Any]) -> None:
    """Refuse a file that this network would not take whole; see `check_header` and `expected_shapes`."""

    def accepts(name: str) -> bool:
        """The biases of wrapped modules, too, where bias="all"."""
        return config.bias == "all" and name.endswith(".bias") and ".lora_" not in name

    check_header(header, model, expected_shapes(model, config, targets), _embedding_shapes(model), accepts)


def _embedding_shapes(model: Any) -> dict[str, Shape]:
    """What `save_pretrained(save_embedding_layers=True)` puts into the file, too: whole layers, as PEFT wraps them."""
    getters = (getattr(model, f"get_{end}_embeddings", None) for end in ("input", "output"))
    layers = [getter() for getter in getters if getter is not None]
    return {
        f"{_PREFIX}{name}.{wrapper}{key}": tuple(value.shape)
        for name, module in walk(model)
        if any(module is layer for layer in layers)
        for key, value in base_layer_of(unwrapped(module)).state_dict().items()
        for wrapper in ("", "base_layer.", "modules_to_save.", "original_module.")
    }
