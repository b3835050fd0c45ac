"""Options that several commands share, or their words, and how commands are grouped."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

GENERATOR = "The network that edits photos, NAME or NAME:SETTINGS; `loraguard info generators` lists names."
CHECKPOINT = "Its weights: a file, a folder or a Hub id; `demo` brings its own."
IMAGE_SIZE = "Height and width of its images in pixels, where its weights do not tell."
DATA = "Photos: a folder, a Hub id, NAME or NAME:PATH; `loraguard info data` lists names."
SPLIT = "The part of the data set to take, such as train; all of a folder otherwise."
SEED = "What everything drawn at random depends on."
DEVICE = "cpu, or auto for the accelerator that is there."


class Device(str, Enum):
    """Where to compute: on the CPU, or on the accelerator that is there."""

    cpu = "cpu"
    auto = "auto"


Checkpoint = Annotated[str | None, typer.Option(help=CHECKPOINT)]
ImageSize = Annotated[int | None, typer.Option(help=IMAGE_SIZE)]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help=SEED)]
OnDevice = Annotated[Device, typer.Option(help=DEVICE)]

TRY, JUDGE, PATCHES, SHARE = "To begin with", "Protections", "Patches", "Sharing"


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])
