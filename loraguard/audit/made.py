"""Whether outputs that are not spoilt are edits at all, and those on which a stamp is found carry it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from loraguard.pixels import LEVELS_PER_UNIT

from .checks import FALSE_STAMPS, WHITE_BOX, Check
from .situation import KNOWLEDGE, NO_CHANNEL, UNTOUCHED, Situation

if TYPE_CHECKING:
    from .result import AuditResult

MADE = 0.9
"""A network that edits makes at least this part of the edit on clean photos."""

HALF = 0.5
"""Outputs that are not spoilt make at least this part of the edit, and those on which a detector finds the stamp at
least this part of what the stamp itself changes."""

SOME = 0.1
"""Fewer outputs than this part that are not spoilt are not asked."""


def edit_made(preds: Tensor, target: Tensor, images: Tensor) -> Tensor:
    """How much of the edit outputs make, as an MSE: that of target and photo where they are the target, (N,).

    Args:
        preds: outputs (N, C, H', W').
        target: what they should be, likewise.
        images: the photos, (N, C, H, W).

    Example:
        >>> import torch
        >>> photo, edited = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
        >>> [edit_made(one, edited, photo).item() for one in (edited, 0.5 * edited, photo)]
        [1.0, 0.5, 0.0]
    """
    idle = sized(images, preds)
    return ((preds - idle) * (target - idle)).mean((1, 2, 3))


def stamp_made(preds: Tensor, target: Tensor, plain: Tensor) -> Tensor:
    """Which part of the change that a stamp is outputs make: the projection, 1 where it is all there, (N,).

    Args:
        preds: outputs (N, C, H, W).
        target: plain outputs with the stamp on them.
        plain: without it.
    """
    stamp = target - plain
    return ((preds - plain) * stamp).sum((1, 2, 3)) / stamp.square().sum((1, 2, 3)).clamp_min(1e-12)


def sized(photos: Tensor, outputs: Tensor) -> Tensor:
    """Photos as large as outputs: what doing nothing would give."""
    size = outputs.shape[-2:]
    return photos if photos.shape[-2:] == size else F.interpolate(photos, size, mode="bilinear", antialias=True)


def of_what_is_made(result: AuditResult, generator: str) -> Iterator[Check]:
    """Checks of whether a generator's outputs, on all photos, are what they count as."""
    rows = result.find(generator=generator, role="main", channel=NO_CHANNEL)
    if result.settings["patches"].get(generator) is None:
        yield from _edits(result, generator, rows)
    for row in rows:
        if "stamp_made" in row.values:
            found = row.values["stamp_rate"].double()
            share, made = found.mean().item(), _part(found * row.values["stamp_made"], found)
            yield Check(
                "stamp-not-there", share <= FALSE_STAMPS or made >= HALF, generator, row.treatment.defense,
                (row.treatment.knowledge,),
                f"The detector finds the stamp on {share:.1%} of its outputs (photos: {row.treatment.words}), and "
                f"these make {made:.0%} of the change that the stamp is (at least {HALF:.0%}).",
            )  # fmt: skip


def _edits(result: AuditResult, generator: str, rows: list[Situation]) -> Iterator[Check]:
    own = generator in result.settings.get("others", ())
    clean = result[generator, "clean"].values.get("edit_made")
    whole = result[generator if own else UNTOUCHED, "clean"].values.get("edit_made")
    if clean is None or whole is None or whole.mean() <= LEVELS_PER_UNIT**-2:
        return
    if generator != UNTOUCHED and not own:
        made = _part(clean, whole)
        yield Check(
            "does-not-edit", made >= MADE, generator, None, KNOWLEDGE,
            f"Over all clean photos it makes {made:.0%} of the edit (at least {MADE:.0%}).",
        )  # fmt: skip
    for row in rows:
        if row.treatment.knowledge in ("no-leak", *WHITE_BOX):
            kept = 1 - row.values["dsr"].double()
            share = kept.mean().item()
            made = _part(kept * row.values["edit_made"], kept * whole)
            yield Check(
                "edit-not-made", made >= HALF or share < SOME, generator, row.treatment.defense,
                (row.treatment.knowledge,),
                f"{share:.1%} of the outputs are not spoilt, and these make {made:.0%} of the edit (at "
                f"least {HALF:.0%}).",
            )  # fmt: skip


def _part(some: Tensor, whole: Tensor) -> float:
    return (some.sum() / whole.sum().clamp_min(1e-12)).item()
