"""Every kind of base layer, in every geometry, through an adapter's whole life, against the formula in loops."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraguard.tuner import GatedLoraConfig, folded

EXACT = {"rtol": 0.0, "atol": 1e-12}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

# No two sides alike, so that a mix-up of dimensions shows.
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}
SIZE = {1: (9,), 2: (8, 7), 3: (5, 7, 4)}
STRIDE = {1: (2,), 2: (2, 1), 3: (1, 2, 2)}
PADDING = {1: (1,), 2: (2, 1), 3: (1, 2, 0)}
DILATION = {1: (2,), 2: (2, 1), 3: (1, 2, 1)}
OUTPUT_PADDING = {1: (1,), 2: (1, 0), 3: (0, 1, 1)}


@dataclass
class Case:
    """A layer and the shape of its input."""

    kind: Any
    args: tuple
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return Net(self.kind(*self.args, **self.options)).double()

    @property
    def id(self) -> str:
        settings = {**self.options, **self.call}
        chosen = [f"{name}={value}" for name, value in settings.items()]
        return "-".join([self.kind.__name__, "x".join(map(str, self.shape)), *chosen]).replace(" ", "")


class Net(nn.Module):
    """A network of one layer, which may take further arguments."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(x, **kwargs)


def conv_cases() -> list[Case]:
    cases = []
    for d, groups, dilated in itertools.product((1, 2, 3), (1, 2, 4), (False, True)):
        for strided, padding, mode in itertools.product(
            (False, True), (0, PADDING[d], "same", "valid"), ("zeros", "reflect", "replicate", "circular")
        ):
            if (padding == "same" and strided) or (padding in (0, "valid") and mode != "zeros"):
                continue
            options = {
                "stride": STRIDE[d] if strided else 1,
                "padding": padding,
                "padding_mode": mode,
                "dilation": DILATION[d] if dilated else 1,
                "groups": groups,
                "bias": len(cases) % 2 == 0,
            }
            cases.append(Case(CONV[d], (4, 8, KERNEL[d]), (2, 4, *SIZE[d]), options))
    return cases


def transposed_cases() -> list[Case]:
    cases = []
    for d, groups, strided, padded, dilated, more in itertools.product((1, 2, 3), (1, 2, 4), *[(False, True)] * 4):
        options = {
            "stride": STRIDE[d] if strided else 1,
            "padding": PADDING[d] if padded else 0,
            "output_padding": OUTPUT_PADDING[d] if more else 0,
            "dilation": DILATION[d] if dilated else 1,
            "groups": groups,
            "bias": len(cases) % 2 == 0,
        }
        reach = zip(STRIDE[d] if strided else (1,) * d, DILATION[d] if dilated else (1,) * d, strict=True)
        if more and any(o >= max(pair) for o, pair in zip(OUTPUT_PADDING[d], reach, strict=True)):
            continue
        cases.append(Case(TRANSPOSED[d], (4, 8, KERNEL[d]), (2, 4, *SIZE[d]), options))
    return cases


TEST_CASES = [
    *(
        Case(nn.Linear, (6, 5), (*lead, 6), {"bias": b})
        for lead in ((), (3,), (2, 3), (2, 3, 4))
        for b in (True, False)
    ),
    *(Case(Conv1D, (5, 6), (*lead, 6)) for lead in ((3,), (2, 3))),
    *conv_cases(),
    *transposed_cases(),
    # unbatched
    *(Case(CONV[d], (4, 8, KERNEL[d]), (4, *SIZE[d])) for d in CONV),
    *(Case(TRANSPOSED[d], (4, 8, KERNEL[d]), (4, *SIZE[d])) for d in TRANSPOSED),
    # depthwise with the channels' own number, 1x1, one output channel, fewer outputs than inputs
    Case(nn.Conv2d, (4, 4, 3), (2, 4, 6, 6), {"groups": 4}),
    Case(nn.Conv2d, (4, 8, 1), (2, 4, 6, 6)),
    Case(nn.Conv3d, (4, 8, (1, 1, 3)), (2, 4, 5, 5, 5)),
    Case(nn.Conv2d, (4, 1, 3), (2, 4, 6, 6)),
    Case(nn.ConvTranspose2d, (8, 2, 4), (2, 8, 6, 6), {"stride": 2, "padding": 1, "groups": 2}),
    # the size asked for at the call
    Case(nn.ConvTranspose1d, (4, 8, 3), (2, 4, 9), {"stride": 2}, {"output_size": (20,)}),
    Case(nn.ConvTranspose2d, (4, 8, 3), (2, 4, 8, 7), {"stride": 2, "padding": 1}, {"output_size": (16, 13)}),
    Case(nn.ConvTranspose2d, (4, 8, 3), (2, 4, 8, 7), {"stride": 2}, {"output_size": (2, 8, 18, 15)}),
    Case(nn.ConvTranspose3d, (4, 8, 3), (4, 5, 4, 5), {"stride": 2}, {"output_size": (12, 9, 11)}),
]


