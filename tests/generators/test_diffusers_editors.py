"""Editors made of diffusers' parts against the official pipelines, called with the same noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTTransformer2DModel
from peft import PeftModel, get_peft_model
from torch import Tensor

from loraguard import GatedLoraConfig
from loraguard.generators import (
    Inpainter,
    InstructEditor,
    LatentAutoencoder,
    LatentEditor,
    conditions_of,
    labels_of,
    layers_in,
    load_generator,
    save_by_component,
    up_to,
)

PROMPTS = ("a cat", "old")
SEEDS = (5, 8)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""The same sums in float32, some in another order (guidance in one batch or two); images are in [-1, 1]."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32) * 2 - 1


def official(pipe: Any, **asked: Any) -> Tensor:
    """What the pipeline gives for the second prompt and for each photo's own noise, in [-1, 1]."""
    pipe.set_progress_bar_config(disable=True)
    streams = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return 2 * pipe(prompt=[PROMPTS[1]] * 2, generator=streams, output_type="pt", **asked).images - 1


def ours(editor: Any, images: Tensor) -> Tensor:
    edit = conditions_of(editor, labels_of({"image": images}, generator=editor))[PROMPTS[1]]
    return editor(images, **edit, seeds=torch.tensor(SEEDS))


IMG2IMG = {
    "sd": (tiny.sd, {"steps": 5, "strength": 0.5, "guidance_scale": 3.0}),
    "sd without guidance": (tiny.sd, {"steps": 3, "strength": 1.0}),
    "sd-turbo": (tiny.sd2_turbo, {"steps": 4, "strength": 0.8}),
    "sdxl": (tiny.sdxl, {"steps": 4, "strength": 0.6, "guidance_scale": 2.0}),
    "sd3": (tiny.sd3, {"steps": 5, "strength": 0.5, "guidance_scale": 2.0}),
    "flux": (tiny.flux, {"steps": 5, "strength": 0.7, "guidance_scale": 3.5}),
}


@pytest.mark.parametrize("name", IMG2IMG)
@torch.no_grad()
def test_img2img_is_the_official_pipeline_s(name: str, images: Tensor) -> None:
    make, settings = IMG2IMG[name]
    pipe = make()
    editor = LatentEditor(pipe, PROMPTS, **settings).eval()
    asked = {"num_inference_steps": settings["steps"], "strength": settings["strength"]}
    asked["guidance_scale"] = settings.get("guidance_scale", 1.0)
    further = {"height": 32, "width": 32} if name in ("sd3", "flux") else {}
    truth = official(pipe, image=editor.encode(images), **asked, **further)
    result = ours(editor, images)
    torch.testing.assert_close(result, truth, **CLOSE)
    assert torch.equal(result, ours(editor, images))
    assert (result - ours_first(editor, images)).abs().max() > 1e-4
    assert torch.equal(result[1:], one_photo(editor, images))


def ours_first(editor: Any, images: Tensor) -> Tensor:
    return editor(images, seeds=torch.tensor(SEEDS))


def one_photo(editor: Any, images: Tensor) -> Tensor:
    """The second photo alone: its noise depends on nothing beside it."""
    both = editor(images[[1, 1]], edit=torch.tensor([1, 1]), seeds=torch.tensor([SEEDS[1]] * 2))
    return both[1:]


@torch.no_grad()
def test_instruct_pix2pix_is_the_official_pipeline_s(images: Tensor) -> None:
    pipe = tiny.instruct()
    editor = InstructEditor(pipe, PROMPTS, steps=3, guidance_scale=4.0, image_guidance_scale=1.5).eval()
    truth = official(pipe, image=(images + 1) / 2, num_inference_steps=3, guidance_scale=4.0, image_guidance_scale=1.5)
    torch.testing.assert_close(ours(editor, images), truth, **CLOSE)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@torch.no_grad()
def test_inpainting_is_the_official_pipeline_s(images: Tensor, strength: float) -> None:
    pipe = tiny.inpaint()
    editor = Inpainter(pipe, PROMPTS, steps=4, strength=strength, guidance_scale=2.0, kept=(0.25, 0, 1, 0.5)).eval()
    mask = editor.mask_for(images)
    assert mask[0, 0, 8:, :16].sum() == 0
    assert mask[0, 0].sum() == 32 * 32 - 24 * 16
    photo = {"image": (images + 1) / 2} if strength == 1 else {"image": editor.encode(images * (mask < 0.5))}
    if strength < 1:  # the pipeline takes latents, of which those beside the mask are the masked photo's
        photo["masked_image_latents"] = photo["image"]
    truth = official(
        pipe, **photo, mask_image=mask, num_inference_steps=4, strength=strength, guidance_scale=2.0,
        height=32, width=32,
    )  # fmt: skip
    torch.testing.assert_close(ours(editor, images), truth, **CLOSE)
    other = editor(images, edit=torch.tensor([1, 1]), seeds=torch.tensor(SEEDS), mask=1 - mask)
    assert (other - truth).abs().max() > 1e-3


