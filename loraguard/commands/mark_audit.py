"""From a patch with a mark (an invisible watermark) to a report of its own: what `loraguard mark audit` does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.audit.marks import MarkAudit, MarkRow, as_table
from loraguard.audit.photos import pick_edits
from loraguard.channels import parse_channel
from loraguard.data import collate
from loraguard.defenses import needs_fitting, parse_defense
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import Condition, conditions_of, labels_of
from loraguard.hub.pull import load_patch

from .mark import patch_mark

CHANNELS = (
    "jpeg:50", "jpeg:75", "webp:50", "resize:0.5", "crop:0.9", "blur:1.5", "noise:0.1", "median:3",
)  # fmt: skip
DEFENSES = ("noise", "disrupting", "apgd")
STEPS = (1, 2, 5, 10, 20, 50, 100)
_TITLES = {
    "layers": "Is it there, and only there?",
    "sizes": "At other sizes",
    "channels": "After what happens to pictures",
    "defenses": "On photos that were perturbed",
    "removal": "What removes it",
    "forging": "Can it be put onto photos that the network never made?",
}
_ATTACKER = 32  # photos of whoever fine-tunes


def audit_mark(
    generator: nn.Module,
    patch: str | Path,
    dataset: Dataset[Any],
    output_dir: str | Path,
    *,
    images: Annotated[int, Ge(2)] = 24,
    channels: tuple[str, ...] = CHANNELS,
    defenses: tuple[str, ...] = DEFENSES,
    steps: tuple[int, ...] = STEPS,
    false_positive_rate: float = 1e-6,
    seed: int = 0,
    extractor: str | None = None,
    say: Callable[[str], None] = print,
) -> list[MarkRow]:
    """Measure the mark of a patch on photos, and write `marks.json` and `marks.md`.

    Who fine-tunes the marked network has other photos, and for targets the untouched network's outputs, which is more
    than an attacker without that network has.

    Args:
        generator: the untouched network, in evaluation mode.
        patch: a folder or a Hub id, whose record names the mark.
        dataset: photos that the patch was not trained on: those to measure on, and 32 of whoever fine-tunes.
        output_dir: where to.
        images: how many photos to measure on.
        channels: as the command line names them.
        defenses: likewise.
        steps: of fine-tuning, all weights or another adapter, after which the mark is read.
        false_positive_rate: of the reader.
        seed: of everything that is drawn.
        extractor: what reads the mark, where the patch records none that has a name (:func:`patch_mark`).
        say: gets a line as each part begins.

    Returns:
        Every row.

    Raises:
        ValueError: for a patch without a mark, too few photos, or a defense that has to be fitted.
        OSError: if something cannot be read or written.
    """
    mark, folder = patch_mark(patch, extractor), writable_folder(output_dir)
    made = {spec: parse_defense(spec) for spec in defenses}
    if unfit := [spec for spec, one in made.items() if needs_fitting(one)]:
        raise ValueError(f"The defense {unfit[0]!r} has to be fitted on photos first, which this audit does not do.")
    there = len(dataset)  # type: ignore[arg-type]
    if there < images + _ATTACKER:
        raise ValueError(f"{images} photos to measure on and {_ATTACKER} to fine-tune with are needed, got {there}.")
    merged = load_patch(patch, copy.deepcopy(generator)).merge_and_unload().requires_grad_(False).eval()
    photos, condition = _photos(dataset, generator, range(images), seed)
    theirs, their_condition = _photos(dataset, generator, range(images, images + _ATTACKER), seed)
    audit = MarkAudit(merged, generator, mark, photos, condition, false_positive_rate)
    with torch.no_grad():
        truth = generator(theirs, **their_condition)
    say(f"Layers, sizes and {len(channels)} channels, on {images} photos")
    rows = [*audit.layers(), *audit.sizes()]
    rows += audit.channels({spec: parse_channel(spec) for spec in channels}, seed)
    say(f"{len(made)} defenses")
    rows += audit.defenses(made, seed)
    say(f"Other weights, another network, up to {max(steps, default=0)} steps of fine-tuning, forging")
    rows += [*audit.changed_weights(), *audit.regenerated()]
    if steps:
        rows += audit.fine_tuned(_batches(theirs, their_condition, truth), steps)
        rows += audit.another_adapter(_batches(theirs, their_condition, truth), steps)
    rows += audit.forged(photos)
    with whole_files(folder) as draft:
        settings = {"mark": mark.settings(), "false_positive_rate": false_positive_rate, "images": images, "seed": seed}
        write_json(draft / "marks.json", {"settings": settings, "rows": [row.to_dict() for row in rows]})
        (draft / "marks.md").write_text(_page(rows, settings), encoding="utf-8")
    return rows


def _photos(dataset: Any, generator: nn.Module, indices: range, seed: int) -> tuple[Tensor, Condition]:
    batch = collate([dataset[i] for i in indices])
    edits = conditions_of(generator, labels_of(batch, None), None)
    draws = torch.rand(len(indices), generator=torch.Generator().manual_seed(seed))
    return batch["image"], pick_edits(edits, draws)[1]


def _batches(images: Tensor, condition: Condition, truth: Tensor) -> Iterator[tuple[Tensor, Condition, Tensor]]:
    for start in count(0, 8):
        some = [i % len(images) for i in range(start, start + 8)]
        yield images[some], {key: value[some] for key, value in condition.items()}, truth[some]


def _page(rows: list[MarkRow], settings: dict[str, Any]) -> str:
    parts = [
        "# Audit of a mark",
        f"Read on {settings['images']} photos at a false-positive rate of {settings['false_positive_rate']:g}. PSNR is "
        "to what the untouched network gives, or to the photo.",
    ]
    for group, title in _TITLES.items():
        if some := [row for row in rows if row.group == group]:
            parts += [f"## {title}", as_table(some)]
    return "\n\n".join(parts) + "\n"
