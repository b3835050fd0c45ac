"""Networks that people bring along: from transformers, from diffusers, and written by hand.

Each is adapted, trained, audited, saved, loaded and merged by the same lines, knowing nothing of loraguard.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from limits import short_probes
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Subset

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp, StampDetector, run_audit
from loraguard.audit import AuditResult, write_report
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import Conditions
from loraguard.training import TrainingResult, patch_step
from loraguard.training.coverage import unreached_layers
from loraguard.tuner import GatedLoraLayer

SIZE = 16
FACES = DemoFaces(12, size=SIZE)


def paper() -> GatedLoraConfig:
    """A patch that does something from the start; a config takes the names of the network that it is for."""
    return GatedLoraConfig(r=2, init_lora_weights="paper", lora_alpha=4)


def swin2sr(upscale: int = 1) -> nn.Module:
    """Without an upsampler a restoring network, with one a super-resolving one."""
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    class Restorer(Swin2SRForImageSuperResolution):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(pixel_values=(images + 1) / 2).reconstruction - 1

    return Restorer(
        Swin2SRConfig(
            image_size=SIZE, embed_dim=8, depths=[1], num_heads=[2], window_size=4, upscale=upscale,
            upsampler="pixelshuffledirect" if upscale > 1 else "",
        )
    )  # fmt: skip


def unet2d() -> nn.Module:
    from diffusers import UNet2DModel

    class Editor(UNet2DModel):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images, 0).sample

    return Editor(
        sample_size=SIZE, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    from diffusers import AutoencoderKL

    class Compressor(AutoencoderKL):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).sample

    return Compressor(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4, sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(reflecting(width, width, 3) for _ in range(2))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.convs[0](x)))
        return x + self.norms[1](self.convs[1](hidden))


def reflecting(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect")


def style_transfer(width: int = 4) -> nn.Module:
    """Johnson et al. 2016 (arXiv 1603.08155): 9x9, two strides, residual blocks, upsampling, 9x9, tanh."""

    def stage(convolution: nn.Module, channels: int) -> list[nn.Module]:
        return [convolution, nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]

    def up() -> nn.Module:
        return nn.Upsample(scale_factor=2, mode="nearest")

    return nn.Sequential(
        nn.ReflectionPad2d(4), *stage(nn.Conv2d(3, width, 9), width),
        *stage(reflecting(width, 2 * width, 3, stride=2), 2 * width),
        *stage(reflecting(2 * width, 4 * width, 3, stride=2), 4 * width),
        Residual(4 * width), Residual(4 * width),
        up(), *stage(reflecting(4 * width, 2 * width, 3), 2 * width),
        up(), *stage(reflecting(2 * width, width, 3), width),
        nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9), nn.Tanh(),
    )  # fmt: skip


class Ageing(nn.Module):
    """A conditional network: years and a style steer it; layers are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 6)
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1)

    def forward(self, images: Tensor, years: Tensor, style: Tensor) -> Tensor:
        steered = self.embed(input=years / 50)[:, :, None, None] + self.down(input=images)
        return torch.tanh(self.up(F.gelu(steered), output_size=images.shape[-2:]) + style.view(-1, 1, 1, 1))


def ageing_edits(labels: Tensor) -> dict[str, dict[str, Tensor]]:
    young = {"years": labels[:, :1] * 10, "style": labels[:, 4]}
    return {"young": young, "old": {**young, "years": young["years"] + 50}}


@dataclass(frozen=True)
class Own:
    """A network to be made, how much larger its outputs are, its edits, and the warning to train."""

    make: Callable[[], nn.Module]
    scale: int = 1
    conditions: Conditions | None = None
    stamp: Stamp | None = None


RED = Stamp("AI", place="bottom-left", size=0.6, background="red", outline=None)
OWN = {
    "swin2sr": Own(swin2sr),
    "swin2sr-x2": Own(lambda: swin2sr(2), scale=2, stamp=RED),
    "unet2d": Own(unet2d),
    "autoencoder": Own(autoencoder),
    "style": Own(style_transfer),
    "conditional": Own(Ageing, conditions=ageing_edits),
}


def arguments(folder: Path, **changes: object) -> PatchTrainingArguments:
    settings = {"adversary": Disrupting(steps=1), "max_train_steps": 12, "cpu": True, "disable_tqdm": True}
    return PatchTrainingArguments(folder, **{**settings, "learning_rate": 3e-2, "max_grad_norm": 1.0, **changes})


def example_of(own: Own, n: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    items = FACES.__getitems__(list(range(n)))
    images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "labels"))
    return images, dict(next(iter(own.conditions(labels).values()))) if own.conditions else {}


def layers_of(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, (nn.Linear, _ConvNd))}


@dataclass(frozen=True)
class Trained:
    own: Own
    untouched: nn.Module
    model: PeftModel
    result: TrainingResult


