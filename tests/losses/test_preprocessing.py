"""Differentiable preprocessing against the processors' own, on bytes, in both of their backends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
import transformers as tf
from packaging.version import Version
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet50_Weights

from loraguard.losses.preprocessing import ProcessorPreprocessing, probe_picture
from loraguard.losses.torchvision_resnet import WeightsPreprocessing

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX = 0, 1, 2, 3, 4
LANCZOS_ON_TENSORS = Version(torchvision.__version__) >= Version("0.27")
SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "blip": (tf.BlipImageProcessor, tf.BlipImageProcessorPil, {"size": SQUARE}),
    "blip-bilinear": (tf.BlipImageProcessor, tf.BlipImageProcessorPil, {"size": SQUARE, "resample": BILINEAR}),
    "blip-lanczos": (tf.BlipImageProcessor, tf.BlipImageProcessorPil, {"size": SQUARE, "resample": LANCZOS}),
    "clip": (tf.CLIPImageProcessor, tf.CLIPImageProcessorPil, {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    "clip-odd-crop": (
        tf.CLIPImageProcessor,
        tf.CLIPImageProcessorPil,
        {"size": {"shortest_edge": 37}, "crop_size": {"height": 28, "width": 30}, "resample": BILINEAR},
    ),
    "resnet": (tf.ConvNextImageProcessor, tf.ConvNextImageProcessorPil, {"size": {"shortest_edge": 32}}),
    "resnet-bilinear": (
        tf.ConvNextImageProcessor,
        tf.ConvNextImageProcessorPil,
        {"size": {"shortest_edge": 40}, "resample": BILINEAR, "crop_pct": 0.95},
    ),
    "siglip": (tf.SiglipImageProcessor, tf.SiglipImageProcessorPil, {"size": {"height": 24, "width": 40}}),
    "siglip2": (tf.Siglip2ImageProcessor, tf.Siglip2ImageProcessorPil, {"patch_size": 8, "max_num_patches": 20}),
    "dinov2": (tf.BitImageProcessor, tf.BitImageProcessorPil, {"size": {"shortest_edge": 40}, "crop_size": SQUARE}),
    "not-normalised": (tf.BlipImageProcessor, tf.BlipImageProcessorPil, {"size": SQUARE, "do_normalize": False}),
}


def noisy(height: int, width: int, low: int = 60, high: int = 190) -> Tensor:
    """Bytes with an edge at almost every pixel; by default with room for filters to overshoot."""
    generator = torch.Generator().manual_seed(height)
    return (torch.rand(1, 3, height, width, generator=generator) > 0.5).byte() * (high - low) + low


def levels_apart(kind: str, picture: Tensor, backend: int) -> Tensor:
    """How far ours is from one backend's result on the bytes, in 8-bit levels."""
    *backends, settings = PROCESSORS[kind]
    ours = ProcessorPreprocessing(backends[0](**settings), kind)(picture / 127.5 - 1)
    if backend and settings.get("resample") == LANCZOS and not LANCZOS_ON_TENSORS:
        settings = settings | {"resample": BICUBIC}  # which the backend on tensors falls back to, and says so
    processor = backends[backend](**settings)
    own = processor(images=Image.fromarray(picture[0].permute(1, 2, 0).numpy()), return_tensors="pt")
    assert ours.keys() == own.keys()
    for key in ours.keys() - {"pixel_values"}:
        assert torch.equal(ours[key], own[key])
    levels = 255 * max(processor.image_std if processor.do_normalize else [1])
    return (ours["pixel_values"] - own["pixel_values"]).abs() * levels


PICTURES = {
    "smaller": noisy(64, 50),
    "larger": noisy(20, 24),
    "same": noisy(32, 32),
    "photo": probe_picture(256, 256),
}


@pytest.mark.parametrize("backend", [0, 1], ids=["torchvision", "pil"])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_it_is_the_processors_own(kind: str, picture: str, backend: int) -> None:
    """Within 1.25 of 255 levels: the processor rounds to bytes after each of its resize's two passes."""
    assert levels_apart(kind, PICTURES[picture], backend).max() < 1.25


@pytest.mark.parametrize("kind", ["blip", "clip", "resnet"])
def test_black_and_white_noise_differs_where_bytes_are_clipped_between_passes(kind: str) -> None:
    """The one known difference: bicubic overshoots of the first pass, which bytes cannot hold and floats can."""
    apart = levels_apart(kind, noisy(64, 50, 0, 255), 1)
    assert 1.25 < apart.max() < 40
    assert apart.mean() < 4


def test_without_antialiasing_it_would_not_be() -> None:
    """The tolerance tells an antialiased resize from one that is not."""
    picture = PICTURES["smaller"]
    processor = tf.BlipImageProcessor(size=SQUARE, do_normalize=False)
    own = processor(images=picture, return_tensors="pt")["pixel_values"]
    plain = torch.nn.functional.interpolate(picture / 255, (32, 32), mode="bicubic")
    assert (plain - own).abs().max() * 255 > 20


@pytest.mark.parametrize("kind", ["blip", "clip", "resnet", "siglip2", "dinov2"])
def test_gradients_are_those_of_its_values(kind: str) -> None:
    fast, _, settings = PROCESSORS[kind]
    preprocess = ProcessorPreprocessing(fast(**settings), kind)
    images = (torch.rand(2, 3, 20, 24, dtype=torch.float64) - 0.5).requires_grad_()
    assert preprocess(images)["pixel_values"].dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: preprocess(x)["pixel_values"], images, fast_mode=True)


@pytest.mark.parametrize("shade", [-1.0, 1.0], ids=["black", "white"])
@pytest.mark.parametrize("kind", ["blip", "clip", "siglip2", "torchvision"])
def test_black_and_white_areas_have_gradients_like_any_others(kind: str, shade: float) -> None:
    """What is done to an image is linear but for clipping, so that its gradient is the same wherever the image is."""
    preprocess: Callable[[Tensor], Any] = WeightsPreprocessing(ResNet50_Weights.IMAGENET1K_V2)
    if kind != "torchvision":
        fast, _, settings = PROCESSORS[kind]
        preprocess = ProcessorPreprocessing(fast(**settings), kind)
    gradients = []
    for level in (0.0, shade):
        images = torch.full((1, 3, 40, 40), level, requires_grad=True)
        found = preprocess(images)
        pixels = found if isinstance(found, Tensor) else found["pixel_values"]
        gradients += torch.autograd.grad(pixels.sum(), images)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-6)


def test_processors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="BlipImageProcessorPil, has no torchvision backend"):
        ProcessorPreprocessing(tf.BlipImageProcessorPil(), "a")
    with pytest.raises(
        ValueError, match=r"EfficientNetImageProcessor cannot be reproduced with gradients.* levels apart"
    ):
        ProcessorPreprocessing(tf.EfficientNetImageProcessor(size=SQUARE, rescale_offset=True), "b")


def test_settings_say_what_is_done() -> None:
    fast, _, settings = PROCESSORS["clip"]
    found = ProcessorPreprocessing(fast(**settings), "clip").settings()
    assert found["size"] == {"shortest_edge": 40}
    assert found["crop_size"] == SQUARE
    assert found["resample"] == BICUBIC
    assert len(found["image_mean"]) == 3
    assert "crop_size" not in ProcessorPreprocessing(tf.BlipImageProcessor(), "blip").settings()
