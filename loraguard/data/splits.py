"""Disjoint parts of a data set: by a seed, the same on every machine, and no person on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from .names import composed
from .photos import Item, PhotoDataset, Replacing

Groups = list[list[int]]


class Part(Replacing):
    """Some items of a data set; a photo that breaks is replaced by one of the same part.

    Args:
        dataset: any map-style data set.
        indices: which of its items.

    Attributes:
        attributes: the data set's names of labels; empty if it has none.
        identities: who is on each photo, (N,), or None where that is not known.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> part = Part(DemoFaces(10, size=16), [7, 2])
        >>> len(part), bool((part[1]["image"] == DemoFaces(10, size=16)[2]["image"]).all())
        (2, True)
    """

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)
        self.attributes: tuple[str, ...] = tuple(getattr(dataset, "attributes", ()))
        identities: Tensor | None = getattr(dataset, "identities", None)
        self.identities = None if identities is None else identities[self.indices]
        self.replaced = {}

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Item:
        """The item of this very index; raises :class:`ImageReadError` where its photo cannot be read."""
        dataset: Any = self.dataset
        return cast(Item, getattr(dataset, "load", dataset.__getitem__)(self.indices[index]))

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """Several items; fetched together where the data set can."""
        together = getattr(self.dataset, "__getitems__", None)
        if together is None or isinstance(self.dataset, Replacing):
            return [self[index] for index in indices]
        return cast(list[Item], together([self.indices[index] for index in indices]))


def split_photos(
    dataset: Dataset[Any], *, train_size: int | None = None, test_size: int | None = None, seed: int = 0
) -> tuple[Part, Part]:
    """Draw a part to train on and a part to test on, with no photo, and no known person, in both.

    People are put in an order by a hash of seed and person, photos by a hash of seed and name; tests draw from one end
    of it and training from the other, with as many different people as there are. So the draw depends on no library's
    random numbers, and neither part changes with the other's size as long as there are more people than photos drawn;
    where `dataset.identities` is None, every photo counts as a person.

    Photos of this package's data sets are verified as they are drawn, and the next ones take the place of those that
    cannot be read.

    Args:
        dataset: with a length; `identities` (N,) and `names` are used if it has them.
        train_size: photos to train on; by default all whose people are not tested on. The paper takes 1,000.
        test_size: photos to test on; none by default.
        seed: of the draw.

    Returns:
        The part to train on and the part to test on.

    Raises:
        ValueError: if there are too few photos or people.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> train, test = split_photos(DemoFaces(100, size=16), train_size=20, test_size=10)
        >>> len(train), len(test), set(train.indices) & set(test.indices)
        (20, 10, set())
    """
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, or None, got {size}.")
    people = _people(dataset, seed)
    if not isinstance(dataset, PhotoDataset):
        train, test = _draw(people, train_size, test_size or 0)
        return Part(dataset, train), Part(dataset, test)
    before, seen, broken = len(dataset.skipped), set[int](), set[int]()
    try:
        while True:
            groups = [left for photos in people if (left := [index for index in photos if index not in broken])]
            train, test = _draw(groups, train_size, test_size or 0)
            drawn = [*test, *train]
            usable = dataset.verify(drawn)
            seen.update(drawn)
            if all(usable):
                return Part(dataset, train), Part(dataset, test)
            broken |= {index for index, fine in zip(drawn, usable, strict=True) if not fine}
    finally:
        dataset.warn_of(dataset.skipped[before:], len(seen))


def _rank(seed: int, what: str) -> bytes:
    return hashlib.sha256(f"{seed}/{what}".encode(errors="surrogateescape")).digest()


def _people(dataset: Dataset[Any], seed: int) -> Groups:
    """The indices of each person's photos, people and photos in the order of their hashes."""
    length = len(cast(Sized, dataset))
    identities: Tensor | None = getattr(dataset, "identities", None)
    given: Sequence[str] = getattr(dataset, "names", None) or [str(index) for index in range(length)]
    names = [composed(name) for name in given]  # the same on every machine: macOS decomposes names
    people: dict[int, list[int]] = {}
    for index, person in enumerate(range(length) if identities is None else identities.tolist()):
        people.setdefault(person, []).append(index)
    # A person goes by the first of the photos' names: who has which number differs from one source to another.
    ordered = sorted(people.values(), key=lambda photos: _rank(seed, "of " + min(names[index] for index in photos)))
    return [sorted(photos, key=lambda index: _rank(seed, names[index])) for photos in ordered]


def _draw(groups: Groups, train_size: int | None, test_size: int) -> tuple[list[int], list[int]]:
    """The sides, with one photo a person or, where people are too few, at most 2, 4, 8 and so on."""
    total = sum(map(len, groups))
    if total >= (train_size or 1) + test_size:
        for most in (2**power for power in range(max(map(len, groups)).bit_length() + 1)):
            test, used = _take(groups, test_size, most)
            if train_size is None:
                train = [index for photos in groups[used:] for index in photos]
                if len(test) == test_size and train:
                    return train, test
                continue
            train, left = _take(groups[::-1], train_size, most)
            if len(test) == test_size and len(train) == train_size and used + left <= len(groups):
                return train, test
    raise ValueError(
        f"Too few photos: {train_size or 'some'} to train on and {test_size} to test on are asked for, and there are "
        f"{total:,} that can be read, of {len(groups):,} people, who must not be on both sides. With few people "
        "another seed may divide them better."
    )


def _take(groups: Groups, size: int, most: int) -> tuple[list[int], int]:
    """`size` photos or all there are, at most `most` of a person, and how many people they are of."""
    taken: list[int] = []
    for used, photos in enumerate(groups):
        if len(taken) >= size:
            return taken[:size], used
        taken += photos[:most]
    return taken[:size], len(groups)
