"""Tiny networks and data that the tests share."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import NAMES

from loraguard import GatedLoraConfig
from loraguard.data import DATA, DemoFaces
from loraguard.generators import GENERATORS, DemoEditor

collect_ignore = ["imported.py"]  # looking for doctests in it would import it here


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def editor() -> DemoEditor:
    """An untrained generator of 4 channels."""
    return DemoEditor(conv_dim=4, num_blocks=1)


@pytest.fixture
def patched(editor: DemoEditor) -> PeftModel:
    """The same with an adapter that is not the identity."""
    return get_peft_model(editor, GatedLoraConfig(r=2, init_lora_weights="paper"))


@pytest.fixture
def faces() -> DemoFaces:
    return DemoFaces(12, size=16)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a generator and of faces that make an audit quick."""
    for registry in (DATA, GENERATORS):
        monkeypatch.setitem(registry.ours, "tiny", NAMES[registry.group])
    return ["--generator", "tiny", "--data", "tiny", "--images", "4", "--fit-images", "8", "--checks", "0"]
