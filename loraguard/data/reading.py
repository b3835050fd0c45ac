"""One photo, from a file, bytes or PIL to RGB, or one error that says what is wrong with it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from .names import printable

T = TypeVar("T")

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, recognised by content. Formats that start another program, as EPS does, are left out."""

NO_IMAGE = f"not a whole image of {', '.join(FORMATS)}"
EMPTY = "it is empty"


class ImageReadError(ValueError):
    """A photo that cannot be used.

    Attributes:
        path: its file, or what else names it.
        reason: why, in a few words.

    Example:
        >>> try:
        ...     read_image(b"GIF89a, they said", name="face.gif")
        ... except ImageReadError as error:
        ...     print(error)
        face.gif cannot be read: not a whole image of AVIF, BMP, GIF, JPEG, JPEG2000, MPO, PNG, PPM, TIFF, WEBP.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{printable(self.path)} cannot be read: {self.reason}."


Source = str | Path | bytes | Image.Image

Fits = Callable[[int, int], str | None]
"""From width and height to why a photo of that size cannot be used, in a few words; None where it can."""


def read_image(source: Source, *, min_size: int = 1, fits: Fits | None = None, name: str | None = None) -> Image.Image:
    """A photo in RGB, decoded in full and turned upright by its EXIF orientation.

    Transparency is laid on white. 16-bit greyscale is scaled to 8 bits. Of an animation the first frame is taken. CMYK
    is converted by formula; embedded colour profiles are not applied.

    Args:
        source: a file, a file's bytes, or an opened image.
        min_size: smallest length that is accepted of the shorter side, in pixels.
        fits: what else a photo's size is checked by, before it is decoded.
        name: what errors call the photo; the path by default.

    Returns:
        An image of mode RGB that depends on no open file.

    Raises:
        ImageReadError: if there is no such file, it is empty, cut short, damaged, no image, smaller than `min_size`,
            has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or does not fit.

    Example:
        >>> clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
        >>> read_image(clear).getpixel((0, 0))
        (255, 255, 255)
    """
    return _opened(source, min_size, fits, name, _decoded)


def read_transparent(source: Source, *, name: str | None = None) -> Image.Image:
    """As :func:`read_image`, with its transparency: of mode RGBA.

    Raises:
        ImageReadError: as there.

    Example:
        >>> read_transparent(Image.new("LA", (20, 10), (255, 7))).getpixel((0, 0))
        (255, 255, 255, 7)
    """
    return _opened(source, 1, None, name, lambda image, name: _upright(image, name).convert("RGBA"))


def probe_image(source: Source, *, min_size: int = 1, fits: Fits | None = None, name: str | None = None) -> None:
    """As :func:`read_image`, but looks at the first bytes alone: damage further on is not noticed.

    Raises:
        ImageReadError: if there is no such file, or it is empty, no image, too small or too large.

    Example:
        >>> probe_image(Image.new("RGB", (20, 10)), min_size=16)
        Traceback (most recent call last):
        ...
        loraguard.data.reading.ImageReadError: an image in memory cannot be read: 20 x 10 pixels, and the shorter side
        must have at least 16.
    """
    _opened(source, min_size, fits, name, lambda image, name: None)


def is_image(file: Path) -> bool:
    """Whether a file's first bytes are those of an image that is read.

    Example:
        >>> is_image(Path("nowhere.png"))
        False
    """
    try:
        probe_image(file)
    except ImageReadError:
        return False
    return True


def _opened(
    source: Source, min_size: int, fits: Fits | None, name: str | None, then: Callable[[Image.Image, str], T]
) -> T:
    """What `then` makes of an image whose size is known to be fit, with one kind of error for all that can go wrong."""
    name = name or (str(source) if isinstance(source, (str, Path)) else "an image in memory")
    try:
        if isinstance(source, Image.Image):
            _check_size(source, min_size, fits, name)
            return then(source, name)
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            if not file.read(1):
                raise ImageReadError(name, EMPTY)
            with Image.open(file, formats=_formats()) as image:
                _check_size(image, min_size, fits, name)
                return then(image, name)
    except ImageReadError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageReadError(name, NO_IMAGE) from None
    except FileNotFoundError:
        raise ImageReadError(name, "there is no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageReadError(name, _too_large()) from None
    except Exception as error:  # what decoders raise on damaged files is not laid down
        raise ImageReadError(name, str(error).strip().rstrip(".") or type(error).__name__) from error


def _formats() -> list[str]:
    """Those of :data:`FORMATS` that this build of Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, PIL.Image.MAX_IMAGE_PIXELS"


def _check_size(image: Image.Image, min_size: int, fits: Fits | None, name: str) -> None:
    width, height = image.size
    if min(width, height) < min_size:
        raise ImageReadError(name, f"{width} x {height} pixels, and the shorter side must have at least {min_size}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ImageReadError(name, _too_large())
    if fits is not None and (reason := fits(width, height)) is not None:
        raise ImageReadError(name, reason)


def _decoded(image: Image.Image, name: str) -> Image.Image:
    upright = _upright(image, name)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        flat.info = rgba.info
        return flat
    return upright.convert("RGB")


def _upright(image: Image.Image, name: str) -> Image.Image:
    image.load()
    if image.mode in ("I", "F"):
        raise ImageReadError(name, f"32-bit greyscale (mode {image.mode}), whose range is not known; save it as 8-bit")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        levels = np.asarray(upright).astype(np.float64) / 257  # 65535 = 257 * 255
        return Image.fromarray(levels.round().astype(np.uint8))
    return upright