def adapted(case: Case, **settings: Any) -> tuple[PeftModel, Tensor]:
    """The model with a random adapter and a gate away from its start, and an input."""
    net = case.net()
    config = GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})
    model = get_peft_model(net, config).eval()
    nn.init.constant_(model.base_model.model.layer.lora_gate["default"].weight, 0.7)
    return model, torch.randn(case.shape, dtype=torch.float64)


def update_in_loops(base: Any, a: Tensor, b: Tensor) -> Tensor:
    """BA, channel by channel, in the shape of the base layer's weight."""
    if isinstance(base, (nn.Linear, Conv1D)):
        rows = torch.stack([sum(b[o, j] * a[j] for j in range(len(a))) for o in range(len(b))])
        return rows.T if isinstance(base, Conv1D) else rows
    update = torch.zeros_like(base.weight)
    n_in, n_out = base.in_channels // base.groups, base.out_channels // base.groups
    rank = len(a) // base.groups
    for g, o, i, j in itertools.product(range(base.groups), range(n_out), range(n_in), range(rank)):
        kernel = b[g * n_out + o, j].squeeze() * a[g * rank + j, i]
        if base.transposed:
            update[g * n_in + i, o] += kernel
        else:
            update[g * n_out + o, i] += kernel
    return update


def expected_weight(base: Any, layer: Any, adapter: str = "default") -> Tensor:
    a, b = (factor[adapter].weight.detach().double() for factor in (layer.lora_A, layer.lora_B))
    gate = 1 / (1 + math.exp(-layer.lora_gate[adapter].weight.item()))
    return base.weight.detach() + gate * 2 / math.sqrt(layer.r[adapter]) * update_in_loops(base, a, b)


def bare_with(case: Case, weight: Tensor) -> nn.Module:
    net = case.net()
    net.layer.weight.data.copy_(weight)
    return net


