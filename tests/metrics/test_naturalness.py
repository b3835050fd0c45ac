"""BRISQUE by its package, and what is said where that is not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from brisque import BRISQUE

from loraguard.data import DemoFaces
from loraguard.metrics import Brisque


def test_it_is_the_package_s_figure_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose own code takes arrays of one number for numbers, which NumPy 2.4 does not: here `float` does so again."""
    monkeypatch.setattr(sys.modules["brisque.brisque"], "float", lambda one: np.asarray(one).item(), raising=False)
    faces = torch.stack([one["image"] for one in DemoFaces(3)])
    pictures = ((faces + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    theirs = [float(BRISQUE(url=False).score(one)) for one in pictures]
    assert np.allclose(Brisque()(faces).numpy(), theirs, rtol=1e-6)  # float32 of float64


def test_an_image_without_texture_has_none() -> None:
    assert Brisque()(torch.full((1, 3, 32, 32), -0.3)).isinf().all()


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brisque", None)
    with pytest.raises(ImportError, match=r"pip install 'loraguard\[brisque\]'"):
        Brisque()
