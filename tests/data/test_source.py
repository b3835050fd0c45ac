"""What NAME|PATH|HUB_ID means, for each form that it can take."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import run_python
from torch.utils.data import Dataset

from loraguard.data import DATA, CelebA, DemoFaces, HubImages, ImageFolder, default_transform, open_data
from loraguard.data.demo_faces import ATTRIBUTES

SMALL = default_transform(8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos with labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (20, 16)).save(folder / f"{i}.jpg")
    (folder / "metadata.csv").write_text("file_name,Smiling\n0.jpg,0\n1.jpg,1\n")
    return folder


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20, 16)).save(root / "Img/img_align_celeba" / f"{i}.jpg")
    (root / "Anno/list_attr_celeba.txt").write_text("3\nMale Smiling\n0.jpg 1 -1\n1.jpg 1 1\n2.jpg -1 1\n")
    (root / "Eval/list_eval_partition.txt").write_text("0.jpg 0\n1.jpg 0\n2.jpg 2\n")
    return root


def test_drawn_faces() -> None:
    faces = open_data("demo", split="test", length=5, size=16, seed=3)
    assert isinstance(faces, DemoFaces)
    assert torch.equal(faces[4]["image"], DemoFaces(5, size=16, seed=3, split="test")[4]["image"])
    assert open_data("demo", attributes=list(ATTRIBUTES)).split == "train"
    with pytest.raises(ValueError, match=r"Drawn faces have the labels Black_Hair, .* not Smiling"):
        open_data("demo", attributes=["Smiling"])
    assert open_data("demo", transform=SMALL)[0]["image"].shape == (3, 64, 64)  # a transform is for photos
    with pytest.raises(ValueError, match="come from no file"):
        open_data("demo:faces")


def test_a_folder_of_photos(photos: Path) -> None:
    """With `metadata.csv` too."""
    for where in (photos, str(photos), f"folder:{photos}"):
        data = open_data(where, attributes=["Smiling"], transform=SMALL)
        assert isinstance(data, ImageFolder)
        assert [item["labels"].tolist() for item in data] == [[0], [1]]
    assert open_data(photos).labels is None
    assert len(open_data(photos.parent, split="photos", transform=SMALL)) == 2


def test_a_relative_path(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that looks like an id of the Hub is a path if it exists; a name goes before a path."""
    monkeypatch.chdir(photos.parent.parent)
    assert isinstance(open_data(f"{photos.parent.name}/photos"), ImageFolder)
    monkeypatch.chdir(photos.parent)
    photos.rename("demo")
    assert isinstance(open_data("demo"), DemoFaces)
    assert isinstance(open_data("./demo"), ImageFolder)


def test_celebas_folder(celeba: Path) -> None:
    for where in (str(celeba), f"celeba:{celeba}"):
        data = open_data(where, attributes=["Smiling"], transform=SMALL)
        assert isinstance(data, CelebA)
        assert [item["labels"].tolist() for item in data] == [[0], [1]]
    assert open_data(celeba, split="test").names == ["2.jpg"]
    with pytest.raises(ValueError, match="'celeba:PATH', or the path alone"):
        open_data("celeba")


def test_parquet_saved_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened, and with which arguments; `test_hub.py` opens such sets."""
    asked = []
    monkeypatch.setattr(HubImages, "__init__", lambda self, path, **options: asked.append((path, options)))
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "train-0.parquet").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    file = tmp_path / "set" / "data" / "train-0.parquet"
    for where in (tmp_path / "set", tmp_path / "saved", file):
        open_data(where)
        assert asked.pop()[0] == str(where)
    open_data("owner/name.of-set", split="valid", name="small", transform=SMALL, revision="v1")
    assert asked.pop() == (
        "owner/name.of-set",
        {"split": "valid", "attributes": (), "transform": SMALL, "name": "small", "revision": "v1"},
    )
    open_data("hub:owner/name")
    assert asked.pop()[0] == "owner/name"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("celebA", r"no data 'celebA': neither a name \(celeba, demo, folder, hub\).* Did you mean 'celeba'"),
        ("./nothing/here", "neither a name .*, nor a file or folder, nor an id"),
        ("/data/nothing", "nor a file or folder"),
        ("a/b/c", "nor an id 'owner/name' of the Hub"),
        ("", "no data ''"),
    ],
    ids=["near", "relative", "absolute", "deep", "empty"],
)
def test_unknown(where: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        open_data(where)


def test_a_file_that_is_no_data(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.jpg is a file; give a folder of photos, or a \.parquet file"):
        open_data(photos / "0.jpg")


class Theirs(Dataset):
    """A third party's data set."""

    def __init__(self, attributes: tuple[str, ...]) -> None:
        self.attributes = attributes


def theirs(root: str | None, *, split: str | None, attributes: tuple[str, ...], transform: object) -> Theirs:
    """The signature that `open_data` describes."""
    assert (root, split, transform) == ("some/where", "test", None)
    return Theirs(attributes[:1])


def test_another_packages_data(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "their_package:theirs", "loraguard.data")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    monkeypatch.setitem(sys.modules, "their_package", sys.modules[__name__])
    assert list(DATA) == ["demo", "folder", "celeba", "hub", "theirs"]
    assert open_data("theirs:some/where", split="test", attributes=["Male"]).attributes == ("Male",)
    with pytest.raises(ValueError, match="asked for the labels Male, Smiling and gives Male"):
        open_data("theirs:some/where", split="test", attributes=["Male", "Smiling"])


def test_importing_the_data_loads_no_datasets() -> None:
    """Nor do its classes and functions, which it imports when they are asked for."""
    code = "import sys\nfrom loraguard.data import *\nprint('torch' in sys.modules, 'datasets' in sys.modules)"
    result = run_python("-c", code)
    assert result.stdout.split() == ["True", "False"], result.stderr
