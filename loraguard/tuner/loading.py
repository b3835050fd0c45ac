"""Loading a patch safely: what is wrong with a file is said, and the model is left as it was.

A patch is a folder, or a repository on the Hub, with `adapter_config.json` and `adapter_model.safetensors`. Neither can
make anything run: pickles are refused, and names in a config are compared with names of layers, never imported.

PEFT reads the settings first (`GatedLoraConfig.from_pretrained`), and with them goes the header of the file: names,
types and shapes. `GatedLoraModel` compares these with the network before it replaces a layer. Then PEFT reads the
tensors, once, and each is checked once as it arrives: where one is not finite, the adapter is taken out again.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Shape = tuple[int, ...]

_FLOATS = {"F64", "F32", "F16", "BF16"}


def find_weights(model_id: str, subfolder: str | None = None, **hub: Any) -> Path | None:
    """The safetensors file of a patch, downloaded if it is on the Hub; None for a folder without weights.

    Raises:
        ValueError: If there is a pickle instead, or no regular file.
    """
    refusal = (
        f"{model_id} holds no {SAFETENSORS_WEIGHTS_NAME}. loraguard does not load {WEIGHTS_NAME} or any other pickle, "
        "which could run code: ask its author to save it anew with model.save_pretrained(folder)."
    )
    folder = Path(model_id, subfolder or "")
    if not folder.is_dir():
        try:
            return Path(hf_hub_download(model_id, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **hub))
        except EntryNotFoundError as error:
            raise ValueError(refusal) from error
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if weights.is_file():
        return weights
    if weights.exists() or (folder / WEIGHTS_NAME).exists():
        raise ValueError(refusal)
    return None


class Header(NamedTuple):
    """What a file of weights holds.

    Attributes:
        source: Whose it is, for messages.
        shapes: By the tensors' names.
        dtypes: By the tensors' names, as safetensors calls them.
    """

    source: str
    shapes: dict[str, Shape]
    dtypes: dict[str, str]


def read_header(source: str, file: Path) -> Header:
    """Names, types and shapes in a safetensors file, of which no tensor is read.

    Raises:
        ValueError: If it is no whole safetensors file.
    """
    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # it is no dict
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            return Header(source, shapes, {name: one.get_dtype() for name, one in slices.items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}). Download or save it again.") from error


def check_header(
    header: Header,
    model: nn.Module,
    expected: Mapping[str, Shape],
    optional: Mapping[str, Shape],
    accepts: Callable[[str], bool],
) -> None:
    """Compare what a file holds with what a network takes.

    Args:
        header: Of the file.
        model: The network, for messages.
        expected: Shapes by the names that the file must hold.
        optional: Shapes by the names that it may hold.
        accepts: Whether a further name may be there, in any shape.

    Raises:
        ValueError: At the first mismatch, with what was expected and what was found.
    """
    source, found = header.source, header.shapes
    shapes = {**expected, **{name: shape for name, shape in optional.items() if name in found}}
    unexpected = [name for name in found if name not in shapes and not accepts(name)]
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(_missing(source, model, name, shape, unexpected))
        if found[name] != shape:
            raise ValueError(
                f"{source}: {name!r} has shape {found[name]}, and this {type(model).__name__} takes {shape}. The patch "
                "is of another generator, or its r and patterns in adapter_config.json were changed."
            )
        if ".lora_" in name and header.dtypes[name] not in _FLOATS:
            raise ValueError(f"{source}: {name!r} holds {header.dtypes[name]}; expected one of {sorted(_FLOATS)}.")
    if unexpected and not expected:
        raise ValueError(_no_layer(source, model, unexpected[0]))
    if unexpected:
        raise ValueError(
            f"{source}: {unexpected[0]!r} fits nothing in this {type(model).__name__} with these settings; it takes "
            f"{len(expected)} tensors, the first {next(iter(expected))!r}."
        )


def check_finite(source: str, name: str, tensor: Tensor) -> None:
    """Raise a ValueError that names the first value that is infinite or NaN."""
    if not torch.isfinite(tensor).all():
        at = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
        raise ValueError(
            f"{source}: {name!r} holds {tensor[at].item()} at {at}; every value must be finite. The patch is broken."
        )


def _missing(source: str, model: nn.Module, name: str, shape: Shape, unexpected: list[str]) -> str:
    instead = f"It holds {unexpected[0]!r} instead" if unexpected else "Nothing is there in its place"
    return (
        f"{source}: no tensor {name!r} of shape {shape}, which this {type(model).__name__} takes. {instead}: the patch "
        "is of another generator, or its adapter_config.json was changed."
    )


class Before:
    """A network as it was before an adapter came, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._attributes = model, set(vars(model))
        self._modules = [(module, dict(module._modules), module.training) for module in model.modules()]
        self._parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Put back every module in its place, its mode, and which parameters learn."""
        for module, children, training in self._modules:
            module._modules.clear()
            module._modules.update(children)
            module.training = training
        for parameter, learns in self._parameters:
            parameter.requires_grad_(learns)
        for name in set(vars(self._model)) - self._attributes:
            delattr(self._model, name)  # PEFT's peft_config


def _no_layer(source: str, model: nn.Module, found: str) -> str:
    """Say what a patch and a network have that share no layer."""
    layers = [name for name, module in model.named_modules() if name and "weight" in module._parameters]
    prefix = next((one for one in ("module.", "_orig_mod.") if f"model.{one}" in found), None)
    why = f"{prefix!r} says that its network was wrapped" if prefix else "It is of another generator"
    return (
        f"{source[-150:]}: no layer that this patch is for is in this {type(model).__name__}. The patch has "
        f"{found!r:.120}; the network has {len(layers)} layers with weights, the first "
        f"{next(iter(layers), None)!r:.80}. {why}, or its target_modules in adapter_config.json were changed."
    )


def check_pattern(name: str, pattern: str) -> None:
    r"""Refuse a regular expression that does not compile, or might take for ever on the name of a layer.

    That is one with a repetition or an alternative inside a repetition, whose ways to match are exponentially many.

    Raises:
        ValueError: If so.

    Example:
        >>> check_pattern("target_modules", r".*\.(conv|up)\d+")
        >>> check_pattern("target_modules", r"(.+)+x")
        Traceback (most recent call last):
        ...
        ValueError: target_modules='(.+)+x' repeats what repeats or branches itself, which could take for ever; ...
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}={pattern!r} is no regular expression: {error}.") from None
    inner = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)  # escapes and sets cannot nest
    while group := re.search(r"\([^()]*\)([*+?{]?)", inner):
        nested = re.search(r"[*+{|]", group[0][1 : group[0].index(")")])
        if nested and group[1] in ("*", "+", "{"):
            raise ValueError(
                f"{name}={pattern!r} repeats what repeats or branches itself, which could take for ever; name the "
                "layers instead."
            )
        inner = inner[: group.start()] + ("x+" if nested else "x") + group[1] + inner[group.end() :]
