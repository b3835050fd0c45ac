"""From images in [-1, 1] to what an encoder was trained on, differentiably."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend

from loraguard.channels.base import clip
from loraguard.pixels import from_bytes

LEVELS = 255
TOLERANCE = 2.0
"""How far, in 8-bit levels, our preprocessing may be from the processor's own, which rounds to bytes on the way."""


class ProcessorPreprocessing:
    """Resizes, crops and normalises images as an image processor of `transformers` does, with gradients.

    The processor itself resizes and crops, on floats and not on bytes: torchvision's antialiased resize is
    differentiable then. What it would do to bytes in addition is done here: overshoots of bicubic and Lanczos filters
    are clipped to the range that bytes have, then mean and standard deviation are applied. Results are those of the
    processor on bytes to about one of 255 levels, but for pixel-wise black and white noise, where bytes are clipped
    once more between the two passes of a bicubic or Lanczos resize. (With torchvision before 0.27 Transformers takes
    bicubic for Lanczos on tensors, and warns; so does this.)

    Args:
        processor: with the torchvision backend, as `AutoImageProcessor.from_pretrained(..., backend="torchvision")`
            gives it.
        name: of the encoder, for errors.

    Raises:
        ValueError: if the processor has no torchvision backend, or if on a test picture the results are further from
            its own than rounding to bytes explains, or carry no gradient.

    Example:
        >>> from transformers import CLIPImageProcessor
        >>> processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
        >>> ProcessorPreprocessing(processor, "clip")(torch.zeros(2, 3, 64, 48))["pixel_values"].shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(self, processor: Any, name: str) -> None:
        if TorchvisionBackend not in type(processor).mro():
            raise ValueError(
                f"The image processor of {name}, {type(processor).__name__}, has no torchvision backend, so no "
                "gradient can pass it. Choose another encoder, or give FeatureEncoder a preprocessing of your own."
            )
        self.processor = processor
        self.scale = LEVELS * (processor.rescale_factor if processor.do_rescale else 1.0)
        self.mean = _by_colour(processor.image_mean if processor.do_normalize else 0.0)
        self.std = _by_colour(processor.image_std if processor.do_normalize else 1.0)
        self._check(name)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to the encoder's inputs, by name, in the images' precision."""
        resized = self.processor(
            images=(images + 1) / 2,
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        inputs = {key: value.to(images.device) for key, value in resized.items()}
        pixels = clip(inputs["pixel_values"], 0, 1) * self.scale
        mean, std = (pixels.new_tensor(v) for v in (self.mean, self.std))
        if pixels.ndim == 4:
            inputs["pixel_values"] = (pixels - mean[:, None, None]) / std[:, None, None]
        else:  # flattened patches (N, L, patch * patch * 3), channels last; those that only pad are left at 0
            repeats = pixels.shape[-1] // 3
            mask = inputs["pixel_attention_mask"][..., None]
            inputs["pixel_values"] = (pixels - mean.repeat(repeats)) / std.repeat(repeats) * mask
        return inputs

    def settings(self) -> dict[str, Any]:
        """Size, crop, filter, mean and standard deviation, as JSON takes them."""
        names = (
            "size",
            "crop_size",
            "crop_pct",
            "resample",
            "patch_size",
            "max_num_patches",
            "image_mean",
            "image_std",
        )
        kept = self.processor.to_dict()
        if not kept.get("do_center_crop"):
            kept.pop("crop_size", None)
        return {name: kept[name] for name in names if kept.get(name) is not None}

    def _check(self, name: str) -> None:
        picture = probe_picture()
        images = from_bytes(picture).requires_grad_()
        try:
            own = self.processor(images=picture, input_data_format="channels_first", return_tensors="pt")
            with torch.enable_grad():
                ours = self(images)["pixel_values"]
            error = float(((ours - own["pixel_values"]).abs().max() * LEVELS / self.scale * max(self.std)).detach())
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as problem:
            raise ValueError(f"The image processor of {name} cannot be used on tensors: {problem}") from problem
        if not ours.requires_grad or not error <= TOLERANCE:
            raise ValueError(
                f"The preprocessing of {name} by {type(self.processor).__name__} cannot be reproduced with gradients: "
                f"on a test picture the results are {error:.3g} of 255 levels apart (up to {TOLERANCE} are rounding). "
                "Choose another encoder, or give FeatureEncoder a preprocessing of your own."
            )


def probe_picture(height: int = 200, width: int = 240) -> Tensor:
    """A batch of one picture with slopes and an edge in each colour channel, uint8 (1, 3, H, W).

    Example:
        >>> probe_picture().shape
        torch.Size([1, 3, 200, 240])
    """
    rows, columns = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)[None]
    edge = torch.where(columns > rows, 230.0, 20.0)
    return torch.stack([rows.expand(height, width), columns.expand(height, width), edge]).round().byte()[None]


def _by_colour(value: float | list[float] | tuple[float, ...]) -> list[float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [float(v) for v in values] * (1 if len(values) == 3 else 3)
