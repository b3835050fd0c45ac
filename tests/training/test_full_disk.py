"""A full disk: the last save is tried before training, and what was trained is not lost when it fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from full_disk import full_at_the_end, full_for_the_first, full_from_the_start, refusing
from killed import Once, arguments, model
from processes import forked, forked_ranks

from loraguard import PatchTrainer
from loraguard.data import DemoFaces
from loraguard.training import saving


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def whole(folder: Path) -> bytes:
    """What the same training gives that is not disturbed."""
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder, adversary=Once(0, None))).train()
    return weights(folder)


def test_a_disk_without_space_for_the_patch_is_said_before_the_first_step(tmp_path: Path) -> None:
    done = forked(full_from_the_start, tmp_path)
    message, steps = done.stdout.splitlines()
    assert message.startswith(f"OSError: The patch could not be written to {tmp_path}: ")
    assert "MB free" in message
    assert "before training" in message
    assert len(message) <= 600
    assert steps == "steps 0"
    assert not list(tmp_path.iterdir())


def test_a_patch_that_could_not_be_saved_is_saved_elsewhere(tmp_path: Path) -> None:
    done = forked(full_at_the_end, tmp_path)
    message, saved = done.stdout.splitlines()
    assert message.startswith(f"OSError: The patch could not be written to {tmp_path / 'full'}: ")
    assert "trainer.save(FOLDER)" in message
    assert len(message) <= 600
    assert saved == f"saved {tmp_path / 'elsewhere'}"
    assert weights(tmp_path / "elsewhere") == whole(tmp_path / "whole")
    assert not list((tmp_path / "full").iterdir())


def test_a_copy_is_left_where_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a command, which ends with the error, does not lose the training."""
    monkeypatch.setattr(saving.tempfile, "tempdir", str(tmp_path))
    refusing(monkeypatch, tmp_path / "full")
    settings = arguments(tmp_path / "full", adversary=Once(0, None))
    with pytest.raises(OSError, match="No space left on device") as error:
        PatchTrainer(model(), DemoFaces(7, size=16), settings).train()
    copy = re.search(r"A copy is in (\S+)\. ", str(error.value))
    assert copy is not None
    assert Path(copy[1]).parent == tmp_path
    assert weights(Path(copy[1])) == whole(tmp_path / "whole")


def test_all_processes_leave_where_the_first_cannot_write(tmp_path: Path) -> None:
    first, second = forked_ranks(full_for_the_first, tmp_path)
    assert "OSError: The patch could not be written" in first.stdout
    assert "OSError: The first process could not write; it says why." in second.stdout
    assert (first.returncode, second.returncode) == (0, 0), (first, second)


def test_nothing_is_saved_before_a_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="train"):
        PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path)).save(tmp_path)
