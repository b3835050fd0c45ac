"""Fast convolutions against torch's own: values, gradients, rounding, and where they step aside."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.tuner import fast_conv
from loraguard.tuner import winograd as winograd_module
from loraguard.tuner.fast_conv import Geometry, can_run, faster, run
from loraguard.tuner.winograd import rows_first, winograd, winograd_transposed

# in, out, kernel, stride, padding, padding_mode, bias, batch, height, width
CASES = {
    "winograd": (128, 128, 3, 1, 1, "zeros", False, 2, 32, 32),
    "winograd-odd": (129, 131, 3, 1, 1, "zeros", True, 1, 33, 38),
    "winograd-valid": (128, 128, 3, 1, 0, "zeros", True, 1, 35, 36),
    "winograd-full": (128, 130, 3, 1, 2, "zeros", False, 3, 21, 17),
    "winograd-uneven": (128, 128, 3, 1, (0, 2), "zeros", False, 1, 34, 37),
    "winograd-reflect": (128, 128, 3, 1, 1, "reflect", True, 1, 33, 34),
    "winograd-bands": (128, 128, 3, 1, 1, "zeros", False, 1, 50, 40),  # three of them, by `_few_at_once`
    "winograd-strided": (128, 130, 4, 2, 1, "zeros", True, 2, 32, 34),
    "winograd-strided-odd": (129, 128, 4, 2, (0, 1), "zeros", False, 1, 37, 35),
    "winograd-strided-full": (128, 128, 4, 2, (3, 2), "zeros", False, 1, 21, 22),
    "winograd-strided-reflect": (128, 128, 4, 2, 1, "reflect", True, 1, 34, 35),
    "narrowing": (32, 3, 7, 1, 3, "zeros", False, 2, 32, 32),
    "narrowing-odd": (33, 2, 7, 1, 2, "zeros", True, 1, 37, 30),
    "narrowing-reflect": (32, 3, (5, 3), 1, 1, "reflect", True, 1, 33, 32),
    "widening": (8, 64, 7, 1, 3, "zeros", False, 2, 32, 32),
    "widening-odd": (3, 33, 7, 1, 0, "zeros", True, 1, 37, 39),
    "widening-full": (3, 16, (5, 7), 1, (4, 6), "zeros", True, 1, 32, 33),
    "widening-same": (4, 16, 7, 1, "same", "replicate", True, 1, 32, 33),
}

# in, out, kernel, stride, padding, output_padding, bias, batch, height, width
TRANSPOSED = {
    "transposed": (128, 130, 4, 2, 1, 0, True, 2, 16, 18),
    "transposed-odd": (129, 128, 4, 2, (0, 1), (1, 0), False, 1, 21, 17),
    "transposed-full": (128, 128, 4, 2, (3, 2), (0, 1), False, 1, 19, 20),
    "transposed-plain": (128, 131, 3, 1, (1, 0), 0, True, 1, 19, 22),
}
ALL = [*CASES, *TRANSPOSED]


def case(name: str, dtype: torch.dtype) -> tuple[Any, Tensor, Tensor]:
    layer: Any
    if name in TRANSPOSED:
        inputs, outputs, *geometry, bias, batch, height, width = TRANSPOSED[name]
        layer = nn.ConvTranspose2d(inputs, outputs, *geometry, bias=bias)
    else:
        inputs, outputs, *geometry, mode, bias, batch, height, width = CASES[name]
        layer = nn.Conv2d(inputs, outputs, *geometry, padding_mode=mode, bias=bias)
    x = torch.randn(batch, inputs, height, width, dtype=dtype, requires_grad=True)
    layer.to(dtype).requires_grad_(False)
    return layer, x, torch.randn_like(layer(x))


def both(layer: Any, x: Tensor, gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradient, fast and torch's own."""
    assert faster(layer)
    results = (run(layer, x, layer.weight, layer.bias), layer(x))
    fast, own = ([y.detach(), *torch.autograd.grad(y, x, gradient)] for y in results)
    return fast, own


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def rms_error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_module, "_VALUES", 2**17)


