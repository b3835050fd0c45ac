"""New adapters out of given ones: exact where they can be, with gates, scales and ranks all different."""

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def update(layer: Any, weights: dict[str, float]) -> Tensor:
    return sum(weight * layer.get_delta_weight(adapter) for adapter, weight in weights.items())


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("weights", [{"one": 0.7, "two": -1.3}, {"one": 2.0}])
def test_exact(model: PeftModel, kind: str, weights: dict[str, float]) -> None:
    """Gates, scales and ranks differ between adapters and between layers."""
    rank = {"svd_rank": 6} if kind == "svd" else {}
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type=kind, **rank)
    for layer in layers_of(model):
        torch.testing.assert_close(layer.get_delta_weight("sum"), update(layer, weights), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        *((kind, 2.0) for kind in ("linear", "dare_linear", "magnitude_prune")),
        *((f"{kind}_svd", 1.0) for kind in ("dare_linear", "magnitude_prune")),
        *((kind, 0.5) for kind in ("ties", "dare_ties", "ties_svd", "dare_ties_svd")),
    ],
)
def test_two_halves_of_the_same_adapter(model: PeftModel, kind: str, share: float) -> None:
    """Without pruning: sums of updates add up; sums of factors are doubled twice; "ties" takes means."""
    model.add_adapter("twin", config())
    tensors = get_peft_model_state_dict(model, adapter_name="one")
    set_peft_model_state_dict(model, tensors, adapter_name="twin")
    model.add_weighted_adapter(["one", "twin"], [0.5, 0.5], "sum", combination_type=kind, density=1.0)
    for layer in layers_of(model):
        expected = update(layer, {"one": share})
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-13)


def test_survives_saving(model: PeftModel, generator: nn.Module, batch: Any, tmp_path: Any) -> None:
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="cat")
    model.base_model.set_adapter("sum")
    y = model(*batch)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    reloaded = PeftModel.from_pretrained(model.unload(), tmp_path / "sum")
    torch.testing.assert_close(reloaded(*batch), y, **EXACT)


def test_ranks_of_grouped_layers_add_up(generator: nn.Module) -> None:
    with pytest.warns(UserWarning, match="rounded up in mix: 4"):
        model = get_peft_model(generator, config(r=3), "one")
    with pytest.warns(UserWarning, match="rounded up in mix: 6"):
        model.add_adapter("two", config(r=5))
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="cat")
    assert {layer.r["sum"] for layer in layers_of(model)} == {8, 10}
    for layer in layers_of(model):
        expected = update(layer, {"one": 1.0, "two": 1.0})
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-13)


def test_svd_of_more_than_the_full_rank(model: PeftModel) -> None:
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="svd", svd_rank=64)
    for layer in layers_of(model):
        expected = update(layer, {"one": 1.0, "two": 1.0})
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-13)


def test_clamp(model: PeftModel) -> None:
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "whole")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", svd_clamp=0.5)
    for layer in layers_of(model):
        assert layer.factor_groups("sum")[0].abs().max() < layer.factor_groups("whole")[0].abs().max()


def test_refusals(model: PeftModel) -> None:
    with pytest.raises(ValueError, match="same r value"):
        model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="linear")
    with pytest.raises(ValueError, match="needs density"):
        model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="ties_svd")
    with pytest.raises(ValueError, match="does not exist"):
        model.add_weighted_adapter(["one", "three"], [1.0, 1.0], "sum")
    model.add_adapter("three", config(rank_pattern={"up": 2}))
    with pytest.raises(ValueError, match=r"equal ranks, found \[4, 2\]"):
        model.add_weighted_adapter(["one", "three"], [1.0, 1.0], "sum", combination_type="linear")
    assert "sum" not in model.peft_config
