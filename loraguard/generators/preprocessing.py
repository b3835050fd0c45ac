"""From photos to what networks take."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from loraguard.pixels import from_picture


def preprocessing(
    size: int | tuple[int, int], *, crop: int | None = None, interpolation: str = "bilinear", channels: int = 3
) -> Callable[[Image.Image], Tensor]:
    """Centre crop, resize, scale to [-1, 1]: what most code of editing networks does with a photo.

    Cropping and resizing work on PIL images, so that results are those of the official code.

    Args:
        size: of the shorter side, which keeps the photo's shape, or (height, width), which does not.
        crop: side of the square that is cut from the middle, in the photo's pixels, before resizing; None for no crop.
        interpolation: of the resizing, by its name in `torchvision.transforms.InterpolationMode`.

        channels: of the result, 3, or 1 for a greyscale image.

    Returns:
        From an RGB image to (C, H, W) in [-1, 1].

    Raises:
        ValueError: for other channels, which a photo does not have.

    Example:
        >>> transform = preprocessing(16, crop=20)
        >>> image = transform(Image.new("RGB", (30, 40), "white"))
        >>> image.shape, image.unique()
        (torch.Size([3, 16, 16]), tensor([1.]))
    """
    from torchvision import transforms

    if channels not in (1, 3):
        raise ValueError(
            f"A photo has 3 channels, or 1 in greyscale, and the network takes {channels}; give a data set whose items "
            "are such images."
        )
    steps = [transforms.CenterCrop(crop)] if crop else []
    return transforms.Compose(
        [
            *steps,
            transforms.Resize(size, transforms.InterpolationMode(interpolation)),
            from_picture if channels == 3 else from_grey_picture,
        ]
    )


def from_grey_picture(picture: Image.Image) -> Tensor:
    """A picture of Pillow's, in shades of grey, as an image (1, H, W) in [-1, 1].

    Example:
        >>> from_grey_picture(Image.new("RGB", (6, 4), "red")).shape
        torch.Size([1, 4, 6])
    """
    return from_picture(picture.convert("L"))[:1]


def check_size(size: int, multiple: int) -> None:
    """Refuse a side of images that a network of strided layers would not give back.

    Raises:
        ValueError: if `size` is no positive multiple of `multiple`.

    Example:
        >>> check_size(250, 4)
        Traceback (most recent call last):
        ...
        ValueError: size=250 must be a positive multiple of 4, or outputs would not have the size of inputs.
    """
    if size <= 0 or size % multiple:
        raise ValueError(
            f"size={size!r} must be a positive multiple of {multiple}, or outputs would not have the size of inputs."
        )
