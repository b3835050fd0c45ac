"""Layers of a generator by the part that they belong to: encoder, decoder, denoiser."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

ALL = "all"
_DEFAULT = {"encoder": ("encoder",), "decoder": ("decoder",), "denoiser": ("denoiser",)}


def parts_of(generator: nn.Module) -> dict[str, tuple[str, ...]]:
    """By the name of each part that a generator has, the beginnings of its layers' names.

    A network says so by an attribute `parts`; one that does not has those of `encoder`, `decoder` and `denoiser` that
    are its children.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> list(parts_of(TAEF2(**TAEF2.small)))
        ['encoder', 'decoder']
    """
    children = {name for name, _ in generator.named_children()}
    said = getattr(generator, "parts", None) or {
        part: names for part, names in _DEFAULT.items() if children.issuperset(names)
    }
    return dict(said)


def layers_in(generator: nn.Module, chosen: str) -> list[str] | None:
    """The names of a part's linear and convolution layers, for `GatedLoraConfig(target_modules=...)`.

    Args:
        generator: a network without adapters.
        chosen: a part, several joined by plus signs, such as "encoder+decoder", or "all".

    Returns:
        Names of layers; None for all, which GATED_LORA takes for every layer.

    Raises:
        ValueError: if the generator has no such part.

    Example:
        >>> from loraguard.generators import CelebaVAE
        >>> layers_in(CelebaVAE(**CelebaVAE.small), "encoder")[-3:]
        ['encoder.lin1', 'encoder.lin2', 'encoder.mu_logvar_gen']
    """
    if chosen == ALL:
        return None
    parts = parts_of(generator)
    begin: list[str] = []
    for name in chosen.split("+"):
        if name not in parts:
            there = ", ".join((*parts, ALL)) if parts else f"{ALL} alone"
            raise ValueError(f"{type(generator).__name__} has no part {name!r} to adapt; it has {there}.")
        begin += parts[name]
    return [
        name
        for name, module in generator.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and any(f"{name}.".startswith(f"{one}.") for one in begin)
    ]