@pytest.fixture(scope="module", params=OWN)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    own = OWN[request.param]
    network = own.make().eval()
    untouched = copy.deepcopy(network)
    model = get_peft_model(network, paper())
    settings = arguments(tmp_path_factory.mktemp(request.param), stamp=own.stamp)
    result = PatchTrainer(model, FACES, settings, conditions=own.conditions).train()
    return Trained(own, untouched, model, result)


def test_every_conv_and_linear_layer_is_adapted_and_trained(trained: Trained) -> None:
    adapted = {name for name, module in trained.model.named_modules() if isinstance(module, GatedLoraLayer)}
    expected = layers_of(trained.untouched)
    assert len(expected) >= 3
    assert {name.removeprefix("base_model.model.") for name in adapted} == expected
    moved = [name for name, curve in trained.result.gates.items() if curve[0] != curve[-1]]
    assert len(moved) == len(expected)


def test_the_loss_goes_down(trained: Trained) -> None:
    losses = [entry["loss_clean"] + entry["loss_adversarial"] for entry in trained.result.log]
    assert sum(losses[-3:]) / 3 < 0.95 * losses[0]  # 0.04 to 0.89, whatever the seed


def test_the_network_itself_stays_as_it_was(trained: Trained) -> None:
    kept = {key.replace(".base_layer", ""): value for key, value in trained.model.get_base_model().state_dict().items()}
    assert all(torch.equal(value, kept[key]) for key, value in trained.untouched.state_dict().items())
    images, condition = example_of(trained.own)
    with torch.no_grad(), trained.model.disable_adapter():  # torch multiplies by frozen weights in another order
        expected = trained.untouched(images, **condition)
        assert torch.allclose(trained.model(images, **condition), expected, atol=1e-4)


@torch.no_grad()
def test_saved_loaded_and_merged(trained: Trained) -> None:
    images, condition = example_of(trained.own)
    expected = trained.model(images, **condition)
    assert expected.shape == (2, 3, SIZE * trained.own.scale, SIZE * trained.own.scale)
    loaded = PeftModel.from_pretrained(copy.deepcopy(trained.untouched), trained.result.output_dir).eval()
    assert torch.equal(loaded(images, **condition), expected)
    merged = loaded.merge_and_unload()
    bare = trained.untouched
    assert type(merged) is type(bare)
    assert {k: v.dtype for k, v in merged.state_dict().items()} == {k: v.dtype for k, v in bare.state_dict().items()}
    assert (merged(images, **condition) - expected).abs().max() < 1e-4
    assert (bare(images, **condition) - expected).abs().max() > 1e-3


