"""What a host's outputs carry: each layer in the very file, and a line about it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from loraguard import Mark, MarkReader, Stamp
from loraguard.commands.stamp import read_tensor
from loraguard.data import DemoFaces
from loraguard.files import whole_files
from loraguard.mark.certificate import make_test_certificate
from loraguard.mark.credentials import Signer, read_credentials, sign_bytes
from loraguard.mark.host import MarkedOutputs
from loraguard.pixels import to_picture
from loraguard.stamp import StampDetector

FACES = torch.stack([DemoFaces(3, size=128, split="host")[i]["image"] for i in range(3)])


def test_three_layers_are_in_the_file(tmp_path: Path) -> None:
    stamp, mark = Stamp("AI", size=0.4), Mark("c0de")
    signer = Signer(*make_test_certificate(tmp_path / "certificate"))
    outputs = MarkedOutputs(tmp_path, stamp, mark, signer=signer, origin={"generator": {"name": "mine"}})
    rows = outputs.save(FACES)
    assert [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text().splitlines()] == rows
    images = [read_tensor(tmp_path / row["file"]) for row in rows]
    assert all(one.found for one in MarkReader(messages=["c0de"])(images))
    assert bool(StampDetector(stamp)(torch.stack(images)).all())
    found = read_credentials((tmp_path / rows[0]["file"]).read_bytes(), "image/png")
    assert (found.valid, found.origin) == (True, {"generator": {"name": "mine"}})
    assert [row["stamp"] for row in rows] == [{"found": True, "name": "AI"}] * 3


def test_a_pipeline_s_images_and_files_are_taken(tmp_path: Path) -> None:
    outputs = MarkedOutputs(tmp_path, mark=Mark("c0de"))
    pictures = [to_picture(face) for face in FACES]
    pictures[2].save(tmp_path / "given.png")
    rows = outputs.wrap(lambda prompt: SimpleNamespace(images=pictures[:2]))("a face")
    rows += outputs.save([tmp_path / "given.png"])
    assert [row["file"] for row in rows] == ["000000.png", "000001.png", "000002.png"]
    assert all(row["mark"]["message"] == "c0de" for row in rows)
    assert len((tmp_path / "outputs.jsonl").read_text().splitlines()) == 3


def test_what_the_weights_have_put_there_is_only_checked(tmp_path: Path) -> None:
    mark = Mark("c0de")
    outputs = MarkedOutputs(tmp_path, mark=mark, in_weights=True)
    with pytest.warns(UserWarning, match=r"No mark is found in 1 of 2 outputs, 000000\.png among them"):
        rows = outputs.save(torch.cat([FACES[:1], mark.compose(FACES[1:2])]))
    assert [row["mark"]["found"] for row in rows] == [False, True]
    assert (read_tensor(tmp_path / "000000.png") - FACES[0]).abs().max() <= 1.01 / 127.5


def test_a_stamp_that_the_weights_should_have_put_there_is_looked_for(tmp_path: Path) -> None:
    stamp = Stamp("AI", size=0.4)
    outputs = MarkedOutputs(tmp_path, stamp, in_weights=True)
    with pytest.warns(UserWarning, match="No stamp is found in 1 of 2 outputs"):
        rows = outputs.save(torch.cat([stamp.compose(FACES[:1]), FACES[1:2]]))
    assert [row["stamp"]["found"] for row in rows] == [True, False]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    outputs = MarkedOutputs(tmp_path / "out")
    for names, why in (
        (["a.png"], "a name for each"), (["a.png", "a.png"], "different"), (["a.png", "../b.png"], "in the folder"),
        (["a.png", "b.jpg"], "end in .png"), (["a.png", str(tmp_path / "b.png")], "in the folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            outputs.save(FACES[:2], names)
    with pytest.raises(ValueError, match="Expected"):
        outputs.save([Image.new("RGB", (8, 8)), 7])
    for images in ("face.png", {"images": FACES}, None, Image.new("RGB", (8, 8))):
        with pytest.raises(ValueError, match="a list of images"):
            outputs.save(images)
    with pytest.raises(ValueError, match="from_bytes"):
        outputs.save(torch.full((1, 3, 8, 8), 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        outputs.wrap(lambda: SimpleNamespace(images=FACES))()
    assert not list(tmp_path.rglob("*.png"))


def test_what_cannot_be_is_said_before_a_network_has_run(tmp_path: Path) -> None:
    one, two = (make_test_certificate(tmp_path / name) for name in ("one", "two"))
    for wrong, why in (
        ({"kind": "edit"}, "generated, edited"), ({"stamp": "AI"}, "a Stamp"), ({"mark": "c0de"}, "a Mark"),
        ({"origin": {"network": FACES}}, "JSON"), ({"signer": Signer(one[0], two[1])}, "does not match"),
        ({"mark": Mark(word="01" * 8, extractor=Reads())}, "only reads"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=why):
            MarkedOutputs(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


class Reads(torch.nn.Module):
    """An extractor that cannot write."""

    bits = 16


def test_pictures_are_seen_as_files_are(tmp_path: Path) -> None:
    """Transparency on white, 16 bits scaled, turned upright, in the colours of their profile; credentials stay."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    clear, sideways = (
        Image.new("RGBA", (6, 4), (255, 0, 0, 60)),
        Image.linear_gradient("L").resize((6, 4)).convert("RGB"),
    )
    clear.save(tmp_path / "clear.png", icc_profile=profile)
    sideways.save(tmp_path / "sideways.jpg", exif=turned, icc_profile=profile)
    Image.fromarray((np.arange(24, dtype=np.uint16) * 2700).reshape(4, 6)).save(tmp_path / "sixteen.png")
    signer = Signer(*make_test_certificate(tmp_path / "certificate"))
    (tmp_path / "sideways.jpg").write_bytes(
        sign_bytes((tmp_path / "sideways.jpg").read_bytes(), "image/jpeg", signer, "generated", {"by": "another"})
    )
    files = [tmp_path / name for name in ("clear.png", "sideways.jpg", "sixteen.png")]
    rows = MarkedOutputs(tmp_path / "out", signer=signer).save([*files, *map(Image.open, files)])
    saved = [Image.open(tmp_path / "out" / row["file"]) for row in rows]
    assert [picture.info.get("icc_profile") for picture in saved] == [profile, profile, None] * 2
    for file, picture, again in zip(files, saved[:3], saved[3:], strict=True):
        assert to_picture(read_tensor(file)).tobytes() == picture.tobytes() == again.tobytes()
    assert saved[1].size == (4, 6)
    found = [read_credentials((tmp_path / "out" / row["file"]).read_bytes(), "image/png") for row in rows[:2]]
    assert [(one.valid, one.earlier) for one in found] == [(True, 0), (True, 1)]


