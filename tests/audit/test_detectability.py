"""Can protected photos be told from plain ones: chance where there is nothing to tell, nearly all where it is plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from setups import Flip
from torch.utils.data import ConcatDataset, Subset
from torchmetrics.functional.classification import binary_sensitivity_at_specificity

from loraguard.audit import AuditResult, run_audit, verdict, write_report
from loraguard.audit import detectability as room
from loraguard.audit.detectability import found_at
from loraguard.audit.store import key_of
from loraguard.data import DemoFaces
from loraguard.defenses import RandomNoise


@pytest.fixture
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors learn in 60 steps, or in as few as a test asks for that is not about what they find."""
    steps = getattr(request, "param", 60)
    monkeypatch.setattr(room, "STEPS", steps)
    monkeypatch.setattr(room.learned, "__defaults__", (steps,))


def audited(model: PeftModel, faces: object, **more: object) -> AuditResult:
    options = {"defenses": {"gross": RandomNoise(0.3)}, "patches": {}, "disable_tqdm": True, "detect": 30, **more}
    return run_audit(model, faces, **options)


def test_the_rate_is_that_of_torchmetrics() -> None:
    """At no more than 1% false alarms of 300; theirs says "at a specificity of at least"."""
    plain, protected = torch.randn(300), torch.randn(200) + 1.5
    found, alarms = found_at(plain, protected)
    scores, labels = torch.cat([plain, protected]), torch.cat([torch.zeros(300), torch.ones(200)]).long()
    theirs, _ = binary_sensitivity_at_specificity(scores.double().sigmoid(), labels, min_specificity=0.99)
    assert alarms.sum() == 3
    assert found.mean().item() == pytest.approx(theirs.item(), abs=1 / 200)


def test_chance_on_identical_photos_and_nearly_all_of_gross_noise(model: PeftModel, quick: None) -> None:
    result = audited(model, DemoFaces(40, size=16, split="test"), fit_on=DemoFaces(60, size=16))
    by_name = {one.defense: one for one in result.detections}
    same, gross = by_name["none"], by_name["gross"]
    assert same.found.mean == same.false_alarms.mean == 0.0  # of 40 photos none may be a false alarm
    assert gross.found.mean > 0.9
    assert gross.found.low < gross.found.mean
    assert (gross.found.n, gross.trained_on) == (40, 30)
    assert "of gross's photos from plain ones" in verdict(result)[-1]


@pytest.mark.parametrize("quick", [4], indirect=True)
def test_versions_of_audited_photos_are_not_learned_from(model: PeftModel, quick: None, tmp_path: Path) -> None:
    """A data set whose first half is audited: of 12 others 8 are left, and all is found again on a second run."""
    faces = DemoFaces(20, size=16)
    asked, others = Subset(faces, range(8)), ConcatDataset([Subset(faces, range(4)), Subset(faces, range(8, 16))])
    first = audited(model, asked, fit_on=others, output_dir=tmp_path)
    assert {one.trained_on for one in first.detections} == {8}
    assert any(not one.passed for one in first.checks if one.name == "fitted-on-these-photos")

    again: list[object] = []
    learned = room.learned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "learned", lambda *given: again.append(given) or learned(*given))
        assert audited(model, asked, fit_on=others, output_dir=tmp_path).detections == first.detections
        assert len(again) == 1
        for file in (tmp_path / "cells").rglob("*.json"):  # changed by hand, with its checksum
            stored = json.loads(file.read_text())
            if "found" in stored["piece"]:
                stored["piece"]["found"]["mean"] = 1 - stored["piece"]["found"]["mean"]
                file.write_text(json.dumps(stored | {"sha256": key_of(stored["piece"])}))
        with pytest.warns(UserWarning, match="how well protected photos are told from plain ones did not come out"):
            third = audited(model, asked, fit_on=others, output_dir=tmp_path)
    assert third.detections == first.detections
    assert '<h2 id="detectability">' in write_report(first, tmp_path).read_text()


def test_what_there_is_nothing_to_learn_from(model: PeftModel, faces: DemoFaces) -> None:
    with pytest.raises(ValueError, match="detect=3 needs fit_on="):
        run_audit(model, faces, defenses=Flip(), patches={}, detect=3)
    with pytest.raises(ValueError, match="are no versions of audited ones"):
        audited(model, faces, fit_on=faces)
