"""DoRA with gates, beyond what test_contract.py runs: beside PEFT's where there is no gate, and what is refused."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from tuner_kinds import QUANTIZED, bare, inputs, stands_for
from tuner_truth import STATIC, randomize

from loraguard.tuner import GatedLoraConfig, to_lora

# Where PEFT's DoRA is right.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "Conv1D": (lambda: Conv1D(4, 6), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1, bias=False), (3, 4, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 5)),
    "embedding": (lambda: nn.Embedding(9, 4), (5, 3)),
}


def net_of(kind: str) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), LAYERS[kind][0]()).double().eval()


def input_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "embedding":
        return torch.randint(9, LAYERS[kind][1], generator=generator)
    return torch.randn(LAYERS[kind][1], generator=generator).double()


def adapted(kind: str, gate: str) -> Any:
    """With magnitudes that have learnt."""
    torch.manual_seed(1)
    settings = {"gate_type": gate, "init_lora_weights": "paper", "target_modules": ["1"]}
    model = get_peft_model(net_of(kind), GatedLoraConfig(r=4, use_dora=True, **settings))
    randomize(model)
    return model.eval()


@pytest.mark.parametrize("kind", LAYERS)
class TestBesidePeft:
    @pytest.mark.parametrize("gate", STATIC)
    def test_as_plain_lora(self, kind: str, gate: str, tmp_path: Path) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        config, _ = to_lora(model, tmp_path)
        assert type(config) is LoraConfig
        plain = PeftModel.from_pretrained(net_of(kind), tmp_path)
        torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-6)  # PEFT makes identities in float32

    def test_gradients(self, kind: str, tmp_path: Path) -> None:
        model, x = adapted(kind, "none"), input_of(kind)
        to_lora(model, tmp_path)
        plain = PeftModel.from_pretrained(net_of(kind), tmp_path, is_trainable=True)
        gradients = []
        for one in (model, plain):
            one(x).square().sum().backward()
            gradients.append([p.grad.flatten() for n, p in one.named_parameters() if p.grad is not None])
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_without_direction() -> None:
    """As ControlNets start with; PEFT divides 0 by 0."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    nn.init.zeros_(net[0].weight)
    model = get_peft_model(net, GatedLoraConfig(r=2, use_dora=True, target_modules=["0"]))
    y = model(torch.ones(1, 3, 2, 2))
    assert torch.equal(y, net[0].base_layer.bias.view(1, 3, 1, 1).expand_as(y))
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_layers_beside_peft(kind: str, tmp_path: Path) -> None:
    """PEFT multiplies what the quantized layer gives, and eight bits of bitsandbytes round the input there.

    So do four bits on some processors, which this layer forbids and PEFT does not.
    """
    x, nets = inputs("quantized")[0], [bare("quantized", "plain") for _ in range(2)]
    name = f"layer{list(QUANTIZED).index(kind)}"
    settings = {"gate_type": "none", "init_lora_weights": "paper", "target_modules": [name]}
    model = get_peft_model(nets[0], GatedLoraConfig(r=4, use_dora=True, **settings)).eval()
    randomize(model)
    to_lora(model, tmp_path)
    nets[1].is_loaded_in_8bit, nets[1].is_loaded_in_4bit = kind.endswith("8 bit"), kind.endswith("4 bit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of merging, which is not PEFT's to do here
        plain = PeftModel.from_pretrained(nets[1], tmp_path, is_trainable=True).eval()
    mine, theirs = (getattr(one.base_model.model, name) for one in (model, plain))
    assert type(theirs).__module__.startswith("peft.tuners.lora.")
    if kind.endswith("4 bit"):
        theirs.get_base_layer().support_avx512bf16_for_cpu = False
    y, other = mine(x), theirs(x)
    weight = stands_for(getattr(nets[0], name).base_layer)
    factor = mine.lora_magnitude_vector["default"].weight / (weight + mine.update_groups("default")[0]).norm(dim=1)
    rounded = 1 / 254 * x.abs().amax(1, keepdim=True) * weight.abs().sum(1) if kind.endswith("8 bit") else 0.0
    bound = (factor - 1).abs() * rounded * 1.01 + 1e-2 * kind.endswith("8 bit") + 5e-5  # in float16, and in float32
    assert ((y - other).abs() <= bound).all()
    if not kind.endswith("8 bit"):
        for part in (y, other):
            part.square().sum().backward()
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            found, exact = (getattr(layer, part)["default"].weight.grad for layer in (mine, theirs))
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_grouped_layers_as_plain_lora() -> None:
    with pytest.raises(ValueError, match="use_dora with groups=2"):
        to_lora(get_peft_model(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), GatedLoraConfig(r=2, use_dora=True)))
