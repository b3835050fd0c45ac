"""Images through channels and through Pillow, and how far apart they are."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loraguard.channels import (
    Channel,
)


def sent(channel: Channel, images: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return channel(images)


def pillow(image: Tensor) -> Image.Image:
    """A photo (3, H, W) in [-1, 1], rounded to 8 bits."""
    return Image.fromarray(((image.permute(1, 2, 0).double().numpy() + 1) * 127.5).round().astype(np.uint8))


def reread(image: Tensor, **settings: object) -> Tensor:
    """What comes back from a file in memory, as bytes (3, H, W)."""
    file = BytesIO()
    pillow(image).save(file, **settings)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def as_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().byte()


def decibels(images: Tensor, reference: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1))
