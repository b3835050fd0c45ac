"""Adapters in a model: several at once, trained, merged and saved, beside norms and biases."""

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def output_of(model: PeftModel, adapters: str | list[str], batch: tuple[Tensor, Tensor]) -> Tensor:
    model.base_model.set_adapter(adapters)
    return model(*batch)


class TestSeveralAdapters:
    def test_set_adapter(self, model: PeftModel, batch: Any) -> None:
        one, two = output_of(model, "one", batch), output_of(model, "two", batch)
        assert (one - two).abs().max() > 1e-3
        assert torch.equal(output_of(model, "one", batch), one)
        trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"one"}

    def test_two_at_once(self, model: PeftModel, batch: Any) -> None:
        both = output_of(model, ["one", "two"], batch)
        for layer in layers_of(model):
            expected = layer.weight + layer.get_delta_weight("one") + layer.get_delta_weight("two")
            layer.merge()
            torch.testing.assert_close(layer.weight, expected, **EXACT)
            assert layer.merged_adapters == ["one", "two"]
        torch.testing.assert_close(model(*batch), both, **EXACT)

    def test_merging_one_of_two(self, model: PeftModel, batch: Any) -> None:
        two = output_of(model, "two", batch)
        torch.testing.assert_close(model.merge_and_unload(adapter_names=["two"])(*batch), two, **EXACT)

    def test_delete_adapter(self, model: PeftModel, batch: Any) -> None:
        two = output_of(model, "two", batch)
        model.base_model.set_adapter("one")
        with pytest.warns(UserWarning, match="active which is now deleted"):
            model.delete_adapter("one")
        assert torch.equal(model(*batch), two)
        assert not [name for name in model.state_dict() if ".one." in name]
        for layer in layers_of(model):
            assert layer._all_available_adapter_names() == ["two"]

    def test_on_different_layers(self, generator: nn.Module, batch: Any) -> None:
        model = get_peft_model(generator, config(target_modules=["down"]), "one")
        model.add_adapter("two", config(target_modules=["up"]))
        assert [list(layer.lora_A) for layer in layers_of(model)] == [["one"], ["two"]]
        bare, both = model.disable_adapter, output_of(model, ["one", "two"], batch)
        with bare():
            y0 = model(*batch)
        model.merge_adapter(adapter_names=["one", "two"])
        torch.testing.assert_close(model(*batch), both, **EXACT)
        model.unmerge_adapter()
        model.base_model.unload()
        torch.testing.assert_close(generator(*batch), y0, **EXACT)

    def test_mixed_batch(self, model: PeftModel, batch: Any) -> None:
        """A patch for each image."""
        names = ["two", "__base__", "one", "two"]
        expected = {adapter: output_of(model, adapter, batch) for adapter in ("one", "two")}
        with model.disable_adapter():
            expected["__base__"] = model(*batch)
        mixed = model(*batch, adapter_names=names)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], expected[name][row], **EXACT)
        with pytest.raises(ValueError, match="non-existing adapter"):
            model(*batch, adapter_names=["three"] * 4)

    def test_mixed_batch_on_different_layers(self, generator: nn.Module, batch: Any) -> None:
        """The second adapter comes to layers that had none, which must hear of the names, too."""
        model = get_peft_model(generator, config(target_modules=["down"]), "one")
        model.add_adapter("two", config(target_modules=["up", "mix"]))
        model.eval()
        expected = {adapter: output_of(model, adapter, batch) for adapter in ("one", "two")}
        mixed = model(*batch, adapter_names=["two", "one", "two", "one"])
        for row, name in enumerate(("two", "one", "two", "one")):
            torch.testing.assert_close(mixed[row], expected[name][row], **EXACT)

    def test_scaling(self, model: PeftModel, batch: Any) -> None:
        one = output_of(model, "one", batch)
        for layer in layers_of(model):
            weight = layer.get_delta_weight("one")
            layer.scale_layer(3)
            torch.testing.assert_close(layer.get_delta_weight("one"), 3 * weight, **EXACT)
            layer.unscale_layer()
            layer.set_scale("one", 0)
            assert not layer.get_delta_weight("one").any()
            layer.set_scale("one", 1)
        assert torch.equal(model(*batch), one)


def steps(model: nn.Module, batch: Any, n: int = 3) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(n):
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
        optimizer.step()


