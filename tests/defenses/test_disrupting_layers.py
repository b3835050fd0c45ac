"""Disrupting at an inner layer."""

import pytest
import torch
from torch import Tensor, nn

from loraguard.defenses import Disrupting


class Blind(nn.Module):
    """Its inner layer sees all of the photo, its output the red channel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * torch.tensor([1.0, 0.0, 0.0])[:, None, None]


def test_the_distance_is_that_of_the_layer() -> None:
    photos = torch.zeros(2, 3, 8, 8)
    at_output = Disrupting(0.05, steps=10)(Blind(), photos, {})
    inside = Disrupting(0.05, steps=10, layer="inner")(Blind(), photos, {})
    assert torch.allclose(inside.abs(), torch.full_like(photos, 0.05))
    assert torch.allclose(at_output[:, 0].abs(), torch.full((2, 8, 8), 0.05))
    assert at_output[:, 1:].abs().min() < 0.01  # where it started


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="Blind has no layer 'outer'"):
        Disrupting(layer="outer")(Blind(), torch.zeros(1, 3, 8, 8), {})