def dying(*_: object) -> None:
    raise KeyboardInterrupt


def test_nothing_in_the_folder_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what others have put there, nor an output or a line where two write at once or one is killed."""
    (tmp_path / "000000.png").write_bytes(b"mine")
    outputs = MarkedOutputs(tmp_path)
    assert [row["file"] for row in outputs.save(FACES[:2, :, :8, :8])] == ["000001.png", "000002.png"]
    with pytest.raises(FileExistsError, match=r"000000\.png"):
        outputs.save(FACES[:1, :, :8, :8], ["000000.png"])
    assert (tmp_path / "000000.png").read_bytes() == b"mine"
    with monkeypatch.context() as killed:
        moves = [dying, Path.replace]
        killed.setattr(Path, "replace", lambda *moved: moves.pop()(*moved))
        with pytest.raises(KeyboardInterrupt):
            outputs.save(FACES[:1, :, :8, :8], ["a.png"])
    log = (tmp_path / "outputs.jsonl").read_text()
    assert '"a.png"' in log  # announced, and not there
    outputs.save(FACES[:1, :, :8, :8], ["a.png"])
    outputs.save(FACES[1:2, :, :8, :8], ["a.png"])
    assert (tmp_path / "outputs.jsonl").read_text().startswith(log)
    held: list[bool] = []

    def watched(*given: object, **named: object) -> object:
        lock = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        held.append(True)
        return whole_files(*given, **named)

    monkeypatch.setattr("loraguard.mark.host.whole_files", watched)
    outputs.save(FACES[:1, :, :8, :8])
    assert held == [True]
