"""Distances in closed form, where they are not smooth, and what they refuse."""

import numpy as np
import pytest
import torch

from loraguard.losses import FeaturePair, feature_cosine, feature_mse, mmfa_loss, mmfa_terms

SHAPES = [(3, 5), (3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_numpys(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, *shape, dtype=torch.float64)
    x, y = a.numpy(), b.numpy()
    cosines = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    assert feature_mse(a, b).item() == pytest.approx(((x - y) ** 2).mean(), rel=1e-12)
    assert feature_cosine(a, b).item() == pytest.approx((1 - cosines).mean(), rel=1e-12)
    assert feature_cosine(a, 3 * a).item() == pytest.approx(0, abs=1e-12)
    assert feature_cosine(a, -a).item() == pytest.approx(2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distance", [feature_mse, feature_cosine])
def test_gradients(distance: object, shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, *shape, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(distance, (a.requires_grad_(), b))


@pytest.mark.parametrize("zero", ["outputs", "targets", "both"])
def test_zero_vectors_have_no_direction(zero: str) -> None:
    """They are at distance 1 with no gradient, and leave the other images' gradients as they are."""
    a, b = torch.randn(2, 3, 5).unbind()
    if zero != "targets":
        a[0] = 0
    if zero != "outputs":
        b[0] = 0
    a.requires_grad_()
    value = feature_cosine(a, b)
    value.backward()
    assert value.item() == pytest.approx((1 + 2 * feature_cosine(a[1:], b[1:]).item()) / 3, rel=1e-5)
    assert torch.equal(a.grad[0], torch.zeros(5))
    assert a.grad[1:].abs().min() > 0
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("distance", [feature_mse, feature_cosine])
def test_half_precision_is_summed_in_float32(distance: object) -> None:
    a, b = torch.randn(2, 3, 500).bfloat16().unbind()
    assert distance(a, b).dtype == torch.float32
    assert distance(a, b).item() == distance(a.float(), b.float()).item()


@pytest.mark.parametrize("distance", [feature_mse, feature_cosine])
@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((6,), (6,)), ((1, 2, 3, 4),) * 2])
def test_other_shapes_are_refused(distance: object, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Features must both be \(N, D\)"):
        distance(torch.zeros(a), torch.zeros(b))


def test_the_sum_is_the_papers_equation() -> None:
    y, t = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64).unbind()
    e, f, p, q = torch.randn(4, 2, 6, dtype=torch.float64).unbind()
    pairs = {"resnet": FeaturePair(e, f), "blip": FeaturePair(p, q, "cosine", 0.3)}
    expected = 2 * (y - t).abs().mean() + 0.1 * feature_mse(e, f) + 0.3 * feature_cosine(p, q)
    assert mmfa_loss(y, t, pairs, pixel="l1", pixel_weight=2).item() == pytest.approx(expected.item(), rel=1e-12)
    assert list(mmfa_terms(y, t, pairs)) == ["pixel", "resnet", "blip"]


def test_unknown_distances_are_refused() -> None:
    y = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="no pixel distance 'l2'; choose from 'mse', 'l1'"):
        mmfa_loss(y, y, {}, pixel="l2")
    with pytest.raises(ValueError, match="no feature distance 'cos'; choose from 'mse', 'cosine'"):
        mmfa_loss(y, y, {"a": FeaturePair(torch.zeros(1, 2), torch.zeros(1, 2), "cos")})
    with pytest.raises(ValueError, match="must have one shape"):
        mmfa_loss(y, y[..., :2], {})
