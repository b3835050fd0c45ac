"""Fast convolutions against torch's own: values, gradients, rounding, and where they step aside."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.tuner import fast_conv, folded
from loraguard.tuner.fast_conv import can_run, convolve, faster, run
from loraguard.tuner.folding import FoldingLayer
from loraguard.tuner.winograd import winograd

# in, out, kernel, padding, padding_mode, bias, batch, height, width
CASES = {
    "winograd": (128, 128, 3, 1, "zeros", False, 2, 32, 32),
    "winograd-odd": (129, 131, 3, 1, "zeros", True, 1, 33, 38),
    "winograd-valid": (128, 128, 3, 0, "zeros", True, 1, 35, 36),
    "winograd-full": (128, 130, 3, 2, "zeros", False, 3, 21, 17),
    "winograd-uneven": (128, 128, 3, (0, 2), "zeros", False, 1, 34, 37),
    "winograd-reflect": (128, 128, 3, 1, "reflect", True, 1, 33, 34),
    "winograd-bands": (128, 128, 3, 1, "zeros", False, 1, 9, 300),
    "narrowing": (32, 3, 7, 3, "zeros", False, 2, 32, 32),
    "narrowing-odd": (33, 2, 7, 2, "zeros", True, 1, 37, 30),
    "narrowing-reflect": (32, 3, (5, 3), 1, "reflect", True, 1, 33, 32),
    "widening": (8, 64, 7, 3, "zeros", False, 2, 32, 32),
    "widening-odd": (3, 33, 7, 0, "zeros", True, 1, 37, 39),
    "widening-full": (3, 16, (5, 7), (4, 6), "zeros", True, 1, 32, 33),
    "widening-same": (4, 16, 7, "same", "replicate", True, 1, 32, 33),
}


def case(name: str, dtype: torch.dtype) -> tuple[Any, Tensor, Tensor]:
    inputs, outputs, kernel, padding, mode, bias, *size = CASES[name]
    host = nn.Conv2d(inputs, outputs, kernel, padding=padding, padding_mode=mode, bias=bias).to(dtype)
    x = torch.randn(size[0], inputs, *size[1:], dtype=dtype, requires_grad=True)
    return host.requires_grad_(False), x, torch.randn_like(host(x))


def both(host: Any, x: Tensor, gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradient, fast and torch's own."""
    assert faster(host)
    results = (run(host, x, host.weight, host.bias), host(x))
    fast, own = ([y.detach(), *torch.autograd.grad(y, x, gradient)] for y in results)
    return fast, own


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def rms_error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", CASES)
def test_same_function_in_float64(name: str) -> None:
    for fast, own in zip(*both(*case(name, torch.float64)), strict=True):
        assert fast.shape == own.shape
        assert error(fast, own) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_rounding_in_float32(name: str) -> None:
    host, x, gradient = case(name, torch.float32)
    fast, own = both(host, x, gradient)
    y = host.double()(x.double())
    exact = [y.detach(), *torch.autograd.grad(y, x, gradient.double())]
    for one, other, true in zip(fast, own, exact, strict=True):
        # Against eps as well, as torch's own may be lucky to be exact.
        assert rms_error(one, true) < 10 * max(rms_error(other, true), torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["winograd", "winograd-odd", "narrowing-odd", "widening-odd"])
def test_any_strides(name: str, memory_format: torch.memory_format) -> None:
    host, x, gradient = case(name, torch.float64)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    for fast, own in zip(*both(host, x, gradient.transpose(2, 3).contiguous().transpose(2, 3)), strict=True):
        assert error(fast, own) < 1e-12


