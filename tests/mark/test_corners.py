"""Marks in the corners of pictures of any size: where they stand, who reads them, and what a reader has to know."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, Identity, Resize, WebP
from loraguard.channels.resize import bicubic
from loraguard.data import DemoFaces
from loraguard.mark import CornerNetwork, Mark, MarkReader, chance_of_agreement
from loraguard.mark.placements import corner_placements, placed
from loraguard.training.marking import CropInPlace, MarkedLoss

MARK = Mark("c0de", extractor="corners")
WHOLE = Mark("c0de")


def faces(n: int, size: int) -> Tensor:
    items = DemoFaces(n, size=size, split="marks").__getitems__(list(range(n)))
    return torch.stack([item["image"] for item in items])


def reader(**given: object) -> MarkReader:
    return MarkReader("corners", messages=[MARK], **given)  # type: ignore[arg-type]


def test_what_is_seen_are_the_corners_of_32_pixels() -> None:
    """NumPy's own slices of a picture that is not square."""
    image = torch.rand(2, 3, 80, 130)
    seen = CornerNetwork().view(image).numpy()
    blocks = [[image[..., y, x].numpy() for x in (slice(32), slice(98, None))] for y in (slice(32), slice(48, None))]
    assert np.array_equal(seen, np.block(blocks))


@pytest.mark.parametrize("side", [64, 65, 256])
def test_lines_are_where_the_view_takes_them(side: int) -> None:
    """A ramp along a side has the value of its place on each line."""
    ramp = ((torch.arange(side) + 0.5) / side).expand(1, 3, 64, side)
    network = CornerNetwork()
    torch.testing.assert_close(network.view(ramp)[0, 0, 0], network.lines(side))


def test_at_64_pixels_it_is_the_mark_of_the_whole_picture() -> None:
    images = faces(2, 64)
    assert torch.equal(MARK.compose(images), WHOLE.compose(images))
    assert torch.equal(MARK.logits(images), WHOLE.logits(images))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (256, 256), (300, 180)])
