"""Photos that channels are tested on."""

import pytest
import torch
from torch import Tensor

from loraguard.data import DemoFaces


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """Four faces of 64 pixels, as 8-bit photos."""
    faces = DemoFaces(4, split="test")
    return ((torch.stack([faces[i]["image"] for i in range(4)]) + 1) * 127.5).round() / 127.5 - 1


@pytest.fixture
def images() -> Tensor:
    """Three images of odd sizes, over the whole range."""
    return (torch.randn(3, 3, 19, 13) * 0.7).clamp(-1, 1)
