"""DoRA with gates: against the weight m * (W + dW) / norm(W + dW) written out, and PEFT's where there is no gate."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from transformers.pytorch_utils import Conv1D

from loraguard.tuner import GATES, GatedLoraConfig, folded, to_lora

EXACT = {"rtol": 0.0, "atol": 1e-12}
STATIC = [name for name in GATES if GATES[name].mergeable]

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "Conv1D": (lambda: Conv1D(4, 6), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1, bias=False), (3, 4, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 5)),
    "embedding": (lambda: nn.Embedding(9, 4), (5, 3)),
    "conv2d, reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", dilation=1), (3, 4, 6, 5)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 5, 4)),
    "transposed2d, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 5, 4)),
}
AS_PEFT = ["linear", "Conv1D", "conv1d", "conv2d", "conv3d", "embedding"]


def net_of(kind: str) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), LAYERS[kind][0]()).double().eval()


def input_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "embedding":
        return torch.randint(9, LAYERS[kind][1], generator=generator)
    return torch.randn(LAYERS[kind][1], generator=generator).double()


def adapted(kind: str, gate: str = "scalar", names: tuple[str, ...] = ("default",), **settings: Any) -> Any:
    """With magnitudes that have learnt."""
    torch.manual_seed(1)
    given = {"r": 4, "use_dora": True, "gate_type": gate, "init_lora_weights": "paper", "target_modules": ["1"]}
    model = get_peft_model(net_of(kind), GatedLoraConfig(**{**given, **settings}), names[0])
    for name in names[1:]:
        model.add_adapter(name, GatedLoraConfig(**{**given, "r": 2, "lora_alpha": 5, **settings}))
    for name, parameter in model.named_parameters():
        if "lora_gate" in name:
            nn.init.normal_(parameter)
        elif "lora_magnitude_vector" in name:
            parameter.data *= torch.linspace(0.5, 1.7, len(parameter))
    return model.eval()


def by_output(weight: Tensor, layer: nn.Module) -> list[Any]:
    """For each output feature, where its part of a weight stands."""
    if isinstance(layer, nn.ConvTranspose2d):
        each, n_in = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        return [(slice(g * n_in, (g + 1) * n_in), o) for g in range(layer.groups) for o in range(each)]
    if isinstance(layer, (Conv1D, nn.Embedding)):
        return [(slice(None), o) for o in range(weight.shape[1])]
    return list(range(len(weight)))


def written_out(model: Any, kind: str, adapter: str = "default") -> Any:
    """The bare network with the adapter's W' for a weight; its dW is what test_contract.py checks."""
    net, layer = net_of(kind), model.base_model.model[1]
    update = layer.from_groups(layer.update_groups(adapter)).detach()
    magnitude = layer.lora_magnitude_vector[adapter].weight.detach()
    weight = net[1].weight.detach().clone()
    for o, place in enumerate(by_output(weight, net[1])):
        row = weight[place] + update[place]
        weight[place] = magnitude[o] * row / row.square().sum().sqrt()
    net[1].weight.data = weight
    return net


every = pytest.mark.parametrize(("kind", "gate"), [(kind, gate) for kind in LAYERS for gate in STATIC])


@every
class TestEveryLayerAndGate:
    def test_formula(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        want = written_out(model, kind)(x)
        assert (want - net_of(kind)(x)).abs().max() > 1e-3
        torch.testing.assert_close(model(x), want, **EXACT)
        with torch.no_grad():
            torch.testing.assert_close(model(x), want, **EXACT)
        with folded(model):
            torch.testing.assert_close(model(x), want, **EXACT)
        with folded(model, learning=True):
            torch.testing.assert_close(model(x), want, **EXACT)
        with model.disable_adapter():
            assert torch.equal(model(x), net_of(kind)(x))

    def test_starts_as_without(self, kind: str, gate: str) -> None:
        torch.manual_seed(1)
        settings = {"r": 4, "gate_type": gate, "init_lora_weights": "paper", "target_modules": ["1"]}
        model = get_peft_model(net_of(kind), GatedLoraConfig(**settings, use_dora=True))
        plain, x = get_peft_model(net_of(kind), GatedLoraConfig(**settings)), input_of(kind)
        set_peft_model_state_dict(plain, {k: v for k, v in state(model).items() if "magnitude" not in k})
        torch.testing.assert_close(model(x), plain(x), **EXACT)

    def test_merging(self, kind: str, gate: str) -> None:
        """Two at once: their updates add up, and come out again to the bit."""
        model, x = adapted(kind, gate, ("one", "two")), input_of(kind)
        bare = net_of(kind)(x)
        model.base_model.set_adapter(["one", "two"])
        want = written_out(model, kind, "one")(x) + written_out(model, kind, "two")(x) - bare
        torch.testing.assert_close(model(x), want, **EXACT)
        model.merge_adapter(safe_merge=True)
        torch.testing.assert_close(model(x), want, **EXACT)
        other = copy.deepcopy(model)
        with model.disable_adapter():
            assert torch.equal(model(x), bare)
        for one in (model, other):
            one.unmerge_adapter()
            assert torch.equal(one.base_model.model[1].base_layer.weight, net_of(kind)[1].weight)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x), want, **EXACT)
        assert merged.state_dict().keys() == net_of(kind).state_dict().keys()

    def test_gradients(self, kind: str, gate: str) -> None:
        """Against W' with a norm that is a constant."""
        model, x = adapted(kind, gate), input_of(kind)
        layer = model.base_model.model[1]
        model(x).square().sum().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert any("lora_magnitude_vector" in name for name in found)
        model.zero_grad()
        net = net_of(kind)
        update, base = layer.from_groups(layer.update_groups("default")), net[1].weight.detach()
        factors = torch.zeros_like(base)
        for place in by_output(base, net[1]):
            factors[place] = 1 / (base[place] + update[place].detach()).norm()
        magnitude = torch.zeros_like(base)
        for o, place in enumerate(by_output(base, net[1])):
            mask = torch.zeros_like(base)
            mask[place] = 1
            magnitude = magnitude + mask * layer.lora_magnitude_vector["default"].weight[o]
        weight = magnitude * factors * (base + update)
        torch.func.functional_call(net, {"1.weight": weight}, (x,)).square().sum().backward()
        for name, gradient in found.items():
            exact = dict(model.named_parameters())[name].grad
            torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-9)

    def test_saved_and_loaded(self, kind: str, gate: str, tmp_path: Path) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(PeftModel.from_pretrained(net_of(kind), tmp_path)(x), model(x), **EXACT)


