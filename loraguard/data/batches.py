"""From a data set's items to batches."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.utils.data import default_collate


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
