"""CelebA's folder in its several layouts, against torchvision's reading of the same files."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from loraguard.data import CelebA, default_transform, open_data, split_photos

NAMES = ["5_o_Clock_Shadow", "Blond_Hair", "Male", "Smiling"]
COUNT = 24
MAKE = np.random.default_rng(0)
LABELS = MAKE.choice([-1, 1], (COUNT, len(NAMES)))
SIDES = MAKE.permutation([0] * 14 + [1] * 5 + [2] * 5)
PEOPLE = MAKE.integers(1, 8, COUNT)
FILES = [f"{i:06d}.jpg" for i in range(1, COUNT + 1)]
SMALL = default_transform(8)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """As distributed, each photo in a grey of its own; in torchvision's folder, for both to read."""
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    for i, file in enumerate(FILES):
        Image.new("RGB", (22, 27), (i * 10,) * 3).save(root / "img_align_celeba" / file, quality=100)
    rows = [f"{file} " + " ".join(f"{value:2d}" for value in row) for file, row in zip(FILES, LABELS, strict=True)]
    (root / "list_attr_celeba.txt").write_text(f"{COUNT}\n{' '.join(NAMES)} \n" + "\n".join(rows) + "\n")
    for file, values in (("list_eval_partition", SIDES), ("identity_CelebA", PEOPLE)):
        lines = [f"{name} {value}\n" for name, value in zip(FILES, values, strict=True)]
        (root / f"{file}.txt").write_text("".join(lines))
    for file, count in (("list_bbox_celeba", 4), ("list_landmarks_align_celeba", 10)):
        lines = [f"{name} {' '.join('1' * count)}\n" for name in FILES]
        (root / f"{file}.txt").write_text(f"{COUNT}\n{' '.join('x' * count)}\n" + "".join(lines))
    return root


def by_hand(split: int) -> list[int]:
    return [i for i in range(COUNT) if SIDES[i] == split]


@pytest.mark.parametrize("split", ["train", "valid", "test", "all"])
def test_like_torchvision(celeba: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.CelebA(celeba.parent, split=split, target_type=["attr", "identity"])
    ours = CelebA(celeba, split=split, attributes=theirs.attr_names[:4], transform=SMALL)
    assert ours.names == list(theirs.filename)
    assert len(ours) == len(theirs) > 0
    for i in range(len(ours)):
        photo, (labels, _) = theirs[i]
        assert torch.equal(ours[i]["labels"], labels.float())
        assert torch.equal(ours[i]["image"], SMALL(photo))
    assert ours.identities is not None
    same = theirs.identity[:, 0][:, None] == theirs.identity[:, 0][None]
    assert torch.equal(ours.identities[:, None] == ours.identities[None], same)


def test_attributes_in_the_order_asked_for(celeba: Path) -> None:
    photos = CelebA(celeba, split="test", attributes=["Smiling", "Blond_Hair"], transform=SMALL)
    assert photos.attributes == ("Smiling", "Blond_Hair")
    for i, row in enumerate(by_hand(2)):
        assert photos[i]["labels"].tolist() == [LABELS[row, 3] == 1, LABELS[row, 1] == 1]
    assert "labels" not in CelebA(celeba, transform=SMALL)[0]
    with pytest.raises(ValueError, match=r"no 'smiling' in .*list_attr_celeba.txt. Did you mean 'Smiling'"):
        CelebA(celeba, attributes=["smiling"])
    with pytest.raises(ValueError, match="splits train, valid, test and all, got 'validation'"):
        CelebA(celeba, split="validation")


def test_the_authors_folders(celeba: Path, tmp_path: Path) -> None:
    root = tmp_path / "authors"
    for folder, files in {
        "Img": ["img_align_celeba"],
        "Anno": ["list_attr_celeba.txt", "identity_CelebA.txt"],
        "Eval": ["list_eval_partition.txt"],
    }.items():
        (root / folder).mkdir(parents=True)
        for file in files:
            shutil.move(celeba / file, root / folder / file)
    photos = CelebA(root, attributes=["Male"], transform=SMALL)
    assert [int(name[:6]) - 1 for name in photos.names] == by_hand(0)
    assert photos.identities is not None
    assert CelebA(tmp_path / "authors", split="all", transform=SMALL)[3]["image"].shape == (3, 8, 8)


def test_kaggles_tables(celeba: Path, tmp_path: Path) -> None:
    """Values separated by commas, a header, no count; the photos in a folder in a folder."""
    plain = CelebA(celeba, attributes=NAMES, transform=SMALL)
    third = plain[2]["image"]
    root = tmp_path / "kaggle"
    (root / "img_align_celeba").mkdir(parents=True)
    shutil.move(celeba / "img_align_celeba", root / "img_align_celeba")
    header, rows = ["image_id", *NAMES], zip(FILES, LABELS, strict=True)
    lines = [",".join(header)] + [",".join([file, *map(str, row)]) for file, row in rows]
    (root / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    lines = ["image_id,partition"] + [f"{file},{side}" for file, side in zip(FILES, SIDES, strict=True)]
    (root / "list_eval_partition.csv").write_text("\n".join(lines) + "\n")
    photos = CelebA(root, attributes=NAMES, transform=SMALL)
    assert photos.names == plain.names
    assert torch.equal(photos.labels, plain.labels)
    assert torch.equal(photos[2]["image"], third)
    assert photos.identities is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "list_attr_celeba.txt",
            r"no list_attr_celeba.txt or list_attr_celeba.csv in .*Anno.* Get it at https://mmlab",
        ),
        ("list_eval_partition.txt", r"not known which photos are of the split 'train'\. Open all .* at https://mmlab"),
        ("img_align_celeba", r"no folder .*img_align_celeba or .*Img/img_align_celeba.* extract it there"),
    ],
    ids=["labels", "partition", "photos"],
)
def test_every_missing_file_is_named(celeba: Path, missing: str, message: str) -> None:
    path = celeba / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        CelebA(celeba)