class SideBySide(nn.Module):
    """The layers of several cases, each with an input of its own: PEFT wraps them at once."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases, self.nets = cases, nn.ModuleList(case.net() for case in cases)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [net(x, **case.call) for net, case, x in zip(self.nets, self.cases, inputs, strict=True)]


FAMILIES: dict[str, list[Case]] = {}
for one in TEST_CASES:
    FAMILIES.setdefault(f"{one.kind.__name__}, groups={one.options.get('groups', 1)}", []).append(one)


@pytest.mark.parametrize("family", FAMILIES)
def test_life(family: str, tmp_path: Any) -> None:
    cases = FAMILIES[family]
    torch.manual_seed(1)
    model = get_peft_model(SideBySide(cases), GatedLoraConfig(r=4, init_lora_weights="paper")).eval()
    layers = [net.layer for net in model.base_model.model.nets]
    for layer in layers:
        nn.init.constant_(layer.lora_gate["default"].weight, 0.7)
    bare, x = SideBySide(cases), [torch.randn(case.shape, dtype=torch.float64) for case in cases]
    weights = [expected_weight(net.layer, layer) for net, layer in zip(bare.nets, layers, strict=True)]
    y0 = bare(*x)
    y = [bare_with(case, weight)(one, **case.call) for case, weight, one in zip(cases, weights, x, strict=True)]

    def check(found: list[Tensor], want: list[Tensor]) -> None:
        for case, one, exact in zip(cases, found, want, strict=True):
            torch.testing.assert_close(one, exact, **EXACT, msg=lambda message, case=case: f"{case.id}: {message}")

    for case, one, other in zip(cases, y, y0, strict=True):
        assert (one - other).abs().max() > 1e-3, (
            f"{case.id}: the adapter must do something for the test to mean anything"
        )
    check(model(*x), y)
    with model.disable_adapter():
        assert all(map(torch.equal, model(*x), y0))
    with folded(model):
        check(model(*x), y)
        with model.disable_adapter():
            assert all(map(torch.equal, model(*x), y0))
    model.merge_adapter(safe_merge=True)
    check([layer.weight for layer in layers], weights)
    check(model(*x), y)
    model.unmerge_adapter()
    check([layer.weight for layer in layers], [net.layer.weight for net in bare.nets])
    check(model(*x), y)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(SideBySide(cases), tmp_path)
    check(reloaded(*x), y)
    plain = reloaded.merge_and_unload()
    check(plain(*x), y)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert shapes == {name: value.shape for name, value in bare.state_dict().items()}
    assert [type(net.layer) for net in plain.nets] == [case.kind for case in cases]


SMALL = [case for case in TEST_CASES if len(case.shape) < 5][::9]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_gradients(case: Case) -> None:
    """Of the input, A, B and the gate, against finite differences, along a random direction."""
    model, x = adapted(case)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B", "lora_gate"}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(trained, values, strict=True)), (x,), case.call)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *trained.values()), fast_mode=True)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_groups_round_trip(case: Case) -> None:
    """A weight read as group matrices and back is the same; so are the factors of an adapter."""
    model, _ = adapted(case)
    layer = model.base_model.model.layer
    weight = torch.randn_like(layer.weight)
    assert torch.equal(layer.from_groups(layer.to_groups(weight)), weight)
    a, b = (factors.detach() + 1 for factors in layer.factor_groups("default"))
    layer.set_factor_groups("default", a, b)
    assert all(torch.equal(got, put) for got, put in zip(layer.factor_groups("default"), (a, b), strict=True))
    torch.testing.assert_close(layer.to_groups(layer.get_delta_weight("default")), layer.gain("default") * b @ a)


ONE_OF_EACH = [
    Case(nn.Linear, (6, 5), (3, 6)),
    Case(nn.Conv2d, (4, 8, 3), (2, 4, 6, 6), {"groups": 2}),
    Case(nn.ConvTranspose2d, (4, 8, 3), (2, 4, 6, 6), {"groups": 2}),
]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
class TestInitialisation:
    def test_default_changes_nothing(self, case: Case) -> None:
        x = torch.randn(case.shape, dtype=torch.float64)
        assert torch.equal(get_peft_model(case.net(), GatedLoraConfig())(x), case.net()(x))

    @pytest.mark.parametrize("init", ["paper", False])
    def test_paper(self, case: Case, init: Any) -> None:
        """Kaiming-uniform with a = sqrt(5) is uniform in 1 / sqrt(fan-in), of A and of B."""
        layer = adapted(case, init_lora_weights=init, r=32)[0].base_model.model.layer
        for factor, fan_in in zip((layer.lora_A, layer.lora_B), fan_ins(case, 32), strict=True):
            reach = factor["default"].weight.abs().max().item() * math.sqrt(fan_in)
            assert 0.9 < reach <= 1

    def test_gaussian(self, case: Case) -> None:
        layer = adapted(case, init_lora_weights="gaussian", r=32)[0].base_model.model.layer
        assert layer.lora_A["default"].weight.std().item() == pytest.approx(1 / 32, rel=0.3)
        assert not layer.lora_B["default"].weight.any()


def fan_ins(case: Case, r: int) -> tuple[int, int]:
    groups = case.options.get("groups", 1)
    kernel = case.args[2] ** 2 if len(case.args) > 2 else 1
    return case.args[0] // groups * kernel, r // groups


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(case: Case, dtype: torch.dtype, autocast: bool, tmp_path: Any) -> None:
    """Adapters of half-precision models are float32 unless asked otherwise; outputs keep the base layer's dtype."""
    net = case.net().to(dtype)
    config = GatedLoraConfig(r=4, init_lora_weights="paper")
    model = get_peft_model(net, config, autocast_adapter_dtype=autocast)
    layer, x = model.base_model.model.layer, torch.randn(case.shape, dtype=dtype)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32 if autocast else dtype}
    y = model(x)
    assert y.dtype == dtype
    near = {"rtol": 0.05, "atol": 0.05}
    exact = bare_with(case, expected_weight(case.net().to(dtype).double().layer, layer))
    torch.testing.assert_close(y.double(), exact(x.double()), **near)
    with folded(model):
        assert model(x).dtype == dtype
    model.merge_adapter()
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(model(x), y, **near)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_autocast(case: Case) -> None:
    model, x = adapted(case)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x.float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_low_cpu_mem_usage(case: Case, tmp_path: Any) -> None:
    model, x = adapted(case)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(case.net(), tmp_path, low_cpu_mem_usage=True)
    torch.testing.assert_close(reloaded(x), model(x), **EXACT)


@pytest.mark.parametrize("case", ONE_OF_EACH[1:], ids=lambda case: case.id)
@pytest.mark.parametrize("batched", [True, False])
def test_dropout_takes_whole_channels(case: Case, batched: bool) -> None:
    model, x = adapted(case, lora_dropout=0.5)
    layer = model.train().base_model.model.layer
    dropped = layer.drop("default", torch.ones_like(x if batched else x[0]))
    kept = dropped.flatten(-2)
    assert ((kept == 0).all(-1) | (kept == 2).all(-1)).all()
    assert 0 < (kept == 0).double().mean() < 1
    assert torch.equal(model.eval()(x), adapted(case)[0](x))


def test_dropout_of_a_linear_layer_takes_features() -> None:
    model, x = adapted(ONE_OF_EACH[0], lora_dropout=0.5)
    layer = model.train().base_model.model.layer
    assert layer.drop("default", torch.ones(100, 6)).unique().tolist() == [0, 2]
    assert not torch.equal(model(x), model(x))
