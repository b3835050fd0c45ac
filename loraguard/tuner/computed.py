"""Base layers whose weight is computed at each forward: spectral norm, weight norm, orthogonal weights, pruning masks.

Unmerged, an adapter's update acts beside such a weight, which goes on being computed as it would be without it. What is
computed cannot be added to, so that `merge_and_unload` first makes the weight a plain parameter, as it is in eval mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def is_computed(layer: nn.Module) -> bool:
    """Whether the weight of a layer that can be adapted is no parameter of its own.

    Example:
        >>> is_computed(nn.Linear(2, 2)), is_computed(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        (False, True)
    """
    return "weight" not in layer._parameters and "in_proj_weight" not in layer._parameters


def computed_by(layer: Any) -> str:
    """What computes the weight, for messages."""
    if parametrize.is_parametrized(layer, "weight"):
        found = [type(step).__name__.lstrip("_") for step in layer.parametrizations["weight"]]
    else:
        found = [type(hook).__name__ for hook in layer._forward_pre_hooks.values()]
    return " and ".join(found) or "the layer itself"


def is_known(layer: Any) -> bool:
    """Whether it is known how the weight is computed: by parametrizations, or by one of torch's hooks alone."""
    return parametrize.is_parametrized(layer, "weight") or _hook(layer) is not None


def own_tensors(layer: Any) -> list[Tensor]:
    """What the weight is stored as: itself, or what it is computed from."""
    if isinstance(layer, nn.MultiheadAttention):
        return [layer.q_proj_weight if layer.in_proj_weight is None else layer.in_proj_weight]
    if not is_computed(layer):
        return [layer.weight]
    if parametrize.is_parametrized(layer, "weight"):
        return list(layer.parametrizations["weight"].parameters())
    return [parameter for name, parameter in layer._parameters.items() if name.startswith("weight_")]


@contextmanager
def at_rest(layer: Any) -> Iterator[None]:
    """Within it, the weight can be read as it is in eval mode: no power iteration goes on because of that."""
    if not is_computed(layer) or not is_known(layer):
        yield
        return
    if not parametrize.is_parametrized(layer, "weight"):
        with torch.no_grad():
            layer.weight = _by_hook(layer)  # the next forward computes it anew; this one may be out of date
        yield
        return
    steps = [(module, module.training) for module in layer.parametrizations["weight"].modules()]
    for module, _ in steps:
        module.training = False
    try:
        yield
    finally:
        for module, mode in steps:
            module.training = mode


@torch.no_grad()
def make_plain(layer: Any) -> None:
    """Make a parameter of the weight, with its value in eval mode; what computed it is gone."""
    learns = any(one.requires_grad for one in own_tensors(layer))
    with at_rest(layer):
        weight = layer.weight.detach().clone()
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
        else:
            hook = _hook(layer)
            cast(Callable[..., Any], _remover(hook))(layer, "weight")
    layer._parameters.pop("weight", None)
    layer._buffers.pop("weight", None)  # which torch makes of a weight that did not learn
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=learns))


def _hook(layer: Any) -> Any:
    """The hook of torch's that computes the weight, if there is one and no other."""
    hooks = [
        hook
        for hook in layer._forward_pre_hooks.values()
        if "weight" in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None))
    ]
    return hooks[0] if len(hooks) == 1 and _remover(hooks[0]) else None


def _by_hook(layer: Any) -> Tensor:
    hook = _hook(layer)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(layer, do_power_iteration=False)
    return hook.compute_weight(layer) if isinstance(hook, WeightNorm) else hook.apply_mask(layer)


def _remover(hook: Any) -> Callable[[nn.Module, str], Any] | None:
    removers: dict[type, Callable[[Any, str], Any]] = {
        SpectralNorm: remove_spectral_norm,
        WeightNorm: remove_weight_norm,
        prune.BasePruningMethod: prune.remove,
    }
    return next((remove for kind, remove in removers.items() if isinstance(hook, kind)), None)