def test_an_archive_that_was_not_extracted(celeba: Path) -> None:
    shutil.rmtree(celeba / "img_align_celeba")
    (celeba / "img_align_celeba.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"Extract .*img_align_celeba.zip there"):
        CelebA(celeba)
    (celeba / "img_align_celeba").mkdir()
    with pytest.raises(FileNotFoundError, match="holds none of the 14 photos of the split 'train'"):
        CelebA(celeba)


def test_photos_that_are_missing(celeba: Path) -> None:
    gone = by_hand(0)[3]
    (celeba / "img_align_celeba" / FILES[gone]).unlink()
    with pytest.warns(UserWarning, match="1 of 14 photos is not used"):
        photos = CelebA(celeba, attributes=["Male"], transform=SMALL)
    assert [name for name, _ in photos.skipped] == [FILES[gone]]
    rows = [i for i in by_hand(0) if i != gone]
    assert photos.labels[:, 0].tolist() == [LABELS[i, 2] == 1 for i in rows]
    assert photos.identities is not None
    assert len(photos.identities) == len(photos) == 13


def test_tables_that_are_not_whole(celeba: Path) -> None:
    table = celeba / "list_attr_celeba.txt"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="has 23 rows where its first line says 24"):
        CelebA(celeba, attributes=["Male"])
    table.write_text("".join(["23\n", *lines[1:-1]]))
    with pytest.raises(ValueError, match=r"has no row for 000024.jpg"):
        CelebA(celeba, split="all", attributes=["Male"])
    table.write_text("".join(lines[2:]))
    with pytest.raises(ValueError, match="must begin with the number of its rows"):
        CelebA(celeba, attributes=["Male"])


