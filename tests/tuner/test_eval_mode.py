"""Layers in eval mode fold on their own, and notice whatever would make a fold wrong."""

import copy
import functools
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer, folded
from loraguard.tuner.folding import Fold, FoldingLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


def convolutions(model: nn.Module, *batch: Any) -> int:
    """How many are computed in a forward."""
    names: Counter[str] = Counter()

    class Count(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names[getattr(func, "__name__", "")] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        model(*batch)
    return names["conv2d"] + names["conv_transpose2d"]


def unfolded(model: nn.Module, *batch: Any) -> torch.Tensor:
    layers = layers_of(model)
    for layer in layers:
        layer.folds_in_eval_mode = False
    y = model(*batch)
    for layer in layers:
        del layer.folds_in_eval_mode
    return y


def test_folds_where_no_parameter_can_get_a_gradient(model: PeftModel, batch: Any) -> None:
    assert convolutions(model, *batch) == 3 * 3
    with torch.no_grad():
        assert convolutions(model, *batch) == 3
    model.requires_grad_(False)
    assert convolutions(model, *batch) == 3
    images, label = batch[0].requires_grad_(), batch[1]
    (gradient,) = torch.autograd.grad(model(images, label).square().sum(), images)
    (expected,) = torch.autograd.grad(unfolded(model, images, label).square().sum(), images)
    torch.testing.assert_close(gradient, expected, **EXACT)
    assert convolutions(model.train(), *batch) == 3 * 3


def test_parameters_get_their_gradients_in_eval_mode(model: PeftModel, batch: Any) -> None:
    with torch.no_grad():
        model(*batch)
    model(*batch).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def add_(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.add_(0.1)


def write_to_data(tensor: torch.Tensor) -> None:
    tensor.data.add_(0.1)


def replace_data(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data + 0.1


def optimise(tensor: torch.Tensor) -> None:
    tensor.requires_grad_(True).grad = torch.ones_like(tensor)
    torch.optim.Adam([tensor], lr=0.1, foreach=True).step()
    tensor.grad = None


def initialise(tensor: torch.Tensor) -> None:
    nn.init.normal_(tensor)


@pytest.mark.parametrize("change", [add_, write_to_data, replace_data, optimise, initialise])
@pytest.mark.parametrize("which", [*(f"lora_{part}.one." for part in ("A", "B", "gate")), "base_layer.weight"])
def test_a_changed_parameter_is_seen(model: PeftModel, batch: Any, change: Callable, which: str) -> None:
    with torch.no_grad():
        before = model(*batch)
    change(next(p for name, p in model.named_parameters() if f".mix.{which}" in name))
    with torch.no_grad():
        after = model(*batch)
        torch.testing.assert_close(after, unfolded(model, *batch), **EXACT)
    assert (after - before).abs().max() > 1e-6


def load(model: PeftModel, assign: bool) -> None:
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()}, assign=assign)


def scale(model: PeftModel) -> None:
    for layer in layers_of(model):
        layer.scale_layer(2.0)


OPERATIONS: dict[str, Callable[[PeftModel], Any]] = {
    "load": lambda model: load(model, assign=False),
    "load-assign": lambda model: load(model, assign=True),
    "scale": scale,
    "set_scale": lambda model: [layer.set_scale("one", 0.5) for layer in layers_of(model)],
    "set_adapter": lambda model: model.set_adapter("two"),
    "both": lambda model: model.base_model.set_adapter(["one", "two"]),
    "delete": lambda model: (model.set_adapter("two"), model.delete_adapter("one")),
    "disable": lambda model: model.base_model.disable_adapter_layers(),
    "reset": lambda model: [layer.reset_lora_parameters("one", True) for layer in layers_of(model)],
    "half": lambda model: model.half().double(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_seen(model: PeftModel, batch: Any, name: str) -> None:
    with torch.no_grad():
        before = model(*batch)
        OPERATIONS[name](model)
        after = model(*batch)
        torch.testing.assert_close(after, unfolded(model, *batch), **EXACT)
    assert (after - before).abs().max() > 1e-6


def test_large_weights(tmp_path: Any) -> None:
    """Of a base layer's weight with more than 65,536 values, slices are compared."""
    model = get_peft_model(nn.Sequential(nn.Linear(300, 300)), GatedLoraConfig(r=2, init_lora_weights="paper")).eval()
    x, base = torch.randn(2, 300), layers_of(model)[0].base_layer
    with torch.no_grad():
        before = model(x)
        base.weight.data.mul_(2)
        assert not torch.equal(model(x), before)
        torch.testing.assert_close(model(x), unfolded(model, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_merging_and_unmerging(model: PeftModel, batch: Any) -> None:
    y = model(*batch)
    for operation in (model.merge_adapter, model.unmerge_adapter):
        operation()
        torch.testing.assert_close(model(*batch), y, **EXACT)
    weights = [layer.base_layer.weight.clone() for layer in layers_of(model)]
    model(*batch)
    assert all(torch.equal(layer.base_layer.weight, w) for layer, w in zip(layers_of(model), weights, strict=True))


@torch.no_grad()
def test_half_precision_is_not_folded_unasked(model: PeftModel, batch: Any) -> None:
    """W + dW would be rounded more than W*x + dW*x."""
    images, label = (value.float() for value in batch)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolutions(model, images, label) == 3 * 3
    assert convolutions(model.bfloat16(), images.bfloat16(), label.bfloat16()) == 3 * 3
    with folded(model):
        assert convolutions(model, images.bfloat16(), label.bfloat16()) == 3


@torch.no_grad()
def test_hooks_on_base_layers_are_called(model: PeftModel, batch: Any) -> None:
    y, seen = model(*batch), []
    handle = layers_of(model)[1].base_layer.register_forward_hook(lambda *args: seen.append(1))
    torch.testing.assert_close(model(*batch), y, **EXACT)
    with folded(model):
        torch.testing.assert_close(model(*batch), y, **EXACT)
    assert len(seen) == 2
    handle.remove()
    model(*batch)
    assert len(seen) == 2


def test_hooks_and_gradients_of_inputs_alone(model: PeftModel, batch: Any) -> None:
    for layer in layers_of(model):
        layer.base_layer.register_forward_hook(lambda *args: None)
    images, label = batch[0].requires_grad_(), batch[1]
    (expected,) = torch.autograd.grad(model(images, label).square().sum(), images)
    with folded(model):
        model(images, label).square().sum().backward()
    torch.testing.assert_close(images.grad, expected, **EXACT)
    assert all(p.grad is None for name, p in model.named_parameters() if "norm" not in name)


@torch.no_grad()
def test_folds_are_neither_copied_nor_kept(model: PeftModel, batch: Any) -> None:
    y, size = model(*batch), len(pickle.dumps(model.state_dict()))
    assert all(layer._folds for layer in layers_of(model))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(layer._folds for layer in layers_of(twin))
        assert torch.equal(twin(*batch), y)
    assert len(pickle.dumps(model.state_dict())) == size
    model.train()
    assert not any(layer._folds for layer in layers_of(model))


def elsewhere(job: Callable[[], None]) -> None:
    """Do it in another thread, from beginning to end."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(job).result()


class TestThreads:
    """Before and after each look of a layer at what threads share, another thread does all of its work."""

    @pytest.fixture
    def jobs(self, model: PeftModel, batch: Any) -> dict[str, Callable[[], None]]:
        y, trained = model(*batch), [p for p in model.parameters() if p.requires_grad]
        expected = torch.autograd.grad(y.square().sum(), trained)
        y = y.detach()

        def infer() -> None:
            with torch.no_grad():
                torch.testing.assert_close(model(*batch), y, **EXACT)

        def infer_folded() -> None:
            with folded(model):
                output = model(*batch)
                assert not output.requires_grad
                torch.testing.assert_close(output, y, **EXACT)

        def learn() -> None:
            gradients = torch.autograd.grad(model(*batch).square().sum(), trained)
            for one, other in zip(gradients, expected, strict=True):
                torch.testing.assert_close(one, other, **EXACT)

        return {"infer": infer, "folded": infer_folded, "learn": learn}

    @pytest.mark.parametrize("there", ["infer", "folded", "learn"])
    @pytest.mark.parametrize("here", ["infer", "folded", "learn"])
    def test_one_in_the_midst_of_another(
        self,
        model: PeftModel,
        jobs: dict[str, Callable[[], None]],
        here: str,
        there: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        main, places = threading.get_ident(), Counter[str]()

        def meanwhile(owner: type, name: str) -> None:
            true = getattr(owner, name)

            @functools.wraps(true)
            def with_another(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() != main:
                    return true(*args, **kwargs)
                places[name] += 1
                elsewhere(jobs[there])
                found = true(*args, **kwargs)
                elsewhere(jobs[there])
                return found

            monkeypatch.setattr(owner, name, with_another)

        for owner, name in ((FoldingLayer, "_inside_folded"), (FoldingLayer, "_fold"), (Fold, "is_of")):
            meanwhile(owner, name)
        for _ in range(2):  # with nothing kept, and with what was kept
            jobs[here]()
        assert places
        assert not any(layer._folding for layer in layers_of(model))


class TestCompile:
    """Without graph breaks, and seeing what changes; the backend runs the captured graph as it is."""

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Any:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.mark.parametrize("gate", ["scalar", "channel", "input", "input_channel", "none"])
    def test_training_and_inference(self, generator: nn.Module, batch: Any, gate: str) -> None:
        layers = None if gate == "scalar" else ["label", "down"]  # of all kinds once
        settings = GatedLoraConfig(r=4, init_lora_weights="paper", gate_type=gate, target_modules=layers)
        model = get_peft_model(generator, settings).eval()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        y = model(*batch)
        torch.testing.assert_close(compiled(*batch), y, **EXACT)
        want = torch.autograd.grad(y.square().sum(), trained)
        got = torch.autograd.grad(compiled(*batch).square().sum(), trained)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, **EXACT)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*batch), y, **EXACT)
            for p in trained:
                p.data.add_(0.05)
            torch.testing.assert_close(compiled(*batch), unfolded(model, *batch), **EXACT)
            assert (compiled(*batch) - y).abs().max() > 1e-4

    def test_operations(self, generator: nn.Module, batch: Any) -> None:
        settings = {"r": 4, "init_lora_weights": "paper", "target_modules": ["label", "up"]}
        model = get_peft_model(generator, GatedLoraConfig(**settings), "one").eval()
        model.add_adapter("two", GatedLoraConfig(**{**settings, "lora_alpha": 5}))
        model.eval()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        y = model(*batch)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*batch), y, **EXACT)
            with folded(model):
                torch.testing.assert_close(compiled(*batch), y, **EXACT)
            model.base_model.set_adapter("two")
            torch.testing.assert_close(compiled(*batch), model(*batch), **EXACT)
            with model.disable_adapter():
                torch.testing.assert_close(compiled(*batch), model(*batch), **EXACT)
            model.merge_adapter()
            torch.testing.assert_close(compiled(*batch), model(*batch), **EXACT)

    def test_inputs_alone_get_gradients_inside_folded(self, model: PeftModel, batch: Any) -> None:
        images, label = batch[0].requires_grad_(), batch[1]
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        (expected,) = torch.autograd.grad(model(images, label).square().sum(), images)
        with folded(model):
            compiled(images, label).square().sum().backward()
        torch.testing.assert_close(images.grad, expected, **EXACT)
        assert all(p.grad is None for p in model.parameters())

    def test_export(self, model: PeftModel, batch: Any) -> None:
        with torch.no_grad():
            program = torch.export.export(model.base_model.model, batch).module()
            torch.testing.assert_close(program(*batch), model(*batch), **EXACT)
            traced = torch.jit.trace(model.base_model.model, batch, check_trace=False)
            torch.testing.assert_close(traced(*batch), model(*batch), **EXACT)
