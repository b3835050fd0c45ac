"""What cannot be right is refused, by name and with the way out, and leaves the model as it was."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import spectral_norm

from loraguard.tuner import GatedLoraConfig, GatedLoraConv

BAD_SETTINGS = [
    ({"r": 0}, "r=0 must be a whole number"),
    ({"r": 2.5}, "r=2.5 must be a whole number"),
    ({"lora_alpha": 0}, "lora_alpha=0 must be"),
    ({"lora_alpha": float("nan")}, "lora_alpha=nan must be"),
    ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be"),
    ({"gate_init": float("nan")}, r"gate_init=nan must be a number in \[-80, 80\]"),
    ({"gate_init": -1000.0}, "gate_init=-1000.0 must be"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' does not apply"),
    ({"init_lora_weights": None}, "init_lora_weights=None does not apply"),
    ({"use_dora": True, "gate_type": "input"}, "there is no dW with gate_type='input', which depends on the input"),
    ({"use_dora": True, "lora_bias": True}, "use_dora=True does not go with lora_bias=True, as in PEFT"),
    ({"target_parameters": ["weight"]}, r"target_parameters=\['weight'\] does not apply"),
    ({"layer_replication": [(0, 2)]}, "layer_replication=.* does not apply"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens=.* does not apply"),
    ({"use_qalora": True}, "use_qalora=True does not apply"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config=.* does not apply"),
    ({"lora_bias": 1}, "lora_bias=1 must be True or False"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out=True does not apply"),
    ({"layers_to_transform": [1]}, "layers_to_transform=.* chooses among"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=lambda value: str(value))
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedLoraConfig(**settings)


def test_ephemeral_offload() -> None:
    from peft.tuners.lora import LoraRuntimeConfig

    with pytest.raises(ValueError, match="ephemeral_gpu_offload=True does not apply"):
        GatedLoraConfig(runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=True))


def test_kasa() -> None:
    from peft.tuners.lora.config import KasaConfig

    with pytest.raises(ValueError, match=r"kasa_config=.* does not apply"):
        GatedLoraConfig(kasa_config=KasaConfig())


def test_layer_classes_of_ones_own() -> None:
    """PEFT's LoRA would use them; GATED_LORA must not take them in silence, and adapt with its own."""
    with pytest.raises(ValueError, match=r"_register_custom_module does not apply .* peft.LoraConfig"):
        GatedLoraConfig()._register_custom_module({nn.Linear: nn.Linear})


class OwnForward(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.abs())


class Quantized(nn.Linear):
    """As bitsandbytes makes them: still an nn.Linear, with a weight of bytes."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)


class OwnHook:
    """As networks of their own normalise weights, without torch's help."""

    def __call__(self, layer: Any, inputs: Any) -> None:
        layer.weight = layer.weight_bar / layer.weight_bar.norm()


def hooked() -> nn.Module:
    layer = nn.Conv2d(3, 3, 3)
    layer.weight_bar = nn.Parameter(layer._parameters.pop("weight"))
    layer.register_forward_pre_hook(OwnHook())
    return layer


BAD_LAYERS = [
    (lambda: hooked(), ValueError, r"weight of 'bad' is computed at each forward by OwnHook, in a way .* exclude_modu"),
    (lambda: nn.LazyConv2d(3, 3), ValueError, "weight of 'bad' has no shape yet"),
    (lambda: Quantized(), TypeError, r"weight of 'bad' is torch.int8.*Load the model otherwise"),
    (lambda: OwnForward(3, 3, 3), TypeError, "'bad' is a OwnForward, a Conv2d with its own forward"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_LAYERS, ids=[message for *_, message in BAD_LAYERS])
@pytest.mark.parametrize("targets", [None, ["bad"]])
def test_layers(make: Any, error: type[Exception], message: str, targets: Any) -> None:
    net = nn.ModuleDict({"good": nn.Conv2d(3, 3, 3), "bad": make()})
    with pytest.raises(error, match=message):
        get_peft_model(net, GatedLoraConfig(target_modules=targets))
    assert type(net["good"]) is nn.Conv2d
    settings = GatedLoraConfig(exclude_modules=["bad"])
    get_peft_model(net, settings)
    assert settings.target_modules == {"good"}


def test_other_kinds_of_modules() -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 3), "norm": nn.BatchNorm2d(3)})
    with pytest.raises(TypeError, match="'norm' is a BatchNorm2d; GATED_LORA adapts Linear, Conv1D, Conv1d"):
        get_peft_model(net, GatedLoraConfig(target_modules=["conv", "norm"]))
    assert type(net["conv"]) is nn.Conv2d


def test_nothing_to_adapt() -> None:
    settings = GatedLoraConfig()
    with pytest.raises(ValueError, match=r"No layer to adapt in Sequential: .* found BatchNorm2d, ReLU"):
        get_peft_model(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), settings)
    assert settings.target_modules is None
    with pytest.raises(ValueError, match=r"No layer to adapt in Conv2d: .* inside a model .*, and found no submodule"):
        get_peft_model(nn.Conv2d(3, 3, 3), GatedLoraConfig())


@pytest.mark.parametrize("targets", [["down"], "down.*", []])
def test_targets_that_match_nothing(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"target_modules|not found in the base model"):
        get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 3)), GatedLoraConfig(target_modules=targets))


def test_shared_weights() -> None:
    net = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3), "three": nn.Linear(3, 3)})
    net["two"].weight = net["one"].weight
    with pytest.raises(ValueError, match="'one' and 'two' share one weight"):
        get_peft_model(net, GatedLoraConfig())
    with pytest.raises(ValueError, match="'one' and 'two' share one weight"):
        get_peft_model(net, GatedLoraConfig(target_modules=["two"]))
    get_peft_model(net, GatedLoraConfig(target_modules=["three"]))


def test_what_a_shared_weight_is_computed_from() -> None:
    net = nn.ModuleDict({"one": spectral_norm(nn.Linear(3, 3)), "two": spectral_norm(nn.Linear(3, 3))})
    net["two"].weight_orig = net["one"].weight_orig
    with pytest.raises(ValueError, match="'one' and 'two' share one weight"):
        get_peft_model(net, GatedLoraConfig(target_modules=["two"]))


def test_a_layer_in_two_places() -> None:
    layer = nn.Linear(3, 3)
    for net in ({"a": layer, "b": layer}, {"a": layer, "b": nn.Sequential(layer)}):
        with pytest.raises(ValueError, match=r"'a' and 'b.*' share one weight"):
            get_peft_model(nn.ModuleDict(net), GatedLoraConfig())


def test_a_layer_under_another_tuner() -> None:
    net = get_peft_model(nn.Sequential(nn.Linear(3, 3)), LoraConfig(target_modules=["0"])).base_model.model
    with (
        pytest.warns(UserWarning, match="for a second time"),
        pytest.raises(ValueError, match="'0' already carries an adapter of another tuner"),
    ):
        get_peft_model(net, GatedLoraConfig())


@pytest.mark.parametrize("r", [0, -2, 3])
def test_rank_of_a_layer(r: int) -> None:
    with pytest.raises(ValueError, match=f"r={r}: the rank must be a positive multiple of the base layer's groups=2"):
        GatedLoraConv(nn.Conv2d(4, 4, 3, groups=2), "default", config=GatedLoraConfig(), r=r, lora_alpha=2)
