"""Tiny networks and data that the tests share.

Imports are where they are used, as pytest-xdist loads this file in the process that only hands out tests, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from peft import PeftModel

    from loraguard.data import DemoFaces
    from loraguard.generators import DemoEditor

collect_ignore = ["imported.py"]  # looking for doctests in it would import it here

MEMORY = Path("/dev/shm")
ENOUGH = 4 * 2**30  # bytes


def pytest_configure() -> None:
    """Let temporary files lie in memory, where it has room: a disk takes milliseconds to write over a file."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ENOUGH:
        return
    folder = tempfile.mkdtemp(prefix="loraguard-tests-", dir=MEMORY)
    # For processes that tests start, too. Pytest's own have a place of their own: those of tests that fail stay.
    os.environ |= {"TMPDIR": folder, "PYTEST_DEBUG_TEMPROOT": str(MEMORY)}
    tempfile.tempdir = None  # it was asked for before
    # After all that multiprocessing does at exit, which has a folder in it.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def editor() -> DemoEditor:
    """An untrained generator of 4 channels."""
    from loraguard.generators import DemoEditor

    return DemoEditor(conv_dim=4, num_blocks=1)


@pytest.fixture
def patched(editor: DemoEditor) -> PeftModel:
    """The same with an adapter that is not the identity."""
    from peft import get_peft_model

    from loraguard import GatedLoraConfig

    return get_peft_model(editor, GatedLoraConfig(r=2, init_lora_weights="paper"))


@pytest.fixture
def faces() -> DemoFaces:
    from loraguard.data import DemoFaces

    return DemoFaces(12, size=16)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a generator and of faces that make an audit quick, which has no probes."""
    from limits import no_probes
    from tiny import NAMES

    from loraguard.data import DATA
    from loraguard.generators import GENERATORS

    no_probes(monkeypatch)
    for registry in (DATA, GENERATORS):
        monkeypatch.setitem(registry.ours, "tiny", NAMES[registry.group])
    return ["--generator", "tiny", "--data", "tiny", "--images", "4", "--fit-images", "8", "--checks", "0"]
