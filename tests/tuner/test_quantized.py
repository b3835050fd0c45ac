"""Quantized linear layers, beyond what test_contract.py runs: what their numbers stand for, and what is refused."""

import warnings
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, has_avx512bf16
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from tuner_kinds import IN, OUT, QUANTIZED, by_torchao, stands_for
from tuner_truth import randomize

from loraguard.tuner import GatedLoraConfig, GatedLoraMultiheadAttention, to_lora
from loraguard.tuner.quantized import dequantized

BFLOAT16 = 2**-8 * 1.001
"""By which part of itself a number is rounded to it, and a little for float32."""
every = pytest.mark.parametrize("kind", QUANTIZED)


def net_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(QUANTIZED[kind](nn.Linear(IN, OUT)), nn.Identity()).eval()


def adapted(kind: str) -> PeftModel:
    torch.manual_seed(1)
    config = GatedLoraConfig(r=4, init_lora_weights="paper", target_modules=["0"])
    model = get_peft_model(net_of(kind), config)
    randomize(model)
    return model.eval()


def x_of() -> Tensor:
    return torch.randn(5, IN, generator=torch.Generator().manual_seed(3))


@every
class TestEveryKind:
    def test_what_its_numbers_stand_for(self, kind: str) -> None:
        """Before and after a forward, which packs some of them otherwise.

        On processors with AVX512-BF16, bitsandbytes rounds input, scales, weights and output to bfloat16 there, by
        2**-8 of each.
        """
        net, x = net_of(kind), x_of()
        weight = stands_for(net[0])
        want, atol, rtol = x.double() @ weight.T + net[0].bias.detach().double(), torch.tensor(1e-4), 1e-6
        if kind == "bitsandbytes, 8 bit":  # rounds the input, too: by 1/254 of its row's maximum, and in float16
            atol = (x.abs().amax(1) / 254).max() * weight.abs().sum(1).max() * 1.01 + 2e-2
        if kind == "bitsandbytes, 4 bit" and has_avx512bf16():
            rtol = BFLOAT16
            atol = 4 * rtol * ((x.double().abs() @ weight.abs().T).max() + want.abs().max())
        for _ in range(2):
            with torch.no_grad():
                torch.testing.assert_close(net(x).double(), want, rtol=0, atol=atol.item())
            torch.testing.assert_close(dequantized(net[0]).double(), weight, rtol=rtol, atol=0)

    def test_unload(self, kind: str) -> None:
        bare = net_of(kind)
        model = adapted(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            unloaded = model.unload()
        assert type(unloaded[0]) is type(bare[0])
        assert torch.equal(unloaded(x_of()), bare(x_of()))

    def test_as_plain_lora(self, kind: str, tmp_path: Any) -> None:
        model, x = adapted(kind), x_of()
        to_lora(model, tmp_path)
        if "torchao" not in kind:  # where PEFT warns that it will not merge
            net = net_of(kind)
            net[0].support_avx512bf16_for_cpu = False  # for which it would round to bfloat16
            plain = PeftModel.from_pretrained(net, tmp_path)
            torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-5)


def packed(nested: bool, blocks: int) -> tuple[bitsandbytes.nn.Linear4bit, Tensor]:
    """A layer of so many blocks of 64 a row as bitsandbytes leaves it on some processors, and the weight it had."""
    torch.manual_seed(0)
    plain = nn.Linear(64 * blocks, 64)
    layer = bitsandbytes.nn.Linear4bit(64 * blocks, 64, compute_dtype=torch.float32, compress_statistics=nested)
    layer.load_state_dict(plain.state_dict())
    weight = dequantized(layer.to("cpu").eval().requires_grad_(False)).double()
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    return layer, weight


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
class TestPackedForAProcessor:
    """What bitsandbytes does where there is AVX512-BF16, done by hand: scales are rounded by 2**-8 of themselves."""

    def test_dequantized(self, nested: bool, blocks: int) -> None:
        layer, weight = packed(nested, blocks)
        assert ((dequantized(layer).double() - weight).abs() <= BFLOAT16 * weight.abs()).all()

    def test_an_adapter_brings_back_the_gradient(self, nested: bool, blocks: int) -> None:
        """With B at 0, it is that of the base layer: the rows of its weight, summed."""
        layer, weight = packed(nested, blocks)
        model = get_peft_model(nn.Sequential(layer, nn.Identity()), GatedLoraConfig(r=4, target_modules=["0"])).eval()
        x = torch.randn(5, 64 * blocks)
        with torch.no_grad():
            before = model(x)
        x.requires_grad_()
        y = model(x)
        torch.testing.assert_close(y.detach(), before, rtol=0, atol=1e-5)
        y.sum().backward()
        assert ((x.grad - weight.sum(0)).abs() <= BFLOAT16 * weight.abs().sum(0) + 1e-5).all()


def test_unloaded_it_is_bitsandbytes_own_again() -> None:
    model = adapted("bitsandbytes, 4 bit")
    assert not model.base_model.model[0].base_layer.support_avx512bf16_for_cpu
    assert model.unload()[0].support_avx512bf16_for_cpu == has_avx512bf16()


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