def test_nothing_but_the_corners_is_changed(height: int, width: int) -> None:
    """And there as a whole picture of 64 pixels is."""
    change = MARK.compose(torch.zeros(1, 3, height, width))
    assert not change[:, :, 32:-32].any()
    assert not change[..., 32:-32].any()
    assert torch.equal(CornerNetwork().view(change), WHOLE.compose(torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize("size", [(40, 50), (50, 200), (64, 64), (100, 90), (256, 256), (300, 512)])
def test_it_is_read_at_every_size(size: tuple[int, int]) -> None:
    images = F.interpolate(faces(2, 256), size, mode="bilinear", antialias=True)
    assert [one.found for one in reader(crops=False)(MARK.compose(images))] == [True, True]
    assert [one.found for one in reader(crops=False)(images)] == [False, False]


@pytest.mark.parametrize(
    "channel", [Identity(), JPEG(50), WebP(50), Resize(0.5), GaussianBlur(1.5), GaussianNoise(0.1)], ids=str
)
def test_it_survives_what_happens_to_large_pictures(channel: Channel) -> None:
    """At 256 pixels, on at least 3 of 4 faces."""
    torch.manual_seed(0)
    readings = reader(crops=False)(channel(MARK.compose(faces(4, 256))))
    assert sum(one.found for one in readings) >= 3


def test_of_a_resized_file_the_reader_has_to_know_the_size() -> None:
    """Shrunk by half by Pillow: read at the size that it was made at, and at no other."""
    marked = MARK.compose(faces(1, 256))[0]
    pixels = ((marked.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    half = np.asarray(Image.fromarray(pixels).resize((128, 128), Image.Resampling.LANCZOS), np.float32)
    small = torch.from_numpy(half).permute(2, 0, 1)[None] / 127.5 - 1
    known = reader(crops=False, sizes=(512, 256))(small)[0]
    assert (known.found, known.size) == (True, 256)
    assert known.chance == chance_of_agreement(known.agreeing, 48, tries=3)
    assert not reader(crops=False)(small)[0].found


def test_a_small_crop_is_found() -> None:
    """10 of 256 pixels off each axis, scaled back; every one of four readings counts against the chance."""
    torch.manual_seed(0)
    marked = CropResize(246 / 256)(MARK.compose(faces(1, 256)))
    reading = reader(sizes=(512,))(marked)[0]
    assert reading.found
    assert reading.cropped is not None
    assert reading.size is None
    for left, start in reading.cropped:
        assert left == pytest.approx(246 / 256, abs=2 / 256)
        assert 0 <= start + 1 / 256 <= 12 / 256
    assert reading.chance == chance_of_agreement(reading.agreeing, 48, tries=4)


def test_placements_undo_a_crop() -> None:
    """A smooth picture, cropped as a placement says and put back, has its own corners where they were not cropped."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 256), torch.linspace(0, 6, 256), indexing="ij")
    picture = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x)])[None] * 0.5
    network = CornerNetwork()
    whole = network.view(picture)[0]
    part = picture[..., 4:254, 2:252]
    place = ((250 / 256, 4 / 256), (250 / 256, 2 / 256))
    back = placed(F.interpolate(part, (256, 256), mode="bilinear"), [place], network)[0]
    kept = (slice(None), slice(5, 61), slice(3, 59))
    assert (back - whole)[kept].abs().max() < 0.02
    assert place in [tuple((round(256 * a) / 256, round(256 * b) / 256) for a, b in one)
                     for one in corner_placements(256, 256)]  # fmt: skip


def test_training_crops_by_pixels_of_the_corners() -> None:
    """What is moved by half a pixel of the view is half a pixel of the picture, not 1 / 128 of its side."""
    images = torch.linspace(-1, 1, 256).expand(1, 3, 256, 256).contiguous()
    moved = []
    for pixel in (CornerNetwork().pixel, CropInPlace().pixel):
        torch.manual_seed(1)
        cropped = CropInPlace(part=1.0, shift=0.5, pixel=pixel)(images)
        moved.append(float((cropped - images)[..., 100].abs().max()) * 255 / 2)
    assert 0 < moved[0] <= 0.5
    assert moved[1] == pytest.approx(4 * moved[0], rel=0.01)


def test_training_crops_no_more_than_the_reader_looks_for() -> None:
    """13 pixels of 256 in place of 26: each line of a ramp that is left has the value that it had."""
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 256).expand(1, 3, 256, 256).contiguous()
    for _ in range(5):
        cropped = CropInPlace(shift=0.0, pixel=CornerNetwork().pixel, most=CornerNetwork.most_cropped)(ramp)
        assert int((cropped - ramp).abs().amax((0, 1, 2)).gt(1e-4).sum()) == 13


def test_the_loss_reads_corners() -> None:
    torch.manual_seed(0)
    loss, grey = MarkedLoss(F.mse_loss, MARK), torch.zeros(1, 3, 160, 160)
    other = Mark("beef", extractor="corners")
    pairs = [(float(loss(MARK.compose(grey), grey)), float(loss(other.compose(grey), grey))) for _ in range(9)]
    assert all(right < wrong for right, wrong in pairs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sizes": (256,)}, "for extractors such as 'corners'"),
        ({"extractor": "corners", "sizes": 256}, r"must be a list, as in \[256\]"),
        ({"extractor": "corners", "sizes": (0,)}, "from 1 to 8192, got 0"),
        ({"extractor": "corners", "sizes": (True,)}, "got True"),
        ({"extractor": "corners", "messages": [WHOLE]}, "read by the extractor 'loraguard', and this is 'corners'"),
    ],
    ids=str,
)
def test_what_cannot_be_read(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MarkReader(**given)


def test_a_line_of_pixels_is_not_blown_up() -> None:
    """One pixel by many, at a size that would take gigabytes: it is read as it is, where few crops are possible."""
    line = torch.zeros(1, 3, 1, 60_000)
    assert not reader(sizes=(4096,))(line)[0].found


@pytest.mark.parametrize(("height", "width"), [(64, 200), (65, 60_000), (256, 512), (256, 4096), (3000, 1000)])
def test_places_of_long_pictures_are_few_and_leave_a_part_of_each_corner(height: int, width: int) -> None:
    places = corner_placements(height, width)
    assert len(places) <= 1100
    assert all(
        (1 - part) * side <= 32 + 1e-6 for one in places for (part, _), side in zip(one, (height, width), strict=True)
    )


@pytest.mark.parametrize("size", [(64, 200), (50, 256)])
def test_crops_of_long_low_pictures_are_found(size: tuple[int, int]) -> None:
    """By 3%: as pixels of the long side count, 6 to 8 of them."""
    torch.manual_seed(0)
    images = F.interpolate(faces(3, 256), size, mode="bilinear", antialias=True)
    assert all(one.found for one in reader()(CropResize(0.97)(MARK.compose(images))))


def test_places_are_as_exact_in_half_precision() -> None:
    """Half precision knows places of 1,024 pixels to half a pixel: it is the picture's, not the places'."""
    image, network = torch.rand(1, 3, 64, 1024).half(), CornerNetwork()
    some = corner_placements(64, 1024)
    exact = placed(image.float(), some, network)
    torch.testing.assert_close(placed(image, some, network).float(), exact, atol=1e-3, rtol=0)


def test_large_pictures_are_not_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three sizes at most the one before is there when the next is made; the picture's own size is not made."""
    made: list[weakref.ref[Tensor]] = []

    def watched(images: Tensor, size: list[int]) -> Tensor:
        assert sum(one() is not None for one in made) <= 1
        made.append(weakref.ref(found := bicubic(images, size)))
        return found

    monkeypatch.setattr("loraguard.mark.reader.bicubic", watched)
    assert not reader(sizes=(72, 80, 70, 90))(torch.zeros(1, 3, 70, 70))[0].found
    assert len(made) == 6  # of three sizes, whole and cropped


def test_readers_of_the_same_settings_are_equal() -> None:
    assert reader(sizes=[80]) == reader(sizes=(80,)) != reader()


def test_a_size_that_is_named_twice_costs_once() -> None:
    once, twice = (reader(crops=False, sizes=sizes)(torch.zeros(1, 3, 70, 70))[0] for sizes in ((80,), [80, 80]))
    assert once == twice


class Middle(torch.nn.Module):
    """Reads 16 bits: whether each pixel in the middle 4x4 is bright."""

    bits = 16

    def forward(self, images: Tensor) -> Tensor:
        top, left = ((side - 4) // 2 for side in images.shape[-2:])
        return images[:, 0, top : top + 4, left : left + 4].flatten(1)


def test_sizes_are_for_every_extractor_that_looks_at_pixels() -> None:
    mark, image = Mark(word="0110" * 4, extractor=Middle()), torch.zeros(1, 3, 20, 20)
    image[:, :, 8:12, 8:12] = mark.target.view(4, 4)
    large = F.interpolate(image, scale_factor=3)
    one = MarkReader(mark.extractor, [mark], false_positive_rate=1e-3, sizes=(20,))(large)[0]
    assert (one.found, one.size, one.agreeing) == (True, 20, 16)
