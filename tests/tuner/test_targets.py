"""Which layers are adapted, and with which rank."""

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def test_ranks_and_alphas_by_layer(generator: nn.Module, batch: Any, tmp_path: Any) -> None:
    bare = copy.deepcopy(generator)
    model = get_peft_model(generator, config(rank_pattern={"up": 2}, alpha_pattern={"down": 7}, use_rslora=False))
    scales = {
        name: layer.scaling["default"] for name, layer in model.base_model.model.named_children() if name != "norm"
    }
    assert scales == {"label": 0.5, "down": 7 / 4, "mix": 0.5, "up": 1.0}
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(bare, tmp_path)(*batch), model(*batch), **EXACT)


def test_rounded_ranks_survive_saving(generator: nn.Module, batch: Any, tmp_path: Any) -> None:
    bare = copy.deepcopy(generator)
    with pytest.warns(UserWarning, match="rounded up in mix: 6"):
        model = get_peft_model(generator, config(r=3, rank_pattern={"mi.": 5}))
    assert model.base_model.model.mix.r == {"default": 6}
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(bare, tmp_path)
    assert reloaded.base_model.model.mix.r == {"default": 6}
    torch.testing.assert_close(reloaded(*batch), model(*batch), **EXACT)


def test_a_second_adapter_by_default(generator: nn.Module) -> None:
    model = get_peft_model(generator, config(modules_to_save=["norm"]), "one")
    second = config()
    model.add_adapter("two", second)
    assert second.target_modules == {"label", "down", "mix", "up"}


def test_exclude_modules(generator: nn.Module) -> None:
    model = get_peft_model(generator, config(exclude_modules=["mix", "label"]))
    assert model.peft_config["default"].target_modules == {"down", "up"}


def test_all_linear(generator: nn.Module) -> None:
    model = get_peft_model(generator, config(target_modules="all-linear"), "one")
    assert model.peft_config["one"].target_modules == {"label"}
    model.add_adapter("two", config(target_modules="all-linear"))
    assert model.peft_config["two"].target_modules == {"label"}


def test_names_that_are_endings_of_others() -> None:
    """In the trunk 0 is a convolution, in the block it is a norm."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    settings = config()
    model = get_peft_model(net, settings)
    assert model.targeted_module_names == ["0", "1.1"]
    assert settings.target_modules == r"0|1\.1"


def test_many_layers() -> None:
    """PEFT shortens long lists of names to endings."""
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(30)))
    assert len(layers_of(get_peft_model(net, config()))) == 30


def test_attention_is_left_out() -> None:
    def net() -> nn.Module:
        attention = nn.MultiheadAttention(8, 2)
        return nn.ModuleDict(
            {"attention": attention, "block": nn.TransformerEncoderLayer(8, 2), "out": nn.Linear(8, 8)}
        )

    with pytest.warns(UserWarning, match=r"No adapters on \['attention.out_proj', 'block.self_attn.out_proj'\]"):
        model = get_peft_model(net(), config())
    assert model.peft_config["default"].target_modules == {"block.linear1", "block.linear2", "out"}
    with pytest.raises(ValueError, match=r"\['attention.out_proj', .*\] would be ignored.* Name the attention itself"):
        get_peft_model(net(), config(target_modules=["out_proj"]))


def test_torch_does_ignore_them() -> None:
    """The reason for leaving an out_proj out. Where this fails, torch calls it, and it can be adapted."""
    x, attention = torch.randn(1, 3, 8), nn.MultiheadAttention(8, 2, batch_first=True).eval()
    y = attention(x, x, x)[0]
    attention.out_proj = get_peft_model(nn.Sequential(attention.out_proj), config()).base_model.model[0]
    assert torch.equal(attention(x, x, x)[0], y)


def test_shorthand_for_all_layers(generator: nn.Module) -> None:
    """The text "all-conv-linear" is what None stands for, and more than PEFT's "all-linear"."""
    named, default, linear = (
        get_peft_model(copy.deepcopy(generator), GatedLoraConfig(r=2, target_modules=targets))
        for targets in ("all-conv-linear", None, "all-linear")
    )
    assert set(named.targeted_module_names) == set(default.targeted_module_names)
    assert len(named.targeted_module_names) == 4
    assert set(linear.targeted_module_names) == {"label"}
