"""Base layers whose weight is computed: adapters leave them as they are, and merging keeps the function.

test_contract.py runs every gate and operation on them.
"""

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from tuner_kinds import COMPUTED

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer, folded, to_lora
from loraguard.tuner.computed import at_rest, own_tensors

EXACT = {"rtol": 0.0, "atol": 1e-12}
every = pytest.mark.parametrize("kind", COMPUTED)


class Block(nn.Module):
    """As SAGAN and SPADE have them: each layer normalised, and batch norms between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        computed = COMPUTED[kind]
        self.label = computed(nn.Linear(3, 4))
        self.down = computed(nn.Conv2d(3, 4, 3, padding=1))
        self.norm = nn.BatchNorm2d(4)
        self.up = computed(nn.ConvTranspose2d(4, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.down(x)) + self.label(x.mean((2, 3)))[:, :, None, None]
        return self.up(features.relu())


def block(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Block(kind).double()


def adapted(kind: str, **settings: Any) -> PeftModel:
    net = block(kind)
    torch.manual_seed(1)
    return get_peft_model(net, GatedLoraConfig(r=2, **settings))


def batches(n: int) -> list[Tensor]:
    return [torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(i)).double() for i in range(n)]


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


@every
def test_training_goes_on_as_without_an_adapter(kind: str) -> None:
    """Outputs and the state of power iterations are the same to the bit, whatever else happens to the model."""
    bare, model = block(kind).train(), adapted(kind, freeze_norm_stats=False).train()
    model.add_adapter("other", GatedLoraConfig(r=3))
    for i, x in enumerate(batches(4)):
        model.base_model.set_adapter(["default", "other"] if i % 2 else "default")
        for layer in layers_of(model):
            layer.get_delta_weight("default")
            layer.check_merge(["default"], safe_merge=True, unloading=True)
        repr(model), model.get_model_status(), model.state_dict()
        assert torch.equal(model(x), bare(x))
    found = model.unload().state_dict()
    assert found.keys() == bare.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in bare.state_dict().items())


@every
def test_folded_iterates_as_often_as_a_forward(kind: str) -> None:
    bare, model = block(kind).train(), adapted(kind, init_lora_weights="paper", freeze_norm_stats=False).train()
    twin = copy_of(model, kind)
    for x in batches(3):
        bare(x)
        y = twin(x)
        with folded(model):
            torch.testing.assert_close(model(x), y, **EXACT)
    state = model.unload().state_dict()
    for name, value in bare.state_dict().items():
        if not name.startswith("norm."):  # which sees the adapter's update
            torch.testing.assert_close(state[name], value, **EXACT)


def copy_of(model: PeftModel, kind: str) -> PeftModel:
    """Not by deepcopy, which torch refuses for weights of its old weight norm."""
    twin = adapted(kind, init_lora_weights="paper", freeze_norm_stats=False).train(model.training)
    twin.load_state_dict(model.state_dict())
    return twin


@every
@pytest.mark.parametrize("training", [False, True])
def test_merge_and_unload(kind: str, training: bool) -> None:
    """From eval mode or train mode: the function of eval mode, with plain parameters that learn as before."""
    model = adapted(kind, init_lora_weights="paper", lora_bias=True, gate_type="rank").train()
    for x in batches(2):
        model(x)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and not name.endswith("weight"):
            nn.init.normal_(parameter)
    layers_of(model)[1].base_layer.requires_grad_(True)
    x = batches(1)[0]
    y = model.eval()(x)
    merged = model.train(training).merge_and_unload(safe_merge=True).eval()
    torch.testing.assert_close(merged(x), y, **EXACT)
    assert [type(layer) for layer in (merged.label, merged.down, merged.up)] == [
        nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    ]  # fmt: skip
    for name in ("label", "down", "up"):
        layer = getattr(merged, name)
        assert set(layer.state_dict()) == {"weight", "bias"} == set(dict(layer.named_parameters()))
        assert layer.weight.requires_grad == (name == "down")
        assert not layer._forward_pre_hooks
    copy.deepcopy(merged)


@every
def test_a_merge_that_is_not_finite_leaves_all_as_it_is(kind: str) -> None:
    model, x = adapted(kind, init_lora_weights="paper").eval(), batches(1)[0]
    layer = layers_of(model)[-1]
    bare = block(kind).eval()(x)
    nn.init.constant_(layer.lora_B["default"].weight, torch.inf)
    with pytest.raises(ValueError, match="infinite or NaN"):
        model.merge_and_unload(safe_merge=True)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), bare, **EXACT)
    assert len(layers_of(model)) == 3


@every
def test_as_plain_lora(kind: str) -> None:
    """PEFT's LoRA is right on such layers as long as it is not merged."""
    net = block(kind).eval()
    model = get_peft_model(net, GatedLoraConfig(r=2, init_lora_weights="paper", target_modules=["label", "down"]))
    x = batches(1)[0]
    y = model.eval()(x)
    config, tensors = to_lora(model)
    fresh = block(kind).eval()
    fresh(x)  # PEFT takes the type of an old hook's weight from the last forward
    plain = get_peft_model(fresh, config).eval()
    plain.load_state_dict({f"{k.rpartition('.')[0]}.default.weight": v for k, v in tensors.items()}, strict=False)
    torch.testing.assert_close(plain(x), y, **EXACT)


def test_names_of_parametrizations_are_no_targets() -> None:
    """`0.parametrizations.weight.0` ends as the target `0` does."""
    net = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)))
    for targets in (["0"], r".*0", None):
        model = get_peft_model(copy.deepcopy(net), GatedLoraConfig(target_modules=targets))
        assert model.targeted_module_names == ["0"]


def test_at_rest_brings_an_old_hook_up_to_date() -> None:
    """`layer.weight` is then what the last forward computed, in another type even."""
    layer: Any = spectral_norm(nn.Linear(3, 3)).double()
    with at_rest(layer):
        assert layer.weight.dtype == torch.float64
    assert [one is layer.weight_orig for one in own_tensors(layer)] == [True]
