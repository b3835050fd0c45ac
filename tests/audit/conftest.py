"""A small generator with two patches, and its audit."""

from __future__ import annotations

import pytest
from limits import no_probes, short_probes
from peft import PeftModel, get_peft_model
from setups import STAMP, Audit, Flip

from loraguard import GatedLoraConfig, StampDetector
from loraguard.audit import AuditResult, run_audit
from loraguard.data import DemoFaces
from loraguard.generators import DemoEditor


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits probe their generators and defenses, by short probes."""
    short_probes(monkeypatch)


@pytest.fixture(autouse=True)
def _unless_probed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half of a tiny audit: only tests about what they find have them."""
    if "probed" not in request.fixturenames:
        no_probes(monkeypatch)


@pytest.fixture
def model(editor: DemoEditor) -> PeftModel:
    config = GatedLoraConfig(r=2, init_lora_weights="paper", lora_alpha=8)
    model = get_peft_model(editor, config, adapter_name="standard")
    model.add_adapter("defensive", config)
    return model.eval()


@pytest.fixture
def audit(model: PeftModel, faces: DemoFaces) -> Audit:
    def audit(model: PeftModel = model, faces: DemoFaces = faces, **changes: object) -> AuditResult:
        defaults = {
            "defenses": Flip(),
            "patches": {"standard": None, "defensive": STAMP},
            "detectors": {"defensive": StampDetector(STAMP)},
            "disable_tqdm": True,
        }
        return run_audit(model, faces, **{**defaults, **changes})

    return audit
