"""The batches of a training: photos in an order that the seed decides, with their edits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from loraguard.data import DemoFaces, collate
from loraguard.data.batches import check_dataset
from loraguard.defenses.base import check_image_batch
from loraguard.generators import Condition, Conditions, conditions_of, expand, labels_of

from .arguments import PatchTrainingArguments
from .devices import failure_of
from .sampling import EndlessBatches, mixed


@dataclass(frozen=True)
class Batch:
    """Photos with their edits, on the device: all photos with the first edit, then all with the second, and so on.

    Attributes:
        images: (E * N, 3, H, W) in [-1, 1], N photos with E edits.
        condition: the edit of each.
        edits: names of the E edits.
        keys: of each image, the photo's index in the data set and the edit's name.
    """

    images: Tensor
    condition: Condition
    edits: list[str]
    keys: list[tuple[int, str]]


class Batches:
    """What a training sees of a data set.

    Args:
        dataset: items as :class:`~loraguard.PatchTrainer` takes them.
        generator: whose `conditions` give the edits, where `conditions` is None.
        conditions: from labels to edits.
        args: the training's settings: batch size, seed, edits a step, batches a step, workers.
        accelerator: device and processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        generator: nn.Module,
        conditions: Conditions | None,
        args: PatchTrainingArguments,
        accelerator: Accelerator,
    ) -> None:
        check_dataset(dataset)
        self.dataset, self.generator, self.conditions = dataset, generator, conditions
        self.args, self.accelerator = args, accelerator

    def __len__(self) -> int:
        """The number of photos."""
        return len(cast(Any, self.dataset))

    def first(self, count: int) -> Batch:
        """The first photos of the data set, each with every edit."""
        indices = list(range(min(count, len(self))))
        return self._with_edits(indices, collate([self.dataset[index] for index in indices]), step=None)

    def after(self, step: int) -> Iterator[Batch]:
        """The batches of all steps after this one, without end: `gradient_accumulation_steps` for each step."""
        args, accelerator = self.args, self.accelerator
        several = args.gradient_accumulation_steps
        order = EndlessBatches(
            len(self),
            args.train_batch_size,
            seed=args.seed,
            start=step * several,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=order,
            generator=torch.Generator().manual_seed(args.seed + accelerator.process_index),
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        for position, (indices, items) in enumerate(zip(order, loader, strict=True)):
            yield self._with_edits(indices, items, step + 1 + position // several)

    def drawn(self, steps: int) -> list[int]:
        """Which photos the batches of so many steps hold, of all processes, in order."""
        args = self.args
        several = args.gradient_accumulation_steps * self.accelerator.num_processes
        count = steps * several * args.train_batch_size
        if count >= len(self):
            return list(range(len(self)))
        order = EndlessBatches(len(self), args.train_batch_size, seed=args.seed)
        return sorted(set(chain.from_iterable(islice(order, steps * several))))

    @property
    def workers(self) -> int:
        """Processes that load photos."""
        if self.args.dataloader_num_workers is not None:
            return self.args.dataloader_num_workers
        cores = os.cpu_count() or 1
        drawn = isinstance(getattr(self.dataset, "dataset", self.dataset), DemoFaces)
        return 0 if drawn or cores < 4 else min(4, cores // 2)

    def _with_edits(self, indices: list[int], items: dict[str, Tensor], step: int | None) -> Batch:
        """Every photo with every edit, or in a step with those drawn for it.

        The draw depends on seed and step alone: all processes, and all batches that make a step, have the same edits.
        """
        items = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in items.items()}
        _check(items["image"], indices)
        edits = conditions_of(self.generator, labels_of(items, self.conditions, self.generator), self.conditions)
        if step is not None and self.args.edits_per_step is not None:
            names = list(edits)
            draws = torch.Generator().manual_seed(mixed(self.args.seed, step))
            drawn = torch.randperm(len(names), generator=draws)[: self.args.edits_per_step].tolist()
            edits = {names[i]: edits[names[i]] for i in sorted(drawn)}
        images, condition = expand(items["image"], edits)
        return Batch(images, condition, list(edits), [(index, edit) for edit in edits for index in indices])


def _check(images: Tensor, indices: list[int]) -> None:
    """Refuse what no generator takes, with the number of the item that it is."""
    try:
        check_image_batch(images)
    except ValueError as error:
        each = (failure_of(partial(check_image_batch, image[None])) for image in images)
        index, its = next((index, its) for index, its in zip(indices, each, strict=True) if its is not None)
        raise ValueError(f"Item {index} of the data set: {its}") from error
