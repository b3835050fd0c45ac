"""What holds for every kind of layer under every gate, or is refused by name; against the formulas written out."""

import copy
import math
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from transformers.pytorch_utils import Conv1D

from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraLayer, folded, parameter_groups

EXACT = {"rtol": 0.0, "atol": 1e-12}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear-sequence": (lambda: nn.Linear(6, 4, bias=False), (3, 7, 6)),
    "Conv1D": (lambda: Conv1D(4, 6), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1, dilation=2), (3, 4, 8, 7)),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (3, 4, 6, 5)),
    "conv2d-circular-same": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (3, 4, 6, 5)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (3, 4, 6, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (3, 4, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 1, 3), padding_mode="replicate", padding=1), (2, 4, 3, 3, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (3, 4, 5, 4)),
    "transposed2d-grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (3, 4, 5, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, (2, 3, 1), dilation=2, bias=False), (2, 4, 3, 3, 3)),
    "embedding": (lambda: nn.Embedding(9, 4), (5, 3)),
    "embedding, a row": (lambda: nn.Embedding(9, 4), (5,)),
    "linear, spectral_norm": (lambda: spectral_norm(nn.Linear(6, 4)), (5, 6)),
    "conv2d, weight_norm": (lambda: old_weight_norm(nn.Conv2d(4, 6, 3)), (3, 4, 6, 5)),
    "conv2d, pruned": (lambda: prune.l1_unstructured(nn.Conv2d(4, 6, 3), "weight", 0.5), (3, 4, 6, 5)),
    "transposed2d, spectral": (lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 3)), (3, 4, 5, 4)),
    "conv1d, weight": (lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), (3, 4, 9)),
    "linear, orthogonal, lora_bias": (lambda: parametrizations.orthogonal(nn.Linear(6, 4)), (5, 6)),
    "linear, lora_bias": (lambda: nn.Linear(6, 4), (5, 6)),
    "Conv1D, lora_bias": (lambda: Conv1D(4, 6), (5, 6)),
    "conv2d-reflect, lora_bias": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (3, 4, 6, 5)),
    "conv2d-grouped, lora_bias": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 5)),
    "transposed1d, lora_bias": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (3, 4, 5)),
}


def config(kind: str, gate: str, **settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(
        **{"r": 4, "gate_type": gate, "lora_bias": "lora_bias" in kind, "target_modules": ["0"], **settings}
    )


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(layer)


def plain(layer: Any) -> Any:
    """A layer whose weight is a parameter."""
    if parametrize.is_parametrized(layer):
        layer = parametrize.remove_parametrizations(layer, "weight")
    for hook in list(layer._forward_pre_hooks.values()):
        hook.remove(layer)
    layer._forward_pre_hooks.clear()
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = nn.Parameter(weight)
    return layer


def net_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[kind][0]()).double().eval()


def adapted(kind: str, gate: str, names: tuple[str, ...] = ("default",), **settings: Any) -> PeftModel:
    """The layer in a model, with adapters whose factors and gates are random and whose ranks and scales differ."""
    torch.manual_seed(1)
    settings = {"init_lora_weights": "paper", **settings}
    model = get_peft_model(net_of(kind), config(kind, gate, **settings), names[0])
    for name in names[1:]:
        model.add_adapter(name, config(kind, gate, **{**settings, "r": 8, "lora_alpha": 5}))
    for name, parameter in model.named_parameters():
        if ".lora_gate." in name or (".lora_B." in name and name.endswith(".bias")):
            nn.init.normal_(parameter)
    return model.eval()


def layer_of(model: PeftModel) -> Any:
    return model.base_model.model[0]


def input_of(kind: str) -> Tensor:
    if "embedding" in kind:
        return torch.randint(9, LAYERS[kind][1])
    return torch.randn(LAYERS[kind][1], dtype=torch.float64)


