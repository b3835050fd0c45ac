"""A compiled generator: W + dW is made once for all that `folded` runs, and anew for each."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.training.compiling import compiled
from loraguard.tuner import folded
from loraguard.tuner.folding import FoldingLayer


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PeftModel:
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 7, padding=3))
    return get_peft_model(net, GatedLoraConfig(r=2, init_lora_weights="paper")).double()


def slope(model: nn.Module, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images).square().sum(), images)[0]


def test_compiled_code_finds_what_folded_made(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    made: list[nn.Module] = []
    fold = FoldingLayer._fold
    for learning_step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * parameter.requires_grad)
        expected = slope(model, images)
        # When each way to run it has been compiled once, nothing is compiled again for other weights.
        stance = torch.compiler.set_stance("fail_on_recompile" if learning_step > 1 else "default")
        with stance, compiled(model), monkeypatch.context() as patch:
            patch.setattr(FoldingLayer, "_fold", lambda *args: made.append(args[0]) or fold(*args))
            with folded(model):
                found = [slope(model, images) for _ in range(3)]
            with folded(model, learning=True):
                model(images).sum().backward()
            with model.disable_adapter(), folded(model):
                model(images)
        for one in found:
            torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)
        layers = [module for module in model.modules() if isinstance(module, FoldingLayer)]
        assert made == layers
        made.clear()
    assert not any(layer.is_compiled for layer in layers)


def test_compiled_code_finds_no_weights_of_before(model: PeftModel) -> None:
    """In eval mode a layer keeps W + dW between calls; compiled code cannot tell whether that is still of today."""
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        before = model.eval()(images)
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
        with compiled(model):
            found = model(images)
        expected = model(images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (found - before).abs().max() > 1e-3
