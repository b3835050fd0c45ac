"""Whether audited photos are among those that something was trained or fitted on, told by what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from loraguard.data import PhotoHashes, PhotoVersions
from loraguard.defenses import Fittable
from loraguard.metrics import psnr

from .checks import Check
from .situation import KNOWLEDGE

TWICE = 0.01
"""The share of audited photos that may be versions of another one."""

CHANCE = 0.02
"""The share of audited photos, or one of them, that may look like changed versions of photos of a training: among
10,000 faces that are much alike chance finds one for one photo in a hundred (docs/audit-checks.md)."""

ALIKE = 10.0
"""In dB: two perturbed versions are one where they are so much nearer to each other than to the original."""

MOST = 5_000
"""Photos of a data set that are looked at; a fit or a calibration takes fewer."""


def hashes_in(dataset: Dataset[Any]) -> PhotoHashes:
    """Hashes of the photos of a data set, of the first :data:`MOST`."""
    return PhotoHashes.within(dataset, range(min(len(dataset), MOST)))  # type: ignore[arg-type]


def distinct(photos: PhotoVersions) -> int:
    """How many photos are no versions of an earlier one."""
    alike = photos.like(photos.hashes)
    return int((~(alike | alike.T).tril(-1).any(1)).sum())


def overlaps(
    photos: PhotoVersions,
    once: int,
    trained_on: Mapping[str, PhotoHashes],
    fitted_on: PhotoHashes | None,
    generators: Sequence[str],
    fitted: Mapping[str, PhotoHashes] | None = None,
) -> Iterator[Check]:
    """Checks of which photos are audited, and of what networks, defenses and detectors have seen.

    One asks whether audited photos are versions of one another; then there is one for each network whose photos are
    known, and one for what defenses and detectors are fitted on.

    Args:
        photos: the audited ones.
        once: how many of them are :func:`distinct`.
        trained_on: by network, hashes of the photos that it was trained on.
        fitted_on: those that defenses are fitted on, detectors calibrated on and adversaries trained on.
        generators: all names.
        fitted: by defense, hashes of those that it was fitted on before the audit.
    """
    for name in generators:
        yield Check(
            "same-photos-twice", len(photos) - once <= TWICE * len(photos), name, None, KNOWLEDGE,
            f"{len(photos) - once} of {len(photos)} audited photos are versions of another one; {once} differ.",
        )  # fmt: skip
    for name, known in trained_on.items():
        apart, counts = _apart(photos, known)
        yield Check(
            "trained-on-these-photos", apart, name, None, KNOWLEDGE,
            f"{counts} the {len(known)} that it was trained on.",
        )  # fmt: skip
    seen: list[tuple[str | None, PhotoHashes, str]] = [
        (defense, known, f"{defense} was fitted on before") for defense, known in (fitted or {}).items()
    ]
    if fitted_on is not None:
        seen.append((None, fitted_on, "were kept for fitting, calibration and training"))
    for defense, known, what in seen:
        apart, counts = _apart(photos, known)
        for name in generators:
            yield Check(
                "fitted-on-these-photos", apart, name, defense, KNOWLEDGE, f"{counts} the {len(known)} that {what}."
            )


def perturbed_alike(given: Mapping[str, Tensor], images: Tensor) -> dict[tuple[str, str], Tensor]:
    """By pair of names, whose perturbed versions of photos are the same ones: bool (N,).

    Args:
        given: by name, perturbed versions (N, 3, H, W).
        images: the originals.

    Example:
        >>> photos = torch.zeros(1, 3, 4, 4)
        >>> perturbed_alike({"one": photos + 0.1, "copy": photos + 0.101, "other": photos - 0.1}, photos)
        {('one', 'copy'): tensor([True]), ('one', 'other'): tensor([False]), ('copy', 'other'): tensor([False])}
    """
    kept = {name: psnr(one, images) for name, one in given.items()}
    return {
        (a, b): psnr(given[a], given[b]) >= torch.minimum(kept[a], kept[b]) + ALIKE for a, b in combinations(given, 2)
    }


def given_twice(alike: Sequence[Mapping[tuple[str, str], Tensor]], generators: Sequence[str]) -> Iterator[Check]:
    """One check for each pair of names under which somebody gives perturbed photos.

    Args:
        alike: of :func:`perturbed_alike`, batch after batch.
        generators: all names.
    """
    for pair in alike[0]:
        same = torch.cat([one[pair] for one in alike])
        for name in generators:
            yield Check(
                "perturbed-by-another", int(same.sum()) <= TWICE * len(same), name, pair[1], ("no-leak",),
                f"{int(same.sum())} of {len(same)} photos that {pair[1]!r} is said to have perturbed are those of "
                f"{pair[0]!r}.",
            )  # fmt: skip


def fitted_before(defenses: Mapping[str, Any]) -> dict[str, Dataset[Any] | None]:
    """By defense that was fitted before the audit, or holds such ones, their photos; None where nobody knows them.

    Example:
        >>> from loraguard.defenses import CMUA, Mixture
        >>> from loraguard.generators import DemoEditor
        >>> photos = [{"image": torch.zeros(3, 16, 16), "labels": torch.zeros(5)}]
        >>> fitted = CMUA(steps=1).fit(DemoEditor(conv_dim=4), photos, disable_tqdm=True)
        >>> fitted_before({"several": Mixture((fitted, CMUA())), "not yet": CMUA()}) == {"several": photos}
        True
    """
    found: dict[str, Dataset[Any] | None] = {}
    for name, one in defenses.items():
        seen = [getattr(part, "seen", None) for part in _parts(one) if part.fitted is not None]
        known = [one for one in seen if one is not None]
        if seen:
            found[name] = None if len(known) < len(seen) else known[0] if len(known) == 1 else ConcatDataset(known)
    return found


def _parts(thing: Any, deep: int = 6) -> Iterator[Fittable]:
    """The defenses that see photos first in a defense: itself, or what it is made of, as a mixture or a function is."""
    if isinstance(thing, Fittable):
        yield thing
    if isinstance(thing, Mapping):
        held = list(thing.values())
    elif isinstance(thing, (tuple, list)):
        held = list(thing)
    elif isinstance(thing, (nn.Module, Tensor, Dataset, type)):
        held = []
    else:
        cells = [cell for cell in getattr(thing, "__closure__", None) or () if cell != CellType()]
        held = [*getattr(thing, "__dict__", {}).values(), *(cell.cell_contents for cell in cells)]
    for one in held if deep else ():
        yield from _parts(one, deep - 1)


def _apart(photos: PhotoVersions, known: PhotoHashes) -> tuple[bool, str]:
    """Whether no photo is known as it is or mirrored, and hardly any looks like a changed one; and how many do."""
    exact, versions = photos.seen_in(known)
    nearly = photos.nearly(known).any(1)  # those that are known bit by bit among them
    allowed = max(1, int(CHANCE * len(photos)))
    counts = [int(one.sum()) for one in (versions, nearly, exact)]
    said = f"{counts[0]} of {len(photos)} audited photos ({counts[1]} as they are, {counts[2]} bit by bit) are among"
    return not nearly.any() and counts[0] <= allowed, said