def test_the_licence_is_said_once(celeba: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CelebA(celeba)
    assert [record.message for record in caplog.records if "non-commercial research only" in record.message] == [
        "CelebA is for non-commercial research only; its agreement is at "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html."
    ]


def test_opening(celeba: Path) -> None:
    assert len(CelebA.open(str(celeba))) == 14
    assert len(CelebA.open(str(celeba.parent), split="test")) == 5
    with pytest.raises(ValueError, match="Say where CelebA is"):
        CelebA.open(None)


def test_stargans_zip(celeba: Path, tmp_path: Path) -> None:
    """`download.sh celeba` of the official code: images/ and the attributes, no partition."""
    plain = CelebA(celeba, split="all", attributes=NAMES, transform=SMALL)
    root = tmp_path / "stargan"
    root.mkdir()
    shutil.copytree(celeba / "img_align_celeba", root / "images")
    shutil.copy(celeba / "list_attr_celeba.txt", root)
    photos = CelebA(root, split="all", attributes=NAMES, transform=SMALL)
    assert photos.names == plain.names
    assert torch.equal(photos.labels, plain.labels)
    assert torch.equal(photos[5]["image"], plain[5]["image"])
    with pytest.raises(FileNotFoundError, match="not known which photos are of the split 'train'"):
        CelebA(root)


def test_without_a_partition_all_is_opened_where_no_split_is_named(celeba: Path, caplog) -> None:
    (celeba / "list_eval_partition.txt").unlink()
    assert len(open_data(celeba, attributes=["Male"])) == COUNT
    assert "has no list_eval_partition, so all of its photos are taken" in caplog.text
    with pytest.raises(FileNotFoundError, match="not known which photos are of the split 'test'"):
        open_data(celeba, split="test")


@pytest.mark.parametrize("folder", ["img_align_celeba", "img_align_celeba_png", "Img/img_align_celeba_png"])
def test_the_png_edition(celeba: Path, tmp_path: Path, folder: str) -> None:
    """Its tables say .jpg. Photos go by those names, so that the same are drawn as of the other edition."""
    plain = CelebA(celeba, attributes=NAMES, transform=SMALL)
    drawn = [plain.names[i] for i in split_photos(plain, train_size=3)[0].indices]
    root = tmp_path / "png"
    (root / folder).mkdir(parents=True)
    for i, file in enumerate(FILES):
        Image.new("RGB", (22, 27), (i * 10,) * 3).save(root / folder / file.replace(".jpg", ".png"))
    for table in ("list_attr_celeba", "list_eval_partition", "identity_CelebA"):
        shutil.copy(celeba / f"{table}.txt", root)
    photos = CelebA(root, attributes=NAMES, transform=SMALL)
    assert photos.names == plain.names
    assert torch.equal(photos.labels, plain.labels)
    assert torch.allclose(photos[4]["image"], plain[4]["image"], atol=0.02)
    assert [photos.names[i] for i in split_photos(photos, train_size=3)[0].indices] == drawn


def test_a_partition_that_went_through_floats(celeba: Path) -> None:
    lines = [f"{file} {float(side)}\n" for file, side in zip(FILES, SIDES, strict=True)]
    (celeba / "list_eval_partition.txt").write_text("".join(lines))
    for split, number in (("train", 0), ("valid", 1), ("test", 2)):
        assert [int(n[:6]) - 1 for n in CelebA(celeba, split=split, transform=SMALL).names] == by_hand(number)
    (celeba / "list_eval_partition.txt").write_text("".join(f"{file} train\n" for file in FILES))
    with pytest.raises(ValueError, match=r"list_eval_partition\.txt holds 'train'; a photo's part is one of"):
        CelebA(celeba)


@pytest.mark.parametrize("first", ["", "image_id "])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_attributes_without_a_count(celeba: Path, first: str, mark: str) -> None:
    plain = CelebA(celeba, attributes=NAMES, transform=SMALL)
    _, header, *rows = (celeba / "list_attr_celeba.txt").read_text().splitlines()
    text = mark + "\r\n".join([first + header, *rows])
    (celeba / "list_attr_celeba.txt").write_text(text, encoding="utf-8", newline="")
    assert torch.equal(CelebA(celeba, attributes=NAMES, transform=SMALL).labels, plain.labels)


def test_messages_point_at_the_real_cause(celeba: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"list_attr_celeba lies beside .*img_align_celeba, not in it: give the folder"
    ):
        CelebA(celeba / "img_align_celeba")
    for file in (celeba / "img_align_celeba").iterdir():
        file.rename(file.with_name(f"face{file.name}"))
    with pytest.raises(
        FileNotFoundError, match=r"none of the 14 photos .*, such as 0.*jpg, but face000001\.jpg, face0000"
    ):
        CelebA(celeba)
