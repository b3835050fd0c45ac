"""Distances between images and between features, and the MMFA loss that they add up to, as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ZERO_NORM = 1e-6
"""Below this length a feature vector has no direction."""


def feature_mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error between features, averaged over images, tokens and dimensions.

    Args:
        a: pooled features (N, D) or one vector for each patch, (N, L, D).
        b: of the same shape.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: for features of other shapes.

    Example:
        >>> feature_mse(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor(1.2500)
    """
    a, b = _feature_pair(a, b)
    return F.mse_loss(a, b)


def feature_cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity along D, averaged over images and tokens: 0 for the same direction, 2 for the opposite.

    A vector of zeros has no direction: its distance from anything is 1, and its gradient is 0 rather than NaN or huge.

    Args:
        a: pooled features (N, D) or one vector for each patch, (N, L, D).
        b: of the same shape.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: for features of other shapes.

    Example:
        >>> feature_cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        tensor(0.5000)
    """
    a, b = _feature_pair(a, b)
    directed = (a.norm(dim=-1) > ZERO_NORM) & (b.norm(dim=-1) > ZERO_NORM)
    # A zero vector is replaced before the division, as its gradient there would be the inverse of torch's tiny eps.
    a, b = (torch.where(directed[..., None], features, torch.ones_like(features)) for features in (a, b))
    return 1 - torch.where(directed, F.cosine_similarity(a, b, dim=-1), 0.0).mean()


FEATURE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": feature_mse, "cosine": feature_cosine}
"""Distances between features, by the name that an encoder takes."""

PIXEL_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}
"""Distances between images, by the name that the loss takes."""


class FeaturePair(NamedTuple):
    """What one encoder sees in outputs and targets, and how much their distance counts.

    Attributes:
        outputs: E(y), (N, D) or (N, L, D).
        targets: E(t), of the same shape.
        distance: "mse" or "cosine".
        weight: of the distance.
    """

    outputs: Tensor
    targets: Tensor
    distance: str = "mse"
    weight: float = 0.1


def mmfa_loss(
    outputs: Tensor,
    targets: Tensor,
    features: Mapping[str, FeaturePair],
    *,
    pixel: str = "mse",
    pixel_weight: float = 1.0,
) -> Tensor:
    """Multi-modal feature alignment, `D(y, t) = w_0 d_0(y, t) + sum_k w_k d_k(E_k(y), E_k(t))` (arXiv 2510.03747).

    Args:
        outputs: y, (N, 3, H, W) in [-1, 1].
        targets: t, of the same shape.
        features: by the encoder's name, its features of both.
        pixel: d_0, "mse" or "l1".
        pixel_weight: w_0.

    Returns:
        A scalar, at least in float32: the sum of what :func:`mmfa_terms` gives.

    Raises:
        ValueError: for shapes that differ or a distance that does not exist.

    Example:
        >>> y, t = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)
        >>> e, f = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> mmfa_loss(y, t, {"clip": FeaturePair(e, f, "cosine", 0.1)})
        tensor(0.3500)
    """
    return torch.stack(
        list(mmfa_terms(outputs, targets, features, pixel=pixel, pixel_weight=pixel_weight).values())
    ).sum()


def mmfa_terms(
    outputs: Tensor,
    targets: Tensor,
    features: Mapping[str, FeaturePair],
    *,
    pixel: str = "mse",
    pixel_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The terms of :func:`mmfa_loss`, weighted: `pixel` and one for each encoder.

    Example:
        >>> y, t = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8)
        >>> mmfa_terms(y, t, {"resnet": FeaturePair(torch.ones(1, 4), torch.zeros(1, 4))})
        {'pixel': tensor(0.2500), 'resnet': tensor(0.1000)}
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"Outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must have one shape.")
    distance = chosen(PIXEL_DISTANCES, pixel, "pixel distance")
    terms = {"pixel": pixel_weight * distance(at_least_float32(outputs), at_least_float32(targets))}
    for name, pair in features.items():
        distance = chosen(FEATURE_DISTANCES, pair.distance, "feature distance")
        terms[name] = pair.weight * distance(pair.outputs, pair.targets)
    return terms


def chosen(
    options: Mapping[str, Callable[[Tensor, Tensor], Tensor]], name: str, what: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """The option of that name, or an error that lists them."""
    if name not in options:
        raise ValueError(f"There is no {what} {name!r}; choose from {', '.join(map(repr, options))}.")
    return options[name]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precisions as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _feature_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise ValueError(
            f"Features must both be (N, D), or (N, L, D) for patches, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    return at_least_float32(a), at_least_float32(b)
