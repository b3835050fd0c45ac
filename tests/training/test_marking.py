"""Marks in a patch's training: the target, the loss and its gradient, and that a patch learns to write one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, Mark, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.channels import Identity
from loraguard.data import DemoFaces
from loraguard.defenses import RandomNoise
from loraguard.training import marking
from loraguard.training.marking import Layers, MarkedLoss


class Averages(nn.Module):
    """Sixteen bits: whether a sixteenth of the picture is brighter than grey."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)


MINE = Mark(word="0011" * 4, extractor=Averages(), weight=0.5)


def test_layers_are_the_stamp_with_the_mark_over_it() -> None:
    stamp, mark, images = Stamp("AI", size=0.5), Mark("c0de"), torch.zeros(1, 3, 64, 64)
    layers = Layers.of(stamp, mark)
    assert layers is not None
    assert torch.equal(layers.compose(images), mark.compose(stamp.compose(images)))
    assert Layers.of(stamp, None) is stamp
    assert Layers.of(None, MINE) is None
    assert Layers.of(stamp, MINE) is stamp


def test_the_loss_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """D + weight * mean log(1 + exp(-b R(y))), in double precision; and its gradient by differences."""
    monkeypatch.setattr(marking, "DAMAGE", (Identity(),))
    torch.manual_seed(0)
    outputs, target = torch.rand(2, 3, 8, 8) * 0.2 - 0.1, torch.zeros(2, 3, 8, 8)
    loss = MarkedLoss(F.mse_loss, MINE)
    logits = Averages()(outputs.double())
    signs = torch.tensor([-1.0, -1, 1, 1] * 4).double()
    expected = outputs.double().square().mean() + 0.5 * torch.log1p(torch.exp(-signs * logits)).mean()
    assert float(loss(outputs, target)) == pytest.approx(float(expected), rel=1e-5)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs, target), outputs)
    step = 1e-2 * torch.randn(outputs.shape)
    with torch.no_grad():
        slope = (loss(outputs + step, target) - loss(outputs - step, target)) / 2
    assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=1e-2)


def test_the_extractor_follows_the_outputs() -> None:
    """Who reads a file while a patch trains moves the network, which is one for all, to the file's device."""
    moved = []

    class Follows(Averages):
        def to(self, device: object) -> Follows:
            moved.append(device)
            return self

    loss, outputs = MarkedLoss(F.mse_loss, Mark(word="0011" * 4, extractor=Follows())), torch.zeros(1, 3, 8, 8)
    moved.clear()
    loss(outputs, outputs)
    assert moved == [outputs.device]


def test_gradients_pass_through_every_damage() -> None:
    for channel in marking.DAMAGE:
        images = (torch.rand(1, 3, 16, 16) - 0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(channel(images).square().sum(), images)
        assert gradient.abs().sum() > 0


def test_a_patch_learns_to_write_a_word(tmp_path: Path) -> None:
    """A network that knows where it is (a linear layer), and an extractor without a pattern: the bits' loss alone."""
    torch.manual_seed(0)

    class Painter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.paint = nn.Linear(3 * 64, 3 * 64)
            nn.init.eye_(self.paint.weight)

        def forward(self, images: Tensor) -> Tensor:
            small = F.adaptive_avg_pool2d(images, 8)
            return F.interpolate(self.paint(small.flatten(1)).view_as(small) * 0.3, 16).clamp(-1, 1)

    model = get_peft_model(Painter().requires_grad_(False), GatedLoraConfig(r=4, lora_alpha=8))
    arguments = PatchTrainingArguments(
        tmp_path, mark=MINE, adversary=RandomNoise(eps=0.05), max_train_steps=60, cpu=True, disable_tqdm=True
    )
    assert arguments.kind == "defensive"
    PatchTrainer(model, DemoFaces(64, size=16), arguments).train()
    faces = torch.stack([DemoFaces(16, size=16, split="test")[i]["image"] for i in range(16)])
    with torch.no_grad(), model.disable_adapter():
        before = MINE.logits(model(faces))
    with torch.no_grad():
        after = MINE.logits(model(faces))
    agree = [((logits > 0) == (MINE.target > 0)).float().mean() for logits in (before, after)]
    assert agree[0] < 0.8 < 0.95 < agree[1]


def test_a_mark_that_is_none() -> None:
    with pytest.raises(TypeError, match="write Mark"):
        PatchTrainingArguments("out", mark="c0de")  # type: ignore[arg-type]
