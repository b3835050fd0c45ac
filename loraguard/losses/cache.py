"""Features of targets that are the same in every epoch, kept between epochs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor
from torch.nn import functional as F

SKETCH = 4
"""Sides of the thumbnail by which a target is recognised."""

TOLERANCE = 1e-2
"""How far a pixel of the thumbnail of the same target may move, in units of images in [-1, 1]."""


class FeatureCache:
    """Keeps each target's features in the CPU's memory, so that later epochs need not compute them.

    A key must stand for one target image and no other: with targets `G0(x, c)` and a fixed stamp, the index of x in
    its data set and the name of the edit c, if the data set yields the same x for an index every time (no random crops
    or flips). A thumbnail of each target is kept too, and a key that comes back with another picture is an error.

    When the cache is full, what is in it stays and further targets are computed every time: an epoch visits each sample
    once, so dropping some for others would lose more than it gains. A cache belongs to one loss and one process.

    Args:
        max_bytes: of features and thumbnails together, in bytes.

    Attributes:
        hits: how many targets were found.
        misses: how many were not.
        nbytes: in use.

    Raises:
        ValueError: if `max_bytes` is not positive.

    Example:
        >>> import torch
        >>> cache = FeatureCache(max_bytes=1 << 20)
        >>> thumbnail = sketch(torch.zeros(1, 3, 16, 16))[0]
        >>> cache.get((7, "Smiling"), thumbnail) is None
        True
        >>> cache.put((7, "Smiling"), thumbnail, {"resnet": torch.ones(16)})
        >>> cache.get((7, "Smiling"), thumbnail)["resnet"].shape, cache.hits, cache.misses, cache.nbytes
        (torch.Size([16]), 1, 1, 256)
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes={max_bytes!r} must be greater than 0.")
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept: dict[Hashable, tuple[Tensor, dict[str, Tensor]]] = {}
        self.hits = self.misses = self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, thumbnail: Tensor) -> dict[str, Tensor] | None:
        """One target's features by the encoder's name, on the CPU; None if they are not kept.

        Raises:
            ValueError: if the features under this key are those of another picture.
        """
        if key not in self._kept:
            self.misses += 1
            return None
        known, features = self._kept[key]
        if known.shape != thumbnail.shape or float((known - thumbnail).abs().max()) > TOLERANCE:
            raise ValueError(
                f"The target of key {key!r} is another picture than the one whose features are kept under it. Keys "
                "must name the sample and the edit, and targets must be the same in every epoch: leave the cache out "
                "where data is augmented at random, or call clear() after changing data or generator."
            )
        self.hits += 1
        return features

    def put(self, key: Hashable, thumbnail: Tensor, features: Mapping[str, Tensor]) -> None:
        """Keep one target's features, each (D,) or (L, D), if there is room."""
        size = sum(tensor.nbytes for tensor in (thumbnail, *features.values()))
        if key not in self._kept and self.nbytes + size <= self.max_bytes:
            kept = {name: tensor.detach().cpu().clone() for name, tensor in features.items()}
            self._kept[key] = thumbnail.clone(), kept
            self.nbytes += size


def sketch(images: Tensor) -> Tensor:
    """Thumbnails of images (N, 3, H, W): float32 (N, 3, 4, 4) on the CPU.

    Example:
        >>> import torch
        >>> sketch(torch.ones(2, 3, 16, 16)).shape
        torch.Size([2, 3, 4, 4])
    """
    return F.adaptive_avg_pool2d(images.detach().float(), SKETCH).cpu()
