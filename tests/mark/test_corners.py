"""Marks in the corners of pictures of any size: where they stand, who reads them, and what a reader has to know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, Identity, Resize, WebP
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
        ({"sizes": (256,)}, "for the extractor 'corners'"),
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
    """One pixel by many, at a size that would take gigabytes: it is read as it is alone."""
    line = torch.zeros(1, 3, 1, 60_000)
    assert not reader(crops=False, sizes=(4096,))(line)[0].found
