"""A layer inside of a network: finding it, watching what it gives, and where in an image it matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.generators.layers import find_layer, latent_of

from .fitted import Target


def with_layers(targets: Sequence[Target], names: Sequence[str] | None) -> list[Target]:
    """Generators with their layers, by name or by each one's own `latent_layer`.

    Raises:
        ValueError: if there are not as many names as generators, or a layer is not there.
    """
    if names is not None and len(names) != len(targets):
        raise ValueError(f"Expected a layer for each of {len(targets)} generators, got layers={tuple(names)}.")
    names = names or [latent_of(target.generator) for target in targets]
    return [replace(t, layer=find_layer(t.generator, name)) for t, name in zip(targets, names, strict=True)]


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, what a layer gives each time it is called, differentiable.

    Raises:
        ValueError: if the layer gives anything but feature maps (N, C, h, w).
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"{type(module).__name__} gives {shape}; choose a layer that gives maps (N, C, h, w).")
        seen.append(output)
        return output.clone()  # what follows may work in place

    handle = layer.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def grad_cam_plus_plus(features: Tensor, gradients: Tensor, size: Sequence[int]) -> Tensor:
    """Where in an image the features matter for a score (Grad-CAM++, arXiv 1710.11063, equations 10 and 19).

    Args:
        features: a layer's maps A, (N, C, h, w).
        gradients: of the score with respect to them, g; higher derivatives of exp(score) are its powers.
        size: height and width of the maps to return.

    Returns:
        `relu(sum over channels of A * sum of alpha * relu(g))` with `alpha = g^2 / (2 g^2 + g^3 * sum of A)`, each
        stretched to [0, 1], (N, 1, H, W); ones where it is the same everywhere.
    """
    squares = gradients.square()
    below = 2 * squares + squares * gradients * features.sum((2, 3), keepdim=True)
    alpha = torch.where(below != 0, squares / torch.where(below != 0, below, torch.ones_like(below)), 0.0)
    weights = (alpha * gradients.relu()).sum((2, 3), keepdim=True)
    maps = F.interpolate((weights * features).sum(1, keepdim=True).relu(), list(size), mode="bilinear")
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(1e-12), torch.ones_like(maps))
