"""Layers whose adapter a generator's forward never reaches are found and named."""

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.training.coverage import unreached_layers, warn_of_unreached_layers


class Partly(nn.Module):
    """Calls one layer, reads another one's weight, and leaves further ones out."""

    def __init__(self, left_out: int = 1) -> None:
        super().__init__()
        self.called = nn.Conv2d(3, 3, 3, padding=1)
        self.read = nn.Conv2d(3, 3, 1)
        self.left_out = nn.ModuleList(nn.Linear(2, 2) for _ in range(left_out))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(self.called(images), self.read.weight, self.read.bias)


def after_backward(model: PeftModel) -> PeftModel:
    model(torch.randn(2, 3, 4, 4)).square().mean().backward()
    return model


def test_layers_that_are_read_or_left_out_are_found() -> None:
    model = after_backward(get_peft_model(Partly(), GatedLoraConfig(r=2)))
    assert unreached_layers(model, "default") == ["read", "left_out.0"]
    with pytest.warns(UserWarning, match=r"2 of 3 layers got no gradient .*: read, left_out\.0\. .*exclude_modules"):
        warn_of_unreached_layers(model, "default")


def test_a_whole_network_is_silent_although_gradients_of_a_are_zero() -> None:
    model = after_backward(get_peft_model(Partly(), GatedLoraConfig(r=2, target_modules=["called"])))
    assert not model.get_base_model().called.lora_A["default"].weight.grad.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unreached_layers(model, "default")


def test_only_the_adapter_that_is_trained_counts() -> None:
    model = get_peft_model(Partly(), GatedLoraConfig(r=2, target_modules=["called"]), adapter_name="first")
    model.add_adapter("second", GatedLoraConfig(r=2, target_modules=["read"]))
    after_backward(model)  # "first" is active
    assert unreached_layers(model, "first") == []
    assert unreached_layers(model, "second") == []  # frozen: it is not to learn
    model.set_adapter("second")
    assert unreached_layers(model, "second") == ["read"]


def test_a_part_that_learns_on_is_enough() -> None:
    """Frozen factors have no gradient, and are not asked for one."""
    model = get_peft_model(Partly(), GatedLoraConfig(r=2, target_modules=["called"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_gate" in name)
    assert unreached_layers(after_backward(model), "default") == []


def test_long_lists_are_cut() -> None:
    model = after_backward(get_peft_model(Partly(left_out=12), GatedLoraConfig(r=2)))
    with pytest.warns(UserWarning, match=r"13 of 14 layers .*left_out\.6 and 5 more\. "):
        warn_of_unreached_layers(model, "default")
