"""The EU's icon for content that a machine made or changed, as a stamp (a visible watermark).

The Commission's Code of Practice on Transparency of AI-Generated Content (10 June 2026) has three icons for deployers:
the letters AI alone, with GENERATED, and with MODIFIED, each in black or white, opaque or half transparent. The
official artwork (SVG and PNG, free to use) is to be had from the Commission, on the page of the Code at
digital-strategy.ec.europa.eu; `Stamp(image="icon.png")` takes it. What is drawn here are the same letters in this
package's font: a stand-in to design and to train with, and not the official icon.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from .stamp import SMALLEST_LETTER, Stamp, sprite

Variant = Literal["basic", "generated", "modified"]
WORDS: dict[str, tuple[str, str]] = {
    "en": ("GENERATED", "MODIFIED"),
    "de": ("GENERIERT", "VERÄNDERT"),
    "es": ("GENERADO", "MODIFICADO"),
    "fr": ("GÉNÉRÉ", "MODIFIÉ"),
    "it": ("GENERATO", "MODIFICATO"),
    "nl": ("GEGENEREERD", "GEWIJZIGD"),
    "pt": ("GERADO", "MODIFICADO"),
}
"""By language, the words beside the letters; translations other than English are ours."""


def eu_icon(
    variant: Variant = "generated",
    language: str = "en",
    *,
    colour: Literal["black", "white"] = "black",
    half_transparent: bool = False,
    place: str = "top-left",
    size: float = 0.4,
    margin: float = 0.05,
    **settings: Any,
) -> Stamp:
    r"""The letters of the EU's icon as a stamp; the official artwork is the Commission's (see this module's text).

    Args:
        variant: "basic" for AI alone, "generated" for what a machine made, "modified" for what it changed.
        language: of the word, one of :data:`WORDS`; the letters AI stay.
        colour: of the letters.
        half_transparent: at 50%.
        place: as a :class:`Stamp` takes it, and so `size`, `margin` and other settings.
        size: width, as a fraction of the image's; :func:`legible_width` says how few pixels it can be.
        margin: to the image's edge, as a fraction of its width.
        **settings: of the stamp.

    Raises:
        ValueError: for another variant, language or colour, and what a stamp refuses.

    Example:
        >>> eu_icon("modified", "fr").text
        'AI\nMODIFIÉ'
    """
    if variant not in ("basic", "generated", "modified"):
        raise ValueError(f"variant={variant!r} must be basic, generated or modified.")
    if language not in WORDS:
        raise ValueError(f"language={language!r} must be one of {', '.join(WORDS)}; Stamp takes any other text.")
    if colour not in ("black", "white"):
        raise ValueError(f"colour={colour!r} must be black or white, which are the icon's.")
    word = "" if variant == "basic" else "\n" + WORDS[language][variant == "modified"]
    look = {"colour": colour, "opacity": 0.5 if half_transparent else 1.0, "outline": None} | settings
    return Stamp("AI" + word, place=place, size=size, margin=margin, **look)


def legible_width(stamp: Stamp) -> int:
    """The fewest pixels that a stamp with a text may be wide for letters of five pixels, below which nobody reads them.

    Example:
        >>> legible_width(eu_icon("basic")) < legible_width(eu_icon("generated"))
        True
    """
    colour, _ = sprite(stamp, 512)
    lines = len((stamp.text or "").splitlines()) or 1
    return math.ceil(512 * SMALLEST_LETTER * lines / colour.shape[1])
