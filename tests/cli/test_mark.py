"""`loraguard mark read`: what it says, its exit codes, and a patch that records its mark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from peft import get_peft_model
from torch.nn import functional as F

from loraguard import GatedLoraConfig, Mark, PatchTrainer, PatchTrainingArguments
from loraguard.commands.mark import patch_mark
from loraguard.commands.stamp import write_png
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.hub import describe_patch
from loraguard.mark import EXTRACTORS
from loraguard.mark.certificate import make_test_certificate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A marked face, one that is not, and nothing that is an image."""
    faces = DemoFaces(2, size=128, split="cli")
    write_png(Mark("c0de").compose(faces[0]["image"][None])[0], tmp_path / "faces/a.png")
    write_png(faces[1]["image"], tmp_path / "faces/b.png")
    (tmp_path / "notes.png").write_text("no image")
    return tmp_path / "faces"


def test_a_marked_file_is_found(folder: Path) -> None:
    done = run("mark", "read", folder / "a.png", "--message", "c0de")
    assert done.exit_code == 0, done.output
    assert "c0de" in done.output
    assert "of 48 bits agree" in done.output


def test_one_that_is_not_leaves_with_1(folder: Path) -> None:
    done = run("mark", "read", folder, "--message", "c0de", "--json")
    assert done.exit_code == 1, done.output
    said = json.loads(done.stdout)
    assert [(Path(one["file"]).name, one["found"]) for one in said["images"]] == [("a.png", True), ("b.png", False)]
    assert said["images"][0]["chance"] <= said["false_positive_rate"] == 1e-6
    assert (said["messages"], said["extractor"]) == (["c0de"], "loraguard")


def test_a_file_that_cannot_be_read_leaves_with_2(folder: Path) -> None:
    done = run("mark", "read", folder / "a.png", folder.parent / "notes.png", "--message", "c0de")
    assert done.exit_code == 2
    assert "notes.png" in done.stderr
    assert "c0de" in done.stdout
    assert "notes.png" in refused("mark", "read", folder.parent / "notes.png")


def test_corners_are_read_at_the_size_that_is_named(tmp_path: Path) -> None:
    """Of a file of half the size: at 256 pixels it is there, and without being told it is not."""
    marked = Mark("c0de", extractor="corners").compose(DemoFaces(1, size=256, split="cli")[0]["image"][None])
    write_png(F.interpolate(marked, (128, 128), mode="bicubic", antialias=True)[0].clamp(-1, 1), tmp_path / "half.png")
    read = ("mark", "read", tmp_path / "half.png", "--message", "c0de", "--extractor", "corners", "--no-crops")
    done = run(*read, "--size", "256")
    assert done.exit_code == 0, done.output
    assert "at 256 px" in done.stdout
    said = json.loads(run(*read, "--size", "256", "--json").stdout)
    assert (said["sizes"], said["images"][0]["size"]) == ([256], 256)
    assert run(*read).exit_code == 1
    assert "'corners'" in refused("mark", "read", tmp_path / "half.png", "--size", "256")


def test_which_extractors_there_are_is_in_the_help() -> None:
    for command in (("mark", "read"), ("mark", "audit"), ("train",)):
        said = run(*command, "--help").stdout
        assert all(name in said for name in EXTRACTORS), command


@pytest.mark.parametrize("message", ["xyz", "fffff"])
def test_a_message_that_cannot_be(folder: Path, message: str) -> None:
    assert message in refused("mark", "read", folder, "--message", message)


def test_a_patch_records_its_mark(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        tmp_path, mark=Mark("beef", psnr=34.0), adversary=Disrupting(steps=1), max_train_steps=1, cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    PatchTrainer(model, DemoFaces(8, size=16), arguments).train()
    assert patch_mark(tmp_path) == Mark("beef", psnr=34.0)
    card = (tmp_path / "README.md").read_text()
    assert "invisible" in card
    assert dict(describe_patch(tmp_path))["mark"].startswith("Mark(extractor=loraguard, message=beef")
    assert "stamps a picture" not in card
    write_png(Mark("beef").compose(DemoFaces(1, size=128)[0]["image"][None])[0], tmp_path / "new/face.png")
    assert run("mark", "read", tmp_path / "new/face.png", "--patch", tmp_path).exit_code == 0


def test_a_patch_without_a_mark(tmp_path: Path) -> None:
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    model.save_pretrained(tmp_path)
    assert "records no mark" in refused("mark", "read", __file__, "--patch", tmp_path)


def test_a_signed_copy_is_verified(folder: Path, tmp_path: Path) -> None:
    done = run("mark", "sign", folder, "--output-dir", tmp_path / "signed", "--generator", "my-editor", "--edited")
    assert done.exit_code == 0, done.output
    assert "TEST certificate" in done.stderr
    said = run("mark", "verify", tmp_path / "signed", "--json")
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)
    assert [(row["valid"], row["test"], row["origin"]) for row in rows] == [
        (True, True, {"generator": {"name": "my-editor"}})
    ] * 2
    assert "compositeWithTrainedAlgorithmicMedia, signed by" in run("mark", "verify", tmp_path / "signed").stdout
    assert run("mark", "read", tmp_path / "signed/a.png", "--message", "c0de").exit_code == 0


def test_trust_is_what_a_file_of_authorities_says(folder: Path, tmp_path: Path) -> None:
    certificate, key = make_test_certificate(tmp_path)
    made = ["--certificate", certificate, "--key", key, "--output-dir", tmp_path / "signed"]
    assert run("mark", "sign", folder / "a.png", *made).exit_code == 0
    (row,) = json.loads(run("mark", "verify", tmp_path / "signed", "--trust", certificate, "--json").stdout)
    assert (row["valid"], row["trusted"], row["test"]) == (True, True, True)
    junk = run("mark", "verify", tmp_path / "signed", "--trust", key)
    assert junk.exit_code == 2
    assert "holds no certificates in PEM" in junk.stderr


def test_exit_codes_of_verify(folder: Path, tmp_path: Path) -> None:
    assert run("mark", "verify", folder).exit_code == 1
    run("mark", "sign", folder / "a.png", "--output-dir", tmp_path)
    whole = bytearray((tmp_path / "a.png").read_bytes())
    whole[-30] ^= 1
    (tmp_path / "a.png").write_bytes(whole)
    assert run("mark", "verify", tmp_path / "a.png").exit_code == 2


def test_a_certificate_without_its_key(folder: Path, tmp_path: Path) -> None:
    said = refused("mark", "sign", folder, "--output-dir", tmp_path / "out", "--certificate", folder / "a.png")
    assert "--key" in said
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name(folder: Path, tmp_path: Path) -> None:
    write_png(DemoFaces(1)[0]["image"], tmp_path / "other/a.png")
    assert "'a.png'" in refused("mark", "sign", folder, tmp_path / "other/a.png", "--output-dir", tmp_path / "out")
