"""Anti-Forgery: the optimum in Lab, by scikit-image, and a budget that nothing breaks."""

from __future__ import annotations

import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor, nn

from loraguard.channels import published, quantize
from loraguard.defenses import AntiForgery
from loraguard.defenses.anti_forgery import SHARES, shifted, to_lab
from loraguard.generators import DemoEditor

EPS = 0.05


def lab(images: Tensor) -> Tensor:
    """By scikit-image, ((L - 50) / 100, a / 110, b / 110)."""
    values = torch.from_numpy(rgb2lab((images.detach().numpy() + 1) / 2, channel_axis=1))
    return (values - torch.tensor([50, 0, 0])[:, None, None]) / torch.tensor([100, 110, 110])[:, None, None]


def by_skimage(values: Tensor) -> Tensor:
    """Back from :func:`lab` to images in [-1, 1]."""
    values = values * torch.tensor([100, 110, 110])[:, None, None] + torch.tensor([50, 0, 0])[:, None, None]
    return torch.from_numpy(lab2rgb(values.numpy(), channel_axis=1)) * 2 - 1


class Colours(nn.Module):
    """Gives a photo's colours in Lab, so that the distance is that of a and b (and L)."""

    def forward(self, images: Tensor) -> Tensor:
        return to_lab(images)


class Balance(nn.Module):
    """What a photo has of a, as an image: b does not count, and more is better than less."""

    def forward(self, images: Tensor) -> Tensor:
        return (to_lab(images)[:, 1:2] + 1).expand_as(images)


def test_lab_is_scikit_images() -> None:
    images = torch.rand(2, 3, 16, 16).double() * 2 - 1
    assert torch.allclose(to_lab(images), lab(images), atol=1e-4)
    assert torch.allclose(shifted(to_lab(images), torch.zeros(2, 2, 16, 16)), images, atol=1e-4)


def test_the_optimum_is_the_whole_budget_in_a_and_b_and_nothing_in_l() -> None:
    greys = torch.rand(2, 3, 8, 8)[:, :1].expand(-1, 3, -1, -1) - 0.4  # far from the borders of what screens show
    defended = AntiForgery(EPS, steps=30, step_size=EPS / 10)(Colours(), greys, {})
    moved = lab(defended) - lab(greys)
    used = moved[:, 1:].abs().amin(1) / EPS
    most = SHARES[-1] * EPS * moved.sign() * torch.tensor([0, 1, 1])[:, None, None]
    whole = published(by_skimage(lab(greys) + most), greys)
    beyond = (lab(whole) - lab(quantize(greys)))[:, 1:].abs().amax(1) - EPS  # once it is rounded to 8 bits
    assert (used[beyond < 0] > 0.996).all()
    assert (used[beyond > 3e-4] < 0.91).all()
    assert (beyond < 0).any()
    assert (beyond > 3e-4).any()
    assert moved[:, 0].abs().max() < 2e-4


def test_adam_goes_by_its_learning_rate() -> None:
    """Where the gradient keeps its sign, k steps of Adam are k learning rates long: no more is used of the budget."""
    greys = torch.zeros(1, 3, 8, 8).double()  # in which the gradient of b, which does not count, is none
    reference = torch.zeros_like(greys)  # far below what Balance gives: more of a is always better
    for steps in (10, 20):
        defended = AntiForgery(EPS, steps=steps)(Balance(), greys, {}, clean=reference)
        moved = lab(defended) - lab(greys)
        assert torch.allclose(moved[:, 1], torch.full_like(moved[:, 1], steps * EPS / 500), atol=EPS / 100 + 2e-4)
        assert moved[:, 2].abs().max() < EPS / 100 + 2e-4


def test_the_budget_holds_where_colours_are_clipped_and_rounded() -> None:
    """Dark, saturated and extreme colours, as they are and as they are published, by scikit-image."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).T.reshape(1, 3, 2, 4)
    dark = quantize(torch.rand(1, 3, 30, 32) * 0.3 - 1)
    photos = torch.cat([corners.repeat(1, 1, 1, 8), dark], 2)
    generator = nn.Conv2d(3, 3, 3, padding=1)
    defended = AntiForgery(EPS, steps=15, step_size=EPS / 4)(generator, photos, {})
    shown = published(defended, photos)
    for images in (defended, shown):
        assert images.abs().max() <= 1
        assert (lab(images) - lab(photos))[:, 1:].abs().max() <= EPS + 1e-4  # the libraries' difference
    assert (shown != photos).any(1).float().mean() > 0.5  # and yet most pixels are moved


def test_without_shortening_the_budget_would_not_hold() -> None:
    """The control: the same shifts, clipped and published as they come."""
    dark = quantize(torch.rand(1, 3, 32, 32) * 0.3 - 1)
    shifts = EPS * torch.sign(torch.randn(1, 2, 32, 32))
    assert (lab(published(shifted(to_lab(dark), shifts), dark)) - lab(dark))[:, 1:].abs().max() > 1.1 * EPS


def test_edits_are_attacked_in_turn() -> None:
    asked: list[int] = []

    class Asked(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                asked.append(int(labels[0].argmax()))
            return images

    edits = {str(i): {"labels": torch.eye(3)[i : i + 1]} for i in range(3)}
    AntiForgery(steps=7, edits=edits)(Asked(), torch.zeros(2, 3, 8, 8), {})
    assert asked == [0, 1, 2, 0, 1, 2, 0]
    asked.clear()
    AntiForgery(steps=2)(Asked(), torch.zeros(2, 3, 8, 8), {"labels": torch.eye(3)[[2, 2]]})
    assert asked == [2, 2]


def test_damage_grows_with_steps() -> None:
    generator, photos = DemoEditor.pretrained(), torch.rand(1, 3, 16, 16) * 2 - 1
    condition = {"labels": torch.eye(5)[:1]}
    damages = []
    for steps in (1, 5, 25):
        torch.manual_seed(0)
        defended = AntiForgery(steps=steps, step_size=EPS / 10)(generator, photos, condition)
        with torch.no_grad():
            damages.append((generator(defended, **condition) - generator(photos, **condition)).square().mean())
    assert damages == sorted(damages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 0}, "eps=0"),
        ({"steps": 0}, "steps=0"),
        ({"step_size": 0}, "step_size=0"),
        ({"edits": {"smile": {"labels": torch.zeros(2, 5)}}}, "one row each"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AntiForgery(**arguments)


def test_the_budget_is_told() -> None:
    assert "a / 110 and b / 110" in AntiForgery.budget
