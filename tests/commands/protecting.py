"""Photos that are protected in forks, which may be killed at exactly chosen moments, for test_protect.py."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
from moments import signal_at_change

from loraguard.commands import protect_photos
from loraguard.generators import DemoEditor
from loraguard.generators.preprocessing import preprocessing


class Editor(DemoEditor):
    """Sees the middle of a photo at 16 pixels."""

    def transform(self):
        return preprocessing(16, crop=24)


def protecting(photos: Path, out: Path, nth: int | None = None) -> None:
    """One photo; killed before the n-th change to files."""
    torch.manual_seed(0)
    generator = Editor(conv_dim=4, num_blocks=1).eval()
    if nth is not None:
        signal_at_change(signal.SIGKILL, nth)
    protect_photos(generator, photos / "ann.jpg", "disrupting:0.05,steps=1", out, say=len, disable_tqdm=True)
