"""Photos through a file format and back."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loraguard.pixels import from_bytes, to_bytes


def through_files(images: Tensor, settings: Sequence[dict[str, Any]]) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], rounded to 8 bits, written by Pillow and read again; no gradients.

    Args:
        images: of any device and floating-point dtype.
        settings: for each image, what `PIL.Image.Image.save` takes, with its `format`.
    """
    levels = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
    read = np.empty_like(levels)
    for i, setting in enumerate(settings):
        file = BytesIO()
        Image.fromarray(levels[i]).save(file, **setting)
        with Image.open(file) as photo:
            read[i] = np.asarray(photo.convert("RGB"))
    return from_bytes(torch.from_numpy(read).permute(0, 3, 1, 2).to(images.device), images.dtype)


def check_quality(quality: int) -> None:
    """Refuse anything but a whole number from 1 to 100."""
    if not (isinstance(quality, int) and 1 <= quality <= 100):
        raise ValueError(f"quality={quality!r} must be a whole number from 1 to 100.")
