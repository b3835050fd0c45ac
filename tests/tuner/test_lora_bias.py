"""`lora_bias`: gate * s * (B A x + b), beyond what test_contract.py runs for every kind of layer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from peft.utils import hotswap
from peft.utils.warning import PeftWarning
from torch import nn

from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraLayer, folded, to_lora

EXACT = {"rtol": 0.0, "atol": 1e-12}
STATIC = [name for name in GATES if GATES[name].mergeable]


def net_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.Conv2d(4, 4, 3, groups=2)).double().eval()


def adapted(net: nn.Module, name: str = "default", **settings: Any) -> PeftModel:
    torch.manual_seed(1)
    config = GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", "lora_bias": True, **settings})
    if isinstance(net, PeftModel):
        net.add_adapter(name, config)
    else:
        net = get_peft_model(net, config, name)
    for key, parameter in net.named_parameters():
        if f".{name}." in key and (".lora_gate." in key or key.endswith(".bias")):
            nn.init.normal_(parameter)
    return net.eval()


def test_one_tensor_more_a_layer(tmp_path: Path) -> None:
    model = adapted(net_of(), gate_type="none")
    biases = [name for name, p in model.named_parameters() if p.requires_grad and name.endswith("lora_B.default.bias")]
    assert len(biases) == 2
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net_of(), tmp_path)
    assert loaded.peft_config["default"].lora_bias
    x = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(loaded(x), model(x), **EXACT)


@pytest.mark.parametrize("init", [True, False, "paper", "gaussian"])
def test_it_starts_at_0(init: Any) -> None:
    model = get_peft_model(net_of(), GatedLoraConfig(r=4, lora_bias=True, init_lora_weights=init))
    for layer in model.modules():
        if isinstance(layer, GatedLoraLayer):
            assert not layer.lora_B["default"].bias.any()


@pytest.mark.parametrize("base", [nn.Linear(3, 4, bias=False), nn.ConvTranspose2d(3, 4, 1, bias=False)], ids=str)
def test_a_base_layer_without_a_bias(base: nn.Module) -> None:
    """As in PEFT: it is warned of, runs and trains, and cannot be merged. Folded it can be, as that writes nothing."""
    x = torch.randn(2, 3, 5, 3).double()
    net = nn.Sequential(copy.deepcopy(base).double())
    with pytest.warns(PeftWarning, match=r"lora_bias=True.* has no bias. This means that merging"):
        model = adapted(net)
    layer, y = model.base_model.model[0], model(x)
    for merge in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(
            RuntimeError, match=r"Impossible to merge LoRA with `lora_bias=True` because the base layer"
        ):
            merge()
    assert not layer.merged
    assert torch.equal(layer.base_layer.weight, base.double().weight)
    with folded(model):
        torch.testing.assert_close(model(x), y, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, **EXACT)
    torch.testing.assert_close(y - net_of_bias_0(model, x), bias_alone(model, y), **EXACT)


def net_of_bias_0(model: PeftModel, x: torch.Tensor) -> torch.Tensor:
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.base_model.model[0].lora_B["default"].bias)
    return twin(x)


def bias_alone(model: PeftModel, like: torch.Tensor) -> torch.Tensor:
    layer = model.base_model.model[0]
    gain = torch.sigmoid(layer.lora_gate["default"].weight) * layer.scaling["default"] * layer.lora_B["default"].bias
    spread = gain if isinstance(layer.base_layer, nn.Linear) else gain[:, None, None]
    return spread.expand_as(like)


@pytest.mark.parametrize("combination", ["cat", "svd"])
@pytest.mark.parametrize("gate", STATIC)
def test_sum_of_adapters_with_and_without_it(combination: str, gate: str) -> None:
    model = adapted(adapted(net_of(), "one", lora_bias=False, gate_type=gate), "two", r=8, gate_type=gate)
    x = torch.randn(2, 3, 6, 6).double()
    for first, second in (("one", "two"), ("two", "one")):
        name = f"{first}+{second}"
        rank = {"svd_rank": 12} if combination == "svd" else {}
        model.add_weighted_adapter([first, second], [0.5, -1.5], name, combination_type=combination, **rank)
        assert model.peft_config[name].lora_bias
        for layer in model.modules():
            if isinstance(layer, GatedLoraLayer):
                parts = [(layer.get_delta_weight(one), layer.get_delta_bias(one)) for one in (first, second)]
                want = sum(0 if bias is None else w * bias for w, (_, bias) in zip((0.5, -1.5), parts, strict=True))
                torch.testing.assert_close(layer.get_delta_bias(name), want, **EXACT)
                want = 0.5 * parts[0][0] - 1.5 * parts[1][0]
                torch.testing.assert_close(layer.get_delta_weight(name), want, **EXACT)
    model.base_model.set_adapter(["one", "two"])
    y = model(x)
    model.merge_adapter(["one", "two"])
    torch.testing.assert_close(model(x), y, **EXACT)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), net_of()(x), **EXACT)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
@pytest.mark.parametrize("gate", STATIC)
def test_as_plain_lora(gate: str, tmp_path: Path) -> None:
    model, x = adapted(net_of(), gate_type=gate), torch.randn(2, 3, 6, 6).double()
    config, tensors = to_lora(model, tmp_path)
    assert config.lora_bias
    plain = get_peft_model(net_of(), config).eval()
    assert not set_peft_model_state_dict(plain, tensors).unexpected_keys
    torch.testing.assert_close(plain(x), model(x), **EXACT)
    torch.testing.assert_close(PeftModel.from_pretrained(net_of(), tmp_path)(x), model(x), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["scalar", "rank"])
def test_hotswap_to_another_rank(gate: str, tmp_path: Path) -> None:
    second, x = adapted(net_of(), r=2, gate_type=gate), torch.randn(2, 3, 6, 6).double()
    second.save_pretrained(tmp_path)
    model = adapted(net_of(), r=4, gate_type=gate)
    hotswap.prepare_model_for_compiled_hotswap(model, target_rank=8)
    hotswap.hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    torch.testing.assert_close(model(x), second(x), rtol=0, atol=1e-6)  # scales are float32 from here on
    without = adapted(net_of(), lora_bias=False, gate_type=gate)
    with pytest.raises(ValueError, match="lora_bias"):
        hotswap.hotswap_adapter(without, str(tmp_path), "default", torch_device="cpu")


def test_learning_folded_gives_it_its_gradient() -> None:
    """With a layer wide enough for the faster algorithms, which compute the update again in the backward pass."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)).double(), torch.randn(2, 128, 32, 32).double()
    model = adapted(net).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    want = torch.autograd.grad(model(x).square().sum(), trained)
    with folded(model, learning=True):
        found = torch.autograd.grad(model(x).square().sum(), trained)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


def test_what_converts_to_lora_by_peft() -> None:
    """PEFT's conversion takes the weight alone."""
    with pytest.raises(TypeError, match=r"do not support LoRA conversion.*GatedLoraLinear"):
        convert_to_lora(adapted(nn.Sequential(nn.Linear(3, 3))), rank=2)
