"""Rules that make steps of gradients, each against its formula written out in float64, or against torch's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loraguard.defenses import MIFGSM, Disrupting, IterativeDefense
from loraguard.defenses.ascent import Adam, Momentum, Update, ascend, normalized, sign
from loraguard.generators import DemoEditor


def quartic(x: Tensor) -> Tensor:
    """Smooth, with another slope in each value."""
    weights = torch.arange(1, x[0].numel() + 1, dtype=x.dtype).view(x.shape[1:])
    return (torch.sin(weights * x) + 0.1 * weights * x**2).sum()


def slope(x: np.ndarray) -> np.ndarray:
    weights = np.arange(1, x[0].size + 1, dtype=float).reshape(x.shape[1:])
    return weights * np.cos(weights * x) + 0.2 * weights * x


@pytest.fixture
def start() -> Tensor:
    return torch.rand(3, 2, 2, 3, dtype=torch.float64) - 0.5


BOX = {"low": -0.6, "high": 0.6}


def test_momentum_is_the_paper_s_update_by_hand(start: Tensor) -> None:
    """Equations 6 and 7 of arXiv 1710.06081, each image on its own."""
    found = ascend(quartic, start, **BOX, steps=12, step_size=0.05, update=Momentum(0.8))
    x, g = start.numpy().copy(), np.zeros(start.shape)
    for _ in range(12):
        gradient = slope(x)
        for i in range(len(x)):
            g[i] = 0.8 * g[i] + gradient[i] / np.abs(gradient[i]).sum()
        x = np.clip(x + 0.05 * np.sign(g), -0.6, 0.6)
    np.testing.assert_allclose(found.numpy(), x, rtol=0, atol=1e-13)
    plain = ascend(quartic, start, **BOX, steps=12, step_size=0.05)
    assert not torch.equal(found, plain)
    assert torch.equal(ascend(quartic, start, **BOX, steps=12, step_size=0.05, update=Momentum(0.0)), plain)


def test_adam_is_torch_s(start: Tensor) -> None:
    found = ascend(quartic, start, low=-9, high=9, steps=12, step_size=0.05, update=Adam((0.8, 0.99)))
    other = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([other], 0.05, betas=(0.8, 0.99), maximize=True)
    for _ in range(12):
        optimizer.zero_grad()
        quartic(other).backward()
        optimizer.step()
    torch.testing.assert_close(found, other.detach(), rtol=0, atol=1e-12)


def test_sign_and_normalized_steps_by_hand(start: Tensor) -> None:
    for update, rule in ((sign, np.sign), (normalized, lambda g: g / np.sqrt((g**2).sum((1, 2, 3), keepdims=True)))):
        x = start.numpy()
        for step in range(6):
            x = np.clip(x + 0.1 / (step + 1) * rule(slope(x)), -0.6, 0.6)
        found = ascend(quartic, start, **BOX, steps=6, step_size=lambda step: 0.1 / (step + 1), update=update)
        np.testing.assert_allclose(found.numpy(), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", [lambda: sign, lambda: normalized, Momentum, Adam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_gradient_moves_nothing(rule: Callable[[], Update], dtype: torch.dtype) -> None:
    start = torch.zeros(2, 3, 4, 4, dtype=dtype)
    found = ascend(lambda x: (0 * x).sum(), start, low=-1, high=1, steps=3, step_size=0.1, update=rule())
    assert torch.equal(found, start)
    assert found.dtype == dtype


def test_hooks_are_called_once_an_attack_and_once_a_step() -> None:
    calls: list[Any] = []

    @dataclass(frozen=True)
    class Traced(IterativeDefense):
        eps: float = 0.05
        steps: int = 3
        step_size: float | None = None
        restarts: int = 2

        def start(self, images: Tensor) -> Tensor:
            calls.append("start")
            return images + 0.01

        def update(self) -> Any:
            calls.append("update")
            return torch.sign

        def step_length(self, step: int) -> float:
            calls.append(step)
            return 0.01 / (step + 1)

        def objective(self, terms: Sequence[Any]) -> Any:
            calls.append("objective")
            return lambda images: images.sum()

    defended = Traced()(nn.Identity(), torch.zeros(1, 3, 2, 2), {})
    assert calls == ["objective", "start", "update", 0, 1, 2] * 2
    assert torch.allclose(defended, torch.full_like(defended, 0.01 * (1 + 1 + 1 / 2 + 1 / 3)))


# MI-FGSM


def test_mi_fgsm_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole attack on G(x) = W x, from a start that is known, its distance's gradient 2 W'W d by hand."""
    photos = torch.rand(3, 3, 4, 4, dtype=torch.float64) * 2 - 1
    noise = 0.01 * 0.2 * (2 * torch.rand_like(photos) - 1)
    monkeypatch.setattr("loraguard.defenses.iterative.jitter", lambda images, radius: (images + noise).clamp(-1, 1))
    layer = nn.Conv2d(3, 3, 1, bias=False).double()
    w = layer.weight.detach().numpy()[:, :, 0, 0]
    found = MIFGSM(eps=0.2, steps=7, decay=0.9)(layer, photos, {})
    original = photos.numpy()
    x, g = np.clip(original + noise.numpy(), -1, 1), np.zeros(photos.shape)
    for _ in range(7):
        gradient = 2 * np.einsum("oi,op,nphw->nihw", w, w, x - original)
        for i in range(len(x)):
            g[i] = 0.9 * g[i] + gradient[i] / np.abs(gradient[i]).sum()
        x = np.clip(np.clip(x + 0.2 / 7 * np.sign(g), original - 0.2, original + 0.2), -1, 1)
    np.testing.assert_allclose(found.numpy(), x, rtol=0, atol=1e-12)


def test_mi_fgsm_without_momentum_is_i_fgsm() -> None:
    editor, photos = DemoEditor(conv_dim=4).double(), torch.rand(2, 3, 16, 16).double() - 0.5
    condition = {"labels": torch.eye(5).double()[:2]}
    runs = []
    for attack in (MIFGSM(steps=5, decay=0.0), Disrupting(steps=5, method="ifgsm", step_size=0.01)):
        torch.manual_seed(1)
        runs.append(attack(editor, photos, condition))
    assert torch.equal(*runs)


def test_mi_fgsm_s_steps_reach_the_edge_of_the_budget() -> None:
    for steps in (1, 3, 10):
        assert math.isclose(sum(MIFGSM(0.07, steps).step_length(step) for step in range(steps)), 0.07)
    assert MIFGSM(step_size=0.02).step_length(3) == 0.02


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 0}, "eps=0"),
        ({"steps": 0}, "steps=0"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"restarts": 0}, "restarts=0"),
    ],
)
def test_bad_settings_of_mi_fgsm(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MIFGSM(**arguments)
