"""Folders of photos: what counts as one, what is left out, labels, and photos that break later."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from loraguard.data import ImageFolder, ImageReadError, collate, default_transform


def shade(level: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def level_of(item: dict[str, torch.Tensor]) -> int:
    """The grey of an item, 0 to 255."""
    return round(((item["image"].mean() + 1) * 127.5).item())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, one in a folder and one without a suffix, and much that is none."""
    (tmp_path / "sub").mkdir()
    shade(10).save(tmp_path / "b.png")
    shade(20).save(tmp_path / "sub" / "a.jpg", quality=100)
    shade(30).save(tmp_path / "c", "PNG")
    shade(99).save(tmp_path / ".hidden.png")
    (tmp_path / ".thumbnails").mkdir()
    shade(99).save(tmp_path / ".thumbnails" / "d.png")
    (tmp_path / "notes.txt").write_text("photos of grey")
    return tmp_path


def quiet(folder: Path, **options: object) -> ImageFolder:
    """The data set, which must come without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ImageFolder(folder, **{"transform": default_transform(8), **options})


def test_photos_are_found_by_content_and_sorted(folder: Path) -> None:
    photos = quiet(folder)
    assert photos.names == ["b.png", "c", "sub/a.jpg"]
    assert photos.skipped == []
    assert [level_of(photos[i]) for i in range(3)] == [10, 30, 20]
    assert photos[0].keys() == {"image"}
    assert photos[-1]["image"].shape == (3, 8, 8)
    assert ImageFolder(folder)[0]["image"].shape == (3, 256, 256)
    with pytest.raises(IndexError, match=r"index 3 is outside 0\.\.2"):
        photos[3]


def test_some_of_its_files_alone(folder: Path) -> None:
    """With their rows of the table, and no word about the others'."""
    names = ImageFolder(folder).names
    rows = "\n".join(f"{name},{index % 2}" for index, name in enumerate(names))
    (folder / "metadata.csv").write_text(f"file_name,Smiling\n{rows}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some = ImageFolder(folder, files=[names[1], names[0]], attributes=["Smiling"])
    assert some.names == names[:2]
    assert some.labels is not None
    assert some.labels[:, 0].tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"There is no photo .*nobody\.png"):
        ImageFolder(folder, files=["nobody.png"])


def test_links_are_followed_once(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    (folder / "z.png").symlink_to(folder / "b.png")
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    assert quiet(folder).names == ["b.png", "c", "sub/a.jpg", "z.png"]


def test_one_warning_names_what_is_left_out(folder: Path) -> None:
    (folder / "text.jpg").write_text("not a photo")
    (folder / "empty.png").touch()
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    shade(5, (20, 4)).save(folder / "tiny.png")
    whole = (folder / "sub" / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="5 of 8 photos are not used") as caught:
        photos = ImageFolder(folder, transform=default_transform(8), min_size=8)
    assert len(caught) == 1
    assert "tiny.png (20 x 4 pixels" in str(caught[0].message)
    assert [name for name, _ in photos.skipped] == ["cut.jpg", "empty.png", "phone.HEIC", "text.jpg", "tiny.png"]
    assert dict(photos.skipped)["empty.png"] == "it is empty"
    assert len(photos) == 3
    assert len(list(DataLoader(photos, 2, collate_fn=collate))) == 2


def test_the_size_comes_from_the_transform(folder: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, ToTensor

    transform = Compose([CenterCrop(35), ToTensor()])
    shade(5, (50, 50)).save(folder / "large.png")
    with pytest.warns(UserWarning, match="3 of 4 photos are not used"):
        assert ImageFolder(folder, transform=transform).names == ["large.png"]


def test_without_verification_damage_shows_on_reading(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    photos = quiet(folder, verify=False)
    assert photos.names[0] == "a.png"
    with pytest.warns(UserWarning, match="a.png cannot be read"):
        assert level_of(photos[0]) == 10
    assert photos.verify(range(4)) == [False, True, True, True]
    assert [name for name, _ in photos.skipped] == ["a.png"]


def test_a_photo_that_breaks_later_is_replaced_by_the_next(folder: Path) -> None:
    photos = quiet(folder)
    (folder / "c").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"c cannot be read: it is empty\. The next photo takes its place"):
        assert level_of(photos[1]) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert level_of(photos[1]) == 20
    assert photos.replaced == {"c": "it is empty"}
    (folder / "sub" / "a.jpg").unlink()
    with pytest.warns(UserWarning, match="there is no such file"):
        assert level_of(photos[2]) == 10
    (folder / "b.png").unlink()
    with pytest.warns(UserWarning, match=r"b\.png"), pytest.raises(ImageReadError, match="nor can the 2 after it"):
        photos[0]


def test_an_error_of_the_transform_is_not_taken_for_a_broken_photo(folder: Path) -> None:
    def wrong(image: Image.Image) -> torch.Tensor:
        raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        quiet(folder, transform=wrong)[0]


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("-1", "1"), ("False", "True")])
def test_labels_from_metadata(folder: Path, no: str, yes: str) -> None:
    (folder / "metadata.csv").write_text(
        f"\ufeffSmiling,file_name,Male,text,who\n{yes},sub/a.jpg,{no},one,ann\n{no},b.png,{no},two,bob\n"
        f'{yes},c,{yes},"with, comma",ann\n'
    )
    photos = quiet(folder, attributes=["Male", "Smiling"], identity="who")
    assert photos.attributes == ("Male", "Smiling")
    assert [photos[i]["labels"].tolist() for i in range(3)] == [[0, 0], [1, 1], [0, 1]]
    assert photos[0]["labels"].dtype == torch.float32
    assert photos.identities is not None
    assert photos.identities.tolist() == [1, 0, 0]
    assert quiet(folder).labels is None


