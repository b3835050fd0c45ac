"""A local Hub, a client process that talks to it, and patches to push."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_client import Client
from limits import no_probes
from local_hub import LocalHub

from loraguard import PatchTrainingArguments, Stamp
from loraguard.commands import train_patch
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.tuner import GatedLoraConfig

STAMP = Stamp("AI", size=0.9)


@pytest.fixture(scope="session")
def hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def client(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defensive patch with its audit, for a tiny generator saved in `generator` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    DemoEditor(conv_dim=4, num_blocks=1).save_pretrained(folder / "generator")
    arguments = PatchTrainingArguments(
        folder / "patch", stamp=STAMP, adversary=Disrupting(steps=1), max_train_steps=1, cpu=True, disable_tqdm=True
    )
    with pytest.MonkeyPatch.context() as limits:
        no_probes(limits)
        train_patch(
            DemoEditor.from_pretrained(str(folder / "generator")),
            DemoFaces(28, size=32),
            arguments,
            config=GatedLoraConfig(r=2, init_lora_weights="paper"),
            test_size=4,
            say=str,
        )
    return folder


@pytest.fixture
def patch(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained patch's folder, to change."""
    return Path(shutil.copytree(trained / "patch", tmp_path / "patch"))


@pytest.fixture
def generator(trained: Path) -> DemoEditor:
    """The patch's generator."""
    return DemoEditor.from_pretrained(str(trained / "generator"))
