"""The reader of stamps against skimage, scipy and brute force, and on images that it never saw."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from skimage.feature import match_template
from torch import Tensor
from torch.nn import functional as F

from loraguard import Stamp, StampReader
from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, Identity, Resize
from loraguard.data import DemoFaces
from loraguard.stamp.reader import _Correlator, most_likely_share

PLATE = Stamp("AI", place="bottom-left", size=0.4, margin=0.1, background="#b00020", outline=None)
STAMPS = {"AI": PLATE, "ИИ": replace(PLATE, text="ИИ"), "letters": Stamp("AI-EDITED", size=0.8, margin=0.12)}


def photos(n: int, size: int = 64, split: str = "reader") -> Tensor:
    return torch.stack([face["image"] for face in DemoFaces(n, size=size, split=split).__getitems__(list(range(n)))])


@pytest.fixture(scope="module")
def reader() -> StampReader:
    return StampReader(STAMPS).calibrate(photos(120))


def centred(template: Tensor) -> Tensor:
    return template - template.mean((1, 2), keepdim=True)


def test_the_correlation_is_that_of_skimage() -> None:
    """Of grey images, where all three channels say the same."""
    torch.manual_seed(0)
    images, template = torch.rand(3, 1, 30, 40).expand(-1, 3, -1, -1), torch.rand(1, 7, 9).expand(3, -1, -1)
    found = _Correlator(images, [0, 0]).highest([centred(template)])
    expected = [match_template(image[0].numpy(), template[0].numpy()).max() for image in images]
    assert np.allclose(found, expected, atol=1e-6)


def test_the_correlation_over_a_border_is_that_of_a_loop() -> None:
    """Pearson's coefficient of what lies inside, at least three quarters of the template, channels' means taken off."""
    torch.manual_seed(0)
    image, template = torch.rand(3, 12, 11), centred(torch.rand(3, 4, 5))
    best = -1.0
    for top in range(-3, 12):
        for left in range(-3, 11):
            rows = range(max(0, -top), min(4, 12 - top))
            columns = range(max(0, -left), min(5, 11 - left))
            if len(rows) * len(columns) < 15:
                continue
            part = template[:, rows.start : rows.stop, columns.start : columns.stop].double()
            seen = image[:, top + rows.start : top + rows.stop, left + columns.start : left + columns.stop].double()
            part, seen = centred(part), centred(seen)
            if part.square().sum() > 0:
                best = max(best, float((part * seen).sum() / (part.norm() * seen.norm())))
    assert float(_Correlator(image[None], [2, 2]).highest([template])) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 300), (1, 300), (7, 40), (39, 40), (40, 40), (0, 20_000)])
def test_the_bound_is_what_binomials_say(count: int, n: int) -> None:
    """At the bound, so few or fewer are seen with a probability of 5%, summed up here; and it is binomtest's."""
    q = most_likely_share(count, n)
    terms = [math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(count + 1)]
    assert sum(terms) == pytest.approx(0.05 if count < n else 1, rel=1e-8)
    expected = binomtest(count, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert most_likely_share(count, n) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(
    "channel", [Identity(), JPEG(50), Resize(0.5), CropResize(0.9), GaussianBlur(1.0)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("name", STAMPS)
def test_each_stamp_is_read_whatever_becomes_of_the_image(reader: StampReader, channel: Channel, name: str) -> None:
    torch.manual_seed(0)
    stamped = STAMPS[name].compose(photos(5, 96, "unseen"))
    assert reader(channel(stamped)) == [name] * 5


def test_a_half_sized_image_and_one_that_is_not_square(reader: StampReader) -> None:
    stamped = PLATE.compose(photos(4, 128, "unseen"))
    assert reader(F.interpolate(stamped, scale_factor=0.5, mode="bilinear")) == ["AI"] * 4
    assert reader(stamped[..., 30:, :]) == ["AI"] * 4


def test_where_there_is_none_none_is_read(reader: StampReader) -> None:
    """Within the bound that it states, on 100 others; and not on images without any contrast."""
    assert (reader.checked_on, reader.false_positives) == (60, 0)
    assert reader.false_positive_bound == pytest.approx(1 - 0.05 ** (1 / 60), abs=1e-6)
    found = reader(photos(100, split="unseen"))
    assert sum(name is not None for name in found) <= 100 * reader.false_positive_bound
    assert reader(torch.zeros(2, 3, 64, 64)) == [None, None]


def test_more_stamps_need_more_evidence() -> None:
    """The rate is that of any of them."""
    images = photos(20)
    one, three = StampReader({"AI": PLATE}).calibrate(images), StampReader(STAMPS).calibrate(images)
    assert three.thresholds["AI"] > one.thresholds["AI"]


def test_images_of_several_sizes_calibrate_as_well() -> None:
    images = [*photos(10, 64), *photos(11, 80)]
    assert StampReader({"AI": PLATE}).calibrate(images).checked_on == 10


def test_a_stamp_of_a_fixed_width_in_pixels() -> None:
    stamp = replace(PLATE, of_width=64)
    small, large = stamp.layer(64, 64), stamp.layer(128, 160)
    for a, b in zip(small, large, strict=True):
        assert torch.equal(a[:, -40:, :40], b[:, -40:, :40])
    assert large[1][..., 40:].max() == 0
    images = photos(4, 128, "unseen")
    assert StampReader({"AI": stamp}).calibrate(photos(20, 128))(stamp.compose(images)) == ["AI"] * 4


def test_stamps_that_cannot_be_told_apart_or_from_none() -> None:
    images = photos(20)
    with pytest.raises(ValueError, match="'again' is read as 'AI': they are too much alike"):
        StampReader({"AI": PLATE, "again": PLATE}).calibrate(images)
    with pytest.raises(ValueError, match="'faint' cannot be told from none"):
        StampReader({"faint": replace(PLATE, opacity=0.01)}).calibrate(images)


def test_what_a_reader_refuses() -> None:
    with pytest.raises(ValueError, match="no stamp to read"):
        StampReader({})
    with pytest.raises(ValueError, match=r"Thresholds are for \['B'\], the stamps are \['A'\]"):
        StampReader({"A": PLATE}, thresholds={"B": 0.5})
    with pytest.raises(ValueError, match="at least 20 unstamped images, got 5"):
        StampReader({"A": PLATE}).calibrate(photos(5))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        StampReader({"A": PLATE}).scores(torch.zeros(3, 64, 64))
