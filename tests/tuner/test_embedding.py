"""Embeddings and the tokens of them that are trained, beyond what test_contract.py runs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraEmbedding, to_lora

EXACT = {"rtol": 0.0, "atol": 1e-12}
WEIGHTS = "adapter_model.safetensors"
X = torch.tensor([[1, 8, 3], [3, 3, 0]])


class Words(nn.Module):
    """Numbers (N, L) of 9 words to (N, L, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6, padding_idx=3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x)).tanh()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


def words() -> nn.Module:
    torch.manual_seed(0)
    return Words().double()


def adapted(name: str = "default", **settings: Any) -> PeftModel:
    model = words()
    torch.manual_seed(1)
    config = {"r": 3, "init_lora_weights": "paper", "target_modules": ["embed", "out"], **settings}
    return randomized(get_peft_model(model, GatedLoraConfig(**config), name))


def randomized(model: PeftModel) -> PeftModel:
    for key, parameter in model.named_parameters():
        if ".lora_gate." in key or "trainable_tokens_delta" in key:
            nn.init.normal_(parameter)
    return model


def test_embeddings_are_adapted_where_they_are_named() -> None:
    assert get_peft_model(words(), GatedLoraConfig()).targeted_module_names == ["out"]
    model = get_peft_model(words(), GatedLoraConfig(target_modules=["embed"]))
    assert type(model.base_model.model.embed) is GatedLoraEmbedding


def test_the_vector_of_padding_does_not_learn() -> None:
    model = adapted()
    model(X).sum().backward()
    gradient = model.base_model.model.embed.lora_A["default"].weight.grad
    assert not gradient[:, 3].any()
    assert gradient[:, [1, 8, 0]].abs().min() > 0
    assert not gradient[:, [2, 4, 5, 6, 7]].any()


@pytest.mark.parametrize(("init", "identity"), [(True, True), ("gaussian", True), ("paper", False), (False, False)])
def test_where_it_starts(init: Any, identity: bool) -> None:
    """At the bare network, with a gradient for A, as PEFT's does."""
    model = get_peft_model(words(), GatedLoraConfig(r=3, init_lora_weights=init, target_modules=["embed"]))
    assert torch.equal(model(X), words()(X)) == identity
    model(X).sum().backward()
    assert model.base_model.model.embed.lora_A["default"].weight.grad.any()


@pytest.mark.parametrize("gate", [name for name in GATES if GATES[name].mergeable])
def test_as_plain_lora(gate: str, tmp_path: Path) -> None:
    model = adapted(gate_type=gate)
    y = model.eval()(X)
    config, tensors = to_lora(model, tmp_path)
    assert type(config) is LoraConfig
    plain = get_peft_model(words(), config).eval()
    assert not set_peft_model_state_dict(plain, tensors).unexpected_keys
    torch.testing.assert_close(plain(X), y, **EXACT)
    torch.testing.assert_close(PeftModel.from_pretrained(words(), tmp_path)(X), y, **EXACT)


@pytest.mark.parametrize(
    ("embedding", "settings", "message"),
    [
        (nn.Embedding(9, 4, max_norm=1.0), {}, "max_norm=1.0 of an Embedding shortens vectors"),
        (nn.Embedding(9, 4), {"lora_bias": True}, "lora_bias=True is not supported for Embedding"),
    ],
    ids=["max_norm", "lora_bias"],
)
def test_refusals_come_before_a_layer_is_replaced(embedding: nn.Module, settings: Any, message: str) -> None:
    net = nn.ModuleDict({"first": nn.Linear(3, 3), "embed": embedding})
    with pytest.raises(ValueError, match=message):
        get_peft_model(net, GatedLoraConfig(target_modules=["first", "embed"], **settings))
    assert type(net["first"]) is nn.Linear


TOKENS: list[Any] = [[0, 8], {"embed": [0, 8]}]


@pytest.mark.parametrize("tokens", TOKENS, ids=str)
class TestTrainableTokens:
    def model(self, tokens: Any) -> PeftModel:
        return adapted(target_modules=["out"], trainable_token_indices=tokens)

    def test_these_alone_learn(self, tokens: Any) -> None:
        model = self.model(tokens)
        (delta,) = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
        assert delta.requires_grad
        assert delta.shape == (2, 6)
        model(X).sum().backward()
        assert delta.grad.abs().min() > 0
        assert model.base_model.model.embed.weight.grad is None

    def test_they_are_saved_and_loaded(self, tokens: Any, tmp_path: Path) -> None:
        model = self.model(tokens).eval()
        y = model(X)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(words(), tmp_path)
        torch.testing.assert_close(loaded(X), y, **EXACT)
        loaded.load_adapter(tmp_path, "again")
        for name, tensor in get_peft_model_state_dict(loaded, adapter_name="again").items():
            assert torch.equal(get_peft_model_state_dict(model)[name], tensor)

    def test_merging(self, tokens: Any) -> None:
        model = self.model(tokens).eval()
        y, bare = model(X), words()(X)
        with model.disable_adapter():
            torch.testing.assert_close(model(X), bare, **EXACT)
        model.merge_adapter()
        torch.testing.assert_close(model(X), y, **EXACT)
        model.unmerge_adapter()
        torch.testing.assert_close(model(X), y, **EXACT)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(X), y, **EXACT)
        assert type(merged.embed) is nn.Embedding

    def test_a_file_that_does_not_fit_is_refused(self, tokens: Any, tmp_path: Path) -> None:
        self.model(tokens).save_pretrained(tmp_path)
        tensors = load_file(tmp_path / WEIGHTS)
        (name,) = [name for name in tensors if "trainable_tokens_delta" in name]
        for wrong, message in (
            ({**tensors, name: torch.zeros(3, 6)}, rf"'{name}' has shape \(3, 6\), and this Words takes \(2, 6\)"),
            ({key: value for key, value in tensors.items() if key != name}, rf"no tensor '{name}' of shape \(2, 6\)"),
            ({**tensors, name: tensors[name] * torch.nan}, rf"'{name}' holds nan"),
        ):
            save_file(copy.deepcopy(wrong), tmp_path / WEIGHTS)
            net = words()
            with pytest.raises(ValueError, match=message):
                PeftModel.from_pretrained(net, tmp_path)
            assert (type(net.embed), type(net.out)) == (nn.Embedding, nn.Linear)


def test_an_adapter_and_trained_tokens_on_one_embedding() -> None:
    """PEFT's LoRA refuses it when layers are replaced already."""
    net = words()
    with pytest.raises(ValueError, match="'embed' is adapted and has tokens that are trained as they are"):
        get_peft_model(net, GatedLoraConfig(target_modules=["embed", "out"], trainable_token_indices=[0]))
    assert type(net.out) is nn.Linear


def test_tokens_as_plain_lora(tmp_path: Path) -> None:
    model = adapted(target_modules=["out"], trainable_token_indices=[0, 8]).eval()
    to_lora(model, tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(words(), tmp_path)(X), model(X), **EXACT)


@pytest.mark.parametrize("wrong", [3, [-1], [True], ["a"], {"embed": None}, {"embed": [1.5]}, {3: [1]}], ids=str)
def test_what_is_no_token(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"trainable_token_indices=.* must be numbers of tokens"):
        GatedLoraConfig(trainable_token_indices=wrong)
