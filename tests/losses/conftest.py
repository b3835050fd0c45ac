"""Tiny encoders, made from their configs and saved with their image processors, as users find real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
SQUARE = {"height": 32, "width": 32}
BLIP = {
    "text_config": {**TEXT, "encoder_hidden_size": 16},
    "vision_config": {**VISION, "image_size": 32, "patch_size": 8},
    "image_text_hidden_size": 8,
}


def two_towers(**vision: int) -> dict[str, dict[str, int]]:
    return {"text_config": TEXT, "vision_config": {**VISION, "patch_size": 8, **vision}}


def clip_processor() -> tf.CLIPImageProcessor:
    return tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)


MODELS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "resnet": lambda: (
        tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
        ),
        tf.ConvNextImageProcessor(size={"shortest_edge": 32}, image_mean=[0.485, 0.456, 0.406]),
    ),
    "blip": lambda: (tf.BlipForConditionalGeneration(tf.BlipConfig(**BLIP)), tf.BlipImageProcessor(size=SQUARE)),
    "blip-itm": lambda: (tf.BlipForImageTextRetrieval(tf.BlipConfig(**BLIP)), tf.BlipImageProcessor(size=SQUARE)),
    "clip": lambda: (
        tf.CLIPModel(tf.CLIPConfig(**two_towers(image_size=32), projection_dim=8)),
        clip_processor(),
    ),
    "clip-vision": lambda: (
        tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**VISION, image_size=32, patch_size=8, projection_dim=8)),
        clip_processor(),
    ),
    "siglip": lambda: (
        tf.SiglipModel(tf.SiglipConfig(**two_towers(image_size=32))),
        tf.SiglipImageProcessor(size=SQUARE),
    ),
    "siglip2": lambda: (
        tf.Siglip2Model(tf.Siglip2Config(**two_towers(num_patches=16))),
        tf.Siglip2ImageProcessor(patch_size=8, max_num_patches=20),
    ),
    "dinov2": lambda: (
        tf.Dinov2Model(
            tf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
        ),
        tf.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE, image_mean=[0.485, 0.456, 0.406]),
    ),
    "dinov3": lambda: (
        tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VISION, image_size=32, patch_size=8, num_register_tokens=2)),
        tf.DINOv3ViTImageProcessor(size=SQUARE),
    ),
    "vit": lambda: (
        tf.ViTForImageClassification(tf.ViTConfig(**VISION, image_size=32, patch_size=8)),
        tf.ViTImageProcessor(size=SQUARE),
    ),
}


def enliven(model: nn.Module) -> nn.Module:
    """Fresh networks give almost the same features for all images; larger weights and own statistics do not."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From the name of a model to the folder where it lies; made on first use."""
    root = tmp_path_factory.mktemp("encoders")

    def get(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model, processor = MODELS[kind]()
                enliven(model).save_pretrained(path)
                processor.save_pretrained(path)
        return path

    return get


@pytest.fixture
def photos() -> Tensor:
    """Four images (4, 3, 40, 48) in [-1, 1], whole 8-bit levels: smooth with some noise."""
    return pictures(4, 40, 48)


@pytest.fixture
def fitting() -> Tensor:
    """The same at the encoders' own size, which no processor needs to resize."""
    return pictures(4, 32, 32)


def pictures(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round() / 127.5 - 1
