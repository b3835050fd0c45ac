"""Settings and data that keep a training to a second."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from loraguard import PatchTrainingArguments
from loraguard.defenses import Disrupting


def arguments(folder: Path, **changes: object) -> PatchTrainingArguments:
    defaults = {"adversary": Disrupting(steps=2), "max_train_steps": 3, "cpu": True, "disable_tqdm": True}
    return PatchTrainingArguments(folder, **{**defaults, **changes})


class Pictures(Dataset):
    """Items that are whatever a list holds."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]
