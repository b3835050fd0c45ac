"""Cheats with data and stamps: photos that are known, and stamps that nobody sees."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from planted import Editor, Faces, Wrapped, audit, flags
from setups import STAMP, Flip

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run_audit
from loraguard.channels import JPEG
from loraguard.data import DemoFaces, PhotoHashes
from loraguard.fingerprint import generator_fingerprint
from loraguard.stamp import StampDetector

# F. Data are kept apart by content.


def test_photos_of_the_training_are_flagged_under_any_name() -> None:
    """As they are, mirrored, compressed or darker; other photos are not."""
    size = 64
    own = torch.stack([DemoFaces(8, size=size)[i]["image"] for i in range(8)])
    others = torch.stack([DemoFaces(16, size=size)[i]["image"] for i in range(8, 16)])
    versions = {
        "same": own,
        "mirrored": own.flip(3),
        "compressed": JPEG(60)(own),
        "darker": 0.9 * own,
        "others": others,
    }
    for name, photos in versions.items():
        known = PhotoHashes.of(photos)
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
        result = run_audit(
            model, DemoFaces(8, size=size), defenses=Flip(0.1), patches={"patch": None}, trained_on={"patch": known},
            disable_tqdm=True,
        )  # fmt: skip
        assert ("trained-on-these-photos" in flags(result, "patch")) == (name != "others"), name


def test_the_same_photo_on_both_sides_is_flagged() -> None:
    assert "fitted-on-these-photos" in flags(audit(fit_on=Faces(4)))
    others = [DemoFaces(30, size=16)[i] for i in range(20, 30)]
    assert "fitted-on-these-photos" not in flags(audit(fit_on=others))


def test_items_that_are_tuples_are_compared_as_well() -> None:
    """As a training takes them: (image, labels) in place of a dict."""
    faces = [Faces(4)[i] for i in range(4)]
    pairs = [(one["image"], one["labels"]) for one in faces]
    assert "fitted-on-these-photos" in flags(audit(fit_on=pairs))


@pytest.mark.parametrize("same", [True, False])
def test_a_patch_of_other_weights_is_flagged(same: bool) -> None:
    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
    recorded = generator_fingerprint(model) if same else "0" * 64
    model.peft_config["patch"].provenance = {"generator": {"class": "Editor", "sha256": recorded}}
    found = flags(audit(model=model, patches={"patch": None}))
    assert ("made-for-other-weights" in found) == (not same)


# G. Stamps that nobody sees.


def stamped(result: AuditResult, generator: str) -> float:
    return result[generator, "clean"].values["stamp_rate"].mean().item()


def test_a_stamp_below_a_level_is_not_read() -> None:
    class Faint(StampDetector):
        """Reads the smallest trace of the stamp."""

    detector = StampDetector(STAMP, threshold=1e-3)
    faint = Wrapped(lambda x, edit: edit(x) + 0.2 / 127.5 * (STAMP.compose(edit(x)) - edit(x)).sign())
    result = audit(generators={"faint": faint}, patches={"faint": STAMP}, detectors={"faint": detector})
    plain = audit(generators={"faint": Editor()}, patches={"faint": STAMP}, detectors={"faint": detector})
    assert stamped(result, "faint") == stamped(plain, "faint")


def test_a_detector_that_finds_stamps_everywhere_is_flagged() -> None:
    everywhere = StampDetector(STAMP, threshold=-1.0)
    result = audit(generators={"warns": Editor()}, patches={"warns": STAMP}, detectors={"warns": everywhere})
    assert "stamp-found-everywhere" in flags(result)
    assert stamped(result, "untouched") == 1
