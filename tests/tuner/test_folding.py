"""One convolution per adapted layer, and nothing left behind."""

import contextlib
import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.overrides import TorchFunctionMode

from loraguard.tuner import GatedLoraLayer, folded

EXACT = {"rtol": 0.0, "atol": 1e-12}


class Calls(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[getattr(func, "__name__", "")] += 1
        return func(*args, **(kwargs or {}))


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def test_one_convolution_per_layer(model: PeftModel, batch: Any) -> None:
    with folded(model):
        y = model(*batch)
        with Calls() as calls:
            assert torch.equal(model(*batch), y)
    assert calls.names["conv2d"] == 2
    assert calls.names["conv_transpose2d"] == 1
    assert calls.names["linear"] == 1
    assert calls.names["bmm"] == 0
    torch.testing.assert_close(model(*batch), y, **EXACT)


def test_gradients_reach_the_inputs_alone(model: PeftModel, batch: Any) -> None:
    images, label = batch[0].requires_grad_(), batch[1]
    (expected,) = torch.autograd.grad(model(images, label).square().sum(), images)
    with folded(model):
        model(images, label).square().sum().backward()
    torch.testing.assert_close(images.grad, expected, **EXACT)
    assert all(p.grad is None for p in model.parameters())


def test_nothing_is_left_behind(model: PeftModel, batch: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    with contextlib.suppress(KeyError), folded(model):
        model(*batch)
        raise KeyError
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert not any(layer._folds or layer._folding for layer in layers_of(model))


def test_a_step_after_folding_is_seen(model: PeftModel, batch: Any) -> None:
    with folded(model):
        before = model(*batch)
    for layer in layers_of(model):
        nn.init.constant_(layer.lora_gate["one"].weight, 3.0)
    with folded(model):
        after = model(*batch)
    torch.testing.assert_close(after, model(*batch), **EXACT)
    assert (after - before).abs().max() > 1e-3


def test_nested(model: PeftModel, batch: Any) -> None:
    y = model(*batch)
    with folded(model):
        with folded(model.base_model.model):
            torch.testing.assert_close(model(*batch), y, **EXACT)
        assert all(layer._folds for layer in layers_of(model))
        torch.testing.assert_close(model(*batch), y, **EXACT)
    assert not any(layer._folds for layer in layers_of(model))


@pytest.mark.parametrize("adapters", ["two", ["one", "two"], ["two", "one"]])
def test_changing_adapters_inside(model: PeftModel, batch: Any, adapters: Any) -> None:
    one = model(*batch)
    model.base_model.set_adapter(adapters)
    other = model(*batch)
    with folded(model):
        for _ in range(2):
            model.base_model.set_adapter("one")
            torch.testing.assert_close(model(*batch), one, **EXACT)
            model.base_model.set_adapter(adapters)
            torch.testing.assert_close(model(*batch), other, **EXACT)


def test_scaling_inside(model: PeftModel, batch: Any) -> None:
    with folded(model):
        model(*batch)
        for layer in layers_of(model):
            layer.scale_layer(0.5)
        y = model(*batch)
    torch.testing.assert_close(model(*batch), y, **EXACT)


def test_disabling_and_merging_inside(model: PeftModel, batch: Any) -> None:
    y = model(*batch)
    with model.disable_adapter():
        y0 = model(*batch)
    with folded(model):
        torch.testing.assert_close(model(*batch), y, **EXACT)
        with model.disable_adapter():
            assert torch.equal(model(*batch), y0)
        model.merge_adapter()
        torch.testing.assert_close(model(*batch), y, **EXACT)
        model.unmerge_adapter()
        torch.testing.assert_close(model(*batch), y, **EXACT)


def test_mixed_batches_inside(model: PeftModel, batch: Any) -> None:
    names = ["one", "two", "__base__", "one"]
    y = model(*batch, adapter_names=names)
    with folded(model):
        assert torch.equal(model(*batch, adapter_names=names), y)


def test_a_fold_made_in_inference_mode_serves_gradients(model: PeftModel, batch: Any) -> None:
    images, label = batch
    with folded(model):
        with torch.inference_mode():
            model(images, label)
        (gradient,) = torch.autograd.grad(model(images.requires_grad_(), label).sum(), images)
    assert gradient.abs().max() > 0


def test_a_model_without_adapters(generator: nn.Module) -> None:
    with pytest.raises(ValueError, match="Generator has no layer adapted by GATED_LORA"), folded(generator):
        pass
