"""`loraguard stamp preview` and `check`, with a patch that records its stamp."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from peft import get_peft_model
from PIL import Image

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.cli.stamp import Look
from loraguard.commands.stamp import read_tensor, write_png
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor

LOOK = ["--place", "bottom-left", "--size", "0.4", "--background", "#b00020", "--outline", "none"]
PLATE = Stamp("AI", place="bottom-left", size=0.4, background="#b00020", outline=None)


FACES = 20


@pytest.fixture(autouse=True)
def _fewer_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that set thresholds and are read afterwards; the example of `read_stamps` takes all 400."""
    monkeypatch.setattr("loraguard.commands.stamp.DRAWN_FACES", FACES)


def test_a_look_is_that_of_a_stamp() -> None:
    """Its fields and defaults, so that flags and `Stamp` do not drift apart; what is shown is given by other flags."""
    defaults = {one.name: one.default for one in fields(Stamp) if one.name not in ("text", "image")}
    assert {name: None if value == "none" else value for name, value in asdict(Look()).items()} == defaults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A face with "AI", one with "ИИ", one without, and nothing that is an image."""
    faces = DemoFaces(3, size=96, split="cli")
    (tmp_path / "faces").mkdir()
    for name, stamp, i in (("a", PLATE, 0), ("b", replace(PLATE, text="ИИ"), 1), ("c", None, 2)):
        image = faces[i]["image"]
        write_png(image if stamp is None else stamp.compose(image[None])[0], tmp_path / f"faces/{name}.png")
    (tmp_path / "faces/notes.txt").write_text("no image")
    return tmp_path / "faces"


def test_preview_is_what_the_stamp_composes(tmp_path: Path) -> None:
    face = tmp_path / "face.png"
    write_png(DemoFaces(1, size=96)[0]["image"], face)
    result = run("stamp", "preview", tmp_path / "new/out.png", "--image", face, "--text", "AI", *LOOK)
    assert result.exit_code == 0, result.output
    expected = PLATE.compose(read_tensor(face)[None])[0]
    assert (read_tensor(tmp_path / "new/out.png") - expected).abs().max() <= 1.01 / 127.5


def test_what_a_preview_does_not_stamp_keeps_every_byte(tmp_path: Path) -> None:
    """All 256 levels below a stamp, before and after."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)
    Image.fromarray(levels.T).save(tmp_path / "all.png")
    done = run(
        "stamp", "preview", tmp_path / "out.png", "--image", tmp_path / "all.png",
        "--text", "AI", "--place", "top", "--size", "0.2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    below = np.asarray(Image.open(tmp_path / "out.png"))[128:]
    assert (below == levels.T[128:, :, None]).all()
    write_png(read_tensor(tmp_path / "all.png"), tmp_path / "again.png")
    assert (np.asarray(Image.open(tmp_path / "again.png")) == levels.T[:, :, None]).all()


def test_preview_of_a_logo_and_of_lines(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), "#00ff00").save(tmp_path / "logo.png")
    out = tmp_path / "out.png"
    done = run("stamp", "preview", out, "--logo", tmp_path / "logo.png", "--size", "0.1", "--place", "top-left")
    assert done.exit_code == 0
    assert (np.asarray(Image.open(out))[10:20, 10:20] == (0, 255, 0)).all()
    run("stamp", "preview", out, "--text", "AI\\nAI", "--size", "0.3")
    two_lines = Image.open(out).copy()
    run("stamp", "preview", out, "--text", "AI", "--size", "0.3")
    assert two_lines.tobytes() != Image.open(out).tobytes()


def test_check_says_which_stamp_and_leaves_as_grep_does(folder: Path) -> None:
    both = ["--text", "AI", "--text", "ИИ", *LOOK]
    result = run("stamp", "check", folder, "--json", *both)
    found = json.loads(result.stdout)
    assert [(Path(one["file"]).name, one["stamp"]) for one in found["images"]] == [
        ("a.png", "AI"), ("b.png", "ИИ"), ("c.png", None),
    ]  # fmt: skip
    assert all((one["score"] > one["threshold"]) == (one["stamp"] is not None) for one in found["images"])
    assert found["checked_on"] == FACES / 2
    assert found["false_positive_bound"] == pytest.approx(1 - 0.05 ** (2 / FACES))
    assert result.exit_code == 1
    result = run("stamp", "check", folder / "a.png", folder / "b.png", *both)
    assert result.exit_code == 0
    assert f"False positives: 0 of {FACES // 2} drawn faces" in result.stdout


