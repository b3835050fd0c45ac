"""Splits: sizes, disjoint in photos and people, the same everywhere, unreadable photos left out."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from loraguard.data import DemoFaces, ImageFolder, Part, collate, default_transform, split_photos


class People(Dataset):
    """Items without photos: who is on each is all that splits look at."""

    def __init__(self, identities: list[int] | None, length: int = 0) -> None:
        self.identities = None if identities is None else torch.tensor(identities)
        self.length = length or len(identities or [])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, 4, 4), float(index))


MANY = [i // 20 for i in range(4000)]  # 200 people with 20 photos each, as many a person as in CelebA
UNEVEN = [person for person in range(30) for _ in range(1 + person % 7)]


@pytest.mark.parametrize(
    ("identities", "train_size", "test_size"),
    [(MANY, 100, 50), (MANY, 1000, 500), (MANY, None, 50), (MANY, 1900, 1900), (UNEVEN, 60, 30), (UNEVEN, None, 20)],
    ids=["few", "more-than-people", "rest", "nearly-all", "uneven", "uneven-rest"],
)
def test_no_person_on_two_sides(identities: list[int], train_size: int | None, test_size: int) -> None:
    train, test = split_photos(People(identities), train_size=train_size, test_size=test_size)
    sides = [{identities[i] for i in part.indices} for part in (train, test)]
    assert not sides[0] & sides[1]
    assert len(set(train.indices)) == len(train)
    assert len(set(test.indices)) == len(test) == test_size
    if train_size is None:
        assert set(train.indices) == {i for i, person in enumerate(identities) if person not in sides[1]}
    else:
        assert len(train) == train_size
    assert train.identities is not None
    assert train.identities.tolist() == [identities[i] for i in train.indices]


def test_as_many_people_as_there_are() -> None:
    train, test = split_photos(People(MANY), train_size=120, test_size=80)
    assert len(train.identities.unique()) == 120
    assert len(test.identities.unique()) == 80
    train, test = split_photos(People(MANY), train_size=240, test_size=160)  # two photos a person
    assert len(train.identities.unique()) == 120
    assert len(test.identities.unique()) == 80


def test_one_side_does_not_depend_on_the_other() -> None:
    train, test = split_photos(People(MANY), train_size=100, test_size=50)
    assert split_photos(People(MANY), train_size=150, test_size=50)[1].indices == test.indices
    assert split_photos(People(MANY), train_size=100, test_size=20)[0].indices == train.indices
    assert split_photos(People(MANY), train_size=150, test_size=20)[0].indices[:100] == train.indices


def test_without_identities_every_photo_counts() -> None:
    train, test = split_photos(People(None, 100), train_size=70, test_size=30)
    assert sorted(train.indices + test.indices) == list(range(100))
    assert train.identities is None
    train, test = split_photos(People(None, 100))
    assert (len(train), len(test)) == (100, 0)


def test_seeds() -> None:
    draws = [tuple(split_photos(People(None, 100), train_size=10, seed=seed)[0].indices) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_the_draw_is_even() -> None:
    """Over seeds each photo is drawn as often as chance says: 400 draws of 30 from 100, mean 120, sigma 9.2."""
    counts = torch.zeros(100)
    for seed in range(400):
        counts[split_photos(People(None, 100), train_size=30, seed=seed)[0].indices] += 1
    assert (counts - 120).abs().max() < 4.5 * 9.2
    assert counts.std() == pytest.approx(9.2, rel=0.3)


def test_the_same_on_every_machine() -> None:
    """The description worked out by hand, and literals, so that a change to the draw is seen."""
    order = sorted(range(50), key=lambda i: hashlib.sha256(f"3/of {i}".encode()).hexdigest())
    train, test = split_photos(People(None, 50), train_size=5, test_size=3, seed=3)
    assert test.indices == order[:3] == [48, 31, 44]
    assert train.indices == order[:-6:-1] == [17, 26, 35, 7, 27]


@pytest.mark.parametrize(
    ("identities", "sizes"),
    [(None, (8, 3)), ([0] * 10, (5, 5)), ([0] * 10, (None, 5)), (None, (None, 10)), (None, (None, 11))],
    ids=["photos", "one-person", "one-person-rest", "none-left", "too-many"],
)
def test_too_few(identities: list[int] | None, sizes: tuple[int | None, int]) -> None:
    with pytest.raises(ValueError, match=r"Too few photos: .* asked for, and there are 10 that can be read"):
        split_photos(People(identities, 10), train_size=sizes[0], test_size=sizes[1])
    with pytest.raises(ValueError, match="train_size must be at least 1, or None, got 0"):
        split_photos(People(None, 10), train_size=0)


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolder:
    """Twenty photos, a person on every two; each in a grey of its own."""
    rows = ["file_name,Smiling,who"]
    for i in range(20):
        Image.new("RGB", (16, 16), (i * 10,) * 3).save(tmp_path / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{i % 2},p{i // 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    return ImageFolder(tmp_path, transform=default_transform(8), attributes=["Smiling"], identity="who", verify=False)


def test_photos_that_are_drawn_are_verified(photos: ImageFolder) -> None:
    unread = copy.deepcopy(photos)
    train, test = split_photos(photos, train_size=5, test_size=3)
    drawn = {photos.names[i] for i in train.indices + test.indices}
    other = split_photos(photos, train_size=5, test_size=3)
    assert (other[0].indices, other[1].indices) == (train.indices, test.indices)

    for part in (train, test):
        (photos.root / photos.names[part.indices[0]]).write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"2 of \d+ photos are not used"):
        train2, test2 = split_photos(unread, train_size=5, test_size=3)
    assert (len(train2), len(test2)) == (5, 3)
    assert len(unread.skipped) == 2
    assert {name for name, _ in unread.skipped} < drawn
    people = [set(part.identities.tolist()) for part in (train2, test2)]
    assert not people[0] & people[1]


def test_too_few_that_can_be_read(photos: ImageFolder) -> None:
    for name in photos.names[:10]:
        (photos.root / name).write_bytes(b"broken")
    with (
        pytest.warns(UserWarning, match="photos are not used"),
        pytest.raises(ValueError, match="there are 10 that can be read, of 5 people"),
    ):
        split_photos(photos, train_size=11)


def test_a_broken_photo_is_replaced_within_its_part(photos: ImageFolder) -> None:
    train, test = split_photos(photos, train_size=6, test_size=4)
    (photos.root / photos.names[test.indices[3]]).write_bytes(b"")
    with pytest.warns(UserWarning, match="The next photo takes its place"):
        item = test[3]
    assert torch.equal(item["image"], test[0]["image"])
    assert list(test.replaced) == [photos.names[test.indices[3]]]
    assert train.replaced == {}
    assert test.attributes == ("Smiling",)
    batch = next(iter(DataLoader(test, 4, collate_fn=collate)))
    assert batch["labels"][:3, 0].tolist() == [test.indices[i] % 2 for i in range(3)]


def test_items_fetched_together() -> None:
    """A DataLoader asks for a batch at once, and drawn faces are drawn together."""
    faces, asked = DemoFaces(10, size=16), []
    plain = faces.__getitems__
    faces.__getitems__ = lambda indices: asked.append(indices) or plain(indices)  # type: ignore[method-assign]
    batch = next(iter(DataLoader(Part(faces, [4, 2, 9]), 2)))
    assert asked == [[4, 2]]
    assert torch.equal(batch["image"][1], faces[2]["image"])


def test_a_part_of_a_part_and_of_any_data_set() -> None:
    inner = Part(People(None, 10), [9, 8, 7, 6])
    outer = Part(inner, [3, 0])
    assert [float(outer[i].mean()) for i in range(2)] == [6, 9]
    assert outer.attributes == ()
    with pytest.raises(IndexError):
        outer[2]
