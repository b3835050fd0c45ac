"""Cheats with photos that were changed between training and audit, and with folders of perturbed ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planted import Faces, audit
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as changes

from loraguard.audit.overlap import distinct, overlaps
from loraguard.channels import JPEG
from loraguard.data import DemoFaces, PhotoHashes, PhotoVersions
from loraguard.data.shapes import distances, shape_hashes, thumbnails


def cropped(image: Tensor, top: int, left: int, side: int) -> Tensor:
    part = image[None, :, top : top + side, left : left + side]
    return F.interpolate(part, (64, 64), mode="bicubic", antialias=True)[0].clamp(-1, 1)


CHANGES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.flip(2),
    lambda x: x.rot90(1, (1, 2)),
    lambda x: x.rot90(3, (1, 2)).flip(1),
    lambda x: cropped(x, 3, 1, 60),
    lambda x: cropped(x, 2, 5, 57).flip(2),
    lambda x: changes.rotate(x, 6, changes.InterpolationMode.BILINEAR),
    lambda x: x.roll((3, -3), (1, 2)),
    lambda x: changes.rgb_to_grayscale(x, 3),
    lambda x: x.flip(0),
    lambda x: -x,
    lambda x: (0.5 * x - 0.4).clamp(-1, 1),
    lambda x: JPEG(30)(F.interpolate(F.avg_pool2d(x[None], 2), scale_factor=2.0))[0],
]
"""Of one photo each."""


def faces(first: int, last: int) -> Tensor:
    return torch.stack([one["image"] for one in DemoFaces(last, size=64).__getitems__([*range(first, last)])])


@pytest.fixture(scope="module")
def changed() -> Tensor:
    return torch.stack([change(one) for change, one in zip(CHANGES, faces(0, len(CHANGES)), strict=True)])


def test_photos_are_flagged_however_they_were_changed(changed: Tensor) -> None:
    """On either side, and beside one another; other faces are no versions of them."""
    own, others = faces(0, len(CHANGES)), faces(100, 130)
    known = PhotoHashes.of(torch.cat([changed, others]))
    assert PhotoVersions.of(own).like(known).equal(torch.eye(len(own), len(known), dtype=torch.bool))
    both = PhotoVersions.joined([PhotoVersions.of(changed), PhotoVersions.of(own)])
    assert distinct(both) == len(own)
    checks = overlaps(both, len(own), {"patch": PhotoHashes.of(own), "other": PhotoHashes.of(others)}, None, ["patch"])
    found = {(one.name, one.generator): one.evidence for one in checks if not one.passed}
    assert set(found) == {("same-photos-twice", "patch"), ("trained-on-these-photos", "patch")}
    said = found["trained-on-these-photos", "patch"]
    assert said.startswith("24 of 24 audited photos (")
    assert said.endswith("are among the 12 that it was trained on.")


def test_one_photo_that_looks_like_a_changed_one_is_chance(changed: Tensor) -> None:
    """Two are not, and one that is known as it is never is."""
    own = PhotoVersions.of(faces(0, len(CHANGES)))

    def flagged(*known: Tensor) -> bool:
        trained = {"patch": PhotoHashes.of(torch.stack(known))}
        return any(not one.passed for one in overlaps(own, len(own), trained, None, ["patch"]))

    assert not flagged(changed[1])
    assert flagged(changed[1], changed[2])
    assert flagged(changed[0])  # mirrored, that is
    assert flagged(faces(3, 4)[0])


def test_a_hash_of_a_shape_forgets_turns_and_colours_exactly() -> None:
    """Quarter turns, mirrored, in other colours, inverted, of other brightness: not one bit differs."""
    own = faces(0, 4)
    small = thumbnails(own)
    for made in (
        own.flip(3),
        own.rot90(1, (2, 3)),
        own.rot90(2, (2, 3)).flip(3),
        own[:, [1, 2, 0]],
        -own,
        own / 2 - 0.5,
    ):
        assert not distances(small, shape_hashes(made)).diagonal().any()
    flat = torch.zeros(1, 3, 64, 64)  # nothing is on it, so that it is nobody's version
    assert (distances(thumbnails(flat), shape_hashes(torch.cat([flat, own]))) > 1).all()


def test_records_without_shapes_are_read(tmp_path: Path) -> None:
    own = PhotoHashes.of(faces(0, 3))
    save_file({"exact": own.exact, "near": own.near}, tmp_path / "old.safetensors")
    own.save(tmp_path, "new.safetensors")
    assert own.shape is not None
    for name, shape in (("old", None), ("new", own.shape)):
        read = PhotoHashes.load(tmp_path / f"{name}.safetensors")
        assert read.shape is None if shape is None else read.shape.equal(shape)  # type: ignore[union-attr]
        assert PhotoVersions.of(faces(0, 3).flip(3)).seen_in(read)[0].all()
    save_file({"exact": own.exact, "near": own.near, "shape": own.shape[:2]}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="holds no hashes of photos: its shapes are"):
        PhotoHashes.load(tmp_path / "bad.safetensors")


def test_folders_of_perturbed_photos_that_are_no_others_are_flagged() -> None:
    """One that is the photos themselves, and one that is another one's, saved again."""
    own = torch.stack([Faces(12)[at]["image"] for at in range(12)])

    def folder(change: Tensor) -> list[dict[str, Tensor]]:
        return [{"image": one} for one in (own + change).clamp(-1, 1)]

    draws = torch.Generator().manual_seed(0)
    first, second, rounding = (torch.randn(own.shape, generator=draws).sign() for _ in range(3))
    given = {
        "first": folder(0.05 * first),
        "again": folder(0.05 * first + rounding / 127.5),
        "second": folder(0.05 * second),
        "plain": folder(torch.zeros(own.shape)),
    }
    result = audit(given)
    flagged = {
        name: {one.defense for one in result.checks if one.name == name and not one.passed}
        for name in ("perturbed-by-another", "photos-not-perturbed")
    }
    assert flagged == {"perturbed-by-another": {"again"}, "photos-not-perturbed": {"plain"}}
    assert "perturbed-by-another" in result.flags(result["untouched", "no-leak", "again"])