@pytest.mark.usefixtures("_few_at_once")
@pytest.mark.parametrize("name", ALL)
def test_same_function_in_float64(name: str) -> None:
    for fast, own in zip(*both(*case(name, torch.float64)), strict=True):
        assert fast.shape == own.shape
        assert error(fast, own) < 1e-11


@pytest.mark.usefixtures("_few_at_once")
@pytest.mark.parametrize("name", ALL)
def test_rounding_in_float32(name: str) -> None:
    layer, x, gradient = case(name, torch.float32)
    fast, own = both(layer, x, gradient)
    y = layer.double()(x.double())
    exact = [y.detach(), *torch.autograd.grad(y, x, gradient.double())]
    for forward, one, other, true in zip([True, False], fast, own, exact, strict=True):
        if layer.kernel_size[0] >= 5:
            # Against eps as well, as torch's own may be lucky to be exact.
            bound = 10 * max(rms_error(other, true), torch.finfo(torch.float32).eps)
        else:  # four times what is measured with AVX2; of torch's own, 0.2e-6 to 0.6e-6
            bound = 1e-5 if layer.stride[0] == 2 and forward == (name in TRANSPOSED) else 2e-5
        assert rms_error(one, true) < bound


@pytest.mark.parametrize(("rows", "taps"), [(8, 3), (7, 3), (8, 2), (5, 2)])
def test_points_are_where_rounding_is_expected_to_be_least(
    rows: int, taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounding(exponent: float) -> float:
        """The variance of outputs where each product is off by as much of its size, for inputs of variance 1."""
        monkeypatch.setattr(winograd_module, "_EXPONENT", exponent)
        outputs, kernels, inputs = winograd_module._maps.__wrapped__(rows, taps, torch.float64)
        products = kernels.square().sum(1) * inputs.square().sum(1)
        return float((outputs.square() @ products).mean())

    assert rounding(0.75) < min(rounding(0.6), rounding(0.9))


@pytest.mark.parametrize("strides", ["contiguous", "channels_last", "transposed", "sliced"])
@pytest.mark.parametrize(
    "name", ["winograd", "winograd-odd", "winograd-strided", "transposed", "narrowing-odd", "widening-odd"]
)
def test_any_strides(name: str, strides: str) -> None:
    layer, x, gradient = case(name, torch.float64)
    x = {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": torch.cat([x, x], 3)[..., ::2],
    }[strides]
    x = x.detach().requires_grad_()
    for fast, own in zip(*both(layer, x, gradient.transpose(2, 3).contiguous().transpose(2, 3)), strict=True):
        assert error(fast, own) < 1e-11


@pytest.mark.parametrize("name", ["winograd", "winograd-odd", "winograd-strided", "transposed"])
def test_channels_last_is_kept_in_both_directions(name: str) -> None:
    layer, x, gradient = case(name, torch.float32)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = run(layer, x, layer.weight, None)
    for one in (y, *torch.autograd.grad(y, x, gradient)):
        assert one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["winograd-odd", "winograd-strided", "transposed"])
