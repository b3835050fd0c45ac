"""Attention and torch's encoders, beyond what test_contract.py runs: other loaders, fast paths, what is refused."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig, GatedLoraMultiheadAttention, folded, to_lora

EXACT = {"rtol": 0.0, "atol": 1e-12}


class Attends(nn.Module):
    """Tokens (N, L, 8) that attend to others, under a mask."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], memory.shape[1]).triu(1).bool()
        y, weights = self.attention(x, memory, value=memory.flip(1), attn_mask=mask, need_weights=True)
        return torch.cat([y.flatten(), weights.flatten()])


def net_of(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return Attends(**settings).double().eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, generator=generator).double(), torch.randn(2, 5, 8, generator=generator).double()


def adapted(names: tuple[str, ...] = ("default",), net: nn.Module | None = None, **settings: Any) -> PeftModel:
    config = {"r": 2, "init_lora_weights": "paper", "target_modules": ["attention"], **settings}
    model = get_peft_model(net_of() if net is None else net, GatedLoraConfig(**config), names[0])
    for name in names[1:]:
        model.add_adapter(name, GatedLoraConfig(**{**config, "r": 3, "lora_alpha": 5}))
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if ".lora_gate." in key or (".lora_B." in key and key.endswith(".bias")):
            nn.init.normal_(parameter)
    return model.eval()


def test_as_plain_lora() -> None:
    """PEFT's LoRA adds the update of out_proj twice: as it merges out_proj, and as it merges its parent.

    Where this fails, PEFT does it once, and adapters can be exported.
    """
    with pytest.raises(ValueError, match=r"not the same on 'attention' .*the update of its out_proj is added twice"):
        to_lora(adapted())
    config = LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
    model, net, x = get_peft_model(net_of(), config).eval(), net_of(), batch()
    layer = model.base_model.model.attention
    for part, weight, times in (
        (layer, net.attention.in_proj_weight, 1),
        (layer.base_layer.out_proj, net.attention.out_proj.weight, 2),
    ):
        delta = part.lora_B["default"].weight @ part.lora_A["default"].weight
        weight.data += times * part.scaling["default"] * delta.detach()
    torch.testing.assert_close(model(*x), net(*x), **EXACT)


def test_forward_writes_nothing() -> None:
    """PEFT's LoRA replaces the weights meanwhile; threads that run at the same time would see that."""
    model, x = adapted(), batch()
    seen: list[bool] = []
    stored = dict(model.named_parameters())

    def look(*_: Any) -> None:
        seen.append(all(p is stored[name] for name, p in model.named_parameters()))

    model.base_model.model.attention.base_layer.register_forward_pre_hook(look)
    model(*x)
    assert seen == [True]


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"gate_type": "input"}, "gate_type='input' have no update to act on"),
    ({}, {"lora_dropout": 0.5}, "lora_dropout=0.5 and .* have no update to act on"),
    ({"kdim": 4}, {}, "embed_dim=8, kdim=4 and vdim=8 has no joint projection"),
]


@pytest.mark.parametrize(("given", "settings", "message"), REFUSED, ids=str)
def test_refusals_come_before_a_layer_is_replaced(given: Any, settings: Any, message: str) -> None:
    net = nn.ModuleDict({"first": nn.Linear(3, 3), "attention": nn.MultiheadAttention(8, 2, **given)})
    with pytest.raises(ValueError, match=message):
        get_peft_model(net, GatedLoraConfig(target_modules=["first", "attention"], **settings))
    assert type(net["first"]) is nn.Linear


def test_a_mixed_batch_is_refused() -> None:
    model, x = adapted(), batch()
    with pytest.raises(TypeError, match="does not support mixed adapter batches"):
        model.base_model.model.attention(*x, x[1], adapter_names=["default"] * 2)


TARGETS = [["self_attn"], ["linear1"], ["linear2"], ["self_attn", "linear1", "linear2"], None]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.filterwarnings("ignore:No adapters on", "ignore:enable_nested_tensor is True")
class TestEncoders:
    """In eval mode without gradients, torch reads the weights of these layers, unless it has to call them."""

    def net(self, encoder: bool) -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.Sequential(nn.TransformerEncoder(layer, 2) if encoder else layer).double().eval()

    def model(self, encoder: bool, targets: Any) -> PeftModel:
        torch.manual_seed(1)
        config = GatedLoraConfig(r=2, init_lora_weights="paper", target_modules=targets)
        return get_peft_model(self.net(encoder), config).eval()

    def test_the_fast_path_takes_part(self, targets: Any, encoder: bool) -> None:
        model, bare, x = self.model(encoder, targets), self.net(encoder), batch()[0]
        y = model(x)
        assert (y - bare(x)).abs().max() > 1e-3
        with torch.no_grad():
            torch.testing.assert_close(model(x), y, **EXACT)
            with folded(model):
                torch.testing.assert_close(model(x), y, **EXACT)
            with model.disable_adapter():
                torch.testing.assert_close(model(x), bare(x), **EXACT)
            model.merge_adapter()
            torch.testing.assert_close(model(x), y, **EXACT)
            with model.disable_adapter():
                torch.testing.assert_close(model(x), bare(x), **EXACT)
            model.unmerge_adapter()
            merged = model.merge_and_unload()
            torch.testing.assert_close(merged(x), y, **EXACT)
        assert not any(module._forward_pre_hooks for module in merged.modules())
        assert not encoder or merged[0].use_nested_tensor
        assert [type(one) for one in merged.modules()] == [type(one) for one in self.net(encoder).modules()]

    def test_padding(self, targets: Any, encoder: bool) -> None:
        """An encoder makes nested tensors of padded ones, which attention takes on its fast path alone."""
        model, x = self.model(encoder, targets), batch()[0]
        mask = torch.tensor([[False, False, False], [False, True, True]])
        net = model.base_model.model[0]
        merged = copy.deepcopy(model).merge_and_unload()[0]
        want = merged(x, src_key_padding_mask=mask)
        with torch.no_grad():
            found = net(x, src_key_padding_mask=mask)
        torch.testing.assert_close(found[~mask], want[~mask], **EXACT)


def test_a_second_adapter_takes_part_on_the_fast_path() -> None:
    """On a layer that had none when the first one came."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    net, x = nn.Sequential(*layers).double().eval(), batch()[0]
    settings = {"r": 2, "init_lora_weights": "paper"}
    model = get_peft_model(net, GatedLoraConfig(target_modules=["0.linear1"], **settings), "one")
    model.add_adapter("two", GatedLoraConfig(target_modules=["1.linear2"], **settings))
    model.set_adapter("two")
    y = model.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, **EXACT)
        with model.disable_adapter():
            assert (model(x) - y).abs().max() > 1e-3


def test_an_attention_is_adapted_where_it_is_named() -> None:
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out": nn.Linear(3, 3)})
    with pytest.warns(UserWarning, match=r"No adapters on \['attention.out_proj'\].* Name the attention itself"):
        model = get_peft_model(net, GatedLoraConfig())
    assert model.targeted_module_names == ["out"]
    assert type(adapted().base_model.model.attention) is GatedLoraMultiheadAttention
