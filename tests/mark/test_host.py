"""What a host's outputs carry: each layer in the very file, and a line about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from loraguard import Mark, MarkReader, Stamp
from loraguard.commands.stamp import read_tensor
from loraguard.data import DemoFaces
from loraguard.mark.certificate import make_test_certificate
from loraguard.mark.credentials import Signer, read_credentials
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
    assert rows[0]["stamp"] == "AI"


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
    rows = MarkedOutputs(tmp_path, mark=mark, in_weights=True).save(torch.cat([FACES[:1], mark.compose(FACES[1:2])]))
    assert [row["mark"]["found"] for row in rows] == [False, True]
    assert (read_tensor(tmp_path / "000000.png") - FACES[0]).abs().max() <= 1.01 / 127.5


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    outputs = MarkedOutputs(tmp_path)
    with pytest.raises(ValueError, match="a name for each"):
        outputs.save(FACES, ["a.png"])
    with pytest.raises(ValueError, match="Expected"):
        outputs.save([Image.new("RGB", (8, 8)), 7])
    assert not list(tmp_path.glob("*.png"))
