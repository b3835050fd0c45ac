"""Folders of photos: what counts as one, what is left out, labels, and photos that break later."""

import os
import pickle
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from loraguard.data import ImageFolder, ImageReadError, collate, default_transform, read_image, split_photos


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
        ("file_name,Smiling\nb.png,1\nb.png,0\n", "more than one row for 'b.png'"),
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
    with pytest.raises(
        FileNotFoundError, match=r"b\.png is a file; give a folder of photos, unpacked where it is an ar"
    ):
        ImageFolder(folder / "b.png")
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


# Names that disks have


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a photo named in Latin-1, as an old archive leaves it, beside others; and text so named."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"a.png", b"caf\xe9.png", b"z.png"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
        Path(folder, os.fsdecode(name)).write_bytes((tmp_path / "photo.png").read_bytes())
    Path(folder, os.fsdecode(b"not\xe9s.txt")).write_text("no photo")
    return folder


def test_a_name_that_is_not_utf8_is_left_out_by_name(odd: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 3 photos is not used: caf\\xe9\.png \(its name is not UTF-8") as caught:
        photos = ImageFolder(odd)
    assert photos.names == ["a.png", "z.png"]
    assert [name for name, _ in photos.skipped] == ["caf\\xe9.png"]
    str(caught[0].message).encode()  # which surrogates cannot be


def test_a_file_of_such_a_name_alone(odd: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no photo in .* that can be used\. Left out: caf\\xe9\.png") as caught:
        ImageFolder(odd, files=[os.fsdecode(b"caf\xe9.png")])
    str(caught.value).encode()
    with pytest.raises(FileNotFoundError, match=r"There is no photo .*caf\\xe8\.png"):
        ImageFolder(odd, files=[os.fsdecode(b"caf\xe8.png")])


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_composed_and_decomposed_names_match(tmp_path: Path, on_disk: str, in_table: str) -> None:
    names = ["caf\xe9.png", "\xfcber/\xe5.png", "plain.png"]
    for name in names:
        file = tmp_path / unicodedata.normalize(on_disk, name)
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(file)
    rows = "".join(f"{unicodedata.normalize(in_table, name)},{i % 2}\n" for i, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text("file_name,Smiling\n" + rows, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos = ImageFolder(tmp_path, attributes=["Smiling"])
    labels = dict(zip(photos.names, photos.labels[:, 0].tolist(), strict=True))
    assert labels == {unicodedata.normalize(on_disk, name): i % 2 for i, name in enumerate(names)}
    some = ImageFolder(tmp_path, files=[unicodedata.normalize(in_table, names[0])])
    assert some.names == [unicodedata.normalize(on_disk, names[0])]


def test_a_table_from_windows(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,Smiling\r\n.\\sub\\a.jpg,1\r\n./b.png,0\r\nc,1\r\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos = ImageFolder(folder, attributes=["Smiling"], transform=default_transform(8))
    assert dict(zip(photos.names, photos.labels[:, 0].tolist(), strict=True)) == {"b.png": 0, "c": 1, "sub/a.jpg": 1}


def test_names_of_photos_do_not_act_on_a_terminal(tmp_path: Path) -> None:
    """Nor do they break a line."""
    shade(9).save(tmp_path / "whole.png")
    (tmp_path / "a\x1b[31m\nb.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"not used: a\\x1b\[31m\\nb\.png \(not a whole") as caught:
        ImageFolder(tmp_path, transform=default_transform(8))
    assert str(caught[0].message).isprintable()
    with pytest.raises(ImageReadError) as error:
        read_image(tmp_path / "a\x1b[31m\nb.png")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "table",
    [
        "file_name," + ",".join(f"attribute_{i:05}" for i in range(9999)) + "\n",
        "x" * 9999 + ",y\n",
        "file_name,Smiling\n" + "x" * 9999 + ",1," + "y" * 9999 + "\n",
        "file_name,Smiling\n" + 2 * ("x" * 9999 + ",1\n"),
        "file_name,Smiling\nb.png," + "x" * 9999 + "\n",
    ],
)
def test_errors_about_enormous_tables_are_short(folder: Path, table: str) -> None:
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=r"metadata\.csv") as error:
        ImageFolder(folder, attributes=["Smiling"])
    assert len(str(error.value)) <= 600


def test_draws_do_not_depend_on_the_form_of_names(tmp_path: Path) -> None:
    drawn = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        for i in range(12):
            Image.new("RGB", (8, 8)).save(folder / unicodedata.normalize(form, f"{i}\xe9.png"))
        photos = ImageFolder(folder)
        train, test = split_photos(photos, train_size=4, test_size=4)
        drawn.append([[unicodedata.normalize("NFC", photos.names[i]) for i in part.indices] for part in (train, test)])
    assert drawn[0] == drawn[1]


# Sizes after the transform


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (9_000, 1)])
@pytest.mark.parametrize("verify", [True, False])
def test_a_strip_that_the_transform_would_make_enormous_is_left_out(tmp_path: Path, size: tuple, verify: bool) -> None:
    Image.new("RGB", (300, 280)).save(tmp_path / "a.png")
    Image.new("RGB", size).save(tmp_path / "ruler.png")
    transform = default_transform(256)
    with pytest.warns(UserWarning, match=rf"ruler\.png \({size[0]} x {size[1]} pixels, which the transform would make"):
        photos = ImageFolder(tmp_path, transform=transform, verify=verify)
    assert photos.names == ["a.png"]
    assert len(ImageFolder(tmp_path, transform=default_transform(8), verify=verify)) == 2


def test_a_strip_that_comes_later_is_replaced(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (300, 280)).save(tmp_path / name)
    photos = ImageFolder(tmp_path)
    Image.new("RGB", (30_000, 1)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="30000 x 1 pixels, which the transform would make 7680000 x 256"):
        assert photos[0]["image"].shape == (3, 256, 256)


def test_a_transform_that_memory_does_not_suffice_for(tmp_path: Path) -> None:
    """Of a stranger's transform nothing is known before."""

    def enlarge(photo: Image.Image) -> torch.Tensor:
        if photo.width > 100:
            raise MemoryError
        return torch.zeros(3, 8, 8)

    Image.new("RGB", (200, 50)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "b.png")
    photos = ImageFolder(tmp_path, transform=enlarge)
    with pytest.warns(UserWarning, match="a.png .*200 x 50 pixels, which the transform needs more memory for"):
        assert not photos[0]["image"].any()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path, delimiter: str) -> None:
    for name in ("a.png", "b,c.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    rows = [["file_name", "Smiling", "Male"], ["a.png", "1", "0"], ['"b,c.png"', "0", "1"]]
    (tmp_path / "metadata.csv").write_text("\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    photos = ImageFolder(tmp_path, attributes=["Male", "Smiling"])
    assert photos.labels.tolist() == [[0, 1], [1, 0]]


def test_a_table_of_another_kind_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "Smiling": 1}')
    with pytest.raises(
        FileNotFoundError, match=r"no table .*metadata\.csv \(there is metadata\.jsonl, which is not read\)"
    ):
        ImageFolder(tmp_path, attributes=["Smiling"])
