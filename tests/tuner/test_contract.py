"""What holds for every group of base layers, option and gate, or is refused by name; against the formulas written out.

A group's layers, of `tuner_kinds`, are adapted side by side in one network; `tuner_truth` has the formulas.
"""

import copy
import math
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from tuner_kinds import GROUPS, OPTIONS, bare, inputs, plain, targets
from tuner_truth import STATIC, Truth, randomize

from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraLayer, folded, parameter_groups

LOADED_TWICE = ("scalar", "input")  # a second adapter comes the same way, whatever its gate
READS_WEIGHTS = ("attention", "encoder")  # instead of calling layers with them
NO_WEIGHT = r"adapter 'one' depends on the input.* cannot be merged.*combined.*gate_type='scalar'"
NOT_IN_PLACE = {
    "computed": r"computed at each forward by .* merge_and_unload\(\) makes it a plain",
    "quantized": r"is quantized \(.*rounded to its steps. merge_and_unload\(\) makes a plain",
}


def config(group: str, option: str, gate: str, **settings: Any) -> GatedLoraConfig:
    given = {"r": 4, "gate_type": gate, "target_modules": targets(group), **OPTIONS[option]}
    return GatedLoraConfig(**{**given, "init_lora_weights": "paper", **settings})


def adapted(group: str, option: str, gate: str, *names: str, **settings: Any) -> PeftModel:
    """The group's network, with adapters whose factors and gates are random and whose ranks and scales differ."""
    torch.manual_seed(1)
    names = names or ("one",)
    model = get_peft_model(bare(group, option), config(group, option, gate, **settings), names[0])
    for name in names[1:]:
        model.add_adapter(name, config(group, option, gate, r=8, lora_alpha=5))
    randomize(model)
    return model.eval()


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def refusal(group: str, option: str, gate: str) -> str | None:
    """Why there are no such adapters."""
    if option == "dora" and gate not in STATIC:
        return f"use_dora=True scales the rows .* there is no dW with gate_type='{gate}'"
    if option == "dora" and group == "computed":
        return r"use_dora=True on 'layer0'.*computed at each forward by SpectralNorm.*exclude_modules"
    if option == "lora_bias" and group == "embedding":
        return "lora_bias=True is not supported for Embedding, as in PEFT"
    if group in READS_WEIGHTS and gate not in STATIC:
        return f"reads its weights, so that .*gate_type='{gate}' have no update to act on"
    return None


ALL = [(group, option, gate) for group in GROUPS for option in OPTIONS for gate in GATES]
every = pytest.mark.parametrize(("group", "option", "gate"), [one for one in ALL if not refusal(*one)])


class References(NamedTuple):
    """Inputs, a direction for each output, and outputs and gradients of the base layers and of plain ones."""

    x: list[Tensor]
    directions: list[Tensor]
    bare: list[Tensor]
    bare_gradients: list[Tensor]
    plain: list[Tensor]
    plain_gradients: list[Tensor]


@cache
def references(group: str, option: str) -> References:
    x, found = inputs(group), []
    directions = [torch.randn(y.shape).double() for y in plain(group, option)(*Truth.wide(x))]
    for net, given in ((bare(group, option), x), (plain(group, option), Truth.wide(x))):
        given = [one.detach().requires_grad_(one.is_floating_point()) for one in given]
        y = net(*given)
        found += [[one.detach().double() for one in y], gradients(y, directions, given)]
    return References(x, directions, *found)


def gradients(y: list[Tensor], directions: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Of the outputs along these directions."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    if not leaves:
        return []
    along = sum((one * direction).sum() for one, direction in zip(y, directions, strict=True))
    return [one.detach().double() for one in torch.autograd.grad(along, leaves)]


class Near:
    """Compares what a group gives with what it has to give.

    Quantized layers run in float32: sums of 64 products below 10, 64 * 2**-24 * 10. What such a layer does to its input
    is the same with an adapter, and so is the difference to a plain layer.
    """

    def __init__(self, group: str, option: str) -> None:
        self.atol = 5e-5 if group == "quantized" else 1e-12
        self.group, self.option = group, option
        self.names, self.of = list(GROUPS[group]), references(group, option)
        self.x = self.of.x

    def __call__(self, found: list[Tensor], want: list[Tensor], merged: bool = False) -> None:
        """Outputs of the adapted layers, or of merged ones, which are plain."""
        off = [torch.zeros(())] * len(want) if merged else self._off(self.of.bare, self.of.plain)
        self.compare(found, [one.detach() + by for one, by in zip(want, off, strict=True)])

    def gradients(self, found: list[Tensor], want: list[Tensor]) -> None:
        """Gradients of the inputs."""
        off = self._off(self.of.bare_gradients, self.of.plain_gradients)
        names = self.names if off else []
        self.compare(found, [one + by for one, by in zip(want, off, strict=True)], names)

    @staticmethod
    def _off(bare: list[Tensor], plain: list[Tensor]) -> list[Tensor]:
        return [one - other for one, other in zip(bare, plain, strict=True)]

    def compare(self, found: list[Tensor], want: list[Tensor], names: list[str] | None = None) -> None:
        for name, one, exact in zip(self.names if names is None else names, found, want, strict=True):
            atol = self.atol * (1 + exact.abs().max().item())
            torch.testing.assert_close(one.detach().double(), exact, rtol=0, atol=atol, msg=about(name))


def about(name: str) -> Any:
    return lambda message: f"{name}: {message}"


@pytest.mark.parametrize(("group", "option", "gate"), [one for one in ALL if refusal(*one)])
def test_what_there_is_not(group: str, option: str, gate: str) -> None:
    net = bare(group, option)
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=refusal(group, option, gate)):
        get_peft_model(net, config(group, option, gate))
    assert [type(module) for module in net.modules()] == kinds


