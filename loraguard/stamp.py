"""The visible warning: render it, compose it onto images, and measure how strongly it is present.

Images are (N, 3, H, W) in [-1, 1] throughout.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

PLACES = {
    "top-left": (0.0, 0.0), "top": (0.5, 0.0), "top-right": (1.0, 0.0),
    "left": (0.0, 0.5), "center": (0.5, 0.5), "right": (1.0, 0.5),
    "bottom-left": (0.0, 1.0), "bottom": (0.5, 1.0), "bottom-right": (1.0, 1.0),
}  # fmt: skip
"""Where a stamp may stand, as fractions of the free width and height left of it and above it."""

FEWEST_OUTPUTS = 20
"""That :meth:`StampDetector.calibrate` takes."""

_SUPERSAMPLE = 4
_SMALLEST_LETTER = 5  # pixels; below this nobody reads it


@dataclass(frozen=True)
class Stamp:
    """A visible warning, a text or a picture, and how it is laid onto an image.

    Args:
        text: the warning; any Unicode that the font covers. Give `text` or `image`, not both.
        image: path of a picture (its transparency is kept) used in place of a text.
        place: one of "top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom",
            "bottom-right".
        size: width of the stamp as a fraction of the image's width, in (0, 1].
        margin: distance to the image's edge as a fraction of its width.
        colour: of the text, as anything that Pillow understands ("white", "#ffcc00").
        opacity: in (0, 1].
        outline: colour of the letters' outline, or None for none.
        background: colour of the box behind the text, or None for none.
        font: a font file or an installed family's name. By default DejaVu Sans Bold, or else the first installed font
            that has every character of `text`.

    Raises:
        ValueError: for a value outside of what is described above, a font that does not exist or lacks a character, or
            (when the image size is known) a stamp that does not fit.
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

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise ValueError(f"A stamp is either a text or an image; got text={self.text!r} and image={self.image!r}.")
        if self.text is not None and not self.text.strip():
            raise ValueError("The stamp's text is empty; give the words of the warning, for example 'AI-EDITED'.")
        if self.place not in PLACES:
            raise ValueError(f"place={self.place!r} is unknown; choose one of {', '.join(PLACES)}.")
        if not 0 < self.size <= 1:
            raise ValueError(
                f"size={self.size!r} would make the stamp larger than the image or nothing at all: it is the stamp's "
                "width as a fraction of the image's width, in (0, 1]."
            )
        if not 0 < self.opacity <= 1:
            raise ValueError(f"opacity={self.opacity!r} must be in (0, 1].")
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

    def layer(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The stamp alone on a canvas of the image's size.

        Returns:
            Its colour (3, H, W) in [-1, 1] and its opacity (1, H, W) in [0, 1].
        """
        return _layer(self, height, width)

    def compose(self, images: Tensor) -> Tensor:
        """Lay the stamp onto images (N, 3, H, W) in [-1, 1]: `(1 - a) * image + a * colour` at each pixel."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"A stamp goes onto images of shape (N, 3, H, W), got {tuple(images.shape)}.")
        colour, alpha = (part.to(images) for part in self.layer(*images.shape[-2:]))
        return images + alpha * (colour - images)


def find_font(font: str | None, text: str) -> str:
    """Path of a font file that has every character of `text`.

    Args:
        font: a file, the name of an installed family, or None to look for any font that covers the text.
        text: what is to be written with it.

    Raises:
        ValueError: if there is no such font, or it lacks a character.
    """
    from matplotlib import font_manager

    if font is None:
        default = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
        if not missing_characters(default, text):
            return default
        for entry in font_manager.fontManager.ttflist:
            is_placeholder = "last" in entry.name.lower() and "resort" in entry.name.lower()  # boxes for everything
            if not is_placeholder and not missing_characters(entry.fname, text):
                return entry.fname
        raise ValueError(
            f"No installed font has the characters {missing_characters(default, text)!r} of the stamp {text!r}: "
            "install one (for example Noto Sans) or pass font='path/to/font.ttf'."
        )
    if Path(font).suffix.lower() in (".ttf", ".otf", ".ttc"):
        if not Path(font).is_file():
            raise ValueError(f"The font file {font!r} does not exist; pass a .ttf or .otf file or a family's name.")
        path = font
    else:
        try:
            path = font_manager.findfont(font, fallback_to_default=False)
        except ValueError:
            raise ValueError(
                f"No font family {font!r} is installed; pass a font file, another family, or None for a default."
            ) from None
    if missing := missing_characters(path, text):
        raise ValueError(f"The font {font!r} lacks the characters {missing!r} of the stamp {text!r}; pass another one.")
    return path


@lru_cache(maxsize=256)
def missing_characters(path: str, text: str) -> str:
    """The characters of `text` that the font file has no glyph for (all, if it cannot be read)."""
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(path).get_charmap()
    except (RuntimeError, OSError):
        return text
    return "".join(c for c in text if not c.isspace() and ord(c) not in known)


@lru_cache(maxsize=32)
def _layer(stamp: Stamp, height: int, width: int) -> tuple[Tensor, Tensor]:
    picture = _text_picture(stamp, width) if stamp.text is not None else _image_picture(stamp)
    target_width = max(1, round(stamp.size * width))
    target_height = max(1, round(picture.height * target_width / picture.width))
    margin = round(stamp.margin * width)
    if target_height + 2 * margin > height or target_width > width:
        raise ValueError(
            f"The stamp {stamp.text or stamp.image!r} at size={stamp.size} is {target_width}x{target_height} pixels "
            f"(margin {margin}), larger than the {width}x{height} image; make it smaller or the text shorter."
        )
    lines = 1 if stamp.text is None else len(stamp.text.splitlines())
    if stamp.text is not None and target_height / lines < _SMALLEST_LETTER:
        warnings.warn(
            f"The stamp {stamp.text!r} is only {target_height} pixels high on a {width}x{height} image and hard to "
            "read; shorten the text or raise `size`.",
            stacklevel=4,
        )
    # Premultiplied, so that transparent pixels' colours do not bleed into the edges when it is made smaller.
    small = picture.convert("RGBa").resize((target_width, target_height), Image.Resampling.BOX).convert("RGBA")
    across, down = PLACES[stamp.place]
    free_x, free_y = max(0, width - target_width - 2 * margin), height - target_height - 2 * margin
    left = min(margin + round(across * free_x), width - target_width)
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(small, (left, margin + round(down * free_y)))
    pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(height, width, 4)
    pixels = pixels.permute(2, 0, 1).float() / 255
    return pixels[:3] * 2 - 1, pixels[3:] * stamp.opacity


def _text_picture(stamp: Stamp, width: int) -> Image.Image:
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
    with Image.open(str(stamp.image)) as picture:
        return picture.convert("RGBA")


@dataclass
class StampDetector:
    """Says how strongly a stamp is present in an image.

    The score is the zero-mean normalised cross-correlation between the stamp and the image, in a window around the
    stamp's place and over the three colour channels: 1 for the stamp itself whatever its contrast and brightness, near
    0 where there is none.

    Args:
        stamp: the stamp to look for.
        threshold: scores above it count as stamped. 0.5 until :meth:`calibrate` has set it.
        false_positive_rate: what :meth:`calibrate` was asked for; None before.
        calibrated_on: how many unstamped outputs it saw.

    Example:
        >>> stamp = Stamp("AI-EDITED")
        >>> noise = torch.rand(50, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> detector = StampDetector(stamp).calibrate(noise)
        >>> bool(detector(stamp.compose(noise)).all()), bool(detector(noise).any())
        (True, False)
    """

    stamp: Stamp
    threshold: float = 0.5
    false_positive_rate: float | None = None
    calibrated_on: int = 0

    def settings(self) -> dict[str, float | int | None]:
        """Threshold, the false-positive rate that it was set for, and on how many outputs."""
        return {
            "threshold": round(self.threshold, 4),
            "false_positive_rate": self.false_positive_rate,
            "calibrated_on": self.calibrated_on,
        }

    def score(self, images: Tensor) -> Tensor:
        """How strongly the stamp is present in images (N, 3, H, W): (N,), from -1 to 1."""
        colour, alpha = (part.to(images) for part in self.stamp.layer(*images.shape[-2:]))
        rows, columns = (_window(alpha[0].amax(axis)) for axis in (1, 0))
        template = (alpha * colour)[:, rows, columns]
        seen = images[:, :, rows, columns]
        template = template - template.mean((1, 2), keepdim=True)
        seen = seen - seen.mean((2, 3), keepdim=True)
        scale = (template.norm() * seen.flatten(1).norm(dim=1)).clamp_min(1e-6)
        return (seen * template).sum((1, 2, 3)) / scale

    def __call__(self, images: Tensor) -> Tensor:
        """Which of the images (N, 3, H, W) carry the stamp: bool (N,)."""
        return self.score(images) > self.threshold

    def calibrate(self, unstamped: Tensor, false_positive_rate: float = 0.001) -> StampDetector:
        """Set the threshold from outputs (N, 3, H, W) that carry no stamp; returns itself.

        The false-positive rate asks for a score that unstamped outputs exceed no more often: the higher of their
        empirical quantile and of the normal one, mean + z * std, so that a sample smaller than
        `1 / false_positive_rate` supports it too. The threshold is two thirds of the way from there to what nearly all
        (99%) of the same outputs score once the stamp is laid onto them: perturbed outputs do not cross it by chance,
        nor does a smear that nobody can read.

        Raises:
            ValueError: for fewer than 20 outputs, or a stamp so faint that it cannot be told from none at this rate.
        """
        if len(unstamped) < FEWEST_OUTPUTS:
            raise ValueError(f"Calibration needs at least {FEWEST_OUTPUTS} unstamped outputs, got {len(unstamped)}.")
        scores = self.score(unstamped).double()
        normal = scores.mean() + NormalDist().inv_cdf(1 - false_positive_rate) * scores.std()
        bound = float(torch.maximum(scores.quantile(1 - false_positive_rate), normal))
        stamped = float(self.score(self.stamp.compose(unstamped)).double().quantile(0.01))
        if stamped <= bound:
            raise ValueError(
                f"The stamp cannot be told from none: stamped outputs score {stamped:.2f}, unstamped ones up to "
                f"{bound:.2f} at a false-positive rate of {false_positive_rate}. Make it larger or less transparent."
            )
        self.threshold = bound + (stamped - bound) * 2 / 3
        self.false_positive_rate, self.calibrated_on = false_positive_rate, len(scores)
        return self


def _window(presence: Tensor, margin: int = 2) -> slice:
    """The stretch of an axis where a stamp is, and a little around it."""
    where = presence.nonzero()
    return slice(max(0, int(where.min()) - margin), int(where.max()) + 1 + margin)
