"""The pictures of an audit: as strips that a page can embed, and as one grid."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from loraguard.pixels import as_rgb, to_picture

from .claim import called
from .result import AuditResult
from .situation import NO_CHANNEL, UNTOUCHED, Treatment

MOST_PHOTOS = 6
"""Photos in a strip."""

MOST_ROWS = 30
"""Of the grid; of more defenses than fit, those are shown that spoil most of the untouched generator's outputs."""

PAGE_BYTES = 2_500_000
"""Pictures on a page: made smaller until those without a channel fit; the last that still do not are left out."""

SIZES = (128, 96, 64)
"""Heights of a photo on a page, in pixels; none is enlarged."""

Key = tuple[str, str, str, str]
"""Generator or "photo", defense, knowledge, channel."""


@dataclass(frozen=True)
class Strip:
    """The same photos in one situation, side by side.

    Attributes:
        group: the generator whose outputs they are, or "photo".
        photo: what was done to the photos.
        channel: what they went through.
        images: (k, 3, H, W) in [-1, 1].
    """

    group: str
    treatment: Treatment
    channel: str
    images: Tensor

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.group, self.treatment.defense, self.treatment.knowledge, self.channel

    @property
    def label(self) -> str:
        """What was done to the photos, in words."""
        return self.treatment.words if self.channel == NO_CHANNEL else f"{self.treatment.words}, through {self.channel}"

    def picture(self, height: int, gap: int = 0) -> Image.Image:
        """The images at a height in pixels, with a gap between them."""
        width = round(height * self.images.shape[3] / self.images.shape[2])
        page = Image.new("RGB", (len(self.images) * (width + gap) - gap, height), "white")
        for at, one in enumerate(self.images):
            resized = to_picture(as_rgb(one)).resize((width, height), Image.Resampling.BICUBIC)
            page.paste(resized, (at * (width + gap), 0))
        return page


def strips(result: AuditResult) -> list[Strip]:
    """Photos first, then each generator's outputs; those without a channel before those behind one.

    Of photos that were crafted on another generator than the untouched one, only the outputs are shown.
    """
    found = []
    for (group, defense, knowledge, last), images in result.pictures.items():
        crafted_elsewhere = group == "photo" and knowledge not in ("clean", "noise", "no-leak")
        if not crafted_elsewhere:
            channel = NO_CHANNEL if group == "photo" else last
            found.append(Strip(group, Treatment(defense, knowledge), channel, images[:MOST_PHOTOS]))
    order = ["photo", *dict.fromkeys(one.generator for one in result.situations)]
    return sorted(found, key=lambda one: (one.channel != NO_CHANNEL, order.index(one.group)))


def embedded(wanted: Sequence[Strip], most: int) -> dict[Key, str]:
    """As many strips as fit, the first ones first, as data URIs of WebP pictures, all at the same height.

    Args:
        wanted: the most important ones first.
        most: bytes of all URIs.
    """
    for size in SIZES:
        uris: dict[Key, str] = {}
        room = most
        for one in wanted:
            uri = _data_uri(one.picture(min(size, max(s.images.shape[2] for s in wanted))))
            if (room := room - len(uri)) < 0:
                break
            uris[one.key] = uri
        if all(one.key in uris for one in wanted if one.channel == NO_CHANNEL):
            break
    return uris


def draw_grid(result: AuditResult, height: int = 128) -> Image.Image:
    """The same photos in every situation without a channel, one situation a row, with labels."""
    rows, left_out = _few([one for one in strips(result) if one.channel == NO_CHANNEL], result)
    small, large = ImageFont.load_default(14), ImageFont.load_default(15)
    margin = round(max((small.getlength(one.label) for one in rows), default=150)) + 24
    gap, head = 4, 28
    drawn = [one.picture(height, gap=2) for one in rows]
    heads = len({one.group for one in rows})
    size = margin + max((one.width for one in drawn), default=300) + 12, 40 + heads * head + len(rows) * (height + gap)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    y, before = 6, None
    for one, picture in zip(rows, drawn, strict=True):
        if one.group != before:
            draw.text((12, y + 6), heading(result, one.group), fill="#1c2733", font=large)
            y, before = y + head, one.group
        draw.text((12, y + height // 2 - 8), one.label, fill="#4a5866", font=small)
        page.paste(picture, (margin, y))
        y += height + gap
    note = f"Left out: {', '.join(left_out)}" if left_out else "" if rows else "No pictures were kept."
    draw.text((12, y + 6), note, fill="#4a5866", font=small)
    return page


def heading(result: AuditResult, group: str) -> str:
    """What a group of strips is called."""
    name = "the photos" if group == "photo" else called(result, group)
    return name.removeprefix("the ")[0].upper() + name.removeprefix("the ")[1:]


def _few(rows: list[Strip], result: AuditResult) -> tuple[list[Strip], list[str]]:
    """No more rows than a grid takes, and the defenses that are left out for that."""
    worth = {one.treatment.defense: one.estimates["dsr"].mean or 0.0 for one in
             result.find(generator=UNTOUCHED, knowledge="no-leak", role="main", channel=NO_CHANNEL)}  # fmt: skip
    kept = sorted(result.defenses, key=lambda name: -worth[name])

    def with_kept(names: Iterable[str]) -> list[Strip]:
        return [one for one in rows if one.treatment.defense in ("none", "noise", *names)]

    while len(kept) > 1 and len(with_kept(kept)) > MOST_ROWS:
        kept.pop()
    return with_kept(kept), [name for name in result.defenses if name not in kept]


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
