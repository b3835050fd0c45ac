"""Images in [-1, 1] as the bytes of a photo's file, and back: level k is `k / 127.5 - 1`.

The one place where that is done. It is exact on all 256 levels in float64, float32, float16 and bfloat16:
`to_bytes(from_bytes(pixels, dtype))` is `pixels`. The half formats are computed in float32 and rounded at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

LEVELS_PER_UNIT = 127.5
"""How many of a byte's 255 steps a distance of 1 on [-1, 1] is."""


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], of any shape and floating-point type, to the nearest bytes; what is outside is clipped.

    Raises:
        TypeError: for anything but floating-point numbers.
        ValueError: for values that are not a number.

    Example:
        >>> to_bytes(torch.tensor([-1.0, 0.0, 0.3, 7.0]))
        tensor([  0, 128, 166, 255], dtype=torch.uint8)
    """
    if not images.is_floating_point():
        raise TypeError(f"Expected floating-point images in [-1, 1], got {images.dtype}; bytes take from_bytes first.")
    if missing := int(images.isnan().sum()):
        raise ValueError(
            f"{missing} of {images.numel()} values are not a number, which no byte can hold. See where they come from, "
            "or put others in their place (torch.nan_to_num)."
        )
    return ((images.detach().to(_computed_in(images.dtype)).clamp(-1, 1) + 1) * LEVELS_PER_UNIT).round().to(torch.uint8)


def from_bytes(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to images in [-1, 1] of the same shape.

    Raises:
        TypeError: for anything but bytes.

    Example:
        >>> from_bytes(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([-1.0000, -0.6000,  1.0000])
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"Expected bytes of torch.uint8, got {pixels.dtype}; to_bytes makes them of images in [-1, 1].")
    return (pixels.to(_computed_in(dtype)) / LEVELS_PER_UNIT - 1).to(dtype)


def to_picture(image: Tensor) -> Image.Image:
    """An image (3, H, W), or (1, H, W) in shades of grey, in [-1, 1] as a picture of Pillow's, in RGB.

    Raises:
        TypeError, ValueError: as :func:`to_bytes`; for another shape.

    Example:
        >>> to_picture(torch.ones(3, 4, 6)).getpixel((0, 0))
        (255, 255, 255)
    """
    from PIL import Image

    if image.ndim != 3 or len(image) not in (1, 3):
        raise ValueError(f"Expected an image (3, H, W), or (1, H, W) in grey, got {tuple(image.shape)}.")
    return Image.fromarray(to_bytes(as_rgb(image)).permute(1, 2, 0).cpu().numpy())


def as_rgb(images: Tensor) -> Tensor:
    """Images (..., C, H, W) as they are shown: (..., 3, H, W), grey as grey, of more channels the first three.

    Example:
        >>> as_rgb(torch.zeros(2, 6, 4, 4)).shape, as_rgb(torch.zeros(1, 4, 4)).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([3, 4, 4]))
    """
    first = images[..., : 3 if images.shape[-3] >= 3 else 1, :, :]
    return first.expand(*first.shape[:-3], 3, *first.shape[-2:])


def from_picture(picture: Image.Image) -> Tensor:
    """A picture of Pillow's, taken as RGB, as an image (3, H, W) in [-1, 1] in float32.

    The values are those of torchvision's `ToTensor` and `Normalize(0.5, 0.5)`, to the bit.

    Example:
        >>> from PIL import Image
        >>> from_picture(Image.new("RGB", (6, 4), "white")).shape
        torch.Size([3, 4, 6])
    """
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return from_bytes(pixels.permute(2, 0, 1).contiguous())


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
