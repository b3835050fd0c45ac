"""What data sets of photos share: items, verification before the start, and neighbours for photos that break later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .reading import ImageReadError, read_image
from .transforms import Transform, default_transform, enlarged_too_far, size_needed

SIZE = 256
"""Height and width where no transform is given, in pixels."""

Item = dict[str, Tensor]
Skipped = tuple[str, str]
"""A photo's name and the reason why it is not used."""

_NEIGHBOURS = 16


class Replacing(Dataset[Item]):
    """A data set that gives a neighbour, with a warning, for a photo that broke after the start.

    Attributes:
        replaced: by name, why photos were replaced; of this process, so each worker of a DataLoader has its own.
    """

    replaced: dict[str, str]

    def load(self, index: int) -> Item:
        """The item of this very index; raises :class:`ImageReadError` where its photo cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Item:
        """The item `image` (3, H, W), `labels` (A,) if there are any; a neighbour's where the photo is broken.

        Raises:
            IndexError: for an index outside the data set.
            ImageReadError: if the neighbours are broken too.
        """
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index {index} is outside 0..{length - 1}")
        errors: list[ImageReadError] = []
        while len(errors) < min(_NEIGHBOURS, length):
            item = self._attempt((index + len(errors)) % length)
            if not isinstance(item, ImageReadError):
                return item
            errors.append(item)
        first = errors[0]
        raise ImageReadError(first.path, f"{first.reason}; nor can the {len(errors) - 1} after it; is the disk there?")

    def _attempt(self, index: int) -> Item | ImageReadError:
        try:
            return self.load(index)
        except ImageReadError as error:
            if error.path not in self.replaced:
                self.replaced[error.path] = error.reason
                warnings.warn(f"{error} The next photo takes its place.", stacklevel=3)
            return error


class PhotoDataset(Replacing):
    """Photos with labels; a subclass says where they are.

    Args:
        names: of the photos, each once, the same on every machine.
        attributes: names of the labels, in order.
        labels: (N, A) in {0, 1}, or None for photos without.
        identities: who is on each photo, (N,) integers, or None where that is not known.
        transform: from an RGB photo to (3, H, W) in [-1, 1]; by default :func:`default_transform` to 256 pixels.
        min_size: length, in pixels, that the shorter side must have; by default what the transform needs.

    Attributes:
        skipped: (name, reason) of the photos that were found unusable.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        attributes: Sequence[str] = (),
        labels: Tensor | None = None,
        identities: Tensor | None = None,
        transform: Transform | None = None,
        min_size: int | None = None,
    ) -> None:
        self.names, self.attributes = list(names), tuple(attributes)
        self.labels, self.identities = labels, identities
        self.transform = transform or default_transform(SIZE)
        self.min_size = size_needed(self.transform) if min_size is None else min_size
        self.skipped: list[Skipped] = []
        self.replaced = {}
        self._verified: dict[str, str | None] = {}

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> str | Path | bytes | Image.Image:
        """Where the photo with this index is."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        """The photo with this index, RGB; raises :class:`ImageReadError`."""
        return read_image(self.source(index), min_size=self.min_size, fits=self.fits, name=self.names[index])

    def fits(self, width: int, height: int) -> str | None:
        """Why a photo of this size cannot be used, in a few words; None where it can."""
        return enlarged_too_far(self.transform, width, height)

    def load(self, index: int) -> Item:
        """The item of this very index; raises :class:`ImageReadError` where its photo cannot be used."""
        photo = self.read(index)
        try:
            item = {"image": self.transform(photo)}
        except MemoryError:
            wide, high = photo.size
            reason = f"{wide} x {high} pixels, which the transform needs more memory for than there is"
            raise ImageReadError(self.names[index], reason) from None
        if self.labels is not None:
            item["labels"] = self.labels[index]
        return item

    def verify(self, indices: Sequence[int]) -> list[bool]:
        """Decode photos, several at a time; each once in the data set's life.

        Those that cannot be read are added to `skipped`; they stay in the data set.

        Returns:
            For each index, whether its photo can be used.
        """
        new = [index for index in indices if self.names[index] not in self._verified]
        for index, reason in zip(new, in_threads(self._reason, new, "Verifying photos"), strict=True):
            self._verified[self.names[index]] = reason
        self.skipped += [(self.names[i], reason) for i in new if (reason := self._verified[self.names[i]]) is not None]
        return [self._verified[self.names[index]] is None for index in indices]

    def warn_of(self, found: Sequence[Skipped], of: int) -> None:
        """One warning that some of so many photos are not used; none if all are."""
        if found:
            are = "is" if len(found) == 1 else "are"
            warnings.warn(f"{len(found):,} of {of:,} photos {are} not used: {listed(found)}", stacklevel=3)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop every photo but these."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        self.names = [self.names[index] for index in indices]
        self.labels = None if self.labels is None else self.labels[chosen]
        self.identities = None if self.identities is None else self.identities[chosen]

    def _reason(self, index: int) -> str | None:
        try:
            self.read(index)
        except ImageReadError as error:
            return error.reason
        return None


def in_threads(function: Callable[[int], str | None], indices: Sequence[int], title: str) -> list[str | None]:
    """A function of many indices, in threads; a bar appears if it takes more than two seconds."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = tqdm(pool.map(function, indices), title, len(indices), delay=2, leave=False, unit="photo")
        return list(results)


def listed(found: Sequence[Skipped], most: int = 5) -> str:
    """The first few photos with their reasons, and how many more."""
    lines = [f"{name} ({reason})" for name, reason in found[:most]]
    return "; ".join(lines) + (f"; and {len(found) - most:,} more." if len(found) > most else ".")