@every
class TestEveryGroupOptionAndGate:
    def test_start(self, group: str, option: str, gate: str) -> None:
        """At the bare network, with every gate as open as the scalar one."""
        near = Near(group, option)
        torch.manual_seed(1)
        given = config(group, option, gate, gate_init=0.3, init_lora_weights=True)
        model = get_peft_model(bare(group, option), given, "one")
        near(model(*near.x), near.of.plain)
        for layer in layers_of(model):
            for factor in (layer.lora_A, layer.lora_B):
                nn.init.normal_(factor["one"].weight, std=0.1)
            (module,) = layer.lora_gate.values()
            opening = 1 / (1 + math.exp(-0.3)) if list(module.parameters()) else 1.0
            assert module.opening.mean().item() == pytest.approx(opening)
        near.atol = max(near.atol, 1e-6)  # the logit is float32
        near(model(*near.x), Truth(group, option, model)(near.x, {"one": 2}, opening=opening))

    def test_one_adapter(self, group: str, option: str, gate: str, tmp_path: Path) -> None:
        model, near = adapted(group, option, gate, "default"), Near(group, option)
        truth = Truth(group, option, model)
        want = truth(near.x, {"default": 2})
        self.gradients(model.train(group != "computed"), near, truth)
        self.outputs(model.eval(), near, want)
        self.other_scales(model, near, truth)
        loaded = self.files(model, near, want, gate, tmp_path)
        if group != "quantized":
            halve(model, torch.float16, torch.float16)
            halve(loaded, torch.bfloat16, torch.float32)  # PEFT's way, unless it is asked otherwise
            for one, dtype in ((model, torch.float16), (loaded, torch.bfloat16)):
                self.in_half_precision(one, near, want, dtype)

    def gradients(self, model: PeftModel, near: Near, truth: Truth) -> None:
        """Of inputs and of all that learns; and of inputs alone within `folded`."""
        directions = near.of.directions
        x = [one.clone().requires_grad_(one.is_floating_point()) for one in near.x]
        wide, n = Truth.wide(x), sum(one.requires_grad for one in x)
        trained = {id(p): (name, p) for name, p in model.named_parameters() if p.requires_grad}
        assert trained.keys() == truth.leaves.keys()
        names, parameters = zip(*(trained[key] for key in truth.leaves), strict=True)
        want = gradients(truth(wide, {"default": 2}), directions, [*wide, *truth.leaves.values()])
        found = gradients(model(*x), directions, [*x, *parameters])
        near.gradients(found[:n], want[:n])
        near.compare(found[n:], want[n:], list(names))
        with folded(model):
            y = model(*x)
        assert all(one.requires_grad == (n > 0) for one in y)
        if n:
            sum((one * direction).sum() for one, direction in zip(y, directions, strict=True)).backward()
            near.gradients([one.grad for one in x], want[:n])
        assert all(p.grad is None for p in model.parameters())

    def outputs(self, model: PeftModel, near: Near, want: list[Tensor]) -> None:
        """Unmerged, folded, disabled, and of a single sample."""
        for y, base in zip(want, near.of.plain, strict=True):
            assert (y - base).abs().max() > 1e-3, "the adapter must do something for the test to mean anything"
        near(model(*near.x), want)
        with torch.no_grad():  # folds, where the gate is static; torch's fast paths
            near(model(*near.x), want)
        with folded(model, learning=True):
            near(model(*near.x), want)
        with model.disable_adapter():
            near(model(*near.x), near.of.plain)
        if near.group != "quantized":  # whose layers take rows alone
            batches = [name in ("a sequence", "sentences") for name in near.names]  # even without a batch
            rows = [x[:, :1] if batch else x for x, batch in zip(near.x, batches, strict=True)]
            single = [x[:, 0] if batch else x[0] for x, batch in zip(near.x, batches, strict=True)]
            whole = [y[:, 0] if batch else y[0] for y, batch in zip(model(*rows), batches, strict=True)]
            near.compare(model(*single), [y.detach() for y in whole])

    def other_scales(self, model: PeftModel, near: Near, truth: Truth) -> None:
        layers = layers_of(model)
        for operation, alpha in (("scale_layer", 3), ("set_scale", 0), ("set_scale", 1)):
            for layer in layers:
                layer.scale_layer(alpha) if operation == "scale_layer" else layer.set_scale("default", alpha)
            near(model(*near.x), truth(near.x, {"default": 2 * alpha}))

    def files(self, model: PeftModel, near: Near, want: list[Tensor], gate: str, tmp_path: Path) -> PeftModel:
        """Saved, loaded, perhaps as a second adapter, and swapped for another."""
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(bare(near.group, near.option), tmp_path)
        assert loaded.peft_config["default"].gate_type == gate
        near(loaded(*near.x), want)
        name = "default"
        if gate in LOADED_TWICE:
            name = "again"
            loaded.load_adapter(tmp_path, name)
            loaded.set_adapter(name)
            near(loaded(*near.x), want)
        saved, again = (get_peft_model_state_dict(m, adapter_name=n) for m, n in ((model, "default"), (loaded, name)))
        assert again.keys() == saved.keys()
        assert all(map(torch.equal, again.values(), saved.values()))
        for layer in layers_of(loaded):
            layer.set_scale(name, 3)
            for parameter in (*layer.lora_A[name].parameters(), *layer.lora_gate[name].parameters()):
                nn.init.normal_(parameter)
        if near.option == "dora":
            with pytest.raises(ValueError, match="use_dora=True cannot be hotswapped"):
                hotswap_adapter(loaded, str(tmp_path), name, torch_device="cpu")
            if name == "default":
                loaded = PeftModel.from_pretrained(bare(near.group, near.option), tmp_path)
        else:
            hotswap_adapter(loaded, str(tmp_path), name, torch_device="cpu")
            near(loaded(*near.x), want)
        loaded.set_adapter("default")
        return loaded

    def test_two_adapters(self, group: str, option: str, gate: str) -> None:
        """By name, for each sample, together, summed up, merged and deleted."""
        model, near = adapted(group, option, gate, "one", "two"), Near(group, option)
        truth, names = Truth(group, option, model), ["two", "__base__", "one"]
        one, two, both = (truth(near.x, alphas) for alphas in ({"one": 2}, {"two": 5}, {"one": 2, "two": 5}))
        status = model.get_model_status()
        assert status.available_adapters == ["one", "two"]
        assert status.requires_grad == {"one": True, "two": False}
        assert model.get_layer_status()[0].devices == {"one": ["cpu"], "two": ["cpu"]}
        if group in READS_WEIGHTS or option == "dora":
            with pytest.raises((TypeError, ValueError), match=r"mixed adapter batches|when DoRA is enabled"):
                model(*near.x, adapter_names=names)
        else:
            rows = zip(two, near.of.plain, one, strict=True)
            near(model(*near.x, adapter_names=names), [torch.stack([y[i] for i, y in enumerate(row)]) for row in rows])
        model.set_adapter("two")
        near(model(*near.x), two)
        model.base_model.set_adapter(["one", "two"])
        near(model(*near.x), both)
        with torch.no_grad(), folded(model):
            near(model(*near.x), both)
        self.sum_up(model, near, truth, gate)
        model.base_model.set_adapter(["one", "two"])
        if gate in STATIC and group not in NOT_IN_PLACE:
            self.merge_in_place(model, near, both, exactly=option == "dora")
        else:
            self.refuse_to_merge(model, NOT_IN_PLACE.get(group) if gate in STATIC else NO_WEIGHT, gate in STATIC)
        near(model(*near.x), both)
        if gate in STATIC:
            self.merge_and_unload(model, near, both, plain(group, option))
        else:
            model.base_model.set_adapter("one")
            model.delete_adapter("two")
            near(model(*near.x), one)

    def sum_up(self, model: PeftModel, near: Near, truth: Truth, gate: str) -> None:
        for combination, settings in {"cat": {}, "svd": {"svd_rank": 12}}.items():
            arguments = {"combination_type": combination, **settings}
            if truth.option == "dora" or gate not in STATIC:
                message = rf"{NO_WEIGHT}|\['one', 'two'\] have magnitudes"
                with pytest.raises(ValueError, match=message):
                    model.add_weighted_adapter(["one", "two"], [0.7, -1.3], combination, **arguments)
                assert combination not in model.peft_config
                continue
            model.add_weighted_adapter(["one", "two"], [0.7, -1.3], combination, **arguments)
            model.set_adapter(combination)
            near(model(*near.x), truth(near.x, {"one": 0.7 * 2, "two": -1.3 * 5}))
            model.set_adapter("one")
            model.delete_adapter(combination)

    def merge_in_place(self, model: PeftModel, near: Near, want: list[Tensor], exactly: bool) -> None:
        """Both into the weights and out again, of a copy, too; with magnitudes, to the bit."""
        before = copy.deepcopy(model.state_dict())
        model.merge_adapter(safe_merge=True)
        near(model(*near.x), want)
        with model.disable_adapter():
            near(model(*near.x), near.of.plain)
        for one in (copy.deepcopy(model), model):
            one.unmerge_adapter()
            near.compare(list(one.state_dict().values()), list(before.values()), list(before))
            assert not exactly or all(map(torch.equal, one.state_dict().values(), before.values()))

    def refuse_to_merge(self, model: PeftModel, message: str, unloads: bool) -> None:
        before = [bits(value) for value in model.state_dict().values() if torch.is_tensor(value)]
        layers = layers_of(model)
        in_place = [model.merge_adapter, *(layer.merge for layer in layers)]
        rest = [model.merge_and_unload, *(partial(layer.get_delta_weight, "one") for layer in layers)]
        for operation in in_place if unloads else [*in_place, *rest]:
            with pytest.raises(ValueError, match=message):
                operation()
        assert not any(layer.merged for layer in layers)
        after = [bits(value) for value in model.state_dict().values() if torch.is_tensor(value)]
        assert all(map(torch.equal, before, after))

    def merge_and_unload(self, model: PeftModel, near: Near, want: list[Tensor], like: nn.Module) -> None:
        quantized = r"Merging into .*plain Linear in torch.float32, 8,192 bytes .* rounded by up to 6e-08"
        warned = pytest.warns(UserWarning, match=quantized) if near.atol > 1e-12 else nullcontext()
        with warned:
            merged = model.merge_and_unload(safe_merge=True)
        near(merged(*near.x), want, merged=True)
        assert merged.state_dict().keys() == like.state_dict().keys()
        assert [type(module) for module in merged.modules()] == [type(module) for module in like.modules()]

    def in_half_precision(self, model: PeftModel, near: Near, want: list[Tensor], dtype: torch.dtype) -> None:
        layers = model.base_model.model.children()
        for name, layer, x, exact in zip(near.names, layers, near.x, want, strict=True):
            if name not in NOT_IN_HALF:
                y = layer(x.to(dtype) if x.is_floating_point() else x)
                assert y.dtype == dtype
                torch.testing.assert_close(y.detach().double(), exact.detach(), rtol=0.05, atol=0.08, msg=about(name))


