"""Going on from a checkpoint, and what that is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoints

MATTERS = (
    "stamp",
    "adversary",
    "edits_per_step",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "gate_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "max_train_steps",
    "num_train_epochs",
    "max_grad_norm",
    "seed",
    "mixed_precision",
)
"""Settings that make a resumed run another than the one that was interrupted."""


def resume(
    checkpoints: Checkpoints, wanted: str | Path | None, settings: Mapping[str, Any], images: int
) -> dict[str, Any] | None:
    """Load the checkpoint that `resume_from_checkpoint` means.

    Args:
        checkpoints: of the run's folder.
        wanted: which one; None for none.
        settings: of the run, as JSON takes them.
        images: in the run's data set.

    Returns:
        The state that it was saved with, or None to start anew.

    Raises:
        FileNotFoundError: if a folder is named that holds no checkpoint.
        ValueError: if it is damaged, or of a run that this one cannot go on with.
    """
    checkpoint = None if wanted is None else checkpoints.find(wanted)
    if checkpoint is None:
        return None
    state = checkpoints.load(checkpoint)
    if state["images"] != images:
        raise ValueError(f"{checkpoint} was trained on {state['images']} images, this run has {images}.")
    changed = [
        f"{name}: {then!r} then, {settings.get(name)!r} now"
        for name, then in state["settings"].items()
        if name in MATTERS and then != settings.get(name)
    ]
    if changed:
        warnings.warn(f"Resuming {checkpoint} with other settings: {'; '.join(changed)}.", stacklevel=3)
    return state


def warn_of_later(checkpoints: Checkpoints, step: int) -> None:
    """Say that an earlier run left checkpoints of later steps, which "latest" would take."""
    if later := checkpoints.later_than(step):
        warnings.warn(
            f"{checkpoints.folder} holds checkpoints of an earlier run, {later[-1].name} the last, and this one starts "
            f"at step {step}: resume_from_checkpoint='latest' would take that one until this run is beyond it. Delete "
            "them, or choose another output folder.",
            stacklevel=3,
        )
