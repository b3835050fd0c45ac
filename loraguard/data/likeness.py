"""Which photos are the same, or nearly: told by what is in them, never by their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard.files import whole_files
from loraguard.pixels import to_bytes

from .batches import collate

BITS = 512
"""Of a perceptual hash."""

NEAR = 30
"""Photos whose perceptual hashes differ in so many bits or less are versions of one photo."""

_SIDE = 16


@dataclass(frozen=True)
class PhotoHashes:
    """Hashes of photos: one that changes with every bit, and one that hardly changes with the photo.

    The perceptual hash is a SimHash (Charikar, STOC 2002): of the photo at 16 x 16 pixels, less its mean, the signs of
    512 random projections. Two photos differ in as many bits as the angle between them has of half a turn. Versions of
    a photo (JPEG, half the size, brightness, perturbations of up to 0.1 on [-1, 1] at 64 pixels) differ in 31 bits or
    less in 99 of 100 cases, the two most alike of 400 drawn faces in 55.

    Attributes:
        exact: the first half of the SHA-256 of the photo's bytes, (N, 16), uint8.
        near: the perceptual hash, packed, (N, 64), uint8.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> faces = PhotoHashes.of(DemoFaces(4)[i]["image"] for i in range(4))
        >>> darker = PhotoHashes.of(0.9 * DemoFaces(4)[i]["image"] for i in (1, 3))
        >>> faces.seen_in(darker)
        (tensor([False, False, False, False]), tensor([False,  True, False,  True]))
    """

    exact: Tensor
    near: Tensor

    def __len__(self) -> int:
        return len(self.exact)

    @classmethod
    def of(cls, images: Iterable[Tensor]) -> PhotoHashes:
        """The hashes of images (3, H, W) in [-1, 1], one after another."""
        exact, near = [], []
        for image in images:
            exact.append(np.frombuffer(hashlib.sha256(to_bytes(image).cpu().numpy().tobytes()).digest()[:16], np.uint8))
            near.append(_perceptual(image.detach().cpu().float()))
        empty = np.zeros((0, 16), np.uint8), np.zeros((0, BITS // 8), np.uint8)
        stacked = (np.stack(exact), np.stack(near)) if exact else empty
        return cls(*(torch.from_numpy(one.copy()) for one in stacked))

    @classmethod
    def within(cls, dataset: Dataset[Any], indices: Iterable[int]) -> PhotoHashes:
        """The hashes of photos of a data set, whatever form its items have that a training takes."""
        return cls.of(collate([dataset[index]])["image"][0] for index in indices)

    @classmethod
    def joined(cls, parts: Iterable[PhotoHashes]) -> PhotoHashes:
        """The hashes of several sets of photos, one after another."""
        parts = list(parts)
        return cls(torch.cat([one.exact for one in parts]), torch.cat([one.near for one in parts]))

    def seen_in(self, others: PhotoHashes) -> tuple[Tensor, Tensor]:
        """Which of these photos are among others: (N,), bool, bit by bit; and (N,), bool, as versions of them."""
        known = {bytes(row.tolist()) for row in others.exact}
        exact = torch.tensor([bytes(row.tolist()) in known for row in self.exact], dtype=torch.bool)
        return exact, self.like(others).any(1)

    def like(self, others: PhotoHashes) -> Tensor:
        """Which of these photos are versions of which others, bool (N, M)."""
        theirs = _signs(others.near)
        parts = [_signs(rows) @ theirs.T >= BITS - 2 * NEAR for rows in self.near.split(1024)]  # alike less differing
        return torch.cat(parts) if len(self) else torch.zeros(0, len(others), dtype=torch.bool)

    def save(self, folder: Path, name: str) -> None:
        """Write a safetensors file, whole or not at all."""
        with whole_files(folder) as draft:
            save_file({"exact": self.exact.contiguous(), "near": self.near.contiguous()}, draft / name)

    @classmethod
    def load(cls, path: Path) -> PhotoHashes:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: for another file.
        """
        try:
            found: dict[str, Any] = load_file(path)
            exact, near = found["exact"], found["near"]
        except Exception as error:
            raise ValueError(f"{path} holds no hashes of photos: {error!s:.200}.") from error
        if exact.shape[1:] != (16,) or near.shape != (len(exact), BITS // 8) or exact.dtype != torch.uint8:
            raise ValueError(f"{path} holds no hashes of photos: its shapes are {exact.shape} and {near.shape}.")
        return cls(exact, near)


def _perceptual(image: Tensor) -> np.ndarray[Any, Any]:
    small = F.interpolate(image[None], (_SIDE, _SIDE), mode="area").flatten().numpy()
    bits = _directions(len(small)) @ (small - small.mean()) > 0
    return np.packbits(bits)


_known: dict[int, np.ndarray[Any, Any]] = {}


def _directions(length: int) -> np.ndarray[Any, Any]:
    """Random signs (512, length), the same with every version of NumPy: its raw bits are promised to stay."""
    if length not in _known:
        raw = np.random.PCG64(0).random_raw(BITS * length // 64)
        bits = np.unpackbits(raw.astype("<u8").view(np.uint8))
        _known[length] = bits.reshape(BITS, length).astype(np.float32) * 2 - 1
    return _known[length]


def _signs(packed: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1).astype(np.float32) * 2 - 1)
