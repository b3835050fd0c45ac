"""Tiny networks and data that the tests share."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from loraguard import GatedLoraConfig
from loraguard.data import DemoFaces
from loraguard.generators import DemoEditor


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
