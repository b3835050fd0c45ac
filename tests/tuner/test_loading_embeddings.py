"""Embeddings that `save_pretrained(save_embedding_layers=True)` put into a file: the network's own load, no others."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from loraguard.tuner import GatedLoraConfig

WEIGHTS = "adapter_model.safetensors"


def settings(**given: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", "gate_type": "channel", **given})


class Words(nn.Module):
    """An embedding that PEFT finds as it does in transformers, and a frozen one whose name begins with its name."""

    def __init__(self, size: int = 10) -> None:
        super().__init__()
        self.embed, self.embed_extra, self.out = nn.Embedding(size, 4), nn.Embedding(10, 4), nn.Linear(4, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> None:
        return None


class TestSavedEmbeddings:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Words:
        words = Words()
        model = get_peft_model(copy.deepcopy(words), settings(target_modules=["out"]))
        model.save_pretrained(tmp_path, save_embedding_layers=True)
        return words

    def test_they_load_and_nothing_else_does(self, saved: Words, tmp_path: Path) -> None:
        base = copy.deepcopy(saved)
        PeftModel.from_pretrained(base, tmp_path)
        assert torch.equal(base.embed.weight, saved.embed.weight)
        assert torch.equal(base.embed_extra.weight, saved.embed_extra.weight)
        assert "base_model.model.embed.weight" in load_file(tmp_path / WEIGHTS)

    def test_those_of_another_network_are_refused(self, saved: Words, tmp_path: Path) -> None:
        """They would take the place of its own."""
        base = Words()
        before = base.embed.weight.clone()
        with pytest.raises(ValueError, match=r"'base_model.model.embed.weight' is a weight of the base network"):
            PeftModel.from_pretrained(base, tmp_path)
        assert torch.equal(base.embed.weight, before)
        assert type(base.out) is nn.Linear

    def test_another_frozen_weight_is_refused(self, saved: Words, tmp_path: Path) -> None:
        tensors = load_file(tmp_path / WEIGHTS)
        save_file(tensors | {"base_model.model.embed_extra.weight": torch.zeros(10, 4)}, tmp_path / WEIGHTS)
        base = copy.deepcopy(saved)
        with pytest.raises(ValueError, match=r"'base_model.model.embed_extra.weight' fits nothing"):
            PeftModel.from_pretrained(base, tmp_path)
        assert type(base.out) is nn.Linear

    @pytest.mark.parametrize("ignore", [False, True])
    def test_another_vocabulary_is_refused(self, saved: Words, tmp_path: Path, ignore: bool) -> None:
        base = Words(size=12)
        with pytest.raises(ValueError, match=r"embed.weight' has shape \(10, 4\), and this Words takes \(12, 4\)"):
            PeftModel.from_pretrained(base, tmp_path, ignore_mismatched_sizes=ignore)
        assert type(base.out) is nn.Linear

    @pytest.mark.parametrize("given", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
    def test_of_an_adapted_or_trained_layer(self, tmp_path: Path, given: dict[str, Any]) -> None:
        """PEFT saves an lm_head with an adapter unasked."""

        class Speaker(Words):
            def __init__(self) -> None:
                super().__init__()
                self.lm_head = nn.Linear(4, 10)

            def get_output_embeddings(self) -> nn.Module:
                return self.lm_head

        bare = Speaker()
        model = get_peft_model(copy.deepcopy(bare), settings(**{"target_modules": ["out"], **given}))
        model.save_pretrained(tmp_path, save_embedding_layers=True)
        loaded = PeftModel.from_pretrained(bare, tmp_path)
        loaded.load_adapter(tmp_path, "again")
        for name, tensor in get_peft_model_state_dict(model).items():
            assert torch.equal(get_peft_model_state_dict(loaded, adapter_name="again")[name], tensor)
