"""GATED_LORA under its name, wherever PEFT looks."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.hotswap import check_hotswap_configs_compatible, hotswap_adapter
from torch import nn

from loraguard.tuner import GatedLoraConfig, GatedLoraModel, register


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})


def test_member() -> None:
    member = PeftType.GATED_LORA
    assert member is PeftType("GATED_LORA") is PeftType["GATED_LORA"]
    assert list(PeftType)[-1] is member
    assert len(set(PeftType)) == len(PeftType.__members__)
    assert member == "GATED_LORA"
    assert isinstance(member, PeftType)
    assert {member: 1}["GATED_LORA"] == 1
    assert json.dumps([member]) == '["GATED_LORA"]'
    assert repr(member) == "<PeftType.GATED_LORA: 'GATED_LORA'>"
    assert copy.deepcopy(member) is copy.copy(member) is pickle.loads(pickle.dumps(member)) is member


def test_registering_again_changes_nothing() -> None:
    members = list(PeftType)
    register()
    assert list(PeftType) == members
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GATED_LORA] is GatedLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.GATED_LORA] is GatedLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.GATED_LORA] == "lora_"


def test_a_method_of_the_same_name_in_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = type("GatedLoraConfig", (), {"__module__": "peft.tuners.gated_lora"})
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.GATED_LORA, foreign)
    with pytest.raises(RuntimeError, match=r"PEFT has a method GATED_LORA itself, from peft.tuners.gated_lora"):
        register()


def test_a_saved_config_is_the_same_in_every_process(tmp_path: Any) -> None:
    """PEFT holds names as sets, whose order is each process's own; a file in that order would differ at each push."""
    names = [f"block.{i}.conv" for i in range(30)]
    config(target_modules=names, exclude_modules=names[::2]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(names)
    assert saved["exclude_modules"] == sorted(names[::2])
    assert GatedLoraConfig.from_pretrained(tmp_path).target_modules == set(names)


def test_config_survives(tmp_path: Any) -> None:
    given = config(gate_init=0.5, freeze_norm_stats=False, target_modules=["a", "b"], rank_pattern={"a": 2})
    given.save_pretrained(tmp_path)
    for loaded in (PeftConfig.from_pretrained(tmp_path), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert type(loaded) is GatedLoraConfig
        assert loaded.peft_type is PeftType.GATED_LORA
        assert loaded.to_dict() == {**given.to_dict(), "inference_mode": loaded.inference_mode}


def test_model_survives_copying_and_pickling(generator: nn.Module, batch: Any) -> None:
    model = get_peft_model(generator, config())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*batch), model(*batch))


def test_status(generator: nn.Module) -> None:
    model = get_peft_model(generator, config())
    status = model.get_model_status()
    assert status.peft_types == {"default": "GATED_LORA"}
    assert status.adapter_model_type == "GatedLoraModel"
    assert status.num_adapter_layers == 4
    assert status.requires_grad == {"default": True}
    assert model.get_layer_status()[0].module_type == "gated_lora.GatedLoraLinear"
    assert "gated_lora.GatedLoraConvTranspose" in repr(model)


def test_injection_without_a_peft_model(generator: nn.Module, batch: Any) -> None:
    settings = config()
    expected = get_peft_model(copy.deepcopy(generator), settings)
    injected = inject_adapter_in_model(config(), generator)
    injected.load_state_dict(expected.base_model.model.state_dict())
    assert torch.equal(injected(*batch), expected(*batch))


def test_hotswap(generator: nn.Module, batch: Any, tmp_path: Any) -> None:
    bare = copy.deepcopy(generator)
    second = get_peft_model(copy.deepcopy(generator), config(lora_alpha=5, gate_init=1.0)).eval()
    second.save_pretrained(tmp_path)
    model = get_peft_model(bare, config()).eval()
    assert not torch.allclose(model(*batch), second(*batch))
    hotswap_adapter(model, str(tmp_path), "default")
    torch.testing.assert_close(model(*batch), second(*batch), rtol=0, atol=1e-12)


def test_hotswap_checks_configs() -> None:
    check_hotswap_configs_compatible(config(), config(r=8))
    with pytest.raises(ValueError, match="use_rslora"):
        check_hotswap_configs_compatible(config(), config(use_rslora=False))


def test_other_methods_do_not_mix(generator: nn.Module) -> None:
    from peft import LoraConfig, PeftMixedModel

    model = get_peft_model(generator, config())
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("other", LoraConfig(target_modules=["down"]))
    with pytest.raises(ValueError, match="GATED_LORA"):
        PeftMixedModel(nn.Sequential(nn.Linear(3, 3)), config())


def test_plain_peft_loads_the_patch(generator: nn.Module, batch: Any, tmp_path: Any) -> None:
    bare = copy.deepcopy(generator)
    model = get_peft_model(generator, config())
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(bare, tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=0, atol=1e-12)
