"""Disrupting generators behind blurs: which blurs, in which order, and from what the distance is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from torch import Tensor, nn

from loraguard.defenses import BlurRobust

STEPS = np.arange(-5, 6)
KERNELS = [np.exp(-(STEPS**2) / (2 * sigma**2)) for sigma in (1, 1.5, 2, 2.5, 3)] + [np.ones(k) for k in (5, 7, 9)]


def blurred(images: Tensor, kernel: np.ndarray) -> Tensor:
    """By scipy, mirrored at the border."""
    values = images.detach().numpy()
    for axis in (2, 3):
        values = convolve1d(values, kernel / kernel.sum(), axis=axis, mode="mirror")
    return torch.from_numpy(values)


class Recorder(nn.Module):
    """Gives what it is given, and keeps what it was given for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.given.append(images.detach())
        return images


@pytest.mark.parametrize(
    ("mode", "order"),
    [("blur-aware", [1] * 10), ("spread-spectrum", [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]), ("eot", [*range(8)] * 10)],
)
def test_what_the_generator_sees(mode: str, order: list[int]) -> None:
    """With next to no budget, each step shows the photo itself behind the blur of that step."""
    photos, generator = torch.rand(2, 3, 16, 20).double(), Recorder()
    BlurRobust(eps=1e-9, steps=10, mode=mode)(generator, photos, {})
    assert len(generator.given) == len(order)
    for given, blur in zip(generator.given, order, strict=True):
        assert torch.allclose(given, blurred(photos, KERNELS[blur]), atol=1e-6)


def test_the_distance_is_from_the_output_for_the_sharp_photo() -> None:
    """|blur(x + d) - x|^2 with d constant in a smooth region grows along blur(x) - x: nothing there is random.

    For the identity behind a blur K with rows of sum one, a photo x and a small budget, the gradient at x is
    2 K'(K x - x), so that each value moves by eps along its sign.
    """
    photos = torch.rand(1, 3, 16, 16).double() - 0.5
    matrix = torch.stack([blurred(row.view(1, 1, 16, 16), KERNELS[1]).flatten() for row in torch.eye(256).double()], 1)
    flat = photos.view(3, 256)
    slope = 2 * (flat @ matrix.T - flat) @ matrix
    defended = BlurRobust(eps=1e-6, steps=10, mode="blur-aware")(nn.Identity(), photos, {})
    moved = (defended - photos).view(3, 256)
    clear = slope.abs() > 1e-3
    assert clear.double().mean() > 0.9
    assert torch.allclose(moved[clear], 1e-6 * slope[clear].sign(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["blur-aware", "spread-spectrum", "eot"])
def test_the_perturbation_outlasts_the_blur(mode: str) -> None:
    """For G = identity times 3, plain noise is blurred away and these are not."""
    photos, generator = torch.zeros(1, 3, 32, 32), nn.Identity()
    defended = BlurRobust(steps=16, mode=mode)(generator, photos, {})
    noise = 0.05 * torch.sign(torch.randn_like(photos))
    through = {name: blurred(images, KERNELS[1]).square().mean().sqrt() for name, images in
               (("defended", defended), ("noise", noise))}  # fmt: skip
    assert through["defended"] > 2 * through["noise"]


def test_bad_settings_and_photos_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="blur-aware, spread-spectrum, eot"):
        BlurRobust(mode="median")
    with pytest.raises(ValueError, match="at least 6 pixels"):
        BlurRobust()(nn.Identity(), torch.zeros(1, 3, 5, 16), {})