@torch.no_grad()
def test_a_transformer_with_classes_written_out(images: Tensor) -> None:
    """One step of DDIM, as its paper has it, from the photo's latents under noise."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=16,
        patch_size=2, num_embeds_ada_norm=3, norm_num_groups=4,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out_2.weight)
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipe = SimpleNamespace(vae=tiny.autoencoder(), transformer=transformer, scheduler=scheduler, labels={"dog": 2})
    editor = LatentEditor(pipe, ["0", "dog"], steps=2, strength=0.5).eval()
    z, noise = editor.encode(images), editor.noise_like(editor.encode(images))
    kept = scheduler.alphas_cumprod[499]
    noised = kept.sqrt() * z + (1 - kept).sqrt() * noise
    labels = torch.tensor([2, 2])
    predicted = transformer(noised, torch.tensor([499, 499]), class_labels=labels).sample[:, :4]
    clean = (noised - (1 - kept).sqrt() * predicted) / kept.sqrt()
    truth = editor.decode(clean)  # with set_alpha_to_one, the last step ends without noise
    torch.testing.assert_close(editor(images, edit=torch.tensor([1, 1])), truth, **CLOSE)
    with pytest.raises(ValueError, match="'3' is no class"):
        LatentEditor(pipe, ["3"], steps=2)


@pytest.mark.parametrize("make", [tiny.sd, tiny.sd2_turbo, tiny.sd3, tiny.flux])
@torch.no_grad()
def test_predicted_noise_is_the_noise_that_a_perfect_denoiser_finds(make, images: Tensor) -> None:
    """A denoiser that gives the true noise, or the true velocity, is understood so."""
    editor = LatentEditor(make(), ("",), steps=2)
    z, times = editor.encode(images), torch.tensor([100, 700])
    noise = torch.randn_like(z)
    a, b = editor.levels(times)
    truth = {"epsilon": noise, "v_prediction": a * noise - b * z, "flow": noise - z}
    kind = "flow" if editor.denoising.flow else editor.scheduler.config.prediction_type
    editor.asked = lambda *_: truth[kind]
    torch.testing.assert_close(editor.predict_noise(a * z + b * noise, times, z), noise, rtol=0, atol=1e-4)
    if editor.denoising.flow:
        torch.testing.assert_close(a + b, torch.ones_like(a))
    else:
        torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))


def test_gradients_reach_the_photo_and_checkpointing_changes_none(images: Tensor) -> None:
    images, gradients, pipe = images.double(), [], tiny.sd()
    for checkpointing in (False, True):
        editor = LatentEditor(pipe, PROMPTS, steps=4, checkpointing=checkpointing).eval().double()
        torch.manual_seed(1)
        with torch.no_grad():
            inside = ours(editor, images).abs() < 0.99  # where outputs are clipped, gradients go on
        weights = torch.randn(images.shape).double() * inside
        point = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((ours(editor, point) * weights).sum(), point)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    direction, step = torch.randn(images.shape).double(), 1e-5
    with torch.no_grad():
        up, down = ((ours(editor, images + sign * step * direction) * weights).sum() for sign in (1, -1))
    torch.testing.assert_close((up - down) / (2 * step), (gradient * direction).sum(), rtol=1e-4, atol=1e-7)


def test_a_folder_by_name_and_safetensors_alone(tmp_path, images: Tensor, caplog) -> None:
    pipe = tiny.sd()
    pipe.save_pretrained(tmp_path / "safe")
    editor = load_generator("latent_editor:steps=4,prompts=a cat+old", tmp_path / "safe")
    assert not editor.training
    assert (editor.prompts, editor.name_or_path) == (PROMPTS, str(tmp_path / "safe"))
    with torch.no_grad():
        truth = ours(LatentEditor(pipe, PROMPTS, steps=4).eval(), images)
        torch.testing.assert_close(ours(editor, images), truth, **CLOSE)
        around = load_generator("latent_autoencoder", tmp_path / "safe")
        alone = LatentAutoencoder.from_pretrained(tmp_path / "safe" / "vae")
        assert torch.equal(around(images), alone(images))
        torch.testing.assert_close(alone(images), pipe.vae(images).sample.clamp(-1, 1), rtol=0, atol=1e-5)
    assert not caplog.messages
    pipe.vae.bfloat16().save_pretrained(tmp_path / "safe" / "vae")
    for source in (tmp_path / "safe", tmp_path / "safe" / "vae"):
        caplog.clear()
        assert {one.dtype for one in load_generator("latent_autoencoder", source).parameters()} == {torch.float32}
        assert caplog.messages[-1].startswith(f"{source}: weights in bfloat16 are read as float32")
    pipe.vae.float()
    pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    for make, folder in ((LatentEditor, "pickled"), (LatentAutoencoder, "pickled/vae"), (LatentEditor, "nowhere")):
        with pytest.raises((OSError, ValueError), match=r"pickled|nowhere") as caught:
            make.from_pretrained(tmp_path / folder)
        assert len(str(caught.value)) < 600


AUTOENCODERS = {
    "KL": lambda: AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, shift_factor=0.1,
                                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
    "tiny": lambda: AutoencoderTiny(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
                                    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=2),
    "DC": lambda: AutoencoderDC(in_channels=3, latent_channels=4, attention_head_dim=2,
                                encoder_block_types=("ResBlock", "ResBlock"), encoder_layers_per_block=(1, 1),
                                decoder_block_types=("ResBlock", "ResBlock"), decoder_layers_per_block=(1, 1),
                                encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
                                decoder_act_fns="silu", scaling_factor=0.4),
}  # fmt: skip


@pytest.mark.parametrize("kind", AUTOENCODERS)
@torch.no_grad()
def test_any_autoencoder_there_and_back(kind: str) -> None:
    vae = AUTOENCODERS[kind]().eval()
    network = LatentAutoencoder(vae, size=24)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    coded = vae.encode(images)
    coded = coded.latent_dist.mode() if kind == "KL" else coded[0]
    torch.testing.assert_close(network(images), vae.decode(coded).sample.clamp(-1, 1), rtol=0, atol=1e-5)
    latents = up_to(network, network.latent_layer)(images)
    assert latents.shape[-2:] == (16 // network.size_multiple, 24 // network.size_multiple)
    with pytest.raises(ValueError, match=r"multiples of \d, got 15x24"):
        network(images[:, :, 1:])


@pytest.mark.parametrize(("adapt", "written"), [("encoder", ["vae"]), ("denoiser", ["unet"]), ("all", ["vae", "unet"])])
@torch.no_grad()
def test_a_patch_loads_onto_the_parts_themselves(tmp_path, images: Tensor, adapt: str, written: list[str]) -> None:
    pipe = tiny.sd()
    pipe.save_pretrained(tmp_path / "pipe")
    editor = LatentEditor(pipe, PROMPTS, steps=2).eval()
    bare = ours(editor, images)
    config = GatedLoraConfig(r=2, init_lora_weights="paper", target_modules=layers_in(editor, adapt))
    model = get_peft_model(editor, config).eval()
    adapted = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == set(written)
    if adapt == "encoder":
        assert not any(".decoder." in name for name, p in model.named_parameters() if p.requires_grad)
    patched = ours(model, images)
    assert (patched - bare).abs().max() > 1e-3
    folders = save_by_component(model, tmp_path / "patch")
    assert [folder.name for folder in folders] == written

    fresh = type(pipe).from_pretrained(tmp_path / "pipe")
    for name in written:
        loaded = PeftModel.from_pretrained(getattr(fresh, name), tmp_path / "patch" / name)
        setattr(fresh, name, loaded.merge_and_unload())
    assert type(fresh.unet) is type(pipe.unet)
    torch.testing.assert_close(ours(LatentEditor(fresh, PROMPTS, steps=2).eval(), images), patched, rtol=0, atol=1e-3)


def test_what_cannot_be_is_said(images: Tensor) -> None:
    pipe = tiny.sd()
    with pytest.raises(ValueError, match=r"steps \* strength >= 1"):
        LatentEditor(pipe, PROMPTS, steps=4, strength=0.2)
    with pytest.raises(ValueError, match="takes 9 channels: latents, mask and masked latents; this one takes 4"):
        Inpainter(pipe, PROMPTS)
    with pytest.raises(ValueError, match="has no part 'head' to adapt; it has encoder, decoder, denoiser, all"):
        layers_in(LatentEditor(pipe, PROMPTS, steps=2), "head")
    with pytest.raises(ValueError, match="no denoiser that loraguard knows"):
        LatentEditor(SimpleNamespace(vae=pipe.vae, scheduler=pipe.scheduler), PROMPTS)
