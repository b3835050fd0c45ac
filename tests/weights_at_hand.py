"""Published weights in `shared/weights` beside the checkout; tests that need them say what is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def weights(name: str) -> Path:
    """A file of that folder; a test that asks for one that is not there is skipped, and says so."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--show-toplevel"]
    root = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    path = Path(root or Path(__file__).parents[1]).parent / "shared" / "weights" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing: published weights, which CI has beside the checkout")
    return path
