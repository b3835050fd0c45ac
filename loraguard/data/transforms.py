"""From an RGB photo to the tensor that a network takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from PIL import Image
from torch import Tensor

from loraguard.pixels import from_picture

Transform = Callable[[Image.Image], Tensor]
"""From an RGB photo to (3, H, W) in [-1, 1]; an attribute `min_size` may say how small a photo may be."""


def default_transform(size: int) -> Transform:
    """The shorter side resized to `size` pixels, bicubic with antialiasing, the middle cropped square.

    Args:
        size: height and width of the result.

    Returns:
        From an RGB photo to (3, size, size) in [-1, 1]. Smaller photos are enlarged.

    Raises:
        ValueError: for a size below 1.

    Example:
        >>> default_transform(16)(Image.new("RGB", (40, 20), "white")).unique()
        tensor([1.])
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    if size < 1:
        raise ValueError(f"Images need a size of at least 1 pixel, got {size}.")
    resize = Resize(size, InterpolationMode.BICUBIC, antialias=True)
    return cast(Transform, Compose([resize, CenterCrop(size), from_picture]))


def enlarged_too_far(transform: Transform, width: int, height: int) -> str | None:
    """Why a photo of this size cannot go through a transform: more pixels on the way than any photo may have.

    A strip of 30,000 x 1 pixels is small, until its shorter side is resized to 256. Torchvision's crops and resizing
    are followed; what else a transform does is not known.

    Example:
        >>> enlarged_too_far(default_transform(256), 30_000, 1)
        '30000 x 1 pixels, which the transform would make 7680000 x 256'
        >>> enlarged_too_far(default_transform(256), 6000, 400) is None
        True
    """
    most = Image.MAX_IMAGE_PIXELS
    wide, high = width, height
    for step in getattr(transform, "transforms", [transform]):
        size = getattr(step, "size", None)
        if size is None or type(step).__name__ not in ("Resize", "CenterCrop", "RandomCrop"):
            continue
        sides = (size, size) if isinstance(size, int) else tuple(size) * (2 if len(size) == 1 else 1)
        if type(step).__name__ == "Resize" and (isinstance(size, int) or len(size) == 1):
            scale = sides[0] / min(wide, high)
            if (longest := getattr(step, "max_size", None)) is not None:
                scale = min(scale, longest / max(wide, high))
            wide, high = round(wide * scale), round(high * scale)
        else:
            high, wide = sides
        if most is not None and wide * high > max(most, width * height):
            return f"{width} x {height} pixels, which the transform would make {wide} x {high}"
    return None


def size_needed(transform: Transform) -> int:
    """The smallest shorter side, in pixels, that a transform turns into an image with nothing made up around it.

    That is its attribute `min_size`, or the size of a torchvision crop that comes before any resizing: a crop larger
    than the photo would fill up with black.

    Example:
        >>> from torchvision.transforms import CenterCrop, Compose, Resize
        >>> size_needed(Compose([CenterCrop(178), Resize(128)])), size_needed(default_transform(256))
        (178, 1)
    """
    stated = getattr(transform, "min_size", None)
    if stated is not None:
        return int(stated)
    for step in getattr(transform, "transforms", [transform]):
        if "Resize" in type(step).__name__:
            break
        size = getattr(step, "size", None)
        if type(step).__name__ in ("CenterCrop", "RandomCrop") and size is not None:
            return int(max(size) if isinstance(size, (tuple, list)) else size)
    return 1