NOT_IN_HALF = ("orthogonal",)  # torch has no matrix exponential there


def halve(model: PeftModel, dtype: torch.dtype, of_adapters: torch.dtype) -> None:
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(of_adapters)


def bits(value: Tensor) -> Tensor:
    return value.dequantize() if type(value).__module__.startswith("torchao.") else value.clone()


@pytest.mark.parametrize("gate", GATES)
def test_gates_learn_at_their_own_rate(gate: str) -> None:
    model, x = adapted("convolution", "plain", gate).train(), inputs("convolution")
    groups = parameter_groups(model, lr=0.0, gate_lr=0.1, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    sum(y.square().sum() for y in model(*x)).backward()
    optimizer.step()
    moved = {name.split(".")[-3] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"lora_gate"} if any(True for _ in layers_of(model)[0].lora_gate.parameters()) else set())
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}


def test_one_unmergeable_layer_keeps_all_from_merging() -> None:
    """And an adapter that is not finite does, where safe_merge asks."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).double()
    model = get_peft_model(net, GatedLoraConfig(r=2, init_lora_weights="paper"))
    layers = layers_of(model)
    nn.init.constant_(layers[1].lora_B["default"].weight, torch.nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for operation in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="infinite or NaN"):
            operation(safe_merge=True)
    assert not any(layer.merged for layer in layers)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_adapter_names_need_a_batch() -> None:
    model = get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 1)), GatedLoraConfig(r=2)).eval()
    with pytest.raises(ValueError, match=r"shape \(4, 8, 7\) is a single one; add a batch dimension"):
        model(torch.zeros(4, 8, 7), adapter_names=["default"] * 4)
