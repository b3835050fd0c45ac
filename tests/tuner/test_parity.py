"""What PEFT, transformers and torch do with LoRA, done with GATED_LORA."""

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import DiTTransformer2DModel
from peft import PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    Swin2SRConfig,
    Swin2SRForImageSuperResolution,
    ViTConfig,
    ViTModel,
)

from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraLayer, folded

EXACT = {"rtol": 0.0, "atol": 1e-12}
NEAR = {"rtol": 1e-9, "atol": 1e-9}  # float64 through a whole network, parts of which compute in float32


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", **settings})


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GatedLoraLayer)]


class Stack(nn.Module):
    """Blocks with numbers, as transformers have."""

    def __init__(self) -> None:
        super().__init__()
        blocks = ({"conv": nn.Conv2d(3, 3, 1), "up": nn.Linear(3, 3)} for _ in range(4))
        self.blocks = nn.ModuleList(map(nn.ModuleDict, blocks))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {f"blocks.{i}.{kind}" for i in range(4) for kind in ("conv", "up")}),
        ({"target_modules": ["conv"]}, {f"blocks.{i}.conv" for i in range(4)}),
        ({"target_modules": r"blocks\.[01]\.up"}, {"blocks.0.up", "blocks.1.up"}),
        ({"target_modules": "all-linear"}, {f"blocks.{i}.up" for i in range(4)}),
        ({"exclude_modules": r".*\.(1|2|3)\..*"}, {"blocks.0.conv", "blocks.0.up"}),
        (
            {"target_modules": ["conv"], "layers_to_transform": [1, 3], "layers_pattern": ["blocks"]},
            {"blocks.1.conv", "blocks.3.conv"},
        ),
        ({"target_modules": ["up"], "layers_to_transform": 2, "layers_pattern": "blocks"}, {"blocks.2.up"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else str(len(value)),
)
def test_targets(settings: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    model = get_peft_model(Stack(), config(**settings))
    assert set(model.targeted_module_names) == names
    model.save_pretrained(tmp_path)
    assert set(PeftModel.from_pretrained(Stack(), tmp_path).targeted_module_names) == names


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(generator: nn.Module, batch: Any, gate: str, reentrant: bool) -> None:
    model = get_peft_model(generator, config(gate_type=gate)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    images, label = batch[0].requires_grad_(), batch[1]
    want = torch.autograd.grad(model(images, label).square().sum(), trained)
    checkpoint(model, images, label, use_reentrant=reentrant).square().sum().backward()
    for parameter, gradient in zip(trained, want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **EXACT)
    if not reentrant:
        with folded(model):
            checkpoint(model, images, label, use_reentrant=False).square().sum().backward()


@pytest.mark.parametrize("gate", [name for name in GATES if not GATES[name].mergeable])
def test_pgd_inside_folded_gives_parameters_no_gradients(generator: nn.Module, batch: Any, gate: str) -> None:
    """Gates on the input cannot be folded: the branches are run, without gradients to A, B and the gate."""
    model = get_peft_model(generator, config(gate_type=gate)).train()
    for layer in layers_of(model):
        nn.init.normal_(layer.lora_gate["default"].weight)
    images, label = batch[0].requires_grad_(), batch[1]
    y = model(images, label)
    (want,) = torch.autograd.grad(y.square().sum(), images)
    with folded(model):
        again = model(images, label)
        again.square().sum().backward()
    assert torch.equal(again, y)
    torch.testing.assert_close(images.grad, want, **EXACT)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for layer in layers_of(model) for p in layer.lora_gate.parameters())


@pytest.mark.parametrize("gate", GATES)
def test_a_step_of_patch_training(gate: str) -> None:
    """As PatchTrainer makes it: PGD inside folded, then a backward that reaches every parameter of the adapter."""
    from loraguard.defenses import Disrupting
    from loraguard.training.step import patch_step

    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ConvTranspose2d(4, 3, 3, padding=1))
    model = get_peft_model(net, config(gate_type=gate)).train()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    patch_step(model, images, {}, adversary=Disrupting(steps=2), stamp=None, loss=nn.functional.mse_loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    for layer in layers_of(model):
        assert 0 < layer.lora_gate["default"].opening.mean().item() <= 1


@pytest.fixture
def one_process() -> Any:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("gate", GATES)
class TestDistributed:
    """With one process on the CPU: parameters are bucketed, sharded and gathered as with many."""

    def gradients(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(model(*batch).square().sum(), list(trained.values()))
        return dict(zip(trained, found, strict=True))

    def test_ddp(self, generator: nn.Module, batch: Any, gate: str, one_process: Any) -> None:
        model = get_peft_model(generator, config(gate_type=gate)).train()
        want = self.gradients(model, batch)
        nn.parallel.DistributedDataParallel(model)(*batch).square().sum().backward()
        for name, gradient in want.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, **EXACT)

    def test_fsdp(self, generator: nn.Module, batch: Any, gate: str, one_process: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        model = get_peft_model(generator, config(gate_type=gate)).train()
        assert all(p.dim() > 0 for p in model.parameters())
        whole, y, want = copy.deepcopy(model).eval(), model(*batch), self.gradients(model, batch)
        mesh = init_device_mesh("cpu", (1,))
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(*batch).square().sum().backward()
        for name, gradient in want.items():
            parameter = model.get_parameter(name)
            assert isinstance(parameter, DTensor)
            torch.testing.assert_close(parameter.grad.full_tensor(), gradient, **EXACT)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(*batch), y, **EXACT)
            optimizer.step()
            after = model(*batch)
        state = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in model.state_dict().items()}
        torch.testing.assert_close(after, torch.func.functional_call(whole, state, batch), **EXACT)
        assert (after - y).abs().max() > 1e-6


@pytest.mark.filterwarnings("ignore:FSDP is switching to use")
def test_fsdp_of_the_first_kind(one_process: Any) -> None:
    """It puts tensors beside the parameters, which attention reads."""
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1, enable_nested_tensor=False)
    settings = {"target_modules": ["self_attn", "linear1"], "use_dora": True}
    model = get_peft_model(net.double().eval(), config(**settings)).eval()
    x = torch.randn(2, 3, 8).double()
    y = model(x)
    whole = torch.distributed.fsdp.FullyShardedDataParallel(copy.deepcopy(model), use_orig_params=True, device_id="cpu")
    torch.testing.assert_close(whole(x), y, **EXACT)
    with torch.no_grad(), folded(model):
        torch.testing.assert_close(whole(x), y, **EXACT)


