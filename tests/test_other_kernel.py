"""The mode that rounds otherwise does so within its bound, and how near a comparison came is counted right."""

from __future__ import annotations

import math

import pytest
import torch
from margins import ratio_of
from other_kernel import OtherKernel
from torch import Tensor
from torch.nn import functional as F

EPS = torch.finfo(torch.float32).eps
CALLS = {
    "convolution": lambda x: F.conv2d(x, x[:, :, :3, :3]),
    "product": lambda x: x[0, 0] @ x[0, 1].T,
    "mean": lambda x: x.mean((2, 3)),
    "norm": lambda x: F.group_norm(x, 1),
    "sigmoid": lambda x: x.sigmoid(),
    "in place": lambda x: x.clone().exp_(),
    "gradient": lambda x: torch.func.grad(lambda y: F.conv2d(y, x[:, :, :3, :3]).square().sum())(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_off_by_a_few_eps_and_no_more(name: str) -> None:
    x = torch.randn(2, 3, 9, 8)
    exact = CALLS[name](x.double())
    with OtherKernel(ulps=4):
        one, again = CALLS[name](x), CALLS[name](x)
    assert torch.equal(one, again)
    size = exact.square().mean().sqrt() + exact.abs() + x.square().mean().sqrt()
    off = ((one - exact).abs() / (EPS * size)).max()
    assert 0.1 < off < 40  # several operations one after another in some
    with OtherKernel(ulps=4, number=1):
        assert not torch.equal(CALLS[name](x), one)


def test_what_every_kernel_gives_stays() -> None:
    whole = torch.randint(-9, 9, (2, 3, 6, 6)).float()
    with OtherKernel(ulps=4):
        found = F.conv2d(whole, whole[:, :, :3, :3]), torch.zeros(3).sigmoid(), whole.sum(), whole / 3 + whole * 0.1
    expected = F.conv2d(whole, whole[:, :, :3, :3]), torch.full((3,), 0.5), whole.sum(), whole / 3 + whole * 0.1
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("actual", "expected", "ratio"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.5 / (0.1 + 0.2 * 2.5)),
        ([1.0, math.inf, math.nan], [1.0, math.inf, math.nan], 0.0),
        (math.nan, 1.0, math.inf),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor(1j), 0.0, 10.0),
    ],
)
def test_errors_are_counted_in_tolerances(actual: object, expected: Tensor | float, ratio: float) -> None:
    assert ratio_of(actual, expected, rtol=0.2, atol=0.1) == pytest.approx(ratio)