def test_check_reads_what_can_be_read(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    result = run("stamp", "check", folder, "--text", "AI", *LOOK, "--json")
    found = json.loads(result.stdout)
    assert [Path(one["file"]).name for one in found["images"]] == ["a.png", "c.png"]
    assert list(found["unreadable"]) == [str(folder / "b.png")]
    assert "b.png cannot be read: " in result.stderr
    assert result.exit_code == 2


def test_check_with_images_of_ones_own(folder: Path, tmp_path: Path) -> None:
    for i, face in enumerate(DemoFaces(24, size=48, split="own").__getitems__(list(range(24)))):
        write_png(face["image"][:, :, i % 3 :], tmp_path / f"own/{i}.png")
    result = run("stamp", "check", folder / "a.png", "--text", "AI", *LOOK, "--unstamped", tmp_path / "own")
    assert result.exit_code == 0, result.output
    assert f"of 12 images of {tmp_path / 'own'}" in result.stdout


def test_the_stamp_of_a_patch(folder: Path, tmp_path: Path) -> None:
    arguments = PatchTrainingArguments(
        tmp_path / "patch", stamp=PLATE, adversary=Disrupting(steps=1), max_train_steps=1, cpu=True, disable_tqdm=True
    )
    PatchTrainer(get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2)), DemoFaces(8), arguments).train()
    result = run("stamp", "check", folder / "a.png", "--patch", tmp_path / "patch", "--json")
    assert json.loads(result.stdout)["images"][0]["stamp"] == "patch"
    assert run("stamp", "preview", tmp_path / "out.png", "--patch", tmp_path / "patch").exit_code == 0


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    assert "Say which stamp" in refused("stamp", "preview")
    assert "must end in .png" in refused("stamp", "preview", "a.jpg", "--text", "AI")
    assert "one stamp, and 2 are given: AI, ИИ" in refused("stamp", "preview", "--text", "AI", "--text", "ИИ")
    assert "different names" in refused("stamp", "check", folder, "--text", "AI", "--text", "AI")
    assert "There is no image" in refused("stamp", "check", folder / "d.png", "--text", "AI")
    assert "notes.txt" in refused("stamp", "check", folder / "notes.txt", "--text", "AI")
    with monkeypatch.context() as patch:  # before thresholds are set, which takes seconds
        patch.setattr("loraguard.commands.stamp.StampReader", None)
        assert "broken.png cannot be read" in refused("stamp", "check", tmp_path / "broken.png", "--text", "AI")
    assert "No installed font" in refused("stamp", "preview", "--text", "\U000f0000")
    assert "'octarine'" in refused("stamp", "preview", "--text", "AI", "--colour", "octarine")
    get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2)).save_pretrained(str(tmp_path / "standard"))
    assert "records no stamp" in refused("stamp", "check", folder, "--patch", tmp_path / "standard")


def test_a_logo_is_seen_as_photos_are_and_nothing_is_replaced(tmp_path: Path) -> None:
    """Turned upright, 16 bits scaled; what is damaged is named at once, and files that were given stay."""
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter clockwise
    half = Image.new("RGB", (40, 20), "red")
    half.paste((0, 0, 255), (0, 0, 20, 20))
    half.save(tmp_path / "logo.jpg", exif=turned, quality=100)
    colour, alpha = Stamp(image=tmp_path / "logo.jpg", size=0.5, margin=0.0).layer(64, 64)
    colour = colour[:, alpha[0] > 0].unflatten(1, (64, 32))
    assert (colour[2, :28] > 0.9).all()
    assert (colour[0, 36:] > 0.9).all()
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "sixteen.png")
    assert Stamp(image=tmp_path / "sixteen.png").layer(64, 64)[0].max().item() == pytest.approx(1 / 255, abs=1e-6)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "logo.jpg").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read"):
        Stamp(image=tmp_path / "cut.jpg")
    before = (tmp_path / "sixteen.png").read_bytes()
    for words in (["--image", tmp_path / "sixteen.png", "--text", "AI"], ["--logo", tmp_path / "sixteen.png"]):
        assert "would replace" in refused("stamp", "preview", tmp_path / "sixteen.png", *words)
    assert (tmp_path / "sixteen.png").read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused("stamp", "preview", tmp_path / "folder.png", "--text", "AI")
