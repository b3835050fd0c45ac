"""Whether audited photos are among those that something was trained or fitted on, told by what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from loraguard.data import PhotoHashes

from .checks import Check
from .situation import KNOWLEDGE

TWICE = 0.01
"""The share of audited photos that may be versions of another one."""

MOST = 5_000
"""Photos of a data set that are looked at; a fit or a calibration takes fewer."""


def hashes_of(images: Tensor) -> tuple[PhotoHashes, PhotoHashes]:
    """Hashes of images (N, 3, H, W) as they are and mirrored: training data are mirrored at random."""
    return PhotoHashes.of(images), PhotoHashes.of(images.flip(3))


def hashes_in(dataset: Dataset[Any]) -> PhotoHashes:
    """Hashes of the photos of a data set, of the first :data:`MOST`."""
    return PhotoHashes.within(dataset, range(min(len(dataset), MOST)))  # type: ignore[arg-type]


def distinct(audited: Sequence[tuple[PhotoHashes, PhotoHashes]]) -> int:
    """How many of the audited photos are no versions of an earlier one.

    Args:
        audited: hashes of the photos as they are and mirrored, batch after batch.
    """
    plain, mirrored = (PhotoHashes.joined(side) for side in zip(*audited, strict=True))
    alike = plain.like(plain) | mirrored.like(plain)
    return int((~alike.tril(-1).any(1)).sum())


def overlaps(
    audited: Sequence[tuple[PhotoHashes, PhotoHashes]],
    trained_on: Mapping[str, PhotoHashes],
    fitted_on: PhotoHashes | None,
    generators: Sequence[str],
) -> Iterator[Check]:
    """Checks of which photos are audited, and of what networks, defenses and detectors have seen.

    One asks whether audited photos are versions of one another; then there is one for each network whose photos are
    known, and one for what defenses and detectors are fitted on.

    Args:
        audited: hashes of the audited photos, batch after batch.
        trained_on: by network, those of the photos that it was trained on.
        fitted_on: those that defenses are fitted on, detectors calibrated on and adversaries trained on.
        generators: all names.
    """
    plain, mirrored = (PhotoHashes.joined(side) for side in zip(*audited, strict=True))
    once = distinct(audited)
    for name in generators:
        yield Check(
            "same-photos-twice", len(plain) - once <= TWICE * len(plain), name, None, KNOWLEDGE,
            f"{len(plain) - once} of {len(plain)} audited photos are versions of another one; {once} differ.",
        )  # fmt: skip
    for name, known in trained_on.items():
        same, near = _counts(plain, mirrored, known)
        yield Check(
            "trained-on-these-photos", near == 0, name, None, KNOWLEDGE,
            f"{near} of {len(plain)} audited photos are among the {len(known)} that it was trained on ({same} bit by "
            "bit).",
        )  # fmt: skip
    if fitted_on is not None:
        same, near = _counts(plain, mirrored, fitted_on)
        for name in generators:
            yield Check(
                "fitted-on-these-photos", near == 0, name, None, KNOWLEDGE,
                f"{near} of {len(plain)} audited photos are among the {len(fitted_on)} that were kept for fitting, "
                f"calibration and training ({same} bit by bit).",
            )  # fmt: skip


def _counts(plain: PhotoHashes, mirrored: PhotoHashes, known: PhotoHashes) -> tuple[int, int]:
    """How many photos are known bit by bit, and how many as versions."""
    exact, near = zip(*(one.seen_in(known) for one in (plain, mirrored)), strict=True)
    same = exact[0] | exact[1]
    return int(same.sum()), int((same | near[0] | near[1]).sum())
