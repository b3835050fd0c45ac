"""The demo for test_demo.py: on few small faces and a small network, in this process or in a fork."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from limits import at_most, short_attacks, small_demo_network

from loraguard.commands.demo import DemoResult, DemoSettings, run_demo
from loraguard.data import DemoFaces

QUICK = DemoSettings().quick()
SMALL = replace(
    QUICK, test_images=8, calibration_images=20, standard=replace(QUICK.standard, batch_size=1, edits=1),
    defensive=replace(QUICK.defensive, batch_size=1),
)  # fmt: skip
"""The quick demo on fewer faces."""


def run_small(folder: Path, settings: DemoSettings = SMALL, processes: int = 1) -> DemoResult:
    """A second process is a copy of this one, small network included, where that has one thread: in a fork."""
    with pytest.MonkeyPatch.context() as patch:
        small_demo_network(patch)
        short_attacks(patch)
        at_most(patch, DemoFaces, size=32)
        return run_demo(folder, settings, processes=processes, say=len, disable_tqdm=True)
