"""Whether a defense has left everything as it was: networks, what hangs on them, and the process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every

from .identity import HOOKS


class Unharmed:
    """Whether networks are what they were: weights, buffers, modes, hooks, and methods that were put over others.

    Args:
        networks: as they should stay.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.networks = list(networks)
        self.tensors = [{name: value.detach().clone() for name, value in _tensors(one)} for one in self.networks]
        self.everywhere = _global_hooks()
        self.layers = {
            layer: (name or "the network", layer.training, _hooks(layer), _methods(layer))
            for one in self.networks
            for name, layer in one.named_modules()
        }

    def check(self, who: str) -> None:
        """Put back what is not as it was, and say so.

        Raises:
            ValueError: naming who did it and what changed first.
        """
        changed: list[str] = []
        for network, tensors in zip(self.networks, self.tensors, strict=True):
            for name, value in _tensors(network):
                was = tensors.get(name)
                if was is None or not _same(value, was):
                    changed.append(name)
                    if was is not None and was.shape == value.shape:
                        value.data.copy_(was)
        for layer, (name, training, hooks, methods) in self.layers.items():
            if layer.training != training:
                changed.append(f"the mode of {name}")
                layer.training = training
            if _hooks(layer) != hooks:
                changed.append(f"a hook on {name}")
                for kind, before in hooks.items():
                    there = getattr(layer, kind)
                    there.clear()
                    there.update(before)
            if (now := _methods(layer)) != methods:
                changed.append(f"a method of {name}")
                for key in now.keys() - methods.keys():
                    delattr(layer, key)
                for key, before in methods.items():
                    setattr(layer, key, before)
        if (now := _global_hooks()) != self.everywhere:
            changed.append("a hook on every network")
            for kind in now:
                there = getattr(every, kind)
                there.clear()
                there.update(self.everywhere[kind])
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ValueError(
                f"{who} changed the generator ({changed[0]}{more}), which no defense may do: it would spoil every "
                "figure after it. Let it work on a copy of the network, in evaluation mode."
            )


@contextmanager
def settings_kept() -> Iterator[None]:
    """After the block torch's defaults for this process, and its working folder, are what they were.

    Example:
        >>> with settings_kept():
        ...     torch.set_default_dtype(torch.float64)
        >>> torch.zeros(1).dtype
        torch.float32
    """
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    strict, only_warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    folder, precision = os.getcwd(), torch.get_float32_matmul_precision()
    autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")}
    try:
        yield
    finally:
        for kind, (enabled, narrow) in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, narrow)
        torch.set_default_dtype(dtype)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=only_warn)
        os.chdir(folder)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _same(value: Tensor, was: Tensor) -> bool:
    if value.shape != was.shape or value.dtype != was.dtype:
        return False
    value = value.detach()
    return torch.equal(value, was) or torch.allclose(value, was, rtol=0, atol=0, equal_nan=True)


def _hooks(layer: nn.Module) -> dict[str, dict[int, Any]]:
    return {kind: dict(getattr(layer, kind)) for kind in HOOKS}


def _global_hooks() -> dict[str, dict[int, Any]]:
    """Hooks that torch calls for whatever network is called."""
    return {f"_global{kind}": dict(getattr(every, f"_global{kind}")) for kind in HOOKS}


def _methods(layer: nn.Module) -> dict[str, Any]:
    """What was put over a layer's methods."""
    return {name: value for name, value in vars(layer).items() if callable(value) and hasattr(type(layer), name)}
