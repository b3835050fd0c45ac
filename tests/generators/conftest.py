"""What the tests of published generators share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hisd import TINY, drawn
from torch import Tensor, nn

from loraguard.generators import HiSD


def scramble(network: nn.Module) -> nn.Module:
    """Values in every tensor that no two layers share, so that none can be left out or mistaken for another."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(200_000)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim > 1:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            else:
                tensor.normal_(mean=float(name.endswith("weight")), std=0.3)
    return network


@pytest.fixture(name="scramble")
def _scramble():
    return scramble


@pytest.fixture
def photo() -> Image.Image:
    """Noise of the shape of CelebA's aligned photos."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def as_tensor():
    """From a PIL image to (3, H, W) in [-1, 1], by hand."""

    def convert(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 127.5 - 1)

    return convert


@pytest.fixture
def hisd() -> HiSD:
    return drawn(HiSD(**TINY).double())


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(5, 3, 16, 16, dtype=torch.float64) * 2 - 1