@pytest.mark.parametrize("name", ["winograd", "winograd-odd"])
def test_channels_last_is_kept_in_both_directions(name: str) -> None:
    host, x, gradient = case(name, torch.float32)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = run(host, x, host.weight, None)
    for one in (y, *torch.autograd.grad(y, x, gradient)):
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_products_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 8, 12, 12), torch.randn(4, 8, 3, 3)
    with_it = winograd(x, weight, (1, 1))
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert error(winograd(x, weight, (1, 1)), with_it) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 3, 5, 5), (3, 2, 5, 5)], ids=str)
def test_gradcheck(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    x = torch.randn(1, shape[1], 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fast_conv._Conv.apply(x, weight, (1, 2)), x)


def test_output_may_be_written_to_and_is_differentiated_once() -> None:
    host, x, _ = case("winograd-odd", torch.float64)
    y = run(host, x, host.weight, None).relu_()
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("host", [nn.Conv2d(2, 4, 4, 2), nn.ConvTranspose2d(2, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_layer_keeps_its_inputs_shape_alone(host: nn.Module, memory_format: torch.memory_format) -> None:
    host.requires_grad_(False)
    leaf = torch.randn(1, 2, 8, 8, requires_grad=True)
    x = leaf.contiguous(memory_format=memory_format) * 2
    own = host(x)
    with fast_conv.keeping_no_input(x):
        y = host(x)
    (expected,) = torch.autograd.grad(own.square().sum(), leaf, retain_graph=True)
    with torch.no_grad():
        x.zero_()  # torch would notice that a tensor has changed that it keeps
    assert torch.equal(torch.autograd.grad(y.square().sum(), leaf)[0], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        own.square().sum().backward()


def test_a_layers_input_goes_with_its_last_user() -> None:
    leaf = torch.randn(1, 2, 8, 8, requires_grad=True)
    x = leaf * 2
    gone = weakref.ref(x)
    with fast_conv.keeping_no_input(x):
        y = nn.Conv2d(2, 4, 4, 2).requires_grad_(False)(x)
    del x
    assert gone() is None
    y.sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize(
    "host",
    [
        nn.Conv2d(128, 128, 3, stride=2),
        nn.Conv2d(128, 128, 3, dilation=2),
        nn.Conv2d(256, 256, 3, groups=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 7),
        nn.Conv2d(128, 128, 3, padding=3),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.Conv2d(128, 128, 3).bfloat16(),
        nn.Conv2d(128, 128, 3, device="meta"),
        nn.ConvTranspose2d(128, 128, 3),
        nn.Conv1d(64, 3, 7),
        nn.Linear(128, 128),
    ],
    ids=str,
)
def test_other_layers_are_torchs(host: nn.Module) -> None:
    assert not faster(host)


def test_other_calls_are_torchs() -> None:
    weight, x = torch.zeros(128, 128, 3, 3), torch.zeros(4, 128, 32, 32)
    assert can_run(x, weight)
    assert not can_run(x[:3], weight)
    assert not can_run(x[0], weight)
    assert not can_run(x[:, :, :8], weight)
    assert not can_run(x.reshape(4, 128, 1, 1024), weight)
    assert not can_run(x[:, :64], weight)
    assert not can_run(x.double(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_run(x, weight)
    with torch.autograd.forward_ad.dual_level():
        assert not can_run(x, weight)
    torch.func.vmap(lambda one: check_not(can_run(one, weight), one))(x[None])


def check_not(wrong: bool, result: Tensor) -> Tensor:
    assert not wrong
    return result


class Wide(nn.Module):
    """One layer for each algorithm, and one for none."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 128, 5, padding=2, bias=False), nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(128, 12, 1), nn.ReLU(inplace=True),
            nn.Conv2d(12, 3, 7, padding=3, padding_mode="reflect"),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(r=2, init_lora_weights="paper", **settings)


@pytest.fixture
def wide() -> PeftModel:
    return get_peft_model(Wide(), config()).double()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that fast algorithms ran with, forward."""
    shapes: list[tuple[int, ...]] = []

    def counting(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        shapes.append(tuple(weight.shape))
        return convolve(x, weight, padding)

    monkeypatch.setattr("loraguard.tuner.fast_conv.convolve", counting)
    return shapes


FIRST, MIDDLE, LAST = (128, 3, 5, 5), (128, 128, 3, 3), (3, 12, 7, 7)
BACK = [(12, 3, 7, 7), (128, 128, 3, 3), (3, 128, 5, 5)]


def output_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    y = model(images)
    return y.detach(), torch.autograd.grad(y.square().sum(), images)[0]


def test_folded_with_and_without(wide: PeftModel, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(4, 3, 32, 33, dtype=torch.float64)
    with folded(wide):
        fast = output_and_gradient(wide, images)
        assert calls == [FIRST, MIDDLE, LAST, *BACK]
        monkeypatch.setattr(FoldingLayer, "fast_inside_folded", False)
        own = output_and_gradient(wide, images)
        assert len(calls) == 6
    for one, other in zip(fast, own, strict=True):
        assert error(one, other) < 1e-12


def gradients(model: PeftModel, images: Tensor) -> list[Tensor]:
    """The output and the gradients of the images and of all that learns."""
    images = images.detach().requires_grad_()
    learnt = [p for p in model.parameters() if p.requires_grad]
    y = model(images)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [images, *learnt])]


class TestLearning:
    """`folded(..., learning=True)`."""

    images = torch.randn(4, 3, 32, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("gate_type", ["scalar", "channel", "none"])
    def test_gradients_of_adapters(self, gate_type: str, calls: list[Any]) -> None:
        torch.manual_seed(0)
        wide = get_peft_model(Wide(), config(gate_type=gate_type)).double()
        wide.add_adapter("two", config(gate_type=gate_type))
        wide.double().base_model.set_adapter(["default", "two"])
        own = gradients(wide, self.images)
        with folded(wide, learning=True):
            fast = gradients(wide, self.images)
        assert calls == [FIRST, MIDDLE, MIDDLE, (3, 128, 5, 5)]
        for one, other in zip(fast, own, strict=True):
            assert error(one, other) < 1e-12

    @pytest.mark.parametrize("settings", [{"gate_type": "input"}, {"lora_dropout": 0.5}], ids=str)
    def test_what_is_no_weight_runs_as_outside(self, settings: dict[str, Any], calls: list[Any]) -> None:
        wide = get_peft_model(Wide(), config(**settings)).double().train()
        torch.manual_seed(1)
        own = gradients(wide, self.images)
        torch.manual_seed(1)
        with folded(wide, learning=True):
            same = gradients(wide, self.images)
        assert not calls
        assert all(map(torch.equal, same, own))

    def test_hooks_are_called(self, wide: PeftModel, calls: list[Any]) -> None:
        seen = []
        layer = wide.base_model.model.main[2]
        layer.lora_A["default"].register_forward_hook(lambda *_: seen.append("A"))
        wide.base_model.model.main[0].base_layer.register_forward_hook(lambda *_: seen.append("host"))
        with folded(wide, learning=True):
            wide(self.images)
        assert seen == ["host", "A"]
        assert not calls

    def test_nothing_is_kept_and_folded_within_keeps_its_own(self, wide: PeftModel) -> None:
        layers = [m for m in wide.modules() if isinstance(m, FoldingLayer)]
        with folded(wide, learning=True):
            gradients(wide, self.images)
            assert not any(layer._folds for layer in layers)
            with folded(wide):
                output_and_gradient(wide, self.images)
                assert all(layer._folds for layer in layers)
            assert not any(layer._folds for layer in layers)

    def test_parameters_that_change_before_the_backward_pass(self, wide: PeftModel) -> None:
        with folded(wide, learning=True):
            y = wide(self.images)
        with torch.no_grad():
            wide.base_model.model.main[2].lora_B["default"].weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_no_layer_adapted(self) -> None:
        with pytest.raises(ValueError, match="Nothing to fold"), folded(Wide(), learning=True):
            pass


def test_only_inside_folded(wide: PeftModel, calls: list[Any]) -> None:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    wide(images)
    with torch.no_grad():
        wide.eval()(images)
    assert not calls


def test_targets_take_the_fast_algorithms_too(wide: PeftModel, calls: list[Any]) -> None:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad(), wide.disable_adapter():
        own = wide(images)
        with folded(wide):
            assert error(wide(images), own) < 1e-12
    assert calls == [FIRST, MIDDLE, LAST]


def test_transforms_of_torch_func_work_inside(wide: PeftModel) -> None:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with folded(wide):
        _, own = output_and_gradient(wide, images)
        (jacobian,) = torch.func.vjp(wide, images)[1](2 * wide(images).detach())
        mapped = torch.func.vmap(lambda one: wide(one[None])[0])(images)
        assert error(mapped, wide(images)) < 1e-12
    assert error(jacobian, own) < 1e-12


def test_kernels_of_one_row_of_tiles() -> None:
    x, weight = torch.randn(1, 3, 4, 5).double(), torch.randn(2, 3, 3, 3).double()
    assert error(winograd(x, weight, (1, 1)), F.conv2d(x, weight, padding=1)) < 1e-12
