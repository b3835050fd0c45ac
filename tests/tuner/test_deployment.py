"""An adapted network compiled, exported, traced, copied and spread over processes computes what it did."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from peft import PeftModel, get_peft_model
from processes import forked_ranks
from safetensors.torch import load_file
from torch import Tensor, nn
from tuner_ranks import gradients, model_and_batch, step_in_a_rank

from loraguard.tuner import GatedLoraConfig, folded

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # float32, outputs in (-1, 1)


@pytest.fixture
def single(model: PeftModel) -> PeftModel:
    return model.float()


@pytest.fixture
def inputs(batch: Any) -> tuple[Tensor, ...]:
    return tuple(one.float() for one in batch)


def frozen(model: Any) -> Any:
    return model.requires_grad_(False)


WAYS = {
    "merged": lambda model: model.merge_and_unload(),
    "folds by itself": lambda model: frozen(model).base_model.model,
    "unmerged": lambda model: model.base_model.model,
}


@pytest.mark.parametrize("way", WAYS)
class TestExporting:
    def test_export(self, single: PeftModel, inputs: Any, way: str) -> None:
        want = single(*inputs).detach()
        program = torch.export.export(WAYS[way](single), inputs)
        torch.testing.assert_close(program.module()(*inputs).detach(), want, **NEAR)

    @pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore:.*is deprecated:DeprecationWarning")
    def test_trace(self, single: PeftModel, inputs: Any, way: str) -> None:
        """With torch's own check, which runs the network once more without gradients."""
        other = tuple(one.flip(0) for one in inputs)
        want = single(*other).detach()
        traced = torch.jit.trace(WAYS[way](single), inputs)
        torch.testing.assert_close(traced(*other).detach(), want, **NEAR)
        assert traced(*other).requires_grad == (way == "unmerged")


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its own code
@pytest.mark.parametrize("way", ["merged", "folds by itself"])
def test_onnx(single: PeftModel, inputs: Any, way: str, tmp_path: Path) -> None:
    want = single(*inputs).detach()
    file = tmp_path / "network.onnx"
    torch.onnx.export(WAYS[way](single), inputs, file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (found,) = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), want, rtol=0, atol=1e-5)


def test_a_folded_model_exported(single: PeftModel, inputs: Any) -> None:
    want = single(*inputs).detach()
    with folded(single):
        program = torch.export.export(single.base_model.model, inputs)
    torch.testing.assert_close(program.module()(*inputs), want, **NEAR)


def test_compiled(single: PeftModel, inputs: Any) -> None:
    """A compiled network follows `set_adapter` and `disable_adapter`."""
    torch._dynamo.reset()
    compiled = torch.compile(single, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(*inputs), single(*inputs), **NEAR)
    single.set_adapter("two")
    torch.testing.assert_close(compiled(*inputs), single(*inputs), **NEAR)
    with single.disable_adapter():
        torch.testing.assert_close(compiled(*inputs), single(*inputs), **NEAR)
    torch.testing.assert_close(compiled(*inputs), single(*inputs), **NEAR)


def test_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own compiler, on what learns; its cache on the disk may hold code for another instruction set.

    Without vectors: to find out which a processor has, it builds six programs, which takes longer than all the rest.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(3, 4)), GatedLoraConfig(r=2, init_lora_weights="paper"))
    scalars = {"cpp.simdlen": 1, "cpp.vec_isa_ok": False}
    compiled, x = torch.compile(model, options=scalars), torch.randn(2, 3)
    compiled(x).square().sum().backward()
    found = {name: one.clone() for name, one in gradients(model).items()}
    model.zero_grad()
    model(x).square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, **NEAR)


def test_copies(single: PeftModel, inputs: Any) -> None:
    want = single(*inputs)
    for other in (copy.deepcopy(single), pickle.loads(pickle.dumps(single))):
        assert torch.equal(other(*inputs), want)
        other.set_adapter("two")
        assert not torch.equal(other(*inputs), want)
        assert torch.equal(single(*inputs), want)


def replica(network: nn.Module) -> Any:
    """As DataParallel makes one for a second device: modules without parameters, which have copies beside them."""
    modules = list(network.modules())
    twins = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        twin = twins[id(module)]
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else twins[id(child)]
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, parameter.clone())
    return twins[id(network)]


@pytest.mark.parametrize("attention", [False, True])
def test_data_parallel(single: PeftModel, inputs: Any, attention: bool) -> None:
    """Each replica is run by a thread of torch's own, and gradients come together in the network itself."""
    if attention:
        torch.manual_seed(0)
        net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True))
        settings = {"r": 2, "init_lora_weights": "paper", "target_modules": ["self_attn", "linear1"]}
        single, inputs = get_peft_model(net, GatedLoraConfig(**settings)), (torch.randn(4, 3, 8),)
    single.eval()
    want = single(*inputs)
    want.square().sum().backward()
    whole = {name: gradient.clone() for name, gradient in gradients(single).items()}
    single.zero_grad()
    halves = [tuple(one[rows] for one in inputs) for rows in (slice(2), slice(2, 4))]
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(replica(single), *half) for half in halves]
        y = torch.cat([one.result() for one in found])
    torch.testing.assert_close(y, want, **NEAR)
    y.square().sum().backward()
    for name, gradient in gradients(single).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-4 * whole[name].abs().max().item())
    assert gradients(single).keys() == whole.keys()


def test_two_processes(tmp_path: Path) -> None:
    """The gradients of DistributedDataParallel are those of the whole batch in one process."""
    done = forked_ranks(step_in_a_rank, tmp_path)
    assert [one.returncode for one in done] == [0, 0], done
    model, batch = model_and_batch()
    model(batch).square().mean().backward()
    want = gradients(model)
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == want.keys()
        for name, gradient in want.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)
