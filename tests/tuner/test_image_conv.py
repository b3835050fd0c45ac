"""Kernels to and from images, row by row, are torch's convolution; where they are used."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.tuner import folded, image_conv
from loraguard.tuner.fast_conv import is_of_images, is_plain
from loraguard.tuner.image_conv import by_rows, pays

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("out", "into", "kernel", "padding"),
    [
        (3, 16, (7, 7), (3, 3)),
        (16, 3, (7, 7), (3, 3)),
        (2, 9, (5, 3), (0, 2)),
        (9, 2, (6, 1), (4, 0)),
        (4, 4, (5, 5), (2, 2)),
    ],
)
def test_value_and_gradients(out: int, into: int, kernel: tuple, padding: tuple, layout: torch.memory_format) -> None:
    x = torch.randn(2, into, 11, 9, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(out, into, *kernel, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(out, dtype=torch.float64, requires_grad=True)
    mine, theirs = by_rows(x, weight, bias, padding), F.conv2d(x, weight, bias, padding=padding)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-11)
    slope = torch.randn_like(theirs)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight, bias), slope) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_half_precision_stays() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = by_rows(torch.randn(1, 16, 8, 8), torch.randn(3, 16, 7, 7), torch.randn(3), (3, 3))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (nn.Conv2d(64, 3, 7, padding=3), True),
        (nn.Conv2d(8, 64, 7, padding=3), True),
        (nn.Conv2d(64, 3, 7, padding=3, padding_mode="reflect"), False),
        (nn.Conv2d(64, 3, 7, padding="same"), False),
        (nn.Conv2d(64, 3, 7, stride=2), False),
        (nn.Conv2d(64, 3, 7, dilation=2), False),
        (nn.Conv2d(64, 64, 7), False),
        (nn.Conv2d(64, 3, 3), False),
        (nn.Conv2d(8, 16, 7), False),
        (nn.Conv2d(64, 4, 7, groups=2), False),
        (nn.ConvTranspose2d(64, 3, 7), False),
    ],
)
def test_where_it_pays(layer: nn.Conv2d, wanted: bool) -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, layer.in_channels, 16, 16, device="cuda")
    assert pays(layer, on_gpu) == wanted
    assert not pays(layer, on_gpu[0])
    assert not pays(layer, torch.zeros(2, layer.in_channels, 16, 16))


def test_inside_folded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's tensors without a GPU: torch's fake ones know shapes, devices and memory formats."""
    calls: list[tuple[int, ...]] = []

    def counted(x, weight, *rest):
        calls.append(tuple(weight.shape))
        return by_rows(x, weight, *rest)

    monkeypatch.setattr(image_conv, "by_rows", counted)
    net = nn.Sequential(nn.Conv2d(3, 16, 7, padding=3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 3, 7, padding=3))
    model = get_peft_model(net, GatedLoraConfig(r=2))
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(parameter.shape, device="cuda"), parameter.requires_grad)
                module._parameters[name] = fake
        photos = torch.empty(2, 3, 16, 16, device="cuda")
        assert model(photos).shape == (2, 3, 14, 14)
        assert not calls
        with folded(model):
            assert model(photos).shape == (2, 3, 14, 14)
        inside = calls.copy()
        calls.clear()
        with folded(model, learning=True):
            assert model(photos).shape == (2, 3, 14, 14)
    assert inside == [(16, 3, 7, 7), (3, 16, 7, 7)]
    assert calls == [(16, 3, 7, 7), (3, 16, 7, 7), (2, 16, 7, 7)]  # A has two channels, which is few beside 16


def test_learning_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 7, padding=3), nn.Conv2d(16, 3, 7, padding=3))
    model = get_peft_model(net, GatedLoraConfig(r=2, init_lora_weights="paper")).double()
    photos = torch.randn(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    learnt = [photos, *(p for p in model.parameters() if p.requires_grad)]
    expected = torch.autograd.grad(model(photos).square().sum(), learnt)
    monkeypatch.setattr(image_conv, "pays", lambda layer, x: is_plain(layer) and is_of_images(layer))
    with folded(model, learning=True):
        found = torch.autograd.grad(model(photos).square().sum(), learnt)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