def test_labels_from_a_table_of_its_own(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file_name,Old,New\nb.png,1,0\nsub/a.jpg,0,1\nc,0,0\n")
    photos = quiet(folder, labels=table)
    assert photos.attributes == ("Old", "New")
    assert photos[0]["labels"].tolist() == [1, 0]


def test_photos_without_a_row_and_rows_without_a_photo(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,Smiling\nb.png,1\nsub/a.jpg,0\ngone.png,1\n")
    with pytest.warns(UserWarning, match="2 of 4 photos"):
        photos = ImageFolder(folder, attributes=["Smiling"], transform=default_transform(8))
    assert photos.skipped == [
        ("c", "no row in metadata.csv"),
        ("gone.png", "in metadata.csv but not in the folder"),
    ]
    assert [photos[i]["labels"].tolist() for i in range(2)] == [[1], [0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,Smiles\nb.png,1\n", "no 'Smiling' in .*metadata.csv. Did you mean 'Smiles'"),
        ("photo,Smiling\nb.png,1\n", "no column 'file_name'; its columns are photo, Smiling"),
        ("file_name,Smiling\nb.png,2\n", "'Smiling' of .* holds '2'; labels are 0/1 or -1/1"),
        ("file_name,Smiling\nb.png,-1\nc,0\n", r"holds \[-1, 0\]; labels are 0/1 or -1/1, one kind"),
        ("file_name,Smiling\nb.png\n", "Row 1 of .* has 1 values where there are 2 columns"),
        ("file_name,Smiling\nb.png,1\nb.png,0\n", "more than one row for b.png"),
        ("", "no column 'file_name'"),
    ],
    ids=["missing", "no-names", "two", "mixed", "short", "twice", "empty"],
)
def test_wrong_tables(folder: Path, table: str, message: str) -> None:
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder, attributes=["Smiling"])


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no table .*metadata.csv, where Smiling should come from"):
        ImageFolder(folder, attributes=["Smiling"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no photo in .*empty that can be used. It is empty"):
        ImageFolder(empty)
    (empty / "a.jpg").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"Left out: a\.jpg \(not a whole image"):
        ImageFolder(empty)


def test_splits_are_folders(folder: Path) -> None:
    assert ImageFolder.open(str(folder), split="sub").names == ["a.jpg"]
    assert len(ImageFolder.open(str(folder))) == 3
    with pytest.raises(ValueError, match=r"no folder 'test', so it has no such split. .*split_photos"):
        ImageFolder.open(str(folder), split="test")
    with pytest.raises(ValueError, match="Say which folder"):
        ImageFolder.open(None)


def test_workers(folder: Path) -> None:
    """What is sent to them is a pickle where processes are spawned."""
    photos = pickle.loads(pickle.dumps(quiet(folder)))
    loader = DataLoader(photos, 2, num_workers=2, collate_fn=collate)
    there = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(there, torch.stack([photos[i]["image"] for i in range(3)]))
