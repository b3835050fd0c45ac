"""Scripts: their fonts, with one that is built here; their direction, against Pillow's letter-by-letter layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, features

from loraguard import Stamp
from loraguard.stamp import find_font, fonts, missing_characters
from loraguard.stamp.stamp import _text_picture


@pytest.fixture
def chinese(tmp_path: Path) -> str:
    """A font, "Tiny Stamp", with two characters that are squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "ren", "gong"])
    builder.setupCharacterMap({ord("人"): "ren", ord("工"): "gong"})
    builder.setupGlyf(dict.fromkeys([".notdef", "ren", "gong"], pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "ren", "gong"], (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Tiny Stamp", "styleName": "Bold"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "tiny.ttf")
    return str(tmp_path / "tiny.ttf")


@pytest.fixture
def installed(chinese: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same, installed since matplotlib made its list."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [chinese, "/nowhere.ttf"])
    fonts._installed.cache_clear()
    yield chinese
    fonts._installed.cache_clear()


def test_a_font_by_file(chinese: str) -> None:
    _, alpha = Stamp("人工", font=chinese, outline=None, size=0.5, margin=0.0).layer(64, 64)
    assert alpha.max() == 1
    with pytest.raises(ValueError, match=r"tiny\.ttf' lacks the characters '智能' of the stamp '人工智能'"):
        Stamp("人工智能", font=chinese)


def test_an_installed_font_is_found_by_what_it_covers_and_by_name(installed: str) -> None:
    assert find_font(None, "人工") == installed
    assert find_font("tiny stamp", "人") == installed
    with pytest.raises(ValueError, match="No installed font has the characters '人能'"):
        find_font(None, "人能")


def test_characters_that_are_never_seen_need_no_glyph(chinese: str) -> None:
    assert missing_characters(chinese, "人\u200d工 \u200e\n") == ""
    assert missing_characters(chinese, "人A") == "A"


def test_hebrew_runs_from_right_to_left() -> None:
    """As its letters in reverse order do, one after another."""
    stamp = Stamp("אבגד", outline=None)
    font = ImageFont.truetype(find_font(None, "אבגד"), 128, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), "דגבא", font=font)
    expected = Image.new("RGBA", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(expected).text((-left, -top), "דגבא", font=font, fill="white")
    found, expected = (np.asarray(picture, float)[:, :300, 3] for picture in (_text_picture(stamp), expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.1 * np.abs(found - found[:, ::-1]).mean()


def test_arabic_letters_are_joined() -> None:
    """Three letters that join are one stroke; the same letters kept apart are three."""

    def strokes(text: str) -> int:
        seen = np.asarray(_text_picture(Stamp(text, outline=None)))[:, :, 3].max(0) > 0
        return int(np.count_nonzero(np.diff(seen, prepend=False) & seen))

    assert strokes("ببب") == 1
    assert strokes("ب\u200cب\u200cب") == 3


@pytest.mark.parametrize("text", ["בינה", "ذكاء", "हिंदी", "AI ב"])
def test_without_raqm_what_needs_it_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(ValueError, match="libraqm"):
        Stamp(text)
    Stamp("AI ИИ ΤΝ é")
