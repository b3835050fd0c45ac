"""Pipelines of diffusers with a few random weights, as their official code builds and calls them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
"""Of text embeddings."""


def tokenizer() -> CLIPTokenizer:
    """Each letter a token."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=77)


def text_encoder(projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def autoencoder(**settings: Any) -> AutoencoderKL:
    """Halves the sides once; what it encodes has next to no variance, so that a draw is the mean."""
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **settings,
    ).eval()  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -60
    return vae


def unet(in_channels: int = 4, cross_attention_dim: int = WIDTH, **settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=in_channels, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim, attention_head_dim=4, norm_num_groups=4, **settings,
    ).eval()  # fmt: skip


NO_EXTRAS: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SD_TRAINING = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def text_parts() -> dict[str, Any]:
    return {"vae": autoencoder(), "text_encoder": text_encoder(), "tokenizer": tokenizer()}


def sd(scheduler: Any = None) -> StableDiffusionImg2ImgPipeline:
    scheduler = scheduler or DDIMScheduler(**SD_TRAINING, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionImg2ImgPipeline(**text_parts(), unet=unet(), scheduler=scheduler, **NO_EXTRAS)


def sd2_turbo() -> StableDiffusionImg2ImgPipeline:
    """Which predicts velocities, and whose scheduler draws noise in each step."""
    return sd(EulerAncestralDiscreteScheduler(**SD_TRAINING, prediction_type="v_prediction"))


def sdxl() -> StableDiffusionXLImg2ImgPipeline:
    own = unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLImg2ImgPipeline(
        **text_parts(), unet=own, scheduler=EulerDiscreteScheduler(**SD_TRAINING), tokenizer_2=tokenizer(),
        text_encoder_2=text_encoder(projected=True), add_watermarker=False,
    )  # fmt: skip


def sd3() -> StableDiffusion3Img2ImgPipeline:
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Img2ImgPipeline(
        vae=autoencoder(shift_factor=0.06, scaling_factor=1.5), transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=text_encoder(projected=True),
        tokenizer=tokenizer(), text_encoder_2=text_encoder(projected=True), tokenizer_2=tokenizer(),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux() -> FluxImg2ImgPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=54, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    return FluxImg2ImgPipeline(
        vae=autoencoder(shift_factor=0.06, scaling_factor=0.4), transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), text_encoder=text_encoder(),
        tokenizer=tokenizer(), text_encoder_2=t5.eval(), tokenizer_2=tokenizer(),
    )  # fmt: skip


def instruct() -> StableDiffusionInstructPix2PixPipeline:
    scheduler = EulerAncestralDiscreteScheduler(**SD_TRAINING)
    return StableDiffusionInstructPix2PixPipeline(**text_parts(), unet=unet(8), scheduler=scheduler, **NO_EXTRAS)


def inpaint() -> StableDiffusionInpaintPipeline:
    scheduler = DDIMScheduler(**SD_TRAINING, clip_sample=False)
    return StableDiffusionInpaintPipeline(**text_parts(), unet=unet(9), scheduler=scheduler, **NO_EXTRAS)
