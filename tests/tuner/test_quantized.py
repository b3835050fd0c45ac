"""Quantized linear layers, against the float64 product of what their numbers stand for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerGroup

from loraguard.tuner import GatedLoraConfig, GatedLoraMultiheadAttention, folded, to_lora

IN, OUT = 64, 32


def by_torchao(settings: Any) -> Callable[[nn.Linear], nn.Module]:
    def quantize(layer: nn.Linear) -> nn.Module:
        net = nn.Sequential(layer)
        quantize_(net, settings)
        return net[0]

    return quantize


def eight_bit(layer: nn.Linear) -> nn.Module:
    quantized = bitsandbytes.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


def four_bit(layer: nn.Linear) -> nn.Module:
    quantized = bitsandbytes.nn.Linear4bit(IN, OUT, compute_dtype=torch.float32, compress_statistics=False)
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "torchao, int8": by_torchao(Int8WeightOnlyConfig()),
    "torchao, int4": by_torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
    "bitsandbytes, 8 bit": eight_bit,
    "bitsandbytes, 4 bit": four_bit,
}
every = pytest.mark.parametrize("kind", KINDS)


def net_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(KINDS[kind](nn.Linear(IN, OUT)), nn.Identity()).eval()


def adapted(kind: str, **settings: Any) -> PeftModel:
    torch.manual_seed(1)
    config = {"r": 4, "init_lora_weights": "paper", "target_modules": ["0"], **settings}
    model = get_peft_model(net_of(kind), GatedLoraConfig(**config))
    for name, parameter in model.named_parameters():
        if ".lora_gate." in name or name.endswith("lora_B.default.bias"):
            nn.init.normal_(parameter)
    return model.eval()


def x_of(seed: int = 3) -> Tensor:
    return torch.randn(5, IN, generator=torch.Generator().manual_seed(seed))


def stands_for(layer: Any) -> Tensor:
    """By the libraries' formulas: q * scale (- zero point), or a table of 16 numbers."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        state, packed = weight.quant_state, weight.data.flatten().int()
        indices = torch.stack([packed >> 4, packed & 15], 1).flatten()[: IN * OUT]
        return (state.code.double()[indices].view(-1, state.blocksize) * state.absmax.double()[:, None]).view(OUT, IN)
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        maxima = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.double() * maxima.double()[:, None] / 127
    scale = weight.scale.double().view(OUT, -1).repeat_interleave(IN // weight.scale.view(OUT, -1).shape[1], 1)
    zero = 0.0 if weight.zero_point is None else weight.zero_point.double().view(scale[:, ::IN].shape[0], -1)
    if isinstance(zero, Tensor):
        zero = zero.repeat_interleave(IN // zero.shape[1], 1)
    return (weight.qdata.double() - zero) * scale


def truth(model: PeftModel, x: Tensor) -> Tensor:
    """The dequantized product, and the update, in float64."""
    layer = model.base_model.model[0]
    a, b, gate = (part.weight.detach().double() for part in layer.parts("default"))
    y = x.double() @ (stands_for(layer.base_layer).T) + layer.base_layer.bias.detach().double()
    return y + layer.scaling["default"] * torch.sigmoid(gate) * (x.double() @ a.T @ b.T)


def tolerance(kind: str, x: Tensor, weight: Tensor) -> float:
    """Eight bits of bitsandbytes round the input, too: by 1/254 of its row's maximum; all round in float32."""
    if kind == "bitsandbytes, 8 bit":
        return ((x.abs().amax(1) / 254).max() * weight.abs().sum(1).max()).item() * 1.01 + 2e-2
    return 1e-4


@every
class TestEveryKind:
    def test_unmerged(self, kind: str) -> None:
        model, x = adapted(kind), x_of()
        want = truth(model, x)
        bare = net_of(kind)(x)
        atol = tolerance(kind, x, stands_for(net_of(kind)[0]))
        for _ in range(2):
            torch.testing.assert_close(model(x).double(), want, rtol=0, atol=atol)
        torch.testing.assert_close(model(x) - bare, (want - truth_of_the_bare(model, x)).float(), rtol=0, atol=1e-5)
        with torch.no_grad(), folded(model):
            torch.testing.assert_close(model(x).double(), want, rtol=0, atol=atol)
        with model.disable_adapter():
            assert torch.equal(model(x), bare)

    def test_training(self, kind: str) -> None:
        """Gradients of the adapter, and of the input through the quantized layer."""
        model, x = adapted(kind).train(), x_of().requires_grad_()
        model(x).backward(torch.ones(5, OUT))
        layer = model.base_model.model[0]
        wide = [part.weight.detach().double().requires_grad_() for part in layer.parts("default")]
        a, b, gate = wide
        inputs = x.detach().double().requires_grad_()
        update = layer.scaling["default"] * torch.sigmoid(gate) * (inputs @ a.T @ b.T)
        (inputs @ stands_for(layer.base_layer).T + update).backward(torch.ones(5, OUT).double())
        for part, exact in zip(layer.parts("default"), wide, strict=True):
            torch.testing.assert_close(part.weight.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
        atol = 2e-2 if kind == "bitsandbytes, 8 bit" else 1e-4  # whose backward pass is in half precision
        torch.testing.assert_close(x.grad.double(), inputs.grad, rtol=0, atol=atol)
        assert all(p.grad is None for p in layer.base_layer.parameters())

    def test_merging(self, kind: str) -> None:
        model, x = adapted(kind, lora_bias=True), x_of()
        layer = model.base_model.model[0]
        state = {name: copy.deepcopy(value) for name, value in model.state_dict().items() if torch.is_tensor(value)}
        for operation in (model.merge_adapter, layer.merge):
            with pytest.raises(ValueError, match=r"is quantized \(.*rounded to its steps. merge_and_unload\(\) makes"):
                operation()
        assert not layer.merged
        after = model.state_dict()
        assert all(torch.equal(bits(value), bits(after[name])) for name, value in state.items())
        weight = stands_for(layer.base_layer) + layer.get_delta_weight("default").detach().double()
        bias = (layer.base_layer.bias + layer.get_delta_bias("default")).detach().double()
        with pytest.warns(UserWarning, match=r"Merging into .*plain Linear in torch.float32, 8,192 bytes .*6e-08 of"):
            merged = model.merge_and_unload(safe_merge=True)
        assert type(merged[0]) is nn.Linear
        torch.testing.assert_close(merged(x).double(), x.double() @ weight.T + bias, rtol=0, atol=1e-4)

    def test_unload(self, kind: str) -> None:
        bare = net_of(kind)
        model = adapted(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            unloaded = model.unload()
        assert type(unloaded[0]) is type(bare[0])
        assert torch.equal(unloaded(x_of()), bare(x_of()))

    def test_saved_and_loaded(self, kind: str, tmp_path: Any) -> None:
        model, x = adapted(kind), x_of()
        model.save_pretrained(tmp_path)
        assert torch.equal(PeftModel.from_pretrained(net_of(kind), tmp_path)(x), model(x))
        to_lora(model, tmp_path)
        if "torchao" not in kind:  # where PEFT warns that it will not merge
            plain = PeftModel.from_pretrained(net_of(kind), tmp_path)
            torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-5)


def bits(value: Tensor) -> Tensor:
    return value.dequantize() if type(value).__module__.startswith("torchao.") else value


def truth_of_the_bare(model: PeftModel, x: Tensor) -> Tensor:
    base = model.base_model.model[0].base_layer
    return x.double() @ stands_for(base).T + base.bias.detach().double()


def test_with_quantized_inputs() -> None:
    """The other kind of torchao: the update sees the input as it is."""
    torch.manual_seed(0)
    net = nn.Sequential(by_torchao(Int8DynamicActivationInt8WeightConfig())(nn.Linear(IN, OUT)), nn.Identity())
    bare, x = net(x_of()), x_of()
    model = get_peft_model(net, GatedLoraConfig(r=4, init_lora_weights="paper", target_modules=["0"]))
    layer = model.base_model.model[0]
    want = bare + x @ layer.get_delta_weight("default").T
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-5)


class TestRefused:
    def refuse(self, layer: nn.Module, message: str) -> None:
        net = nn.ModuleDict({"good": nn.Linear(3, 3), "bad": layer})
        with pytest.raises(TypeError, match=f"weight of 'bad' is .*{message}.*exclude_modules"):
            get_peft_model(net, GatedLoraConfig(target_modules=["good", "bad"]))
        assert type(net["good"]) is nn.Linear

    def test_half_precision_weights(self) -> None:
        self.refuse(bitsandbytes.nn.Linear8bitLt(IN, OUT), "has_fp16_weights=True keeps it in half precision")

    def test_not_quantized_yet(self) -> None:
        self.refuse(bitsandbytes.nn.Linear4bit(IN, OUT), "not quantized yet: move the network to its device first")

    def test_a_forward_of_its_own(self) -> None:
        class Own(bitsandbytes.nn.Linear4bit):
            pass

        self.refuse(Own(IN, OUT), "Own is not one of bitsandbytes' two kinds")

    def test_no_way_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = net_of("torchao, int8")[0]
        monkeypatch.delattr(type(layer.weight), "dequantize")
        self.refuse(layer, "torchao cannot dequantize such a weight")

    def test_attention(self) -> None:
        attention = nn.MultiheadAttention(IN, 2)
        quantize_(attention, Int8WeightOnlyConfig(), filter_fn=lambda module, _: isinstance(module, nn.Linear))
        net = nn.ModuleDict({"attention": attention, "other": nn.Linear(3, 3)})
        with pytest.raises(ValueError, match=r"out_proj of a MultiheadAttention must be .* of Int8Tensor of torchao"):
            get_peft_model(net, GatedLoraConfig(target_modules=["attention"]))
        assert type(net["attention"]) is not GatedLoraMultiheadAttention