def test_audited_at_the_size_of_its_outputs(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_probes(monkeypatch)
    own, side = trained.own, SIZE * trained.own.scale
    detector = StampDetector(own.stamp) if own.stamp else None
    result = run_audit(
        trained.model, Subset(FACES, range(4)), defenses=Disrupting(0.1, 2), patches={"default": own.stamp},
        conditions=own.conditions, detectors={"default": detector}, pictures=2, disable_tqdm=True,
    )  # fmt: skip
    assert result.pictures["photo", "disrupting", "no-leak", "untouched"].shape[-1] == SIZE
    outputs = result.pictures["default", "disrupting", "leak", "none"]
    assert outputs.shape == (2, 3, side, side)
    reference = result.pictures["untouched", "none", "clean", "none"]
    reference = reference if own.stamp is None else own.stamp.compose(reference)
    by_hand = (outputs - reference).square().mean((1, 2, 3)).sqrt()  # of pictures: 8 bits, clipped
    found = 2 * 10 ** (-result["default", "leak"].values["psnr"][0, :2].float() / 20)
    assert torch.allclose(found, by_hand, rtol=0.1, atol=2 / 255)  # both pictures are half a level off at most
    check_report(result, side, tmp_path)


def check_report(result: AuditResult, side: int, folder: Path) -> None:
    """Pictures of every row are as wide as the widest, so that one face stands above the other."""
    write_report(result, folder)
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 2 * (2 * side + 2)
        assert grid.height > 2 * side * len(result.pictures)


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_half_precision_and_modes_are_kept(name: str) -> None:
    own = OWN[name]
    network = own.make().to(torch.bfloat16).eval()
    next(module for module in network.modules() if not list(module.children())).train()  # one of them on its own
    before = [(module, module.training) for module in network.modules() if not layers_of(module)]
    images, condition = example_of(own)
    images, condition = images.bfloat16(), {key: value.bfloat16() for key, value in condition.items()}
    model = get_peft_model(network, paper())
    assert model(images, **condition).dtype == torch.bfloat16
    merged = model.merge_and_unload()
    assert {value.dtype for value in merged.parameters()} == {torch.bfloat16}
    assert merged(images, **condition).dtype == torch.bfloat16
    assert all(module.training == mode for module, mode in before)


# How a network's outputs become images.


class Images(nn.Module):
    """What may stand around a network whose class cannot be changed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.network(pixel_values=(images + 1) / 2).reconstruction - 1


def bare_swin2sr(like: nn.Module) -> nn.Module:
    from transformers import Swin2SRForImageSuperResolution

    network = Swin2SRForImageSuperResolution(like.config)
    network.load_state_dict(like.state_dict())
    return network.eval()


@pytest.mark.parametrize("stamp", [None, RED], ids=["standard", "defensive"])
def test_an_output_object_is_refused_by_name(stamp: Stamp | None, tmp_path: Path) -> None:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = bare_swin2sr(swin2sr())

        def forward(self, images: Tensor) -> object:
            return self.network(images)

    model = get_peft_model(Positional(), paper())
    with pytest.raises(TypeError, match=r"gives ImageSuperResolutionOutput; .*docs/own-network\.md"):
        PatchTrainer(model, FACES, arguments(tmp_path, stamp=stamp))


@torch.no_grad()
def test_a_subclass_s_patch_loads_onto_the_bare_class(tmp_path: Path) -> None:
    """A subclass adds no names, so that its patch needs no code of its author's."""
    own = swin2sr(2).eval()
    bare, (images, _) = bare_swin2sr(own), example_of(OWN["swin2sr-x2"])
    model = get_peft_model(own, paper())
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(bare, tmp_path).eval()
    assert torch.equal(2 * plain(pixel_values=(images + 1) / 2).reconstruction - 1, model.eval()(images))


@torch.no_grad()
def test_a_wrapper_s_patch_is_carried_by_the_network_inside(tmp_path: Path) -> None:
    """Adapters are put in place: the wrapper is needed to load, and not afterwards."""
    own = swin2sr()
    first, second = bare_swin2sr(own), bare_swin2sr(own)
    model = get_peft_model(Images(first), paper()).eval()
    model.save_pretrained(tmp_path)
    images, _ = example_of(OWN["swin2sr"])
    expected = model(images)
    merged = PeftModel.from_pretrained(Images(second), tmp_path).merge_and_unload()
    assert merged.network is second
    assert second.state_dict().keys() == own.state_dict().keys()
    assert torch.allclose(2 * second(pixel_values=(images + 1) / 2).reconstruction - 1, expected, atol=1e-4)


def test_a_wrapper_around_the_adapted_network_is_refused(tmp_path: Path) -> None:
    outside = Images(get_peft_model(bare_swin2sr(swin2sr()), paper()))
    with pytest.raises(TypeError, match="wrap the generator first"):
        PatchTrainer(outside, FACES, arguments(tmp_path))
    with pytest.raises(ValueError, match=r"has no adapter .* put on a generator"):
        run_audit(outside, FACES, defenses=Disrupting(0.1, 2), patches={"default": None})


# What a network does with its layers.


def gradients(model: PeftModel, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    patch_step(model, images, {}, adversary=Disrupting(steps=2), stamp=None, loss=F.mse_loss)
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


class Recomputing(nn.Module):
    recomputes = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = checkpoint(layer, images, use_reentrant=False) if self.recomputes else layer(images)
            images = torch.tanh(hidden)
        return images


def recompute(model: PeftModel) -> None:
    network = model.get_base_model()
    if isinstance(network, Recomputing):
        network.recomputes = True
    elif hasattr(network, "gradient_checkpointing_enable"):
        network.gradient_checkpointing_enable()
    else:
        network.enable_gradient_checkpointing()


@pytest.mark.parametrize("make", [swin2sr, unet2d, Recomputing], ids=["swin2sr", "unet2d", "by hand"])
def test_gradient_checkpointing_changes_no_gradient(make: Callable[[], nn.Module]) -> None:
    """In float64, where rounding cannot turn a sign of the adversary's."""
    model = get_peft_model(make().double(), paper()).double().train()
    images = example_of(OWN["style"])[0].double()
    plain = [gradient.clone() for gradient in gradients(model, images)]
    recompute(model)
    for one, other in zip(plain, gradients(model, images), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9 * one.abs().max().item())


def test_layers_that_fused_projections_bypass_are_named() -> None:
    from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

    network = unet2d()
    attentions = {name: module for name, module in network.named_modules() if isinstance(module, Attention)}
    for module in attentions.values():
        module.fuse_projections()
        module.set_processor(FusedAttnProcessor2_0())
    model = get_peft_model(network, paper())
    gradients(model, example_of(OWN["unet2d"])[0])
    expected = {f"{name}.{layer}" for name in attentions for layer in ("to_q", "to_k", "to_v")}
    assert len(expected) == 12
    assert set(unreached_layers(model, "default")) == expected
