"""Marks and their reader: what is composed is read, after what happens to pictures, and nothing is read elsewhere."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.stats import binom
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, Identity, Resize
from loraguard.data import DemoFaces
from loraguard.generators import DemoEditor
from loraguard.mark import Layout, Mark, MarkNetwork, MarkReader, chance_of_agreement
from loraguard.mark.placements import PLACEMENTS, Placement, placed
from loraguard.pixels import from_bytes

MARK = Mark("c0de")


def faces(n: int, size: int = 64) -> Tensor:
    items = DemoFaces(n, size=size, split="marks").__getitems__(list(range(n)))
    return torch.stack([item["image"] for item in items])


def photos() -> list[Tensor]:
    """Photos that scikit-image ships, in colours, at their own sizes."""
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    return [from_bytes(torch.from_numpy(one.copy()).permute(2, 0, 1)) for one in pictures]


class Sums(nn.Module):
    """An extractor of one's own, without a pattern: each bit is the sign of a random projection."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 64, 20)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(F.adaptive_avg_pool2d(images, 8).flatten(1))


@pytest.mark.parametrize("size", [64, 100, 256, 512])
def test_a_composed_mark_is_read_at_every_size(size: int) -> None:
    images = faces(2, size)
    marked = MARK.compose(images)
    assert [(one.found, one.message) for one in MarkReader(messages=["c0de"])(marked)] == [(True, "c0de")] * 2
    error = (marked - images).square().mean((1, 2, 3))
    assert bool((error <= 4 * 10**-3.6 * 1.001).all())  # clipping only takes away


@pytest.mark.parametrize(
    "channel", [Identity(), JPEG(50), Resize(0.5), CropResize(0.9), GaussianBlur(1.5), GaussianNoise(0.1)], ids=str
)
def test_a_known_mark_survives_what_happens_to_pictures(channel: Channel) -> None:
    """At 128 pixels, on at least 3 of 4 faces."""
    torch.manual_seed(0)
    readings = MarkReader(messages=["c0de"])(channel(MARK.compose(faces(4, 128))))
    assert sum(one.found for one in readings) >= 3


def test_a_message_is_read_without_knowing_it() -> None:
    readings = MarkReader()(MARK.compose(faces(8, 128)))
    assert sum(one.message == "c0de" for one in readings) >= 7
    assert all(one.chance <= 1e-6 for one in readings if one.found)


def test_a_tensor_and_a_list_of_several_sizes_are_read_alike() -> None:
    reader, images = MarkReader(messages=["c0de"]), [MARK.compose(faces(1, size))[0] for size in (64, 90)]
    assert reader(images) == [*reader(images[0][None]), *reader(images[1][None])]
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        reader(torch.zeros(3, 64, 64))


