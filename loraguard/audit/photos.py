"""The batches of an audit: photos, the edit that is asked for on each, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.data import collate
from loraguard.defenses.base import check_image_batch
from loraguard.fingerprint import digest
from loraguard.generators import Condition, Conditions, conditions_of, labels_of


@dataclass(frozen=True)
class Batch:
    """Some photos in a row.

    Attributes:
        start: index of the first one in the data set.
        images: (N, 3, H, W) in [-1, 1].
        condition: the edit of each.
        edits: its name.
        given: by defense, photos of the same people that somebody else has perturbed.
        conditions: by name, the edits as other generators take them; all that are not named take `condition`.
    """

    start: int
    images: Tensor
    condition: Condition
    edits: list[str]
    given: dict[str, Tensor]
    conditions: dict[str, Condition] = field(default_factory=dict)

    def of(self, generator: str) -> Condition:
        """The edits as a generator takes them."""
        return self.conditions.get(generator, self.condition)

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Batch:
        """The batch without what lies beyond the first `count` photos of the data set."""
        keep = max(0, min(len(self), count - self.start))
        return self if keep == len(self) else self.rows(range(keep))

    def rows(self, rows: Sequence[int]) -> Batch:
        """Some photos of the batch, as a batch that starts where it does."""
        at = list(rows)

        def part(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: value[at] for key, value in values.items()}

        edits = [self.edits[row] for row in at]
        conditions: dict[str, Condition] = {name: part(one) for name, one in self.conditions.items()}
        return Batch(self.start, self.images[at], part(self.condition), edits, part(self.given), conditions)

    @cached_property
    def hashes(self) -> dict[str, Any]:
        """What the batch is, as JSON takes it."""
        condition = digest(self.condition)
        return {"images": digest({"image": self.images}), "edits": self.edits, "condition": condition}

    @property
    def each(self) -> list[str]:
        """What each photo with its edit is, whatever batch it is in."""
        return [
            digest({f"image {edit}": image, **{key: value[row] for key, value in self.condition.items()}})
            for row, (image, edit) in enumerate(zip(self.images, self.edits, strict=True))
        ]


class Photos:
    """The audit's photos in batches, each with one edit that the seed draws.

    Args:
        dataset: as :class:`~loraguard.PatchTrainer` takes them.
        generator: whose edits they are.
        conditions: from labels to edits, by default the generator's own.
        given: by defense, a data set of the same length with perturbed photos.
        others: other generators by name, for each of which the edits are made as it takes them: those of the same name,
            where it has them.
        batch_size: photos at a time.
        seed: of the edits.
        device: where they go.

    Raises:
        ValueError: for no photos, or given ones that are not as many.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        generator: nn.Module,
        conditions: Conditions | None,
        given: Mapping[str, Any],
        others: Mapping[str, nn.Module] | None = None,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.generator, self.conditions, self.given = dataset, generator, conditions, given
        self.batch_size, self.device, self.others = batch_size, device, others or {}
        if not (n := len(dataset)):  # type: ignore[arg-type]
            raise ValueError("The data set is empty; an audit needs at least one image.")
        for name, other in given.items():
            if len(other) != n:
                raise ValueError(
                    f"There are {n} photos and {len(other)} that {name!r} has perturbed; give one for each, in order."
                )
        self._kept: Batch | None = None
        self.draws = torch.rand(n, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.draws)

    @property
    def starts(self) -> range:
        """Index of each batch's first photo."""
        return range(0, len(self), self.batch_size)

    def peek(self) -> Batch:
        """The first batch, which is kept for whoever asks for it next, so that no photo is read twice."""
        self._kept = self.batch(0)
        return self._kept

    def batch(self, start: int) -> Batch:
        """The batch that starts there."""
        if self._kept is not None and start == self._kept.start:
            kept, self._kept = self._kept, None
            return kept
        indices = range(start, min(len(self), start + self.batch_size))
        batch = {key: value.to(self.device) for key, value in _items(self.dataset, indices).items()}
        images = batch["image"]
        check_image_batch(images)
        edits = conditions_of(self.generator, labels_of(batch, self.conditions, self.generator), self.conditions)
        names, condition = pick_edits(edits, self.draws[start : start + self.batch_size])
        given = {name: _items(other, indices)["image"].to(self.device) for name, other in self.given.items()}
        for name, perturbed in given.items():
            check_image_batch(perturbed)
            if perturbed.shape != images.shape:
                raise ValueError(
                    f"Photos that {name!r} has perturbed are {tuple(perturbed.shape[1:])}, the originals "
                    f"{tuple(images.shape[1:])}; load both with the same transform."
                )
        draws = self.draws[start : start + self.batch_size]
        conditions = {name: _as_taken(other, batch, names, draws) for name, other in self.others.items()}
        return Batch(start, images, condition, names, given, conditions)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, self.starts)


def _items(dataset: Any, indices: Sequence[int]) -> dict[str, Tensor]:
    """A batch of some items, which are fetched together where the data set can."""
    together = getattr(dataset, "__getitems__", None)
    return collate([dataset[index] for index in indices] if together is None else together(list(indices)))


def _as_taken(generator: nn.Module, batch: dict[str, Tensor], names: Sequence[str], draws: Tensor) -> Condition:
    """Edits as another generator takes them: those of these names; where it has none of that name, drawn ones."""
    edits = conditions_of(generator, labels_of(batch, generator=generator))
    drawn, _ = pick_edits(edits, draws)
    wanted = [name if name in edits else other for name, other in zip(names, drawn, strict=True)]
    keys = edits[wanted[0]].keys()
    return {key: torch.stack([edits[name][key][row] for row, name in enumerate(wanted)]) for key in keys}


def pick_edits(edits: Mapping[str, Condition], draws: Tensor) -> tuple[list[str], Condition]:
    """One edit for each image: their names and the condition.

    Args:
        edits: every edit of the batch, by name.
        draws: a number in [0, 1) for each image, (N,), that picks its edit.

    Example:
        >>> edits = {"a": {"c": torch.zeros(3, 1)}, "b": {"c": torch.ones(3, 1)}}
        >>> names, condition = pick_edits(edits, torch.tensor([0.1, 0.9, 0.6]))
        >>> names, condition["c"][:, 0].tolist()
        (['a', 'b', 'b'], [0.0, 1.0, 1.0])
    """
    names = list(edits)
    picked = (draws * len(names)).long().tolist()
    keys = edits[names[0]].keys()
    condition = {key: torch.stack([edits[names[edit]][key][row] for row, edit in enumerate(picked)]) for key in keys}
    return [names[edit] for edit in picked], condition
