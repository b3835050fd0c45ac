"""A generator and faces, small enough for an audit in a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from loraguard.audit import slopes
from loraguard.data import DATA, DemoFaces, default_transform
from loraguard.generators import GENERATORS, DemoEditor

SIZE = 32


class Tiny(DemoEditor):
    """Of 4 channels, with weights that a seed draws."""

    def transform(self) -> Callable[[Image.Image], Tensor]:
        return default_transform(SIZE)

    @classmethod
    def pretrained(cls) -> Tiny:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return cls(conv_dim=4, num_blocks=1).eval()


class TinyFaces(DemoFaces):
    @classmethod
    def open(cls, root: str | None = None, *, split: str | None = None, **options: object) -> TinyFaces:
        return cls(100, size=SIZE, split=split or "train")


NAMES = {"loraguard.generators": "tiny:Tiny", "loraguard.data": "tiny:TinyFaces"}


def register() -> None:
    """Have the command line of this process know both by the name `tiny`, whose audits have short probes."""
    slopes.DIRECTIONS = 2  # as `limits.short_probes`
    for registry in (DATA, GENERATORS):
        registry.ours["tiny"] = NAMES[registry.group]
