"""Options that several commands share, or their words, and how commands are grouped."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from loraguard.commands.audit_settings import AuditSettings

from .flags import first_sentence, flags_of

_SAID = {name: first_sentence(flag.help) for name, flag in flags_of(AuditSettings).items()}
GENERATOR, CHECKPOINT, IMAGE_SIZE = _SAID["generator"], _SAID["checkpoint"], _SAID["image_size"]
DATA, SPLIT, SEED, DEVICE = _SAID["data"], _SAID["split"], _SAID["seeds"], _SAID["device"]


class Device(str, Enum):
    """Where to compute: on the CPU, or on the accelerator that is there."""

    cpu = "cpu"
    auto = "auto"


Checkpoint = Annotated[str | None, typer.Option(help=CHECKPOINT)]
ImageSize = Annotated[int | None, typer.Option(help=IMAGE_SIZE)]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help=SEED)]
OnDevice = Annotated[Device, typer.Option(help=DEVICE)]

TRY, JUDGE, PATCHES, SHARE = "To begin with", "Protections", "Patches", "Sharing"


def in_full(path: Path) -> str:
    """Where something was written, in full, as it can be printed."""
    from loraguard.data.names import printable

    return printable(str(path.expanduser().resolve()))


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])
