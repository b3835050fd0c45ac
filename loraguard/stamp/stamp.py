"""The stamp, a visible watermark that warns: render it, and compose it onto images."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from loraguard.data.reading import read_transparent
from loraguard.pixels import from_bytes

from .fonts import find_font

PLACES = {
    "top-left": (0.0, 0.0), "top": (0.5, 0.0), "top-right": (1.0, 0.0),
    "left": (0.0, 0.5), "center": (0.5, 0.5), "right": (1.0, 0.5),
    "bottom-left": (0.0, 1.0), "bottom": (0.5, 1.0), "bottom-right": (1.0, 1.0),
}  # fmt: skip
"""Where a stamp may stand, as fractions of the free width and height left of it and above it."""

_SUPERSAMPLE = 4
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in a shade of grey (ITU-R BT.601)."""

LONGEST_TEXT = 500  # characters; all of them are drawn, at several times their size
LARGEST_WIDTH = 100_000  # pixels
SMALLEST_LETTER = 5  # pixels; below this nobody reads it


@dataclass(frozen=True)
class Stamp:
    """A visible watermark: a warning as a text or a picture, and how it is laid onto an image.

    Args:
        text: the warning; any Unicode that the font covers. Give `text` or `image`, not both.
        image: path of a picture (its transparency is kept) used in place of a text.
        place: one of "top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom",
            "bottom-right".
        size: width of the stamp as a fraction of the image's width, in (0, 1].
        margin: distance to the image's edge as a fraction of its width.
        of_width: the width in pixels that `size` and `margin` are fractions of, by default each image's own. With it a
            stamp has the same pixels on images of any size, which is what a convolutional network can learn from
            batches of several sizes.
        colour: of the text, as anything that Pillow understands ("white", "#ffcc00").
        opacity: in (0, 1].
        outline: colour of the letters' outline, or None for none.
        background: colour of the box behind the text, or None for none.
        font: a font file or an installed family's name. By default DejaVu Sans Bold, or else the first installed font
            that has every character of `text`.

    Raises:
        ValueError: for a value outside of what is described above, a font that does not exist or lacks a character, or
            (when the image size is known) a stamp that does not fit or shows nothing; for a picture that is damaged.
        FileNotFoundError: for a picture that does not exist.

    Example:
        >>> stamp = Stamp("AI-EDITED")
        >>> photos = torch.zeros(2, 3, 128, 128)
        >>> stamped = stamp.compose(photos)
        >>> stamped.shape, bool((stamped != photos).any())
        (torch.Size([2, 3, 128, 128]), True)
    """

    text: str | None = None
    image: str | Path | None = None
    place: str = "bottom"
    size: float = 0.9
    margin: float = 0.02
    colour: str = "white"
    opacity: float = 1.0
    outline: str | None = "black"
    background: str | None = None
    font: str | None = None
    of_width: int | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise ValueError(f"A stamp is either a text or an image; got text={self.text!r} and image={self.image!r}.")
        if self.text is not None and not self.text.strip():
            raise ValueError("The stamp's text is empty; give the words of the warning, for example 'AI-EDITED'.")
        if self.text is not None and len(self.text) > LONGEST_TEXT:
            raise ValueError(
                f"The stamp's text has {len(self.text):,} characters, at most {LONGEST_TEXT} are drawn; it begins with "
                f"{self.text[:40]!r}."
            )
        if self.place not in PLACES:
            raise ValueError(f"place={self.place!r} is unknown; choose one of {', '.join(PLACES)}.")
        if not 0 < self.size <= 1:
            raise ValueError(
                f"size={self.size!r} would make the stamp larger than the image or nothing at all: it is the stamp's "
                "width as a fraction of the image's width, in (0, 1]."
            )
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity={self.opacity!r} must be in (0, 1].")
        if self.of_width is not None and not 1 <= self.of_width <= LARGEST_WIDTH:
            raise ValueError(f"of_width={self.of_width!r} must be None or pixels, from 1 to {LARGEST_WIDTH}.")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"margin={self.margin!r} is a fraction of the image's width, in [0, 0.5).")
        for name in ("colour", "outline", "background"):
            if (value := getattr(self, name)) is not None:
                try:
                    ImageColor.getrgb(value)
                except ValueError as error:
                    raise ValueError(f"{name}={value!r} is no colour: {error}") from None
        if self.text is not None:
            find_font(self.font, self.text)
        elif not Path(str(self.image)).is_file():
            raise FileNotFoundError(f"The stamp's image {str(self.image)!r} does not exist.")
        else:
            _picture(self)  # says what cannot be read

    def layer(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The stamp alone on a canvas of the image's size.

        Returns:
            Its colour (3, H, W) in [-1, 1] and its opacity (1, H, W) in [0, 1].
        """
        return _layer(self, height, width)

    def compose(self, images: Tensor) -> Tensor:
        """Lay the stamp onto images (N, 3, H, W) in [-1, 1]: `(1 - a) * image + a * colour` at each pixel.

        Onto greyscale images (N, 1, H, W) it goes in shades of grey.
        """
        colour, alpha = self.layer_on(images)
        return images + alpha * (colour - images)

    def layer_on(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`layer` as it goes onto images (N, 3, H, W) or (N, 1, H, W): of their size, channels, dtype and device.

        Raises:
            ValueError: for other images.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"A stamp goes onto images of shape (N, 3, H, W), or (N, 1, H, W) in grey, got {tuple(images.shape)}."
            )
        colour, alpha = (part.to(images) for part in self.layer(*images.shape[-2:]))
        if images.shape[1] == 1:
            colour = (colour * colour.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
        return colour, alpha


@lru_cache(maxsize=32)
def _layer(stamp: Stamp, height: int, width: int) -> tuple[Tensor, Tensor]:
    picture = _picture(stamp)
    target_width = max(1, round(stamp.size * (stamp.of_width or width)))
    target_height = max(1, round(picture.height * target_width / picture.width))
    margin = round(stamp.margin * (stamp.of_width or width))
    if target_height + 2 * margin > height or target_width > width:
        raise ValueError(
            f"The stamp {stamp.text or stamp.image!r} at size={stamp.size} is {target_width}x{target_height} pixels "
            f"(margin {margin}), larger than the {width}x{height} image; make it smaller or the text shorter."
        )
    lines = 1 if stamp.text is None else len(stamp.text.splitlines())
    if stamp.text is not None and target_height / lines < SMALLEST_LETTER:
        warnings.warn(
            f"The stamp {stamp.text!r:.60} is only {target_height} pixels high on a {width}x{height} image and hard to "
            "read; shorten the text or raise `size`.",
            stacklevel=4,
        )
    small = _resized(picture, target_width, target_height)
    across, down = PLACES[stamp.place]
    free_x, free_y = max(0, width - target_width - 2 * margin), height - target_height - 2 * margin
    left = min(margin + round(across * free_x), width - target_width)
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(small, (left, margin + round(down * free_y)))
    colour, alpha = _tensors(canvas, stamp.opacity)
    if not (alpha * 255).round().any():  # no byte of any image would be another
        raise ValueError(
            f"The stamp {stamp.text or str(stamp.image)!r:.200} shows nothing: all of it is transparent, or its "
            "characters have no ink. Give words that are seen, a picture that is not transparent, an opaque colour, or "
            "more opacity."
        )
    return colour, alpha


@lru_cache(maxsize=512)
def sprite(stamp: Stamp, width: int) -> tuple[Tensor, Tensor]:
    """A stamp alone, `width` pixels wide: its colour (3, h, width) in [-1, 1], its opacity (1, h, width) in [0, 1]."""
    picture = _picture(stamp)
    return _tensors(_resized(picture, width, max(1, round(picture.height * width / picture.width))), stamp.opacity)


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Premultiplied, so that transparent pixels' colours do not bleed into the edges when it is made smaller."""
    return picture.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")


def _tensors(picture: Image.Image, opacity: float) -> tuple[Tensor, Tensor]:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 4)
    colour, alpha = pixels.permute(2, 0, 1).split([3, 1])
    return from_bytes(colour), alpha / 255 * opacity


@lru_cache(maxsize=64)
def _picture(stamp: Stamp) -> Image.Image:
    return _text_picture(stamp) if stamp.text is not None else _image_picture(stamp)


def _text_picture(stamp: Stamp) -> Image.Image:
    """The text, several times larger than it will be shown."""
    assert stamp.text is not None
    font_size = 32 * _SUPERSAMPLE
    font = ImageFont.truetype(find_font(stamp.font, stamp.text), font_size)
    stroke = round(font_size * 0.07) if stamp.outline else 0
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = probe.multiline_textbbox((0, 0), stamp.text, font=font, stroke_width=stroke)
    pad = round(font_size * 0.16) if stamp.background else 0
    picture = Image.new(
        "RGBA",
        (math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad),
        (*ImageColor.getrgb(stamp.background)[:3], 255) if stamp.background else (0, 0, 0, 0),
    )
    ImageDraw.Draw(picture).multiline_text(
        (pad - left, pad - top), stamp.text, font=font, fill=stamp.colour, align="center",
        stroke_width=stroke, stroke_fill=stamp.outline,
    )  # fmt: skip
    return picture


def _image_picture(stamp: Stamp) -> Image.Image:
    assert stamp.image is not None
    return read_transparent(stamp.image)
