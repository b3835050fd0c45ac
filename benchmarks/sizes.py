"""Drawn faces of several sizes, for patches that are to work at all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from loraguard.data import DemoFaces


class FacesOfSizes(Dataset[dict[str, Tensor]]):
    """Drawn faces of one of these sizes, another from batch to batch."""

    attributes = DemoFaces.attributes

    def __init__(self, length: int, sizes: Sequence[int]) -> None:
        self.faces = [DemoFaces(length, size=size) for size in sizes]

    def __len__(self) -> int:
        return len(self.faces[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """All of one size, which the first index says."""
        return self.faces[indices[0] % len(self.faces)].__getitems__(indices)