class TestTraining:
    def test_disabling_restores_the_base_model_to_the_bit(self, generator: nn.Module, batch: Any) -> None:
        y0, state = generator(*batch), copy.deepcopy(generator.state_dict())
        model = get_peft_model(generator.train(), config())
        assert not generator.norm.training
        steps(model.train(), batch)
        assert (model(*batch) - y0).abs().max() > 0.1
        with model.disable_adapter():
            assert torch.equal(model(*batch), y0)
            assert torch.equal(model.eval()(*batch), y0)
        bare = model.unload().state_dict()
        assert all(torch.equal(bare[name], value) for name, value in state.items())

    def test_norms_train_on_request(self, generator: nn.Module, batch: Any) -> None:
        before = generator.norm.running_mean.clone()
        model = get_peft_model(generator, config(freeze_norm_stats=False))
        steps(model.train(), batch, n=1)
        assert generator.norm.training
        assert not torch.equal(generator.norm.running_mean, before)

    def test_a_norm_to_be_saved_trains(self, generator: nn.Module, batch: Any, tmp_path: Any) -> None:
        bare = copy.deepcopy(generator)
        model = get_peft_model(generator, config(modules_to_save=["norm"])).train()
        assert model.base_model.model.norm.modules_to_save["default"].training
        assert not model.base_model.model.norm.original_module.training
        steps(model, batch)
        y = model.eval()(*batch)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(PeftModel.from_pretrained(bare, tmp_path)(*batch), y, **EXACT)

    def test_norms_without_statistics_are_left_alone(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False))
        model = get_peft_model(net, config()).train()
        assert [module.training for module in model.base_model.model] == [True] * 3

    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_biases(self, generator: nn.Module, batch: Any, bias: str, tmp_path: Any) -> None:
        bare = copy.deepcopy(generator)
        model = get_peft_model(generator, config(bias=bias)).train()
        trained = {n for n, p in model.base_model.model.named_parameters() if p.requires_grad and "lora_" not in n}
        expected = {f"{name}.base_layer.bias" for name in ("label", "down", "mix", "up")}
        assert trained == (expected | {"norm.bias"} if bias == "all" else expected)
        steps(model, batch)
        y = model.eval()(*batch)
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"base_layer.bias' is a weight of the base network"):
            PeftModel.from_pretrained(bare, tmp_path)
        reloaded = get_peft_model(bare, config(bias=bias)).eval()
        set_peft_model_state_dict(reloaded, load_file(tmp_path / "adapter_model.safetensors"))  # on one's own account
        torch.testing.assert_close(reloaded(*batch), y, **EXACT)
        torch.testing.assert_close(reloaded.merge_and_unload()(*batch), y, **EXACT)

    def test_gates_learn(self, generator: nn.Module, batch: Any) -> None:
        model = get_peft_model(generator, config(gate_init=0.5)).train()
        steps(model, batch)
        gates = [layer.lora_gate["default"].weight for layer in layers_of(model)]
        assert all(gate.shape == (1,) and gate.item() != 0.5 for gate in gates)

    def test_memory_format(self, generator: nn.Module, batch: Any) -> None:
        model = get_peft_model(generator, config())
        y = model(*batch)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(*batch), y, **EXACT)
        torch.testing.assert_close(model.merge_and_unload()(*batch), y, **EXACT)


def test_no_warning_in_the_ordinary_case(generator: nn.Module, batch: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(generator, config())
        steps(model.train(), batch, n=1)
        model.eval().merge_and_unload()(*batch)


def test_safe_merge_refuses_what_is_not_finite(generator: nn.Module, batch: Any) -> None:
    model = get_peft_model(generator, config())
    layer = model.base_model.model.down
    before = layer.weight.clone()
    nn.init.constant_(layer.lora_B["default"].weight, torch.inf)
    with pytest.raises(ValueError, match="'default' would make weights of the base layer infinite or NaN"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_merging_twice_and_unmerging_nothing(generator: nn.Module) -> None:
    layer = get_peft_model(generator, config()).base_model.model.down
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    layer.merge()
    merged = layer.weight.clone()
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge()
    assert torch.equal(layer.weight, merged)


def test_disabling_a_merged_model(generator: nn.Module, batch: Any) -> None:
    """The bare output, and no forward changes a weight: PEFT's LoRA unmerges there."""
    y0 = generator(*batch)
    model = get_peft_model(generator, config())
    model.merge_adapter()
    y, weights = model(*batch), {name: value.clone() for name, value in model.state_dict().items()}
    with model.disable_adapter():
        torch.testing.assert_close(model(*batch), y0, **EXACT)
    assert torch.equal(model(*batch), y)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_saving_keeps_to_the_adapter(model: PeftModel, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path)
    for adapter in ("one", "two"):
        tensors = load_file(tmp_path / adapter / "adapter_model.safetensors")
        kinds = {tuple(name.split(".")[-2:]) for name in tensors}
        assert kinds == {("lora_A", "weight"), ("lora_B", "weight"), ("lora_gate", "weight")}


def test_initial_model_conversion_is_refused(model: PeftModel, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="path_initial_model_for_weight_conversion does not apply to GATED_LORA"):
        model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    with pytest.raises(ValueError, match="subtract_mutated_init does not apply"):
        model.base_model.subtract_mutated_init({}, "one")


def test_conversion_to_lora_is_for_linear_layers(generator: nn.Module, model: PeftModel) -> None:
    answers = {name: module.supports_lora_conversion() for name, module in generator.named_children() if name != "norm"}
    assert answers == {"label": True, "down": False, "mix": False, "up": False}


@pytest.mark.parametrize("dora", [False, True])
def test_linear_patch_converts_to_lora(dora: bool) -> None:
    """With magnitudes, too, as what the weight gains; that is of full rank."""
    net = nn.Sequential(nn.Linear(6, 5)).double()
    model = get_peft_model(copy.deepcopy(net), config(use_dora=dora))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.linspace(0.5, 1.7, 5)
    lora, tensors = convert_to_lora(model, rank=5 if dora else 4)
    plain = inject_adapter_in_model(lora, net)
    set_peft_model_state_dict(plain, tensors)
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-5)  # PEFT computes it in float32
