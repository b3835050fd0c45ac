"""A full disk: the last save is tried before training, and what was trained is not lost when it fails."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from full_disk import (
    full_at_the_end,
    full_for_a_while,
    full_for_the_first,
    full_from_the_start,
    full_when_interrupted,
    refusing,
)
from killed import Once, arguments, model
from processes import forked, forked_ranks

from loraguard import PatchTrainer
from loraguard.data import DemoFaces
from loraguard.training import saving
from loraguard.training.checkpoints import whole_checkpoints


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def whole(folder: Path) -> bytes:
    """What the same training gives that is not disturbed."""
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder, adversary=Once(0, None))).train()
    return weights(folder)


def test_a_disk_without_space_for_the_patch_is_said_before_the_first_step(tmp_path: Path) -> None:
    done = forked(full_from_the_start, tmp_path)
    message, steps = done.stdout.splitlines()
    assert message.startswith(f"NotWrittenError: The patch could not be written to {tmp_path}: ")
    assert "MB free" in message
    assert "before training" in message
    assert len(message) <= 600
    assert steps == "steps 0"
    assert not list(tmp_path.iterdir())


def test_a_patch_that_could_not_be_saved_is_saved_elsewhere(tmp_path: Path) -> None:
    done = forked(full_at_the_end, tmp_path)
    message, saved = done.stdout.splitlines()
    assert message.startswith(f"NotWrittenError: The patch could not be written to {tmp_path / 'full'}: ")
    assert "trainer.save(FOLDER)" in message
    assert len(message) <= 600
    assert saved == f"saved {tmp_path / 'elsewhere'}"
    assert weights(tmp_path / "elsewhere") == whole(tmp_path / "whole")
    assert not list((tmp_path / "full").iterdir())


def test_a_disk_that_is_full_for_a_while_costs_no_training(tmp_path: Path) -> None:
    """Checkpoints and pictures that could not be written are said in a line each, and nothing half is left."""
    done = forked(full_for_a_while, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "could not be written" in line]
    checkpoint, picture = sorted(lines)
    for line, what in ((checkpoint, "checkpoint"), (picture, "validation's picture")):
        assert line.startswith(f"The {what} could not be written to {tmp_path / 'a'}"), line
        assert ": File too large (" in line
        assert "Training goes on without" in line
        assert len(line) <= 600
    assert f"The last good one is {tmp_path / 'a' / 'checkpoint-2'}." in checkpoint
    assert [path.name for path in whole_checkpoints(tmp_path / "a")] == ["checkpoint-2", "checkpoint-6"]
    assert [path.name for path in (tmp_path / "a" / "validation").iterdir()] == ["step-6.png"]
    assert not list((tmp_path / "a").rglob(".*"))
    assert weights(tmp_path / "a") == whole(tmp_path / "b")


def test_a_tracker_that_cannot_write_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and the tracker gets nothing more."""
    calls = []

    def refuse(self: TensorBoardTracker, *_: object, **__: object) -> None:
        calls.append(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TensorBoardTracker, "log", refuse)
    settings = arguments(tmp_path, adversary=Once(0, None), report_to="tensorboard")
    with pytest.warns(UserWarning, match="trackers' figures could not be written .* No space left .* goes on without"):
        PatchTrainer(model(), DemoFaces(7, size=16), settings).train()
    assert len(calls) == 1
    assert weights(tmp_path) == whole(tmp_path / "whole")


def test_what_ends_a_training_does_not_lose_it(tmp_path: Path) -> None:
    """A photo that is none, say: it is named, and what was learnt can be saved."""
    items = [{"image": torch.full((3, 16, 16), -0.5), "labels": torch.zeros(5)} for _ in range(5)]
    settings = arguments(tmp_path / "a", adversary=Once(0, None), train_batch_size=1, max_train_steps=9)
    trainer = PatchTrainer(model(), items, settings)
    later = next(index for index in range(5) if index not in trainer.batches.drawn(2))
    items[later]["image"] = torch.full((3, 16, 16), float("nan"))
    with pytest.raises(ValueError, match=rf"Item {later} of the data set: Expected images in .*, got values from nan"):
        trainer.train()
    trainer.save(tmp_path / "b")
    assert 2 <= len(json.loads((tmp_path / "b" / "training_log.json").read_text())["steps"]) < 5


def test_an_interrupted_training_whose_checkpoint_is_refused_leaves_a_copy(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    done = forked(full_when_interrupted, tmp_path / "a", tmp_path / "copies")
    message = done.stdout.splitlines()[-1]
    assert message.startswith(f"OSError: The checkpoint could not be written to {tmp_path / 'a' / 'checkpoint-3'}: No")
    copy = re.search(r"A copy is in (\S+)\. ", message)
    assert copy is not None, message
    assert len(json.loads((Path(copy[1]) / "training_log.json").read_text())["steps"]) == 3
    assert len(message) <= 600
    assert not list((tmp_path / "a").iterdir())


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
    assert "NotWrittenError: The patch could not be written" in first.stdout
    assert "OSError: The first process could not write or push; it says why." in second.stdout
    assert (first.returncode, second.returncode) == (0, 0), (first, second)


def test_nothing_is_saved_before_a_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="train"):
        PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path)).save(tmp_path)
