"""Whether the file of a patch fits a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .hosts import host_of, walk
from .loading import Shape, check_weights

_PREFIX = "base_model.model."


def expected_shapes(model: nn.Module, config: Any, targets: Mapping[str, Any]) -> dict[str, Shape]:
    """What a file for this network and config holds, by name.

    Args:
        model: The network, adapted or not.
        config: The adapter's settings.
        targets: By name, the layers to adapt as they would be, with an adapter "new".
    """
    shapes = {
        f"{name}.{kind}.{parameter_name}": parameter.shape
        for name, layer in targets.items()
        for kind in ("lora_A", "lora_B", "lora_gate")
        for parameter_name, parameter in getattr(layer, kind)["new"].named_parameters()
    }
    for name, module in walk(model):
        if any(name.endswith(saved) for saved in config.modules_to_save or ()):
            wrapped = isinstance(module, AuxiliaryTrainingWrapper)
            original = module.get_submodule("original_module") if wrapped else module
            shapes |= {f"{name}.{key}": value.shape for key, value in original.state_dict().items()}
        bias = host_of(module)._parameters.get("bias")
        if bias is not None and (name in targets if config.bias == "lora_only" else config.bias == "all"):
            shapes[f"{name}.base_layer.bias" if name in targets else f"{name}.bias"] = bias.shape
    return {f"{_PREFIX}{name}": tuple(shape) for name, shape in shapes.items()}


def check_fits(file: Path, model: nn.Module, config: Any, targets: Mapping[str, Any]) -> None:
    """Refuse a file that this network would not take whole; see `check_weights` and `expected_shapes`."""
    embeddings = {f"{_PREFIX}{name}.weight" for name in _embeddings(model)}

    def may_be_there(name: str) -> bool:
        """The biases of wrapped modules, too, where bias="all"; what save_embedding_layers saves."""
        return name in embeddings or (config.bias == "all" and name.endswith(".bias") and ".lora_" not in name)

    check_weights(file, model, expected_shapes(model, config, targets), may_be_there)


def _embeddings(model: Any) -> list[str]:
    getters = (getattr(model, f"get_{end}_embeddings", None) for end in ("input", "output"))
    layers = [getter() for getter in getters if getter is not None]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