def update_of(kind: str, layer: Any, x: Tensor, adapter: str, alpha: float) -> Tensor:
    """`gate * s * (B A x + b)`: the base layer with that for a weight, summed up group by group and rank by rank.

    Gates that depend on the input are the formula that test_gates.py checks, on the whole update.
    """
    net = net_of(kind)
    base: Any = plain(net[0])
    a, b = (factor[adapter].weight.detach() for factor in (layer.lora_A, layer.lora_B))
    gate = layer.lora_gate[adapter]
    weight = torch.zeros_like(base.weight)
    groups, r = getattr(base, "groups", 1), len(a)
    n_out, n_rank = len(b) // groups, r // groups
    openings = openings_of(gate, groups, n_out, n_rank)
    for j in range(r):
        g = j // n_rank
        for o in range(g * n_out, (g + 1) * n_out):
            kernel = a[j] * b[o, j % n_rank].reshape(-1) * openings[g, o - g * n_out, j % n_rank]
            if isinstance(base, nn.modules.conv._ConvTransposeNd):
                n_in = base.in_channels // groups
                weight[g * n_in : (g + 1) * n_in, o - g * n_out] += kernel
            elif isinstance(base, (Conv1D, nn.Embedding)):
                weight[:, o] += kernel
            else:
                weight[o] += kernel
    base.weight.data = weight * alpha / math.sqrt(r)
    bias = layer.lora_B[adapter].bias
    if bias is not None:  # a gate per rank leaves it alone
        along_ranks = gate.mergeable and gate.shape(2, 2, 2)[2] > 1
        opening = 1.0 if along_ranks else openings[:, :, 0].flatten()
        base.bias.data = opening * bias.detach() * alpha / math.sqrt(r)
    elif getattr(base, "bias", None) is not None:
        nn.init.zeros_(base.bias)
    u = net(x).detach()
    return u if gate.mergeable else gate(u, lambda u: u, 1.0).detach()


def openings_of(gate: Any, groups: int, out: int, rank: int) -> Tensor:
    """What a static gate multiplies each of B's values with: by its logits and the shape that it declares."""
    ones = torch.ones(groups, out, rank, dtype=torch.float64)
    logits = list(gate.parameters())
    if not (gate.mergeable and logits):
        return ones
    return ones / (1 + torch.exp(-logits[0].detach().double().view(gate.shape(groups, out, rank))))


def expected(kind: str, model: PeftModel, x: Tensor, adapter: str = "default", alpha: float = 2) -> Tensor:
    layer = layer_of(model)
    return net_of(kind)(x).detach() + update_of(kind, layer, x, adapter, alpha)


every = pytest.mark.parametrize(("kind", "gate"), [(kind, gate) for kind in LAYERS for gate in GATES])


