"""Photos that somebody has perturbed already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraguard.data import DemoFaces, ImageFolder, ImageReadError, PerturbedPhotos, default_transform, split_photos
from loraguard.generators.preprocessing import preprocessing


def draw(file: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> np.ndarray:
    """A photo of noise; its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return pixels


@pytest.fixture
def originals(tmp_path: Path) -> ImageFolder:
    for seed, name in enumerate(("a.png", "b/a.png", "c.jpg")):
        draw(tmp_path / "photos" / name, seed=seed)
    return ImageFolder(tmp_path / "photos", transform=preprocessing(16, crop=20))


def perturbed(folder: Path, **sizes: tuple[int, int]) -> Path:
    for seed, name in enumerate(("a.png", "b/a.webp", "c.png")):
        draw(folder / name, sizes.get(Path(name).parts[0].split(".")[0], (40, 30)), seed=seed + 9)
    return folder


def test_files_go_with_their_originals(originals: ImageFolder, tmp_path: Path) -> None:
    """By folder and name, whatever the suffix; of a part its own, in its order; hidden files do not count."""
    folder = perturbed(tmp_path / "out")
    (folder / ".c.png").write_text("no photo")
    (folder / "protect.json").write_text("{}")
    photos = PerturbedPhotos(folder, originals)
    assert [file.relative_to(folder).as_posix() for file in photos.files] == ["a.png", "b/a.webp", "c.png"]
    train, test = split_photos(originals, train_size=1, test_size=2)
    for part in (train, test):
        names = [originals.names[index] for index in part.indices]
        found = PerturbedPhotos(folder, part).files
        assert [file.with_suffix("").name for file in found] == [Path(name).stem for name in names]
        assert [file.parent.name == "b" for file in found] == [name.startswith("b/") for name in names]


def test_a_photo_that_is_called_as_its_record(tmp_path: Path) -> None:
    """`loraguard protect` writes protect.png and, beside it, protect.json."""
    draw(tmp_path / "photos" / "protect.jpg")
    draw(tmp_path / "out" / "protect.png")
    (tmp_path / "out" / "protect.json").write_text("{}")
    found = PerturbedPhotos(tmp_path / "out", ImageFolder(tmp_path / "photos"))
    assert [file.name for file in found.files] == ["protect.png"]
    draw(tmp_path / "out" / "protect.webp")
    with pytest.raises(FileNotFoundError, match="or several, of 1 photos of 1: protect"):
        PerturbedPhotos(tmp_path / "out", ImageFolder(tmp_path / "photos"))


def test_photos_as_large_as_the_originals_are_cropped_like_them(originals: ImageFolder, tmp_path: Path) -> None:
    folder = perturbed(tmp_path / "out")
    expected = preprocessing(16, crop=20)(Image.open(folder / "c.png"))
    assert torch.equal(PerturbedPhotos(folder, originals)[2]["image"], expected)


def test_photos_of_the_generator_s_size_are_taken_as_they_are(originals: ImageFolder, tmp_path: Path) -> None:
    """The crop of 20 pixels would put a black border around 16."""
    folder = perturbed(tmp_path / "out", c=(16, 16))
    photos = PerturbedPhotos(folder, originals)
    levels = (photos[2]["image"] + 1) * 127.5
    truth = torch.from_numpy(np.asarray(Image.open(folder / "c.png")).copy()).permute(2, 0, 1).float()
    assert torch.allclose(levels, truth, atol=1e-3)
    assert photos[0]["image"].shape == photos[2]["image"].shape


def test_another_size_is_refused(originals: ImageFolder, tmp_path: Path) -> None:
    folder = perturbed(tmp_path / "out", b=(33, 30))
    with pytest.raises(ValueError, match=r"a\.webp is 33 x 30; expected 40 x 30 as the original, or 16 x 16"):
        PerturbedPhotos(folder, originals)


def test_a_transform_of_its_own(originals: ImageFolder, tmp_path: Path) -> None:
    photos = PerturbedPhotos(perturbed(tmp_path / "out"), originals, default_transform(8))
    assert photos[0]["image"].shape == (3, 8, 8)


def test_what_is_missing_is_named(originals: ImageFolder, tmp_path: Path) -> None:
    folder = perturbed(tmp_path / "out")
    (folder / "a.png").unlink()
    draw(folder / "c.webp")
    with pytest.raises(FileNotFoundError, match=r"or several, of 2 photos of 3: a\.png, c\.jpg\. Give each"):
        PerturbedPhotos(folder, originals)
    draw(folder / "a.png")
    draw(folder / "c.jpg")  # the very name goes first
    assert PerturbedPhotos(folder, originals).files[2] == folder / "c.jpg"
    with pytest.raises(FileNotFoundError, match="no folder"):
        PerturbedPhotos(tmp_path / "nowhere", originals)
    (folder / "c.jpg").write_bytes(b"GIF89a")
    with pytest.raises(ImageReadError, match=r"c\.jpg cannot be read"):
        PerturbedPhotos(folder, originals)


def test_originals_that_differ_by_their_suffix_alone_need_files_of_their_very_names(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "a.png")):
        draw(tmp_path / "photos" / name, seed=seed)
        draw(tmp_path / "out" / name, seed=seed + 9)
    originals = ImageFolder(tmp_path / "photos")
    assert [file.name for file in PerturbedPhotos(tmp_path / "out", originals).files] == ["a.jpg", "a.png"]
    (tmp_path / "out" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 photos of 2: a\.jpg"):
        PerturbedPhotos(tmp_path / "out", originals)


def test_drawn_faces_have_no_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DemoFaces has no photos with names"):
        PerturbedPhotos(tmp_path, split_photos(DemoFaces(4, size=16), test_size=2)[1])
