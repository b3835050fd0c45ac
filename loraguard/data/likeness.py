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
from .shapes import directions, distances, shape_hashes, thumbnails

BITS = 512
"""Of a perceptual hash."""

NEAR = 30
"""Photos whose perceptual hashes differ in so many bits or less are versions of one photo."""

_SIDE = 16


@dataclass(frozen=True)
class PhotoHashes:
    """Hashes of photos: one that changes with every bit, and two that hardly change with the photo.

    The perceptual hash is a SimHash (Charikar, STOC 2002): of the photo at 16 x 16 pixels, less its mean, the signs of
    512 random projections. Two photos differ in as many bits as the angle between them has of half a turn. Versions of
    a photo (JPEG, half the size, brightness, perturbations of up to 0.1 on [-1, 1] at 64 pixels) differ in 31 bits or
    less in 99 of 100 cases, the two most alike of 400 drawn faces in 55. That of shapes, see :mod:`.shapes`, is for
    versions in other colours, and for those that :class:`PhotoVersions` looks for.

    Attributes:
        exact: the first half of the SHA-256 of the photo's bytes, (N, 16), uint8.
        near: the perceptual hash, packed, (N, 64), uint8.
        shape: the hashes of shapes of the whole and of its middle, packed, (N, 2, 64), uint8; None in records that were
            made before there were such.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> faces = PhotoHashes.of(DemoFaces(4)[i]["image"] for i in range(4))
        >>> darker = PhotoHashes.of(0.9 * DemoFaces(4)[i]["image"] for i in (1, 3))
        >>> faces.exact.shape, faces.near.shape, faces.like(darker).int().tolist()
        (torch.Size([4, 16]), torch.Size([4, 64]), [[0, 0], [1, 0], [0, 0], [0, 1]])
    """

    exact: Tensor
    near: Tensor
    shape: Tensor | None = None

    def __len__(self) -> int:
        return len(self.exact)

    @classmethod
    def of(cls, images: Iterable[Tensor], shapes: bool = True) -> PhotoHashes:
        """The hashes of images (3, H, W) in [-1, 1], one after another; with those of shapes or without."""
        exact, near, shape = [], [], [torch.zeros(0, 2, BITS // 8, dtype=torch.uint8)]
        for image in images:
            exact.append(np.frombuffer(hashlib.sha256(to_bytes(image).cpu().numpy().tobytes()).digest()[:16], np.uint8))
            near.append(_perceptual(image.detach().cpu().float()))
            if shapes:
                shape.append(shape_hashes(image[None]))
        empty = np.zeros((0, 16), np.uint8), np.zeros((0, BITS // 8), np.uint8)
        stacked = (np.stack(exact), np.stack(near)) if exact else empty
        same, like = (torch.from_numpy(one.copy()) for one in stacked)
        return cls(same, like, torch.cat(shape) if shapes else None)

    @classmethod
    def within(cls, dataset: Dataset[Any], indices: Iterable[int]) -> PhotoHashes:
        """The hashes of photos of a data set, whatever form its items have that a training takes."""
        return cls.of(collate([dataset[index]])["image"][0] for index in indices)

    @classmethod
    def joined(cls, parts: Iterable[PhotoHashes]) -> PhotoHashes:
        """The hashes of several sets of photos, one after another."""
        parts = list(parts)
        shapes = [one.shape for one in parts if one.shape is not None]
        shape = torch.cat(shapes) if len(shapes) == len(parts) else None
        return cls(torch.cat([one.exact for one in parts]), torch.cat([one.near for one in parts]), shape)

    def like(self, others: PhotoHashes) -> Tensor:
        """Which of these photos are nearly which others as they are, by the perceptual hash, bool (N, M)."""
        theirs = _signs(others.near)
        parts = [_signs(rows) @ theirs.T >= BITS - 2 * NEAR for rows in self.near.split(1024)]  # alike less differing
        return torch.cat(parts) if len(self) else torch.zeros(0, len(others), dtype=torch.bool)

    def save(self, folder: Path, name: str) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"exact": self.exact, "near": self.near, **({} if self.shape is None else {"shape": self.shape})}
        with whole_files(folder) as draft:
            save_file({key: one.contiguous() for key, one in tensors.items()}, draft / name)

    @classmethod
    def load(cls, path: Path) -> PhotoHashes:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: for another file.
        """
        try:
            found: dict[str, Any] = load_file(path)
            exact, near, shape = found["exact"], found["near"], found.get("shape")
        except Exception as error:
            raise ValueError(f"{path} holds no hashes of photos: {error!s:.200}.") from error
        n, bits = len(exact), BITS // 8
        shapes = [exact.shape, near.shape] + ([] if shape is None else [shape.shape])
        if shapes != [(n, 16), (n, bits), (n, 2, bits)][: len(shapes)] or exact.dtype != torch.uint8:
            raise ValueError(f"{path} holds no hashes of photos: its shapes are {', '.join(map(str, shapes))}.")
        return cls(exact, near, shape)


@dataclass(frozen=True)
class PhotoVersions:
    """Photos that are looked for among the hashes of others, in all versions.

    Versions are photos that are mirrored, turned (by quarters, or by up to ten degrees), cropped by up to a fifth on
    either side of the comparison, shifted by up to a tenth, grey or in other colours, brighter, compressed, resized,
    perturbed; docs/audit-checks.md says how many of each are found, and how far other photos are.

    Attributes:
        hashes: of the photos as they are.
        mirrored: their perceptual hashes as they are mirrored.
        small: of the photos, what versions are made of, (N, 1, 64, 64).

    Example:
        >>> from loraguard.data import DemoFaces
        >>> faces = torch.stack([DemoFaces(4)[i]["image"] for i in range(4)])
        >>> turned = PhotoHashes.of(faces[2:].rot90(1, (2, 3)).flip(1))
        >>> PhotoVersions.of(faces).seen_in(turned)
        (tensor([False, False, False, False]), tensor([False, False,  True,  True]))
    """

    hashes: PhotoHashes
    mirrored: PhotoHashes
    small: Tensor

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, images: Tensor) -> PhotoVersions:
        """Of images (N, 3, H, W) in [-1, 1]."""
        return cls(PhotoHashes.of(images), PhotoHashes.of(images.flip(3), shapes=False), thumbnails(images))

    @classmethod
    def joined(cls, parts: Iterable[PhotoVersions]) -> PhotoVersions:
        """Of several sets of photos, one after another."""
        parts = list(parts)
        hashes, mirrored = (PhotoHashes.joined(getattr(one, side) for one in parts) for side in ("hashes", "mirrored"))
        return cls(hashes, mirrored, torch.cat([one.small for one in parts]))

    def like(self, others: PhotoHashes) -> Tensor:
        """Which of these photos are versions of which others, bool (N, M)."""
        found = self.nearly(others)
        return found if others.shape is None else found | (distances(self.small, others.shape) <= 1)

    def nearly(self, others: PhotoHashes) -> Tensor:
        """Which of these photos are which others as they are or mirrored, by the perceptual hash, bool (N, M)."""
        return self.hashes.like(others) | self.mirrored.like(others)

    def seen_in(self, others: PhotoHashes) -> tuple[Tensor, Tensor]:
        """Which of these photos are among others: (N,), bool, bit by bit; and (N,), bool, as versions of them."""
        known = {bytes(row.tolist()) for row in others.exact}
        sides = [[bytes(row.tolist()) in known for row in side.exact] for side in (self.hashes, self.mirrored)]
        exact = torch.tensor(sides, dtype=torch.bool).any(0)
        return exact, self.like(others).any(1)


def _perceptual(image: Tensor) -> np.ndarray[Any, Any]:
    small = F.interpolate(image[None], (_SIDE, _SIDE), mode="area").flatten().numpy()
    bits = directions(BITS, len(small)) @ (small - small.mean()) > 0
    return np.packbits(bits)


def _signs(packed: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1).astype(np.float32) * 2 - 1)
