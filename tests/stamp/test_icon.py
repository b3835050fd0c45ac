"""The EU's icon as a stamp: its letters, colours and the size below which nobody reads them."""

import warnings

import pytest
import torch

from loraguard.stamp import eu_icon, legible_width
from loraguard.stamp.icon import WORDS


@pytest.mark.parametrize("language", WORDS)
def test_every_language_is_drawn(language: str) -> None:
    for variant in ("basic", "generated", "modified"):
        icon = eu_icon(variant, language)
        assert icon.text is not None
        assert icon.text.splitlines()[0] == "AI"
        assert len(icon.text.splitlines()) == (1 if variant == "basic" else 2)
        assert icon.text == icon.text.upper()
        assert (icon.compose(torch.zeros(1, 3, 128, 128)) != 0).any()


@pytest.mark.parametrize(("colour", "level"), [("black", -1.0), ("white", 1.0)])
@pytest.mark.parametrize("half", [False, True])
def test_colours_and_transparency(colour: str, level: float, half: bool) -> None:
    """On grey, the letters' inside is the colour, or half way to it."""
    drawn = eu_icon("basic", colour=colour, half_transparent=half, size=0.9).compose(torch.zeros(1, 3, 128, 128))
    assert float(drawn.flatten()[drawn.abs().argmax()]) == pytest.approx(level / 2 if half else level, abs=1e-6)
    assert drawn.unique().numel() > 2


@pytest.mark.parametrize("variant", ["basic", "generated"])
def test_a_legible_width_is_where_the_stamp_stops_to_warn(variant: str) -> None:
    width = legible_width(eu_icon(variant))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eu_icon(variant, size=(width + 1) / 400).compose(torch.zeros(1, 3, 400, 400))
    with pytest.warns(UserWarning, match="hard to read"):
        eu_icon(variant, size=(width - 3) / 400).compose(torch.zeros(1, 3, 400, 400))


@pytest.mark.parametrize("given", [{"variant": "made"}, {"language": "xx"}, {"colour": "red"}], ids=str)
def test_what_is_no_icon(given: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        eu_icon(**given)
