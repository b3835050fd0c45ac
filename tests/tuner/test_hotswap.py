"""PEFT's hotswap, where it is silently wrong or refuses for LoRA: patterns, groups, other dimensions, padding."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import hotswap
from torch import nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer, folded
from loraguard.tuner.hotswap import pad_rank

EXACT = {"rtol": 0.0, "atol": 1e-12}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(3, 8, 3)
        self.grouped = nn.Conv1d(8, 8, 3, groups=4)
        self.up = nn.ConvTranspose1d(8, 4, 3, groups=2)
        self.out = nn.Conv1d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.up(self.grouped(self.one(x)).relu()))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double().eval()


def saved(net: nn.Module, path: Any, **settings: Any) -> PeftModel:
    model = get_peft_model(copy.deepcopy(net), GatedLoraConfig(**{"init_lora_weights": "paper", **settings})).eval()
    for layer in model.modules():
        if isinstance(layer, GatedLoraLayer):
            for parameter in layer.lora_gate["default"].parameters():
                nn.init.normal_(parameter)
    model.save_pretrained(path)
    return model


SECOND = [
    {"r": 4},
    {"r": 8},
    {"r": 16},
    {"r": 8, "alpha_pattern": {"one": 7, "^up": 3}, "lora_alpha": 5},
    {"r": 8, "rank_pattern": {"grouped": 4, "o..": 2}},
    {"r": 8, "rank_pattern": {"up": 12}, "alpha_pattern": {"up": 9}},
    {"r": 4, "target_modules": ["grouped", "up"]},
]


@pytest.mark.parametrize("settings", SECOND, ids=str)
@pytest.mark.parametrize("gate", ["scalar", "channel", "rank", "input"])
@torch.no_grad()
def test_any_rank_and_pattern(net: nn.Module, tmp_path: Any, settings: dict[str, Any], gate: str) -> None:
    second = saved(net, tmp_path, gate_type=gate, **settings)
    first = GatedLoraConfig(r=8, gate_type=gate, init_lora_weights="paper", alpha_pattern={"out": 4})
    model, x = get_peft_model(net, first).eval(), torch.randn(2, 3, 12, dtype=torch.float64)
    with folded(model):
        model(x)
        hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
        torch.testing.assert_close(model(x), second(x), **EXACT)
    torch.testing.assert_close(model(x), second(x), **EXACT)
    for one in (model, second):
        for layer in one.modules():
            if isinstance(layer, GatedLoraLayer):
                layer.scale_layer(3)
                layer.unscale_layer()
                layer.set_scale("default", 0.5)
    torch.testing.assert_close(model(x), second(x), **EXACT)


def test_other_gates_do_not_fit(net: nn.Module, tmp_path: Any) -> None:
    saved(net, tmp_path, gate_type="channel")
    model = get_peft_model(net, GatedLoraConfig())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="for gate_type, scalar != channel"):
        hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_other_layers_do_not_fit(net: nn.Module, tmp_path: Any) -> None:
    saved(net, tmp_path)
    model = get_peft_model(net, GatedLoraConfig(target_modules=["one"]))
    with pytest.raises(ValueError, match="unexpected keys found"):
        hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")


@torch.no_grad()
def test_compiled_without_compiling_again(net: nn.Module, tmp_path: Any) -> None:
    settings = [{"r": 4}, {"r": 8, "lora_alpha": 5}, {"r": 4, "alpha_pattern": {"up": 9}}]
    others = [saved(net, tmp_path / str(i), **one) for i, one in enumerate(settings)]
    model = PeftModel.from_pretrained(net, tmp_path / "0")
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    hotswap.prepare_model_for_compiled_hotswap(model, target_rank=16)
    torch.testing.assert_close(model(x), others[0](x), rtol=0, atol=1e-7)  # scales are float32 from here on
    torch.compiler.reset()
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for i in (0, 1, 2, 0):
        hotswap.hotswap_adapter(compiled, str(tmp_path / str(i)), "default", torch_device="cpu")
        torch.testing.assert_close(compiled(x), others[i](x), rtol=0, atol=1e-6)
    assert len(compilations) == 1
    torch.compiler.reset()


def test_padding_refuses() -> None:
    with pytest.raises(ValueError, match="Cannot pad an adapter of rank 4 to 2"):
        pad_rank(torch.zeros(4, 3), "lora_A", 1, 2)
    with pytest.raises(ValueError, match="rank 4 to 5, on a layer of 2 groups"):
        pad_rank(torch.zeros(3, 2, 1), "lora_B", 2, 5)


@torch.no_grad()
def test_lora_is_left_alone(tmp_path: Any) -> None:
    """PEFT's own adapters are swapped as before."""

    def lora(r: int) -> PeftModel:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4))
        return get_peft_model(net, LoraConfig(r=r, target_modules=["0"], init_lora_weights=False)).eval()

    second, model, x = lora(2), lora(4), torch.randn(3, 4)
    second.save_pretrained(tmp_path)
    hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    torch.testing.assert_close(model(x), second(x), rtol=1e-4, atol=1e-4)
