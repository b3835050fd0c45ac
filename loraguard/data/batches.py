"""From a data set's items to batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, default_collate


def check_dataset(dataset: Any) -> None:
    """Refuse what has no length and no item by number.

    Raises:
        TypeError: naming it, and what to give in its place.

    Example:
        >>> check_dataset(iter([]))
        Traceback (most recent call last):
        ...
        TypeError: A list_iterator is no data set with len() and items by number, dataset[0]: make a list of it.
    """
    if not isinstance(dataset, Mapping) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return
    way = "make a list of it"
    if isinstance(dataset, DataLoader):
        way = "give its .dataset"
    elif isinstance(dataset, Mapping):
        way = f"give one of {', '.join(map(repr, list(dataset)[:4]))}"
    raise TypeError(f"A {type(dataset).__name__} is no data set with len() and items by number, dataset[0]: {way}.")


def collate(samples: list[Any]) -> dict[str, Tensor]:
    """A batch from a data set's items: `image` (N, C, H, W) and, where there are any, `labels` (N, A).

    Items are an image, a pair (image, labels) or a dict with both. Photos have three channels; some networks take
    images of others.

    Raises:
        TypeError: for any other item.
        ValueError: for images that are not (C, H, W) or differ in shape.
    """
    batch = []
    for sample in samples:
        if isinstance(sample, Tensor):
            sample = {"image": sample}
        elif isinstance(sample, (tuple, list)) and len(sample) == 2:
            sample = {"image": sample[0], "labels": sample[1]}
        if not isinstance(sample, dict) or not isinstance(sample.get("image"), Tensor):
            raise TypeError(
                f"The data set yields {type(sample).__name__}; its items must be an image tensor (C, H, W), a pair "
                "(image, labels), or a dict with 'image' and perhaps 'labels'."
            )
        batch.append({key: sample[key] for key in ("image", "labels") if key in sample})
    shapes = {tuple(sample["image"].shape) for sample in batch}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"The data set's images must all have one shape (C, H, W), got {sorted(shapes)}.")
    return cast(dict[str, Tensor], default_collate(batch))
