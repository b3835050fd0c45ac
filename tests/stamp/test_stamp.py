"""The stamp against alpha blending by hand and by Pillow, and the detector's error rates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import get_data_path
from PIL import Image
from torch import Tensor

from loraguard import Stamp, StampDetector
from loraguard.data import DemoFaces
from loraguard.stamp import PLACES

SERIF = str(Path(get_data_path(), "fonts/ttf/DejaVuSerif.ttf"))


@pytest.fixture
def logo(tmp_path: Path) -> str:
    """A red square with a half-transparent green one in it."""
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    picture.paste((0, 255, 0, 128), (5, 5, 15, 15))
    picture.save(tmp_path / "logo.png")
    return str(tmp_path / "logo.png")


def photos(n: int = 4, size: int = 64) -> Tensor:
    faces = DemoFaces(n, size=size, split="stamp")
    return torch.stack([sample["image"] for sample in faces.__getitems__(list(range(n)))])


def test_compose_is_alpha_blending_as_pillow_does_it(logo: str) -> None:
    stamp = Stamp(image=logo, size=20 / 64, place="top-left", margin=0.0)
    images = photos(1)
    rgb = Image.fromarray(((images[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).convert("RGBA")
    rgb.alpha_composite(Image.open(logo), (0, 0))
    expected = torch.tensor(np.asarray(rgb.convert("RGB")).copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(stamp.compose(images)[0], expected, atol=1.01 / 127.5)


def test_opacity_blends_towards_the_photo() -> None:
    images = photos()
    solid, half = (Stamp("AI", opacity=opacity).compose(images) for opacity in (1.0, 0.5))
    assert torch.allclose(half, (solid + images) / 2, atol=1e-5)


def test_nothing_changes_outside_of_the_stamp() -> None:
    stamp, images = Stamp("AI", place="bottom-left", size=0.4), photos()
    _, alpha = stamp.layer(64, 64)
    changed = (stamp.compose(images) != images).any(0).any(0)
    assert not (changed & (alpha[0] == 0)).any()
    assert changed[-30:, :30].any()


@pytest.mark.parametrize("place", PLACES)
def test_place(place: str) -> None:
    _, alpha = Stamp("AI", place=place, size=0.3, margin=0.0).layer(90, 60)
    rows, columns = (alpha[0].amax(axis).nonzero().double().mean().item() for axis in (1, 0))
    across, down = PLACES[place]
    for where, length, fraction in ((columns, 60, across), (rows, 90, down)):
        side = -1 if where < length * 0.4 else 1 if where > length * 0.6 else 0
        assert side == {0.0: -1, 0.5: 0, 1.0: 1}[fraction]


@pytest.mark.parametrize("size", [0.25, 0.5, 1.0])
def test_size_is_a_fraction_of_the_width(size: float) -> None:
    _, alpha = Stamp("AI-EDITED", size=size, background="black", margin=0.0).layer(128, 128)
    assert (alpha[0].amax(0) > 0).sum() == pytest.approx(128 * size, abs=1)


@pytest.mark.parametrize("text", ["AI-EDITED", "Généré par IA", "Создано ИИ", "AI\nEDIT", "ΤΝ"])
def test_scripts_of_the_default_font(text: str) -> None:
    images = photos(size=128)
    stamp = Stamp(text)
    assert (StampDetector(stamp).score(stamp.compose(images)) > 0.6).all()


def test_colours_and_outline() -> None:
    colour, alpha = Stamp("I", colour="#00ff00", outline=None, background="#0000ff", size=0.5).layer(64, 64)
    assert set(alpha.unique().tolist()) == {0.0, 1.0}
    inside = colour[:, alpha[0] == 1]
    assert (inside[0] == -1).all()
    assert inside[1].max() == 1
    assert inside[2].max() == 1


def test_a_font_by_file_and_by_name() -> None:
    by_file, by_name = (Stamp("AI", font=font).layer(64, 64)[1] for font in (SERIF, "DejaVu Serif"))
    assert torch.equal(by_file, by_name)
    assert not torch.equal(by_file, Stamp("AI").layer(64, 64)[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either a text or an image"),
        ({"text": "AI", "image": "x.png"}, "either a text or an image"),
        ({"text": "  "}, "empty"),
        ({"text": "AI", "place": "middle"}, "'middle'.*center"),
        ({"text": "AI", "size": 1.5}, "size=1.5 would make the stamp larger than the image"),
        ({"text": "AI", "size": 0}, "size=0"),
        ({"text": "AI", "opacity": 2}, "opacity=2"),
        ({"text": "AI", "margin": 0.7}, "margin=0.7"),
        ({"text": "AI", "colour": "octarine"}, "octarine"),
        ({"text": "AI", "font": "/nowhere/font.ttf"}, "'/nowhere/font.ttf' does not exist"),
        ({"text": "AI", "font": "Nonesuch Sans"}, "'Nonesuch Sans' is installed"),
        ({"text": "AI \U0001fae8", "font": SERIF}, "lacks the characters"),
        ({"text": "\U000f0000"}, "No installed font"),
    ],
)
def test_bad_stamps(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Stamp(**arguments)


def test_a_picture_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        Stamp(image="nowhere.png")


def test_a_stamp_higher_than_the_image() -> None:
    with pytest.raises(ValueError, match="larger than the 64x16 image"):
        Stamp("A\nB\nC", size=0.9).compose(torch.zeros(1, 3, 16, 64))


def test_a_stamp_too_small_to_read_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="hard to read"):
        Stamp("generated by artificial intelligence").layer(32, 32)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 2, 64, 64)])
def test_compose_refuses_other_shapes(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        Stamp("AI").compose(torch.zeros(shape))


def test_detector_rates_on_faces_it_was_not_calibrated_on() -> None:
    stamp = Stamp("AI", place="bottom-left", size=0.4, background="#b00020", outline=None)
    images = photos(400)
    detector = StampDetector(stamp).calibrate(images[:200], false_positive_rate=0.005)
    assert detector(images[200:]).double().mean() <= 0.02
    assert detector(stamp.compose(images[200:])).all()
    fainter = replace(stamp, opacity=0.7)
    assert detector(fainter.compose(images[200:])).double().mean() > 0.9
    assert detector.settings()["calibrated_on"] == 200


def test_score_ignores_brightness_and_contrast_but_not_place() -> None:
    stamp = Stamp("AI", place="bottom-left", size=0.4, background="black")
    stamped = stamp.compose(photos())
    detector = StampDetector(stamp)
    assert torch.allclose(detector.score(stamped), detector.score(stamped * 0.5 + 0.2), atol=1e-5)
    assert (detector.score(stamped.flip(3)) < 0.5).all()
    assert torch.allclose(detector.score(-stamped), -detector.score(stamped), atol=1e-5)


def test_a_flat_image_scores_zero() -> None:
    assert StampDetector(Stamp("AI")).score(torch.zeros(2, 3, 64, 64)).tolist() == [0, 0]


def test_a_stamp_too_faint_to_be_told_from_none() -> None:
    with pytest.raises(ValueError, match="cannot be told from none"):
        StampDetector(Stamp("AI", opacity=0.004)).calibrate(photos(30))


def test_calibration_needs_enough_outputs() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        StampDetector(Stamp("AI")).calibrate(photos(5))