def test_weight_laid_out_for_it(name: str) -> None:
    layer, x, gradient = case(name, torch.float64)
    same = rows_first(layer.weight)
    assert torch.equal(same, layer.weight)
    assert same.permute(2, 0, 3, 1).is_contiguous()
    (y, back), _ = both(layer, x, gradient)
    laid_out = run(layer, x, same, layer.bias)
    assert error(laid_out, y) < 1e-11
    assert error(torch.autograd.grad(laid_out, x, gradient)[0], back) < 1e-11


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Conv2d(few, many, k, padding=(1, 2)) for k, few, many in [(3, 2, 3), (5, 2, 3), (5, 3, 2)]),
        nn.Conv2d(2, 3, 4, 2, (0, 1)),
        nn.ConvTranspose2d(3, 2, 4, 2, (0, 1), (1, 0)),
    ],
    ids=str,
)
def test_gradcheck(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    x = torch.randn(1, layer.in_channels, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().double()
    assert torch.autograd.gradcheck(lambda x: fast_conv._Conv.apply(x, weight, Geometry.of(layer, (7, 8))), x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["winograd", "winograd-strided", "transposed", "narrowing", "widening"])
def test_output_may_be_written_to_and_is_differentiated_once(name: str, memory_format: torch.memory_format) -> None:
    layer, x, _ = case(name, torch.float64)
    y = run(layer, x.contiguous(memory_format=memory_format), layer.weight, None).relu_()
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with torch.no_grad():
        y = run(layer, x, layer.weight, None)
    y += torch.ones(1, dtype=torch.float64, requires_grad=True)
    assert y.requires_grad


@pytest.mark.parametrize("name", ["winograd", "transposed", "narrowing"])
def test_backward_pass_inside_autocast(name: str) -> None:
    layer, x, gradient = case(name, torch.float32)
    (expected,) = torch.autograd.grad(run(layer, x, layer.weight, None), x, gradient)
    y = run(layer, x, layer.weight, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(y, x, gradient)[0], expected)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 4, 2), nn.ConvTranspose2d(2, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_layer_keeps_its_inputs_shape_alone(layer: nn.Module, memory_format: torch.memory_format) -> None:
    layer.requires_grad_(False)
    leaf = torch.randn(1, 2, 8, 8, requires_grad=True)
    x = leaf.contiguous(memory_format=memory_format) * 2
    own = layer(x)
    with fast_conv.keeping_no_input(x):
        y = layer(x)
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
    "layer",
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
        nn.Conv2d(128, 128, 4),
        nn.Conv2d(128, 128, (4, 3), stride=2),
        nn.Conv2d(128, 64, 4, stride=2),
        nn.ConvTranspose2d(128, 128, 3, stride=2),
        nn.ConvTranspose2d(128, 128, 4),
        nn.ConvTranspose2d(128, 128, 4, stride=2, dilation=2),
        nn.ConvTranspose2d(64, 3, 7),
        nn.Conv1d(64, 3, 7),
        nn.Linear(128, 128),
    ],
    ids=str,
)
def test_other_layers_are_torchs(layer: nn.Module) -> None:
    assert not faster(layer)


def test_other_calls_are_torchs() -> None:
    layer, x = nn.Conv2d(128, 128, 3), torch.zeros(2, 128, 32, 32)
    assert can_run(layer, x)
    assert not can_run(layer, x[:1])
    assert not can_run(layer, x[0])
    assert not can_run(layer, x[:, :, :8])
    assert not can_run(layer, x.reshape(2, 128, 1, 1024))
    assert not can_run(layer, x[:, :64])
    assert not can_run(layer, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_run(layer, x)
    with torch.autograd.forward_ad.dual_level():
        assert not can_run(layer, x)
    torch.func.vmap(lambda one: check_not(can_run(layer, one), one))(x[None])
    # Pixels count where there are fewer.
    assert not can_run(nn.Conv2d(128, 128, 4, 2), x)
    assert can_run(nn.Conv2d(128, 128, 4, 2), torch.zeros(2, 128, 64, 64))
    assert can_run(nn.ConvTranspose2d(128, 128, 4, 2), x)


def check_not(wrong: bool, result: Tensor) -> Tensor:
    assert not wrong
    return result


@pytest.mark.parametrize("transposed", [False, True])
def test_an_image_of_one_row(transposed: bool) -> None:
    x, weight = torch.randn(1, 3, 1, 5).double(), torch.randn(3, 3, 3, 3).double()
    if transposed:  # the one row of the output is of one phase of the kernel's rows
        own = F.conv_transpose2d(x, weight, stride=3, padding=1)
        assert error(winograd_transposed(x, weight, (1, 1), 3, (1, 13)), own) < 1e-11
    else:
        assert error(winograd(x, weight, (1, 1)), F.conv2d(x, weight, padding=1)) < 1e-11
