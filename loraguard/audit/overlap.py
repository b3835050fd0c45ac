"""Whether audited photos are among those that something was trained or fitted on, told by what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from loraguard.data import PhotoHashes, PhotoVersions

from .checks import Check
from .situation import KNOWLEDGE

TWICE = 0.01
"""The share of audited photos that may be versions of another one."""

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
    """
    for name in generators:
        yield Check(
            "same-photos-twice", len(photos) - once <= TWICE * len(photos), name, None, KNOWLEDGE,
            f"{len(photos) - once} of {len(photos)} audited photos are versions of another one; {once} differ.",
        )  # fmt: skip
    for name, known in trained_on.items():
        same, near = _counts(photos, known)
        yield Check(
            "trained-on-these-photos", near == 0, name, None, KNOWLEDGE,
            f"{near} of {len(photos)} audited photos are among the {len(known)} that it was trained on ({same} bit by "
            "bit).",
        )  # fmt: skip
    if fitted_on is not None:
        same, near = _counts(photos, fitted_on)
        for name in generators:
            yield Check(
                "fitted-on-these-photos", near == 0, name, None, KNOWLEDGE,
                f"{near} of {len(photos)} audited photos are among the {len(fitted_on)} that were kept for fitting, "
                f"calibration and training ({same} bit by bit).",
            )  # fmt: skip


def _counts(photos: PhotoVersions, known: PhotoHashes) -> tuple[int, int]:
    """How many photos are known bit by bit, and how many as versions."""
    exact, near = photos.seen_in(known)
    return int(exact.sum()), int((exact | near).sum())
