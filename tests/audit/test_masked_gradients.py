"""A network that only seems to withstand attacks, as it gives them no gradients, is caught by a real audit."""

from typing import Any

import pytest
import torch
from limits import at_most
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, run_audit
from loraguard.data import DemoFaces
from loraguard.defenses import APGD, Disrupting, Square
from loraguard.generators import DemoEditor


class Rounding(nn.Module):
    """The demo's network behind a step function, whose derivative is 0 wherever it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = DemoEditor.pretrained()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network((images * 8).round() / 8, labels)

    def conditions(self, labels: Tensor) -> dict[str, Any]:
        return self.network.conditions(labels)


def test_rounding_is_no_robustness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients more steps find nothing, so the longest attacks end early."""
    for attack in (Disrupting, APGD):
        at_most(monkeypatch, attack, steps=5, restarts=2)
    at_most(monkeypatch, Square, queries=100)
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2))
    audit = run_audit(
        model, DemoFaces(6, size=16, split="test"), defenses=Disrupting(eps=0.1), patches={},
        generators={"rounding": Rounding()}, checks=6, batch_size=6, disable_tqdm=True,
    )  # fmt: skip
    leak = audit["rounding", "leak"]
    assert not leak.values["dsr"].any(), "white-box attacks find nothing"
    caught = {check.name for check in audit.checks if not check.passed and check.generator == "rounding"}
    assert caught >= {"transfer-beats-white-box", "gradient-free-beats-gradients", "does-not-saturate"}
    assert audit.flags(leak), "and the row that looks so well says so"
