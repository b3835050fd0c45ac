"""Models inside `folded`, with the algorithms of `fast_conv`: the same outputs and gradients, and where they run."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.tuner import GATES, fast_conv, folded
from loraguard.tuner.fast_conv import Geometry
from loraguard.tuner.folding import FoldingLayer
from loraguard.tuner.learning_conv import TorchGeometry

# in, out, kernel, stride, padding, padding_mode, bias, batch, height, width


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


class Wide(nn.Module):
    """One layer for each algorithm, and one for none."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 128, 5, padding=2, bias=False), nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, 4, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(128, 128, 4, stride=2, padding=1, output_padding=(0, 1)), nn.ReLU(inplace=True),
            nn.Conv2d(128, 12, 1), nn.ReLU(inplace=True),
            nn.Conv2d(12, 3, 7, padding=3, padding_mode="reflect"),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(r=2, init_lora_weights="paper", **settings)


@pytest.fixture(autouse=True)
def _small_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the fast algorithms, which are to pay from four times as many pixels on."""
    monkeypatch.setattr(fast_conv, "_PIXELS_WINOGRAD", 512)


@pytest.fixture
def wide() -> PeftModel:
    return get_peft_model(Wide(), config()).double()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.Size]]:
    """Directions and shapes of the weights that fast algorithms ran with."""
    seen = []

    def seeing(way: str) -> Any:
        run = getattr(Geometry, way)

        def see(self: Geometry, x: Tensor, weight: Tensor) -> Tensor:
            seen.append((way, weight.shape))
            return run(self, x, weight)

        return see

    for way in ("run", "run_back"):
        monkeypatch.setattr(Geometry, way, seeing(way))
    return seen


SHAPES = [(128, 3, 5, 5), (128, 128, 4, 4), (128, 128, 3, 3), (128, 128, 4, 4), (3, 12, 7, 7)]
FORWARD, BACK = [("run", shape) for shape in SHAPES], [("run_back", shape) for shape in SHAPES[::-1]]


def output_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    y = model(images)
    return y.detach(), torch.autograd.grad(y.square().sum(), images)[0]


def test_folded_with_and_without(wide: PeftModel, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 32, 33, dtype=torch.float64)
    with folded(wide):
        fast = output_and_gradient(wide, images)
        assert calls == FORWARD + BACK
        monkeypatch.setattr(FoldingLayer, "fast_inside_folded", False)
        own = output_and_gradient(wide, images)
        assert len(calls) == 10
    for one, other in zip(fast, own, strict=True):
        assert error(one, other) < 1e-11


def gradients(model: PeftModel, images: Tensor) -> list[Tensor]:
    """The output and the gradients of the images and of all that learns."""
    images = images.detach().requires_grad_()
    learnt = [p for p in model.parameters() if p.requires_grad]
    y = model(images)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [images, *learnt])]


class TestLearning:
    """`folded(..., learning=True)`."""

    images = torch.randn(2, 3, 32, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("gate_type", [name for name in GATES if GATES[name].mergeable])
    def test_gradients_of_adapters(self, gate_type: str, calls: list[Any]) -> None:
        torch.manual_seed(0)
        wide = get_peft_model(Wide(), config(gate_type=gate_type)).double()
        wide.add_adapter("two", config(gate_type=gate_type))
        wide.double().base_model.set_adapter(["default", "two"])
        own = gradients(wide, self.images)
        with folded(wide, learning=True):
            fast = gradients(wide, self.images)
        assert calls == FORWARD[:-1] + BACK[1:]
        for one, other in zip(fast, own, strict=True):
            assert error(one, other) < 1e-11

    @pytest.mark.parametrize("gate_type", [name for name in GATES if GATES[name].mergeable])
    def test_gradients_of_adapters_of_few_outputs(self, gate_type: str, calls: list[Any]) -> None:
        """They come from the gradient of W + dW; of two adapters one learns, and both add to the bias."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, (7, 5), padding=(2, 3)))
        model = get_peft_model(net, config(gate_type=gate_type, lora_bias=True)).double()
        model.add_adapter("two", config(gate_type=gate_type, lora_bias=True))
        model.double().base_model.set_adapter(["default", "two"])
        for name, parameter in model.named_parameters():
            if ".two" in name:
                parameter.requires_grad_(False)
        own = gradients(model, self.images)
        with folded(model, learning=True):
            fast = gradients(model, self.images)
        assert calls == [("run", (3, 16, 7, 5)), ("run_back", (3, 16, 7, 5))]
        for one, other in zip(fast, own, strict=True):
            assert error(one, other) < 1e-11

    @pytest.mark.parametrize("gate_type", [name for name in GATES if GATES[name].mergeable])
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1), groups=2, bias=False),
            nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
            nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
        ],
        ids=str,
    )
    def test_gradients_of_adapters_of_high_rank(
        self, layer: nn.Module, gate_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They come from the gradient of W + dW where that takes less time than those of the factors."""
        ran, run = [], TorchGeometry.run
        monkeypatch.setattr(TorchGeometry, "run", lambda self, *given: ran.append(layer) or run(self, *given))
        for r in (2, 4):  # 2 is a third of the outputs, which is not enough
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), copy.deepcopy(layer)).requires_grad_(False)
            bias = layer.bias is not None
            settings = config(gate_type=gate_type, lora_bias=bias, target_modules=["2"])
            model = get_peft_model(net, replace(settings, r=r)).double()
            own = gradients(model, self.images)
            with folded(model, learning=True):
                fast = gradients(model, self.images)
            assert len(ran) == (r == 4)
            for one, other in zip(fast, own, strict=True):
                assert error(one, other) < 1e-11

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
        layer = wide.base_model.model.main[4]
        layer.lora_A["default"].register_forward_hook(lambda *_: seen.append("A"))
        wide.base_model.model.main[0].base_layer.register_forward_hook(lambda *_: seen.append("layer"))
        with folded(wide, learning=True):
            wide(self.images)
        assert seen == ["layer", "A"]
        assert calls == [FORWARD[1], FORWARD[3]]

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
            wide.base_model.model.main[4].lora_B["default"].weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_backward_pass_inside_autocast(self, wide: PeftModel) -> None:
        wide.float()
        learnt = [p for p in wide.parameters() if p.requires_grad]
        found = []
        for enabled in (False, True):
            with folded(wide, learning=True):
                loss = wide(self.images.float()).square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(torch.autograd.grad(loss, learnt))
        assert all(map(torch.equal, *found))

    def test_no_layer_adapted(self) -> None:
        with pytest.raises(ValueError, match="Nothing to fold"), folded(Wide(), learning=True):
            pass


def test_only_inside_folded(wide: PeftModel, calls: list[Any]) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wide(images)
    with torch.no_grad():
        wide.eval()(images)
    assert not calls


def test_targets_take_the_fast_algorithms_too(wide: PeftModel, calls: list[Any]) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad(), wide.disable_adapter():
        own = wide(images)
        with folded(wide):
            assert error(wide(images), own) < 1e-11
    assert calls == FORWARD


def test_transforms_of_torch_func_work_inside(wide: PeftModel) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with folded(wide):
        _, own = output_and_gradient(wide, images)
        (jacobian,) = torch.func.vjp(wide, images)[1](2 * wide(images).detach())
        mapped = torch.func.vmap(lambda one: wide(one[None])[0])(images)
        assert error(mapped, wide(images)) < 1e-11
    assert error(jacobian, own) < 1e-11


class TestLayout:
    """W + dW lies in memory as Winograd's algorithm wants it for its calls, and as the weight does for torch's."""

    large, small = torch.randn(2, 128, 32, 32), torch.randn(1, 128, 16, 16)

    @pytest.fixture
    def model(self) -> PeftModel:
        """A wide convolution, with weights in channels_last."""
        net = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1))
        return get_peft_model(net, config(target_modules=["0"])).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def test_of_fast_calls(self, model: PeftModel) -> None:
        layer = model.base_model.model[0]
        model.eval()(self.large)  # keeps W + dW in torch's layout
        with folded(model):
            model(self.large)
            assert [fold.weight.permute(2, 0, 3, 1).is_contiguous() for fold in layer._folds.values()] == [False, True]

    @torch.no_grad()
    @pytest.mark.parametrize("fast", [True, False])
    def test_of_torchs_calls(self, model: PeftModel, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FoldingLayer, "fast_inside_folded", fast)
        with folded(model):
            large, small = model(self.large), model(self.small)
        model.eval()
        for inside, images in ((small, self.small), *(() if fast else ((large, self.large),))):
            own = model(images)
            assert torch.equal(inside, own)
            assert inside.stride() == own.stride()
