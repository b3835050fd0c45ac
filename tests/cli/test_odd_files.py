"""Files as folders hold them: none is missed, none is lost, and each is named as it can be printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import run
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images by other names than their formats', an empty one, one cut short, and one that is called in Latin-1."""
    folder = tmp_path / "odd"
    folder.mkdir()
    grey = Image.linear_gradient("L").resize((24, 16))
    grey.save(folder / "a\x1b[2J\n.png")
    for name, kind in (("gif.png", "GIF"), ("bitmap.bmp", "BMP"), ("noend", "PNG")):
        grey.save(folder / name, kind)
    (folder / "cut.png").write_bytes((folder / "noend").read_bytes()[:60])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    grey.save(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    return folder


@pytest.mark.parametrize("command", [["mark", "read"]])
def test_no_file_of_a_folder_is_missed_and_each_can_be_printed(command: list[str], folder: Path) -> None:
    """What is called an image counts, where it cannot be read, too: exit code 2, and it is named."""
    said = run(*command, folder)
    assert said.exit_code == 2
    assert {"\x1b", "\udce9"}.isdisjoint(said.output)
    for name in ("a\\x1b[2J\\n.png", "gif.png", "bitmap.bmp", "noend", "cut.png", "empty.png", "caf\\xe9.png"):
        assert sum(name in line for line in said.output.splitlines()) == 1, said.output
    assert "notes.txt" not in said.output
    found = json.loads(run(*command, folder, "--json").stdout)
    rows = found["images"] if isinstance(found, dict) else [one for one in found if one["problem"] is None]
    good = {Path(row["file"]).name for row in rows}
    assert good == {"a\x1b[2J\n.png", "gif.png", "bitmap.bmp", "noend", "caf\\xe9.png"}
    bad = found["unreadable"] if isinstance(found, dict) else {one["file"] for one in found if one["problem"]}
    assert {Path(file).name for file in bad} == {"cut.png", "empty.png"}
    assert run(*command, folder / "bitmap.bmp", folder / "bitmap.bmp").stdout.count("bitmap.bmp") == 1
