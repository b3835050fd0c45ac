"""What loraguard asks of a generator, and how labels become the edits that it can make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

Condition = Mapping[str, Tensor]
"""Which edit to make: batch-first tensors that are passed to `generator(images, **condition)`; `{}` for none."""

Conditions = Callable[[Tensor], Mapping[str, Condition]]
"""From a batch's labels (N, A) to every edit that a generator is asked for, by name."""


def conditions_of(
    generator: nn.Module, labels: Tensor | None, conditions: Conditions | None = None
) -> dict[str, Condition]:
    """The edits to make on a batch, by name.

    Args:
        generator: a network; wrapped by PEFT or not.
        labels: the batch's labels (N, A), or None where the data has none.
        conditions: from labels to edits; by default the generator's own method `conditions`, if it has one.

    Returns:
        By name, what to pass as `generator(images, **condition)`. An unconditional network has one edit, `{}`.

    Raises:
        ValueError: if edits are to be made from labels and the data has none.

    Example:
        >>> conditions_of(nn.Identity(), None)
        {'output': {}}
        >>> edits = conditions_of(nn.Identity(), torch.zeros(4, 1), lambda labels: {"flip": {"labels": 1 - labels}})
        >>> edits["flip"]["labels"].shape
        torch.Size([4, 1])
    """
    make = conditions or getattr(generator, "conditions", None)
    if make is None:
        return {"output": {}}
    if labels is None:
        raise ValueError(
            "Edits are made from labels, but the data yields images alone. Give a data set whose items hold 'labels'."
        )
    edits = make(labels)
    if not isinstance(edits, Mapping) or not edits or not all(isinstance(edit, Mapping) for edit in edits.values()):
        raise ValueError(
            f"`conditions` must give the edits by name, each a dict of the generator's inputs; it gave {edits!r:.200}."
        )
    return dict(edits)


def labels_of(
    batch: Mapping[str, Tensor], conditions: Conditions | None = None, generator: nn.Module | None = None
) -> Tensor | None:
    """A batch's labels (N, A), or None; (N, 0) for photos without labels where edits need none.

    That is where `conditions` makes the edits, or a generator that names no labels: its `attributes` are `()`. So edits
    by a reference photo, a fixed style or a prompt can be made for as many photos as there are.

    Example:
        >>> batch = {"image": torch.zeros(4, 3, 8, 8)}
        >>> labels_of(batch) is None, labels_of(batch, lambda labels: {}).shape
        (True, torch.Size([4, 0]))
    """
    if "labels" in batch or (conditions is None and getattr(generator, "attributes", None) != ()):
        return batch.get("labels")
    return batch["image"].new_empty(len(batch["image"]), 0)


def transform_of(generator: nn.Module) -> Callable[[Image.Image], Tensor] | None:
    """The preprocessing of photos that a generator asks for by a method `transform`, or None.

    Example:
        >>> transform_of(nn.Identity()) is None
        True
    """
    transform: Any = getattr(generator, "transform", None)
    return None if transform is None else transform()


def expand(images: Tensor, edits: Mapping[str, Condition]) -> tuple[Tensor, dict[str, Tensor]]:
    """One batch that holds every image with every edit, so that they go through the network together.

    Args:
        images: (N, 3, H, W).
        edits: E edits, as from :func:`conditions_of`.

    Returns:
        Images (E * N, 3, H, W), the edits one after another, and their condition.

    Example:
        >>> edits = {"off": {"label": torch.zeros(2, 1)}, "on": {"label": torch.ones(2, 1)}}
        >>> images, condition = expand(torch.zeros(2, 3, 8, 8), edits)
        >>> images.shape, condition["label"][:, 0].tolist()
        (torch.Size([4, 3, 8, 8]), [0.0, 0.0, 1.0, 1.0])
    """
    first, *rest = edits.values()
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(f"Every edit must have the same inputs, got {sorted(first)} and {sorted(other)}.")
    condition = {key: torch.cat([edit[key] for edit in edits.values()]) for key in first}
    return images.repeat(len(edits), 1, 1, 1), condition
