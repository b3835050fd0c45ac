"""Data sets of the `datasets` library: parquet, imagefolder, saved to disk; columns; nothing from the network."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import datasets
import pyarrow
import pyarrow.parquet
from torch.utils.data import DataLoader

from loraguard.data import HubImages, collate, default_transform, split_photos

SMALL = default_transform(8)


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache of the test's own; bars are left out."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path / "cache")


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def level_of(item: dict[str, torch.Tensor]) -> int:
    return round(((item["image"].mean() + 1) * 127.5).item())


COLUMNS = {
    "who": ["ann", "bob", "ann", "cy"],
    "Smiling": [True, False, True, True],
    "Male": [-1, 1, -1, 1],
    "Young": [0, 1, 1, 0],
    "hair": [0, 2, 1, 2],
    "glasses": [1, 0, 0, 1],
    "age": [30, 40, 50, 60],
    "gaps": [1, None, 0, 1],
}


def rows() -> datasets.Dataset:
    kinds: dict[str, Any] = {name: datasets.Value("int64") for name in COLUMNS}
    kinds |= {"who": datasets.Value("string"), "Smiling": datasets.Value("bool"), "photo": datasets.Image()}
    kinds["hair"] = datasets.ClassLabel(names=["black", "blond", "brown"])
    kinds["glasses"] = datasets.ClassLabel(names=["no", "yes"])
    cells = [{"bytes": png(10 * i), "path": None} for i in range(4)]
    return datasets.Dataset.from_dict({**COLUMNS, "photo": cells}, datasets.Features(kinds))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows().to_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_parquet_of_datasets(parquet: Path) -> None:
    photos = HubImages(parquet, transform=SMALL, attributes=["Young", "Smiling", "Male"], identity_column="who")
    assert [level_of(photos[i]) for i in range(4)] == [0, 10, 20, 30]
    assert photos[1]["labels"].tolist() == [1, 0, 1]
    assert photos.labels.tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1]]
    assert photos.identities.tolist() == [0, 1, 0, 2]
    assert "labels" not in HubImages(parquet, transform=SMALL)[0]


def test_parquet_of_pyarrow_with_bytes_alone(tmp_path: Path) -> None:
    """Without the note that `datasets` leaves in a file, a column of bytes is no column of images until it is named."""
    table = pyarrow.table({"jpg": [png(50), png(60)], "Smiling": [1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "plain.parquet")
    photos = HubImages(tmp_path / "plain.parquet", image_column="jpg", attributes=["Smiling"], transform=SMALL)
    assert (level_of(photos[1]), photos[0]["labels"].tolist()) == (60, [1])
    with pytest.raises(ValueError, match=r"has 0 columns of images \(none\); say which .* columns: jpg, Smiling"):
        HubImages(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match=r"'Smiling' of .* holds .*int64.*neither images"):
        HubImages(tmp_path / "plain.parquet", image_column="Smiling")


def test_columns_under_other_names_and_classes(parquet: Path) -> None:
    columns = {"Blond_Hair": "hair=blond", "Brown_Hair": "hair=brown", "Eyeglasses": "glasses"}
    photos = HubImages(parquet, attributes=list(columns), label_columns=columns, transform=SMALL)
    assert photos.attributes == ("Blond_Hair", "Brown_Hair", "Eyeglasses")
    assert photos.labels.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": ["smiling"]}, "no 'smiling' in the split 'train' of .* Did you mean 'Smiling'"),
        ({"attributes": ["hair"]}, r"has 3 classes; say which one is meant, as label_columns=.*'hair=black'"),
        ({"attributes": ["x"], "label_columns": {"x": "hair=red"}}, "no class 'red'; it has black, blond, brown"),
        ({"attributes": ["age"]}, "'age' of .* holds .30, 40, 50, 60.; labels are"),
        ({"attributes": ["who"]}, "'who' of .* holds .*string"),
        ({"attributes": ["gaps"]}, "'gaps' of .* or gaps; labels are bool, 0/1 or -1/1"),
        ({"identity_column": "person"}, "no 'person' in"),
        ({"image_column": "pixels"}, "no 'pixels' in"),
        ({"split": "test"}, "has no split 'test'; it has train"),
    ],
    ids=["case", "classes", "class", "values", "text", "gaps", "identity", "image", "split"],
)
def test_wrong_columns(parquet: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HubImages(parquet, **options)


def test_two_columns_of_images(tmp_path: Path) -> None:
    masks = rows().select_columns("photo").rename_column("photo", "mask")
    datasets.concatenate_datasets([rows(), masks], axis=1).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"has 2 columns of images \(photo, mask\); say which one"):
        HubImages(tmp_path / "two.parquet")
    assert level_of(HubImages(tmp_path / "two.parquet", image_column="mask", transform=SMALL)[3]) == 30


def test_saved_to_disk(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows(), "valid": rows().select([2])}).save_to_disk(tmp_path / "saved")
    assert level_of(HubImages(tmp_path / "saved", split="valid", transform=SMALL)[0]) == 20
    with pytest.raises(ValueError, match="has no split 'test'; it has train, valid"):
        HubImages(tmp_path / "saved", split="test")
    rows().select([3, 1]).save_to_disk(tmp_path / "one")
    photos = HubImages(tmp_path / "one", transform=SMALL, attributes=["Young"])
    assert ([level_of(item) for item in photos], photos.labels.tolist()) == ([30, 10], [[0], [1]])
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        HubImages(tmp_path / "one", split="test")


def test_imagefolder(tmp_path: Path) -> None:
    for split, levels in (("train", (10, 20)), ("test", (30,))):
        (tmp_path / "set" / split).mkdir(parents=True)
        for level in levels:
            (tmp_path / "set" / split / f"{level}.png").write_bytes(png(level))
        lines = ["file_name,Smiling"] + [f"{level}.png,{level // 10 % 2}" for level in levels]
        (tmp_path / "set" / split / "metadata.csv").write_text("\n".join(lines))
    photos = HubImages(tmp_path / "set", attributes=["Smiling"], transform=SMALL)
    assert {level_of(item): item["labels"].tolist() for item in photos} == {10: [1], 20: [0]}
    assert level_of(HubImages(tmp_path / "set", split="test", transform=SMALL)[0]) == 30


def test_broken_photos(tmp_path: Path) -> None:
    cells = [{"bytes": png(40), "path": None}, {"bytes": b"text", "path": None}, None, {"bytes": png(60), "path": None}]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features).to_parquet(tmp_path / "a.parquet")
    photos = HubImages(tmp_path / "a.parquet", transform=SMALL)
    with pytest.warns(UserWarning, match=r"train row 1 cannot be read: not a whole image"):
        assert level_of(photos[1]) == 60
    assert len(photos.replaced) == 2
    with pytest.warns(UserWarning, match="2 of 4 photos are not used"):
        train, _ = split_photos(photos)
    assert sorted(train.indices) == [0, 3]


def test_workers(parquet: Path) -> None:
    photos = pickle.loads(pickle.dumps(HubImages(parquet, transform=SMALL, attributes=["Young"])))
    batches = list(DataLoader(photos, 2, num_workers=2, collate_fn=collate))
    assert torch.cat([batch["labels"] for batch in batches])[:, 0].tolist() == [0, 1, 1, 0]


def test_celeba_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its configuration and columns are known; here a local folder of the same id takes its place."""
    asked = []
    builder = datasets.load_dataset_builder

    def local(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append((path, name, options))
        return builder("parquet", data_files=str(tmp_path / "celeba.parquet"))

    cells = [{"bytes": png(i), "path": None} for i in range(3)]
    kinds = {"image": datasets.Image(), "celeb_id": datasets.Value("int64"), "Smiling": datasets.Value("bool")}
    columns = {"image": cells, "celeb_id": [2880, 2937, 2880], "Smiling": [True, False, True]}
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(tmp_path / "celeba.parquet")
    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    photos = HubImages("flwrlabs/celeba", attributes=["Smiling"], revision="abc", token=False)
    assert asked == [("flwrlabs/celeba", "img_align+identity+attr", {"revision": "abc", "token": False})]
    assert photos.identities.tolist() == [0, 1, 0]
    assert photos.labels.tolist() == [[1], [0], [1]]
    assert "non-commercial research only" in caplog.text


def test_what_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        HubImages("nobody/nothing", name="small", revision="v1")
    message = str(caught.value)
    for part in (
        "nobody/nothing, configuration 'small', revision 'v1'",
        str(tmp_path / "cache"),
        "HF_HUB_OFFLINE is set",
    ):
        assert part in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty cannot be read as a data set"):
        HubImages(tmp_path / "empty")
    with pytest.raises(ValueError, match="Say which data set"):
        HubImages.open(None)


def test_no_code_is_run(tmp_path: Path) -> None:
    """A script beside the data, of the folder's name as it was once loaded, and pickles."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    proof = tmp_path / "executed"
    (folder / "scripted.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    rows().to_parquet(folder / "train.parquet")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        HubImages(folder)
    (folder / "scripted.py").rename(folder / "other.py")
    assert len(HubImages(folder)) == 4
    assert not proof.exists()
    text = tmp_path / "text"
    text.mkdir()
    (text / "train.csv").write_text("image,Smiling\na.png,1\n")
    with pytest.raises(ValueError, match="holds csv files; photos are read from arrow, imagefolder, parquet"):
        HubImages(text)
