"""The audit of marks: what it counts against what was put there, and its command."""

from __future__ import annotations

import json
from itertools import repeat
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from limits import small_demo_network
from peft import get_peft_model
from scipy.stats import binomtest
from torch import Tensor, nn

from loraguard import GatedLoraConfig, Mark, PatchTrainer, PatchTrainingArguments
from loraguard.audit.marks import MarkAudit, as_table
from loraguard.channels import CropResize, GaussianBlur, Identity
from loraguard.data import DemoFaces
from loraguard.defenses import RandomNoise
from loraguard.generators import DemoEditor

MARK = Mark("c0de")
FACES = torch.stack([DemoFaces(6, size=96, split="audited")[i]["image"] for i in range(6)])


class Marking(nn.Module):
    """A generator with a mark in it: what it adds to every photo is a weight."""

    def __init__(self, mark: Mark = MARK) -> None:
        super().__init__()
        grey = torch.zeros(1, 3, 96, 96)
        self.added = nn.Parameter(mark.compose(grey) - grey, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.added).clamp(-1, 1)


class Composing(nn.Module):
    """A generator that marks at every size."""

    def forward(self, images: Tensor) -> Tensor:
        return MARK.compose(images)


@pytest.fixture(scope="module")
def audit() -> MarkAudit:
    return MarkAudit(Marking(), nn.Identity(), MARK, FACES, {})


def test_it_is_found_where_it_is(audit: MarkAudit) -> None:
    outputs, untouched, photos = audit.layers()
    assert (outputs.found, outputs.n, untouched.found, photos.found) == (6, 6, 0, 0)
    assert outputs.psnr == pytest.approx(MARK.psnr, abs=0.5)
    interval = binomtest(6, 6).proportion_ci(0.95)
    assert (outputs.low, outputs.high) == pytest.approx((interval.low, interval.high))


def test_sizes(audit: MarkAudit) -> None:
    """The word that this network adds has 96 pixels a side; one that composes follows the size."""
    assert list(audit.sizes()) == []  # refused
    rows = MarkAudit(Composing(), nn.Identity(), MARK, FACES, {}).sizes((2 / 3, 2))
    assert [(row.group, row.name, row.found) for row in rows] == [
        ("sizes", "64 x 64 pixels", 6), ("sizes", "192 x 192 pixels", 6)
    ]  # fmt: skip


def test_channels_and_defenses(audit: MarkAudit) -> None:
    kept, lost = audit.channels({"none": Identity(), "a blur over all": GaussianBlur(40.0)})
    assert (kept.found, lost.found) == (6, 0)
    assert kept.bits > 0.98 > lost.bits
    torch.manual_seed(0)
    cropped = {"crop": CropResize(0.9)}
    assert audit.channels(cropped)[0].bits > 0.85 > audit.channels(cropped, crops=False)[0].bits
    assert next(audit.defenses({"noise": RandomNoise(eps=0.02)})).found == 6


def test_what_is_done_to_weights(audit: MarkAudit) -> None:
    rows = {row.name: row for row in audit.changed_weights(pruned=(0.1, 0.999))}
    assert rows["weights in 8 bits"].found == 6
    assert rows["the smallest 10% of weights at zero"].found == 6
    assert rows["the smallest 100% of weights at zero"].found == 0


def test_fine_tuning_towards_the_untouched_network_removes_it(audit: MarkAudit) -> None:
    batches = repeat((FACES, {}, FACES))
    first, last = audit.fine_tuned(iter(batches), steps=(1, 60), learning_rate=2e-3)
    assert (first.found, last.found) == (6, 0)
    assert bool(audit.network.added.abs().max() > 0)  # the audited network is as it was


def test_forging(audit: MarkAudit) -> None:
    composed, copied = audit.forged(FACES)
    assert composed.found == 6
    assert 0 <= copied.found <= 6
    assert as_table([composed]).splitlines()[2].startswith("| composed with the public pattern | 6/6 |")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_demo_network(monkeypatch)
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        tmp_path / "patch", mark=MARK, adversary=RandomNoise(), max_train_steps=1, cpu=True, disable_tqdm=True
    )
    PatchTrainer(model, DemoFaces(8), arguments).train()
    words = ["--patch", tmp_path / "patch", "--output-dir", tmp_path / "out", "--images", 2]
    done = run("mark", "audit", *words, "--channel", "jpeg:75", "--defense", "noise", "--steps", 1)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out/marks.json").read_text())["rows"]
    assert {row["group"] for row in rows} == {"layers", "sizes", "channels", "defenses", "removal", "forging"}
    assert all(row["n"] == 2 for row in rows)
    assert {
        "weights in 8 bits", "the demo's autoencoder", "fine-tuning of all weights, 1 step", "another adapter, 1 step"
    } <= {row["name"] for row in rows}  # fmt: skip
    page = (tmp_path / "out/marks.md").read_text()
    assert page.count("\n## ") == 6
    assert "has to be fitted" in refused("mark", "audit", *words, "--defense", "cmua")