def agreements(logits: Tensor, draws: int, seed: int) -> Tensor:
    """How many bits of each row agree with words that are drawn at random: (rows, draws)."""
    words = torch.rand(draws, logits.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.5
    read = logits > 0
    return (read[:, None] == words[None]).sum(2)


def test_chances_are_true_of_outputs_and_photos_that_carry_no_mark() -> None:
    """Random words against what the reader says of each image: the binomial of the bound, however biased the bits are.

    Of 400,000 agreements, each count in the tail is within five standard deviations of what the binomial expects.
    """
    editor, some = DemoEditor.pretrained(), faces(16)
    labels = torch.tensor([[1.0, 0, 0, 1, 0]]).expand(16, -1)
    with torch.no_grad():
        outputs = editor(some, labels=labels)
    reader = MarkReader(messages=["c0de"])
    logits = torch.cat([reader.logits(outputs), *(reader.logits(photo[None]) for photo in photos())])
    found = agreements(logits, 20_000, seed=0)
    for k in range(30, 39):
        share = chance_of_agreement(k, 48)
        expected = share * found.numel()
        assert abs(int((found >= k).sum()) - expected) < 5 * (expected * len(logits)) ** 0.5 + 5


Looks = list[tuple[Tensor, Tensor, Placement]]


@pytest.fixture(scope="module")
def unmarked() -> Looks:
    """What is read of photos and faces without a mark: as they are, and where they are likeliest to have stood."""
    reader, images = MarkReader(messages=["c0de"]), [*(one[None] for one in photos()), *faces(2).split(1)]
    return [(reader.logits(image)[0], *reader.cropped(image)) for image in images]


def test_false_positives_are_no_more_often_than_asked_for(unmarked: Looks) -> None:
    """Whole and cropped, for each of 300 random messages; five standard deviations of the mean over images."""
    draws, found, n = random.Random(0), dict.fromkeys((0.05, 0.2), 0), 300 * len(unmarked)
    for _ in range(300):
        message = draws.getrandbits(16)
        for rate in found:
            reader = MarkReader(messages=[message], false_positive_rate=rate)
            found[rate] += sum(reader.judge(*looks).found for looks in unmarked)
    for rate, times in found.items():
        assert times / n <= rate + 5 * (rate * len(unmarked) / n) ** 0.5


def test_nothing_is_read_on_photos_without_knowing_the_message(unmarked: Looks) -> None:
    assert not any(MarkReader().judge(*looks).found for looks in unmarked)


def test_placements_undo_a_crop() -> None:
    """A smooth picture, cropped and scaled as a placement says and put back, is itself inside of the crop."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 240), torch.linspace(0, 6, 240), indexing="ij")
    picture = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x)])[None] * 0.5
    for i in (1, 21, 41, 63):
        (part_y, top), (part_x, left) = PLACEMENTS[i]
        rows = slice(round(240 * top), round(240 * (top + part_y)))
        columns = slice(round(240 * left), round(240 * (left + part_x)))
        back = placed(picture[:, :, rows, columns], PLACEMENTS[i : i + 1], MarkNetwork())[0]
        inside = [slice(round(64 * a) + 2, round(64 * (a + b)) - 2) for a, b in ((top, part_y), (left, part_x))]
        whole = F.interpolate(picture, (64, 64), mode="bilinear", antialias=True)[0]
        assert (back - whole)[:, inside[0], inside[1]].abs().max() < 0.05


def test_a_crop_is_found_where_it_was() -> None:
    """Within a pixel of 64 on each axis, and two places were compared with the word."""
    marked = MARK.compose(faces(1, 128))
    reading = MarkReader(messages=["c0de"])(marked[..., 3:118, 10:125])[0]
    assert reading.found
    assert reading.cropped is not None
    (_, top), (_, left) = reading.cropped
    assert abs(top - 3 / 128) <= 1 / 64
    assert abs(left - 10 / 128) <= 1 / 64
    assert reading.chance == chance_of_agreement(reading.agreeing, 48, tries=2)


def test_an_extractor_of_ones_own() -> None:
    mark = Mark(word="01" * 10, extractor=Sums())
    assert not mark.composes
    assert mark.carried == (0, 1) * 10
    with pytest.raises(TypeError, match="train a patch"):
        mark.compose(torch.zeros(1, 3, 64, 64))
    reading = MarkReader(mark.extractor, messages=[mark])(torch.zeros(1, 3, 64, 64))[0]
    assert reading.bits == 20
    assert reading.chance == pytest.approx(binom.sf(reading.agreeing - 1, 20, 0.5))


def test_large_images_are_read_in_small_batches() -> None:
    """By an extractor whose features may be many: four of 1,024 pixels at once, and many small ones."""
    seen = []

    class Watches(nn.Module):
        bits = 16

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return images[:, 0, 0, :16]

    reader = MarkReader(Watches(), [Mark(word="01" * 8, extractor=Watches())])
    for size in (1024, 32):
        assert len(reader(torch.zeros(1, 3, size, size).expand(9, -1, -1, -1))) == 9
    assert seen == [4, 4, 1, 9]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "message or a word"),
        ({"message": 1, "word": "01"}, "message or a word"),
        ({"message": "xyz"}, "hexadecimal"),
        ({"message": 2**16}, "carries 16 bits"),
        ({"message": 1, "extractor": "rivagam"}, "Did you mean 'rivagan'"),
        ({"word": "01"}, "48 bits"),
        ({"message": 1, "psnr": 5.0}, "20 dB"),
        ({"message": 1, "weight": 0.0}, "above 0"),
        ({"message": 1, "extractor": nn.Identity()}, "logits"),
        (
            {"message": 1, "extractor": nn.Sequential(nn.Flatten(), nn.Linear(12, 20))},
            "cannot read 256x256",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_a_mark(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mark(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"messages": []}, "leaves nothing"), ({"false_positive_rate": 0.0}, "above 0"), ({"messages": ["-1"]}, "fit")],
    ids=str,
)
def test_what_cannot_be_read(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MarkReader(**given)


def test_every_known_message_counts_against_the_chance() -> None:
    images = MARK.compose(faces(1))
    alone, many = (MarkReader(messages=some)(images)[0] for some in (["c0de"], ["c0de", 1, 2, 3]))
    assert many.chance == 4 * alone.chance
    assert Layout(48).encode(0xC0DE) == MARK.carried


def test_images_of_any_floating_type_are_read_and_others_are_refused() -> None:
    """Pipelines give half precision; no text is taken for a list of messages, and no mark of other words compared."""
    marked = Mark("c0de").compose(torch.zeros(1, 3, 64, 64))
    reader = MarkReader(messages=["c0de"], crops=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert [one.found for one in reader(marked.to(dtype))] == [True]
        assert reader.logits(marked.to(dtype)).shape == MARK.logits(marked.to(dtype)).shape == (1, 48)
        assert MARK.compose(marked.to(dtype)).dtype == dtype
    assert reader(marked[:0]) == []
    for images, why in (
        (marked.to(torch.uint8), "from_bytes"), (["a.png"], "tensors"), (marked[:, :1], r"\(N, 3, H, W\)")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            reader(images)
    for images in (marked.to(torch.uint8), marked[:, :1], marked[0], marked[..., :0]):
        for call in (MARK.compose, MARK.logits):
            with pytest.raises(ValueError, match="Images with a mark"):
                call(images)
    for messages, why in (
        ("c0de", "must be a list"),
        (b"c0de", "must be a list"),
        ([Mark(word="01" * 8, extractor=Short())], "other words than 48"),
    ):
        with pytest.raises(ValueError, match=why):
            MarkReader(messages=messages)


class Short(torch.nn.Module):
    """Reads words of 16 bits."""

    bits = 16
