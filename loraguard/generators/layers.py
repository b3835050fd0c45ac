"""A generator as far as one of its layers: its latent features, or any others."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class _Reached(BaseException):
    """Ends a forward pass early. Not an `Exception`, so that no network's own handling of errors stops it."""


def find_layer(generator: nn.Module, name: str) -> nn.Module:
    """A layer by the name that it has in the generator itself, whatever the generator is wrapped in.

    PEFT, :class:`~loraguard.channels.Through` and DDP put prefixes before names; of all layers whose name ends in the
    one asked for, the outermost is meant.

    Raises:
        ValueError: if there is none, or more than one.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> generator = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        >>> find_layer(get_peft_model(generator, GatedLoraConfig(r=1)), "1")
        ReLU()
    """
    layers = dict(generator.named_modules())
    found = [known for known in layers if f".{known}".endswith(f".{name}")]
    if not name or not found:
        near = difflib.get_close_matches(name, [known for known in layers if known], 1)
        raise ValueError(
            f"{type(generator).__name__} has no layer {name!r}; `generator.named_modules()` lists them."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    outermost = min(known.count(".") for known in found)
    found = [known for known in found if known.count(".") == outermost]
    if len(found) > 1:
        raise ValueError(f"The layer {name!r} may be any of {', '.join(found)}; give the whole name.")
    return layers[found[0]]


def latent_of(generator: nn.Module) -> str:
    """The name of the layer whose output is a generator's latent.

    Raises:
        ValueError: if the generator does not say.

    Example:
        >>> from loraguard.generators import AttGAN
        >>> latent_of(AttGAN(dim=4, layers=2))
        'enc_layers.1'
    """
    layer = getattr(generator, "latent_layer", None)
    if layer is None:
        raise ValueError(
            f"{type(generator).__name__} has no `latent_layer`; name the layer whose output is its latent: as the "
            "defense's layer= or layers=, or `generator.latent_layer = ...`."
        )
    return layer


def up_to(generator: nn.Module, layer: str) -> Callable[..., Tensor]:
    """The generator as far as a layer: called as the generator is, it gives that layer's output instead.

    What comes after the layer is not run: the forward pass ends as the layer gives its output (its first, where it is
    called more than once). Gradients reach the images, and the layer's own hooks have acted.

    Args:
        generator: a network, wrapped or not, in `folded` or not; not compiled by `torch.compile`.
        layer: a module's name in the generator, as `named_modules` has it without wrappers.

    Raises:
        ValueError: if there is no such layer; on a call, if the forward pass never comes to it.
        TypeError: on a call, if its output is no tensor.

    Example:
        >>> import torch
        >>> from loraguard.generators import DemoEditor
        >>> editor = DemoEditor(conv_dim=4)
        >>> up_to(editor, editor.latent_layer)(torch.zeros(1, 3, 16, 16), labels=torch.zeros(1, 5)).shape
        torch.Size([1, 16, 4, 4])
    """
    module = find_layer(generator, layer)

    def features(images: Tensor, **condition: Tensor) -> Tensor:
        caught: list[Any] = []

        def catch(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output)
            raise _Reached

        hook = module.register_forward_hook(catch)
        try:
            generator(images, **condition)
        except _Reached:
            pass
        finally:
            hook.remove()
        if not caught:
            raise ValueError(f"The forward pass of {type(generator).__name__} does not come to the layer {layer!r}.")
        if not isinstance(caught[0], Tensor):
            raise TypeError(f"The layer {layer!r} gives {type(caught[0]).__name__}; choose one that gives a tensor.")
        return caught[0]

    return features
