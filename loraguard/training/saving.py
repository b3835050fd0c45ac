"""A trained patch in its folder: weights, config with provenance, card and log, all of them or none."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from peft import PeftModel

from loraguard.data import PhotoHashes
from loraguard.describing import without_paths
from loraguard.files import draft_folder, not_written, sync, whole_files, write_json
from loraguard.hub.card import own_text, patch_card, read_card
from loraguard.hub.local import read_patch, save_adapter
from loraguard.hub.names import CARD, LOG, PHOTOS
from loraguard.hub.provenance import training_record
from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

from .log import TrainingResult

_OF_A_STEP, _OF_A_GATE = 320, 24
"""Bytes in `training_log.json`, of a step and of each gate after it."""


def save_patch(
    model: PeftModel,
    adapter: str,
    result: TrainingResult,
    folder: Path,
    *,
    settings: dict[str, Any],
    generator: dict[str, Any],
    dataset: Any,
    drawn: Iterable[int],
    skipped: Sequence[dict[str, Any]],
    resumed: Sequence[dict[str, Any]],
) -> None:
    """Write a patch into a folder. What a person wrote on the card that lies there stays.

    Args:
        model: a generator with adapters.
        adapter: the one to save; its config gets the provenance.
        result: how training went.
        folder: where to.
        settings: of the training.
        generator: what `describe_generator` said of the network before training.
        dataset: what it was trained on.
        drawn: which of its photos; their hashes are kept beside the patch, so that no audit takes them for unseen.
        skipped: the steps that were.
        resumed: where the run went on with other settings.

    Raises:
        OSError: if it cannot be written; what was there before is as it was.
    """
    config = cast(GatedLoraConfig, model.peft_config[adapter])
    config.provenance = training_record(settings, generator, dataset, len(result.log))
    changed = {"resumed": without_paths(list(resumed))} if resumed else {}
    config.provenance |= changed | ({"skipped": len(skipped)} if skipped else {})
    earlier = folder / CARD
    with whole_files(folder) as draft:
        save_adapter(model, adapter, draft)
        card = patch_card(
            config,
            read_patch(draft).sha256,
            earlier=read_card(earlier) if earlier.is_file() else None,
        )
        (draft / CARD).write_text(str(card), encoding="utf-8")
        log = {"settings": settings, "steps": result.log, "gates": result.gates}
        _save_hashes(dataset, drawn, draft)
        write_json(draft / LOG, {**log, "validation": result.validation, "skipped": skipped, **changed})


def _save_hashes(dataset: Any, drawn: Iterable[int], folder: Path) -> None:
    """Write the hashes of the photos that were trained on. One that cannot be read a second time loses no training."""
    try:
        hashes = PhotoHashes.within(dataset, drawn)
    except Exception as error:
        warnings.warn(f"No record of the photos is kept: one cannot be read again ({error!s:.200}).", stacklevel=5)
    else:
        hashes.save(folder, PHOTOS)


def save_or_rescue(write: Callable[[Path], object], folder: Path) -> None:
    """Write a patch into its folder; where that fails, leave a copy elsewhere, and say what failed and where that is.

    Args:
        write: of the patch, into a folder.
        folder: where it is to be.

    Raises:
        OSError: if it cannot be written to the folder.
    """
    try:
        write(folder)
    except Exception as error:  # torch, safetensors and Python each have their own for a full disk
        raise not_written("patch", folder, error, rescued(write)) from error


def rescued(write: Callable[[Path], object]) -> str:
    """Leave a copy of a patch in a temporary folder, if there is space for it; says where it is."""
    then = "The training is in memory as long as this program runs: trainer.save(FOLDER) writes it elsewhere."
    with suppress(Exception):
        copy = tempfile.mkdtemp(prefix="loraguard-patch-")
        try:
            write(Path(copy))
            return f"A copy is in {copy}. {then}"
        except Exception:
            shutil.rmtree(copy, ignore_errors=True)
    return then


def try_saving(model: PeftModel, adapter: str, folder: Path, steps: int) -> None:
    """Write as much as the last save will take, and delete it: before training, as it would be lost afterwards.

    Args:
        model: a generator with adapters.
        adapter: the one that will be saved.
        folder: where to.
        steps: that the log will have.

    Raises:
        OSError: if there is no space, or something cannot be written.
        ValueError: if the card that lies there cannot be gone on with.
    """
    if (earlier := folder / CARD).is_file():
        own_text(read_card(earlier))
    layers = sum(isinstance(module, GatedLoraLayer) for module in model.modules())
    try:
        with draft_folder(folder) as draft:
            save_adapter(model, adapter, draft)
            (draft / LOG).write_bytes(bytes(steps * (_OF_A_STEP + layers * _OF_A_GATE)))
            sync(draft)
    except Exception as error:
        raise not_written("patch", folder, error, "This was tried before training; nothing is lost.") from error
