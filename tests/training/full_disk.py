"""Trainings for test_full_disk.py that cannot write, in forks.

A limit on the size of files stands for the disk: the system refuses to write on.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killed import Deeds, Once, arguments, model

from loraguard import PatchTrainer
from loraguard.data import DemoFaces
from loraguard.training import saving
from loraguard.training.checkpoints import Checkpoints


def limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def said(trainer: PatchTrainer) -> None:
    try:
        trainer.train()
    except OSError as error:
        print(f"{type(error).__name__}: {error}")


def full_from_the_start(folder: Path) -> None:
    """Which step of the training is the last."""
    steps = Once(0, None)
    trainer = PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder, adversary=steps))
    limit(2000)
    said(trainer)
    print("steps", steps.calls)


def full_at_the_end(folder: Path) -> None:
    """Then there is space again, elsewhere."""
    last = Once(6, lambda: limit(2000))
    trainer = PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder / "full", adversary=last))
    said(trainer)
    limit(resource.RLIM_INFINITY)
    print("saved", trainer.save(folder / "elsewhere"))


def full_for_a_while(folder: Path) -> None:
    """In steps 4 and 5, of which the latter is validated, in two calls; what is warned of is printed."""
    adversary = Deeds({4: lambda: limit(400), 8: lambda: limit(resource.RLIM_INFINITY)})
    settings = arguments(
        folder, adversary=adversary, checkpointing_steps=2, validation_steps=5, num_validation_images=1,
    )  # fmt: skip
    small = DemoFaces(1, size=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PatchTrainer(model(), DemoFaces(7, size=16), settings, validation_dataset=small).train()
    for one in caught:
        print(one.message)


def full_when_interrupted(folder: Path, copies: Path) -> None:
    """There is space in another folder."""
    saving.tempfile.tempdir = str(copies)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        Checkpoints._complete = refuse

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said(PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder, adversary=Once(3, interrupt))))


def refusing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No space is left in one folder."""
    writes = saving.whole_files

    @contextmanager
    def full(target: Path) -> Iterator[Path]:
        if target == folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with writes(target) as draft:
            yield draft

    monkeypatch.setattr(saving, "whole_files", full)


def full_for_the_first(folder: Path, found: Any = None) -> None:
    """Two processes, of which the first cannot write."""
    with pytest.MonkeyPatch.context() as patch:
        refusing(patch, folder)
        said(PatchTrainer(model(), DemoFaces(7, size=16), arguments(folder)))
