"""What the command line says of things that are not there, or are something else: a line, with no traceback in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from command_line import refused, run
from peft import get_peft_model

from loraguard import GatedLoraConfig
from loraguard.cli.errors import said_in_a_line
from loraguard.generators import DemoEditor


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xff\xfe notes")
    return file


@pytest.mark.parametrize("name", ["nope.ckpt", "folder"])
def test_a_checkpoint_that_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    said = refused("convert", tmp_path / name, tmp_path / "out")
    assert said == f"Error: There is no checkpoint file {tmp_path / name}.\n"


def test_nobody_is_told_to_read_a_checkpoint_unsafely(text: Path, tmp_path: Path) -> None:
    """As torch's own words do."""
    for file in (text, tmp_path / "model.pt"):
        if file != text:
            torch.save(torch.nn.Linear(1, 1), file)
        converted = refused("convert", file, tmp_path / "out")
        assert "or holds objects that would run code" in converted
        generator = ["--generator", "stargan", "--checkpoint", file, "--output-dir", tmp_path / "out"]
        assert "or holds objects that would run code" in (trained := refused("train", *generator))
        assert "weights_only" not in converted + trained


def test_settings_that_are_no_settings(text: Path, tmp_path: Path) -> None:
    out = ["--output-dir", tmp_path / "out"]
    for missing in (tmp_path / "nope.yaml", tmp_path):
        assert f"There is no file {missing} with settings" in refused("audit", "--config", missing, *out)
    assert f"{text} is no YAML: 'utf-8' codec" in refused("audit", "--config", text, *out)


def test_an_output_folder_that_is_a_file(text: Path) -> None:
    said = refused("protect", "demo", "--output-dir", text)
    assert said == f"Error: Cannot write to the output folder {text} (it is a file); choose another one.\n"


def test_a_converted_patch_goes_into_a_folder(text: Path, tmp_path: Path) -> None:
    """Whole, and not where a file is."""
    layer = {"up.orig_conv.weight": torch.zeros(8, 4, 3, 3), "up.gate": torch.tensor(-1.0)}
    torch.save(layer | {"up.lora_A": torch.zeros(8, 2, 3, 3), "up.lora_B": torch.zeros(4, 2)}, tmp_path / "a.ckpt")
    assert f"Cannot write to the output folder {text} (it is a file)" in refused("convert", tmp_path / "a.ckpt", text)
    assert run("convert", tmp_path / "a.ckpt", tmp_path / "out").exit_code == 0
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "generator.safetensors"}


def test_a_file_is_named_without_a_number(tmp_path: Path) -> None:
    get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=1)).save_pretrained(tmp_path)
    assert refused("push", tmp_path, "me/x", "--card", tmp_path / "nope.md") == (
        f"Error: There is no file {tmp_path / 'nope.md'}.\n"
    )
    (folder := tmp_path / "card.md").mkdir()
    assert refused("push", tmp_path, "me/x", "--card", folder) == f"Error: {folder}: Is a directory.\n"


@pytest.mark.parametrize("command", [("info",), ("stamp", "preview", "--patch")])
def test_a_patch_that_is_not_there_is_not_looked_for_on_the_hub(
    command: tuple[str, ...], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be: ids there have an owner, and a file of this machine is none."""
    monkeypatch.setattr("loraguard.hub.pull.snapshot_download", None)
    assert f"{text} is a file; a patch is a folder" in refused(*command, text)
    if command != ("info",):
        assert "There is no patch nope: no such folder, and no id OWNER/NAME of the Hub" in refused(*command, "nope")


def test_a_patch_with_half_a_config(tmp_path: Path) -> None:
    get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=1)).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    assert f"{tmp_path / 'adapter_config.json'}: it is no whole JSON file (" in refused("info", tmp_path)


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = refused("protect", tmp_path / "empty", "--output-dir", tmp_path / "out")
    assert said == f"Error: There is no photo in {tmp_path / 'empty'} that can be used. It is empty.\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_said_in_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, said_in_a_line():
        raise error
    assert left.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: There is not enough memory. Smaller batches (--train-batch-size")
    assert said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    for words in ("shapes", "unsupported memory format option"):
        with pytest.raises(RuntimeError, match=words), said_in_a_line():
            raise RuntimeError(words)


def test_long_errors_are_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened stands first, and what to do last; nothing acts on the terminal."""
    with pytest.raises(typer.Exit), said_in_a_line():
        raise ValueError("First\x1b[31m.\n" + "x" * 9999 + " Last.")
    said = capsys.readouterr().err.removeprefix("Error: ").rstrip("\n")
    assert len(said) <= 600
    assert said.startswith("First")
    assert said.endswith(" Last.")
    assert said.isprintable()
