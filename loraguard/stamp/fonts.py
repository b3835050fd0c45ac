"""Fonts that have the characters of a stamp, a visible watermark, and can lay them out."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import features


def find_font(font: str | None, text: str) -> str:
    """Path of a font file that has every character of `text`.

    Args:
        font: a file, the name of an installed family, or None to look for any font that covers the text.
        text: what is to be written with it.

    Raises:
        ValueError: if there is no such font, it lacks a character, or Pillow cannot lay the text out.

    Example:
        >>> Path(find_font(None, "Создано ИИ")).name
        'DejaVuSans-Bold.ttf'
    """
    from matplotlib import font_manager

    if (letters := shaped_characters(text)) and not features.check("raqm"):
        raise ValueError(
            f"The characters {letters!r:.60} of the stamp {text!r:.60} are written from right to left or joined to "
            "others, which Pillow does by libraqm, and this Pillow has none: install libraqm (libraqm0, with FriBiDi), "
            "or take a picture of the text as the stamp's image."
        )
    if font is None:
        default = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
        if not missing_characters(default, text):
            return default
        for path, *_ in _installed():
            if not missing_characters(path, text):
                return path
        raise ValueError(
            f"No installed font has the characters {missing_characters(default, text)!r:.60} of the stamp {text!r:.60}"
            ": install one (Noto has them for every script) or pass font='path/to/font.ttf' (--font)."
        )
    if Path(font).suffix.lower() in (".ttf", ".otf", ".ttc"):
        if not Path(font).is_file():
            raise ValueError(f"The font file {font!r} does not exist; pass a .ttf or .otf file or a family's name.")
        path = font
    else:
        try:
            path = font_manager.findfont(font, fallback_to_default=False)
        except ValueError:  # matplotlib's list may be older than the font
            found = [path for path, family, _ in _installed() if family.lower() == font.lower()]
            if not found:
                raise ValueError(
                    f"No font family {font!r} is installed; pass a font file, another family, or None for a default."
                ) from None
            path = found[0]
    if missing := missing_characters(path, text):
        raise ValueError(
            f"The font {font!r} lacks the characters {missing!r:.60} of the stamp {text!r:.60}; pass another one."
        )
    return path


@lru_cache(maxsize=1024)
def missing_characters(path: str, text: str) -> str:
    """The characters of `text` that the font file has no glyph for (all, if it cannot be read).

    Characters that are never seen (spaces, joiners, marks of direction) are not looked for.
    """
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(path).get_charmap()
    except (RuntimeError, OSError):
        return text
    unseen = {c for c in text if c.isspace() or unicodedata.category(c) == "Cf"}
    return "".join(c for c in text if c not in unseen and ord(c) not in known)


def shaped_characters(text: str) -> str:
    """The characters of `text` that one glyph after another, from left to right, would write wrongly.

    Those are letters of scripts that run from right to left, and marks that combine with a letter.

    Example:
        >>> shaped_characters("AI ИИ 人工"), shaped_characters("AI בינה")
        ('', 'בינה')
    """
    return "".join(
        c for c in text if unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in ("Mc", "Mn")
    )


@lru_cache(maxsize=1)
def _installed() -> list[tuple[str, str, str]]:
    """Path, family and style of the installed fonts, bold sans-serif ones first.

    Read from the system, as matplotlib keeps a list that does not know of fonts installed since it was made.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    fonts = []
    for path in font_manager.findSystemFonts():
        try:
            font = FT2Font(path)
        except (RuntimeError, OSError):
            continue
        if "last resort" not in font.family_name.lower():  # boxes for everything
            fonts.append((path, font.family_name, font.style_name))
    return sorted(fonts, key=lambda font: ("sans" not in font[1].lower(), font[2] != "Bold", font))