@every
class TestEveryLayerAndGate:
    def test_formula(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        y = expected(kind, model, x)
        assert (y - net_of(kind)(x)).abs().max() > 1e-3, "the adapter must do something for the test to mean anything"
        torch.testing.assert_close(model(x), y, **EXACT)
        with torch.no_grad():  # folds, where the gate is static
            torch.testing.assert_close(model(x), y, **EXACT)
        with model.disable_adapter():
            assert torch.equal(model(x), net_of(kind)(x))

    def test_unbatched(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        whole = model(x)
        if kind in ("linear-sequence", "embedding"):
            x, whole = x[:, 0], model(x[:, :1])[:, 0]  # a sequence without a batch is a batch
        torch.testing.assert_close(model(x[0]), whole[0], **EXACT)

    def test_starts_as_the_scalar_gate(self, kind: str, gate: str) -> None:
        torch.manual_seed(1)
        model = get_peft_model(net_of(kind), config(kind, gate, gate_init=0.3))
        x = input_of(kind)
        assert torch.equal(model(x), net_of(kind)(x))
        layer = layer_of(model)
        nn.init.normal_(layer.lora_A["default"].weight)
        nn.init.normal_(layer.lora_B["default"].weight)
        (module,) = layer.lora_gate.values()
        opening = 1 / (1 + math.exp(-0.3)) if list(module.parameters()) else 1.0
        assert module.opening.mean().item() == pytest.approx(opening)
        adapted_output = model(x)
        layer.lora_gate["default"] = GATES["none"](0.0, module.layout)
        u = update_of(kind, layer, x, "default", 2)
        torch.testing.assert_close(adapted_output, net_of(kind)(x) + opening * u, rtol=0, atol=1e-6)  # float32's logit

    def test_merging(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        y, layer = expected(kind, model, x), layer_of(model)
        if not GATES[gate].mergeable:
            for operation in (model.merge_adapter, model.merge_and_unload, layer.merge):
                with pytest.raises(ValueError, match=r"adapter 'default' depends on the input.*gate_type='scalar'"):
                    operation()
            with pytest.raises(ValueError, match="depends on the input"):
                layer.get_delta_weight("default")
            assert not layer.merged
            torch.testing.assert_close(model(x), y, **EXACT)
            return
        if "weight" not in dict(net_of(kind)[0].named_parameters()):
            for operation in (model.merge_adapter, layer.merge):
                with pytest.raises(ValueError, match=r"computed at each forward by .* merge_and_unload\(\) makes"):
                    operation()
            assert not layer.merged
        else:
            model.merge_adapter(safe_merge=True)
            torch.testing.assert_close(model(x), y, **EXACT)
            model.unmerge_adapter()
        for name, value in net_of(kind)[0].named_parameters():
            torch.testing.assert_close(attrgetter(name)(layer.base_layer), value, **EXACT)
        merged: Any = model.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(merged(x), y, **EXACT)
        assert type(merged[0]) is type(plain(net_of(kind)[0]))
        assert merged[0].state_dict().keys() == plain(net_of(kind)[0]).state_dict().keys()

    def test_folding(self, kind: str, gate: str) -> None:
        train = "spectral" not in kind  # where each forward iterates; test_computed.py compares those
        model, x = adapted(kind, gate).train(train), input_of(kind)
        if not x.is_floating_point():
            y = model(x)
            with folded(model):
                again = model(x)
            torch.testing.assert_close(again, y, **EXACT)
            assert not again.requires_grad
            return
        y = model(x.requires_grad_())
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        with folded(model):
            again = model(x)
            again.square().sum().backward()
        torch.testing.assert_close(again, y, **EXACT)
        torch.testing.assert_close(x.grad, gradient, **EXACT)
        assert all(p.grad is None for p in model.parameters())

    def test_gradients(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)[:2]
        x.requires_grad_(x.is_floating_point())
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 + ("lora_bias" in kind) + len(list(layer_of(model).lora_gate.parameters()))

        def run(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(model, dict(zip(trained, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *trained.values()), fast_mode=True)

    def test_saving(self, kind: str, gate: str, tmp_path: Any) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        model.save_pretrained(tmp_path)
        reloaded = PeftModel.from_pretrained(net_of(kind), tmp_path)
        assert reloaded.peft_config["default"].gate_type == gate
        assert torch.equal(reloaded(x), model.eval().requires_grad_(False)(x))

    def test_several_adapters(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate, ("one", "two")), input_of(kind)
        bare = net_of(kind)(x)
        one, two = (expected(kind, model, x, name, alpha) for name, alpha in (("one", 2), ("two", 5)))
        names = [["two", "__base__", "one", "one", "two"][i] for i in range(len(x))]
        want = torch.stack([{"one": one, "two": two, "__base__": bare}[name][i] for i, name in enumerate(names)])
        torch.testing.assert_close(model(x, adapter_names=names), want, **EXACT)
        model.set_adapter("two")
        torch.testing.assert_close(model(x), two, **EXACT)
        model.base_model.set_adapter(["one", "two"])
        torch.testing.assert_close(model(x), one + two - bare, **EXACT)
        with torch.no_grad(), folded(model):
            torch.testing.assert_close(model(x), one + two - bare, **EXACT)
        model.base_model.set_adapter("one")
        model.delete_adapter("two")
        torch.testing.assert_close(model(x), one, **EXACT)

    def test_scaling(self, kind: str, gate: str) -> None:
        model, x = adapted(kind, gate), input_of(kind)
        layer, bare = layer_of(model), net_of(kind)(x)
        layer.scale_layer(3)
        torch.testing.assert_close(model(x), bare + update_of(kind, layer, x, "default", 3 * 2), **EXACT)
        layer.set_scale("default", 0)
        torch.testing.assert_close(model(x), bare, **EXACT)

    @pytest.mark.parametrize("combination", ["cat", "svd"])
    def test_weighted_sum(self, kind: str, gate: str, combination: str) -> None:
        model, x = adapted(kind, gate, ("one", "two")), input_of(kind)
        want = {"combination_type": combination, **({"svd_rank": 12} if combination == "svd" else {})}
        if not GATES[gate].mergeable:
            with pytest.raises(ValueError, match=r"adapter 'one' depends on the input.* cannot be .*combined"):
                model.add_weighted_adapter(["one", "two"], [0.7, -1.3], "sum", **want)
            assert "sum" not in model.peft_config
            return
        bare = net_of(kind)(x)
        one, two = (expected(kind, model, x, name, alpha) for name, alpha in (("one", 2), ("two", 5)))
        model.add_weighted_adapter(["one", "two"], [0.7, -1.3], "sum", **want)
        model.set_adapter("sum")
        torch.testing.assert_close(model(x), bare + 0.7 * (one - bare) - 1.3 * (two - bare), **EXACT)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, kind: str, gate: str, dtype: torch.dtype) -> None:
        if "orthogonal" in kind:  # torch has no matrix exponential in half precision
            with pytest.raises(RuntimeError):
                net_of(kind).to(dtype)(input_of(kind).to(dtype))
            return
        model, x = adapted(kind, gate), input_of(kind)
        y = expected(kind, model, x)
        for autocast in (True, False):
            model = adapted(kind, gate)
            state = get_peft_model_state_dict(model)
            half = get_peft_model(
                net_of(kind).to(dtype), copy.deepcopy(model.peft_config["default"]), autocast_adapter_dtype=autocast
            )
            set_peft_model_state_dict(half, state)
            got = half.eval()(x.to(dtype) if x.is_floating_point() else x)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), y, rtol=0.05, atol=0.08)

    def test_hotswap(self, kind: str, gate: str, tmp_path: Any) -> None:
        other, x = adapted(kind, gate, lora_alpha=7), input_of(kind)
        other.save_pretrained(tmp_path)
        model = get_peft_model(net_of(kind), config(kind, gate)).eval()
        hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected(kind, other, x, alpha=7), **EXACT)

    def test_status(self, kind: str, gate: str) -> None:
        model = adapted(kind, gate, ("one", "two"))
        status = model.get_model_status()
        assert status.available_adapters == ["one", "two"]
        assert status.requires_grad == {"one": True, "two": False}
        assert model.get_layer_status()[0].devices == {"one": ["cpu"], "two": ["cpu"]}


@pytest.mark.parametrize("gate", GATES)
def test_gates_learn_at_their_own_rate(gate: str) -> None:
    model, x = adapted("conv2d", gate).train(), input_of("conv2d")
    groups = parameter_groups(model, lr=0.0, gate_lr=0.1, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    model(x).square().sum().backward()
    optimizer.step()
    moved = {name.split(".")[-3] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"lora_gate"} if list(layer_of(model).lora_gate.parameters()) else set())
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}


def test_one_unmergeable_layer_keeps_all_from_merging() -> None:
    """And an adapter that is not finite does, where safe_merge asks."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).double()
    model = get_peft_model(net, GatedLoraConfig(r=2, init_lora_weights="paper"))
    layers = [module for module in model.modules() if isinstance(module, GatedLoraLayer)]
    nn.init.constant_(layers[1].lora_B["default"].weight, torch.nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for operation in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="infinite or NaN"):
            operation(safe_merge=True)
    assert not any(layer.merged for layer in layers)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_adapter_names_need_a_batch() -> None:
    model = adapted("conv2d", "scalar")
    with pytest.raises(ValueError, match=r"shape \(4, 8, 7\) is a single one; add a batch dimension"):
        model(input_of("conv2d")[0], adapter_names=["default"] * 4)
