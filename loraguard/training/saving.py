"""A trained patch in its folder: weights, config with provenance, card and log, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from peft import PeftModel

from loraguard.data import PhotoHashes
from loraguard.describing import without_paths
from loraguard.files import whole_files, write_json
from loraguard.hub.card import patch_card
from loraguard.hub.local import read_patch, save_adapter
from loraguard.hub.names import CARD, LOG, PHOTOS
from loraguard.hub.provenance import training_record
from loraguard.tuner import GatedLoraConfig

from .log import TrainingResult


def save_patch(
    model: PeftModel,
    adapter: str,
    result: TrainingResult,
    *,
    settings: dict[str, Any],
    generator: dict[str, Any],
    dataset: Any,
    drawn: Iterable[int],
    skipped: Sequence[dict[str, Any]],
    resumed: Sequence[dict[str, Any]],
) -> None:
    """Write a patch into `result.output_dir`. What a person wrote on the card that lies there stays.

    Args:
        model: a generator with adapters.
        adapter: the one to save; its config gets the provenance.
        result: how training went.
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
    config.provenance |= changed
    earlier = result.output_dir / CARD
    with whole_files(result.output_dir) as draft:
        save_adapter(model, adapter, draft)
        card = patch_card(
            config,
            read_patch(draft).sha256,
            earlier=earlier.read_text(encoding="utf-8") if earlier.is_file() else None,
        )
        (draft / CARD).write_text(str(card), encoding="utf-8")
        log = {"settings": settings, "steps": result.log, "gates": result.gates}
        PhotoHashes.of(dataset[index]["image"] for index in drawn).save(draft, PHOTOS)
        write_json(draft / LOG, {**log, "validation": result.validation, "skipped": skipped, **changed})