def vit() -> ViTModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4), add_pooling_layer=False).eval()


class TestTransformers:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def outputs(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(self.x).last_hidden_state

    @pytest.mark.parametrize("gate", GATES)
    def test_load_adapter(self, gate: str, tmp_path: Path) -> None:
        bare = self.outputs(vit())
        model = get_peft_model(vit(), config(gate_type=gate)).eval()
        y = self.outputs(model)
        assert (y - bare).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = vit()
        loaded.load_adapter(str(tmp_path))
        torch.testing.assert_close(self.outputs(loaded), y)
        loaded.disable_adapters()
        torch.testing.assert_close(self.outputs(loaded), bare)
        loaded.enable_adapters()
        loaded.add_adapter(config(gate_type=gate), "second")
        assert loaded.active_adapters() == ["second"]
        loaded.set_adapter("default")
        torch.testing.assert_close(self.outputs(loaded), y)
        torch.testing.assert_close(self.outputs(PeftModel.from_pretrained(vit(), tmp_path)), y)

    def test_convolution_and_attention_layers_are_found(self) -> None:
        names = get_peft_model(vit(), config()).targeted_module_names
        assert any("projection" in name for name in names)
        assert any("attention" in name for name in names)


def swin2sr() -> nn.Module:
    sizes = {"embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4, "upsampler": "pixelshuffledirect"}
    return Swin2SRForImageSuperResolution(Swin2SRConfig(**sizes, image_size=8, upscale=2))


def dpt() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    heads = {"neck_hidden_sizes": [4, 4, 4, 4], "fusion_hidden_size": 4, "backbone_out_indices": [0, 1, 2, 3]}
    net = DPTForDepthEstimation(DPTConfig(**sizes, **heads, image_size=16, patch_size=8))
    nn.init.ones_(net.head.head[-2].bias)  # before a ReLU
    return net


def dit() -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4}
    return DiTTransformer2DModel(**sizes, num_embeds_ada_norm=10)


OF_OTHERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "Swin2SR": (swin2sr, (2, 3, 8, 8), {}),
    "DPT": (dpt, (2, 3, 16, 16), {}),
    "DiT": (dit, (2, 4, 4, 4), {"timestep": torch.tensor([1, 7]), "class_labels": torch.tensor([0, 3])}),
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_networks_of_others(kind: str, tmp_path: Path) -> None:
    """With every layer adapted that there is, through save and load and into the weights."""
    make, shape, call = OF_OTHERS[kind]

    def bare() -> nn.Module:
        torch.manual_seed(0)
        return make().double().eval()

    def run(net: nn.Module) -> Tensor:
        with torch.no_grad():
            return net(x, **call)[0]

    x = torch.randn(shape).double()
    y0 = run(bare())
    model = get_peft_model(bare(), config(lora_alpha=50)).eval()
    y = run(model)
    assert (y - y0).abs().max() > 1e-4
    kinds = {type(layer.base_layer) for layer in layers_of(model)}
    assert {nn.Linear, nn.Conv2d} <= kinds
    assert (nn.ConvTranspose2d in kinds) == (kind == "DPT")
    with model.disable_adapter():
        torch.testing.assert_close(run(model), y0, **NEAR)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(run(PeftModel.from_pretrained(bare(), tmp_path)), y, **NEAR)
    torch.testing.assert_close(run(model.merge_and_unload()), y, **NEAR)


def test_subfolder(generator: nn.Module, batch: Any, tmp_path: Path) -> None:
    bare = copy.deepcopy(generator)
    model = get_peft_model(generator, config())
    folder = tmp_path / "patches" / "one"
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(bare, tmp_path, subfolder="patches/one")
    torch.testing.assert_close(loaded(*batch), model(*batch), **EXACT)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"does not load adapter_model.bin"):
        PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path, subfolder="patches/one")


