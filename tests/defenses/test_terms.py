"""What is maximised, against gradients by hand."""

import torch
from torch import Tensor, nn

from loraguard.defenses.terms import Term, away_from, in_turn, together


def linear(factor: float) -> nn.Module:
    layer = nn.Conv2d(3, 3, 1, bias=False).double().requires_grad_(False)
    layer.weight.copy_(factor * torch.randn(3, 3, 1, 1))
    return layer


def gradient(objective, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(objective(images), images)[0]


def by_hand(term: Term, images: Tensor) -> Tensor:
    """Of |W x - r|^2: 2 W'(W x - r)."""
    w = term.network.weight[:, :, 0, 0]
    return 2 * torch.einsum("oi,nohw->nihw", w, torch.einsum("oi,nihw->nohw", w, images) - term.reference)


def test_terms_one_by_one_in_turn_and_together() -> None:
    photos, images = torch.rand(2, 2, 3, 4, 4).double()
    terms = [away_from(linear(factor), photos, {}) for factor in (1.0, 100.0, 0.01)]
    objective = in_turn(terms)
    for step in range(7):
        assert torch.allclose(gradient(objective, images), by_hand(terms[step % 3], images), rtol=1e-9)
    total = sum(by_hand(term, images) for term in terms)
    assert torch.allclose(gradient(together(terms), images), total, rtol=1e-9)


def test_balanced_gradients_have_unit_norm_each_image_by_itself() -> None:
    photos, images = torch.rand(2, 2, 3, 4, 4).double()
    images[1] = photos[1] + 1e-3 * (images[1] - photos[1])  # close by, where gradients are small
    terms = [away_from(linear(factor), photos, {}) for factor in (1.0, 100.0, 0.01)]
    expected = torch.zeros_like(images)
    for term in terms:
        for i, row in enumerate(by_hand(term, images)):
            expected[i] += row / row.norm()
    assert torch.allclose(gradient(together(terms, balanced=True), images), expected, rtol=1e-9)


def test_balanced_at_the_reference_itself_is_zero_and_not_nan() -> None:
    photos = torch.rand(2, 3, 4, 4).double()
    assert not gradient(together([away_from(linear(1.0), photos, {})], balanced=True), photos).any()
