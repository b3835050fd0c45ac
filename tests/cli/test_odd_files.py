"""Files as folders hold them: none is missed, none is lost, and each is named as it can be printed."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import refused, run
from PIL import Image

from loraguard.mark import certificate as certificates
from loraguard.mark.certificate import make_test_certificate


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


@pytest.mark.parametrize("command", [["mark", "read", "--no-crops", "--message", "c0de"], ["mark", "verify"]])
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


def test_what_is_signed_is_told_by_its_content(folder: Path, tmp_path: Path) -> None:
    done = run("mark", "sign", folder / "gif.png", folder / "noend", "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert run("mark", "verify", tmp_path / "out").exit_code == 0
    assert Image.open(tmp_path / "out/gif.png").format == "GIF"
    for name, why in (("cut.png", "out of range"), ("empty.png", "it is empty"), ("bitmap.bmp", "formats that can")):
        said = refused("mark", "sign", folder / name, folder / "noend", "--output-dir", tmp_path / "none")
        assert name in said
        assert why in said
    assert not list((tmp_path / "none").glob("*"))


def test_signing_replaces_nothing_but_what_was_signed_here(folder: Path, tmp_path: Path) -> None:
    file, out = folder / "noend", tmp_path / "out"
    before = file.read_bytes()
    assert "not a copy that was signed here" in refused("mark", "sign", file, "--output-dir", folder)
    assert "lies in" in refused("mark", "sign", folder, "--output-dir", folder / "signed")
    out.mkdir()
    (out / "noend").write_bytes(before)
    assert "not a copy that was signed here" in refused("mark", "sign", file, "--output-dir", out)
    assert file.read_bytes() == (out / "noend").read_bytes() == before
    (out / "noend").unlink()
    assert [run("mark", "sign", file, "--output-dir", out).exit_code for _ in range(2)] == [0, 0]


def test_a_certificate_that_will_not_do_is_named_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_test_certificate(tmp_path / "one")
    _, other = make_test_certificate(tmp_path / "two")
    (tmp_path / "empty.pem").touch()
    month = datetime.timedelta(days=30)
    clock = SimpleNamespace(now=lambda zone: datetime.datetime.now(zone) - month)
    with monkeypatch.context() as then:
        then.setattr(certificates, "datetime", SimpleNamespace(**{**vars(datetime), "datetime": clock}))
        old = make_test_certificate(tmp_path / "old")
    for pair, more, why in (
        ((certificate, other), (), "does not match"),
        (old, (), "not valid at time"),
        ((tmp_path / "empty.pem", key), (), "certificate"),
        ((certificate, key), ("--algorithm", "es384"), "ES384"),
    ):
        words = ("--certificate", pair[0], "--key", pair[1], *more)
        said = refused("mark", "sign", folder / "noend", "--output-dir", tmp_path / "none", *words)
        assert why in said
        assert str(pair[0]) in said
    words = ("--output-dir", tmp_path / "none", "--time-stamp", "http://127.0.0.1:1/")
    assert ":1/ gives no time stamp" in refused("mark", "sign", folder / "noend", *words)
    assert not (tmp_path / "none").exists()