def test_injection_with_little_memory(generator: nn.Module, batch: Any, tmp_path: Path) -> None:
    expected = get_peft_model(copy.deepcopy(generator), config())
    expected.save_pretrained(tmp_path)
    injected = inject_adapter_in_model(config(), generator, low_cpu_mem_usage=True)
    assert {p.device.type for name, p in injected.named_parameters() if "lora_" in name} == {"meta"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    set_peft_model_state_dict(injected, tensors, low_cpu_mem_usage=True)
    torch.testing.assert_close(injected(*batch), expected(*batch), **EXACT)


class TestInstanceNorm:
    """StarGAN's norms: InstanceNorm with running statistics, which eval mode normalises by."""

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        nn.init.normal_(norm.running_mean)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.ConvTranspose2d(4, 3, 3)).double()

    def test_the_same_in_train_and_eval_mode(self) -> None:
        x, bare = torch.randn(2, 3, 8, 8).double(), self.net().eval()
        model = get_peft_model(self.net(), config())
        state = {name: value.clone() for name, value in model.state_dict().items()}
        y = model.train()(x)
        torch.testing.assert_close(model.eval()(x), y, **EXACT)
        with model.train().disable_adapter():
            assert torch.equal(model(x), bare(x))
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())

    def test_on_request_as_the_base_model(self) -> None:
        """Statistics of each image in train mode, and running ones that move."""
        x, base = torch.randn(2, 3, 8, 8).double(), self.net().train()
        model = get_peft_model(self.net(), config(freeze_norm_stats=False)).train()
        with model.disable_adapter():
            assert torch.equal(model(x), base(x))
        assert torch.equal(model.base_model.model[1].running_mean, base[1].running_mean)

    def test_injected_adapters_leave_train_to_the_base_model(self) -> None:
        """There is no wrapper then whose `train` could keep norms frozen: the first `train` unfreezes them."""
        injected = inject_adapter_in_model(config(), self.net().train())
        norm = injected[1]
        assert injected.training
        assert not norm.training
        injected.train()
        assert norm.training
        model = get_peft_model(self.net(), config()).train()
        assert not model.base_model.model[1].training