def state(model: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model)


@pytest.mark.parametrize("kind", AS_PEFT)
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


def test_attention() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    net = Attends().double().eval()
    bare, x = copy.deepcopy(net), torch.randn(2, 3, 8).double()
    config = GatedLoraConfig(r=2, use_dora=True, init_lora_weights="paper", target_modules=["attention"])
    model = get_peft_model(net, config).eval()
    parts: Any = (net.attention, net.attention.base_layer.out_proj)
    weights = (bare.attention.in_proj_weight, bare.attention.out_proj.weight)
    for part, weight in zip(parts, weights, strict=True):
        magnitude = part.lora_magnitude_vector["default"].weight
        magnitude.data *= 1.5
        whole = weight.detach() + part.update_groups("default")[0].detach()
        weight.data = magnitude.detach()[:, None] * whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(x), bare(x), **EXACT)
    torch.testing.assert_close(model.merge_and_unload()(x), bare(x), **EXACT)


class TestRefused:
    def test_computed_weights(self) -> None:
        net = nn.Sequential(spectral_norm(nn.Linear(3, 3)))
        with pytest.raises(ValueError, match=r"use_dora=True on '0'.*computed at each forward by SpectralNorm"):
            get_peft_model(net, GatedLoraConfig(use_dora=True, target_modules=["0"]))
        assert type(net[0]) is nn.Linear

    def test_sums_and_swaps_and_names(self, tmp_path: Path) -> None:
        model = adapted("linear", names=("one", "two"))
        with pytest.raises(ValueError, match=r"\['one', 'two'\] have magnitudes"):
            model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")
        assert "sum" not in model.peft_config
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="use_dora=True cannot be hotswapped"):
            hotswap_adapter(model, str(tmp_path / "two"), "one", torch_device="cpu")
        with pytest.raises(ValueError, match="when DoRA is enabled"):
            model(input_of("linear"), adapter_names=["one"] * 5)

    def test_grouped_layers_as_plain_lora(self) -> None:
        with pytest.raises(ValueError, match="use_dora with groups=2"):
            to_lora(adapted("conv2d, grouped"))
