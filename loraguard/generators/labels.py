"""Labels of photos as generators take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_attributes(attributes: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of a network's labels, once it is sure that each label has one.

    Raises:
        ValueError: if there are more or fewer names than labels.

    Example:
        >>> check_attributes(["Male", "Young"], 2)
        ('Male', 'Young')
    """
    if len(attributes) != count:
        raise ValueError(
            f"The network takes {count} labels, but has {len(attributes)} names for them: {', '.join(attributes)}. "
            "Give those that it was trained on, in order: --generator NAME:attributes=ONE+OTHER+... on the command "
            "line, attributes=(...) in Python."
        )
    return tuple(attributes)


def check_labels(labels: Tensor, attributes: Sequence[str]) -> Tensor:
    """The labels as floating point numbers, once it is sure that they are what edits are made from.

    Args:
        labels: (N, A) in {0, 1}.
        attributes: the names of the A labels.

    Raises:
        ValueError: if there are more or fewer labels than names, or values other than 0 and 1.

    Example:
        >>> check_labels(torch.tensor([[1, -1]]), ("Male", "Young"))
        Traceback (most recent call last):
        ...
        ValueError: Labels must be 0 or 1, got values from -1 to 1. If yours are -1 and 1, give (labels + 1) / 2.
    """
    if labels.ndim != 2 or labels.shape[1] != len(attributes):
        raise ValueError(
            f"Expected labels (N, {len(attributes)}) in this order: {', '.join(attributes)}; got {tuple(labels.shape)}."
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"Labels must be 0 or 1, got values from {labels.min().item():g} to {labels.max().item():g}. "
            "If yours are -1 and 1, give (labels + 1) / 2."
        )
    return labels if labels.is_floating_point() else labels.float()


def switched(labels: Tensor, index: int) -> Tensor:
    """Labels (N, A) in {0, 1} with one of them switched.

    Example:
        >>> switched(torch.tensor([[1.0, 0.0]]), 1)
        tensor([[1., 1.]])
    """
    labels = labels.clone()
    labels[:, index] = 1 - labels[:, index]
    return labels


def only(labels: Tensor, index: int, group: Sequence[int]) -> Tensor:
    """Labels (N, A) in {0, 1} with this one, and no other of its group.

    Example:
        >>> only(torch.tensor([[1.0, 0.0, 1.0]]), 1, (0, 1))
        tensor([[0., 1., 1.]])
    """
    labels = labels.clone()
    labels[:, list(group)] = 0
    labels[:, index] = 1
    return labels


def append_labels(features: Tensor, labels: Tensor, count: int) -> Tensor:
    """Features with every label as one further channel that is the same everywhere.

    Args:
        features: (N, C, H, W).
        labels: (N, count), of any dtype.
        count: labels that the network was made for.

    Returns:
        (N, C + count, H, W), of the features' dtype.

    Raises:
        ValueError: if the labels are of another shape.

    Example:
        >>> append_labels(torch.zeros(2, 3, 8, 8), torch.ones(2, 5), 5).shape
        torch.Size([2, 8, 8, 8])
    """
    if labels.shape != (len(features), count):
        raise ValueError(f"Expected labels {(len(features), count)}, a row for each image, got {tuple(labels.shape)}.")
    tiled = labels.to(features)[:, :, None, None].expand(-1, -1, *features.shape[-2:])
    return torch.cat([features, tiled], 1)
