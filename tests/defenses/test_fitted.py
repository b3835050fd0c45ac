"""Defenses that are fitted: closed forms on linear generators, and losses by hand."""

from dataclasses import replace

import pytest
import torch
from linear import EPS, Inner, Scale, Tensors
from scipy.optimize import minimize
from small_fitted import SMALL
from torch import Tensor, nn

from loraguard.channels import published
from loraguard.data import DemoFaces, collate
from loraguard.defenses import RandomNoise
from loraguard.defenses.cmua import CMUA
from loraguard.defenses.features import grad_cam_plus_plus
from loraguard.defenses.fitted import FittedDefense, targets_of
from loraguard.defenses.idguard import IDGuard, least_norm
from loraguard.defenses.tafim import TAFIM
from loraguard.defenses.tsdf import TSDF, Balance, diverse
from loraguard.generators import DemoEditor
from loraguard.metrics import mean_squared_error


def assert_sign_of(pattern: Tensor, weights: Tensor) -> None:
    aligned = pattern / EPS * weights.sign()
    sign = aligned.mean().sign()
    assert torch.allclose(aligned[weights != 0], sign.expand_as(aligned[weights != 0]), atol=1e-2)


@pytest.mark.parametrize("defense", [CMUA(EPS, steps=40), TSDF(EPS, steps=150, feature_weight=0)])
def test_universal_optimum_of_a_linear_generator(defense: CMUA | TSDF) -> None:
    pattern = defense.fit(Scale(0.5, 1, 3), Tensors(), disable_tqdm=True).perturbation
    assert torch.allclose(pattern.abs(), torch.full_like(pattern, EPS), atol=1e-3)


def test_universal_optimum_follows_the_sign_of_a_single_output() -> None:
    weights = torch.randn(3, 8, 8)
    defense = CMUA(EPS, steps=40).fit(Inner(weights), Tensors(), disable_tqdm=True)
    assert_sign_of(defense.perturbation, weights)
    images = torch.zeros(2, 3, 8, 8)
    moved = Inner(weights)(defense(nn.Identity(), images, {}))
    assert torch.allclose(moved.abs(), (EPS * weights.abs().sum()).expand_as(moved), rtol=1e-2)


@pytest.mark.parametrize("defense", [CMUA(EPS, steps=40), TSDF(EPS, steps=150, feature_weight=0)])
def test_one_perturbation_is_best_for_generators_that_look_at_different_values(
    defense: CMUA | TSDF, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One generator sees the left half, the other the right one: each half of P is best for its own."""
    monkeypatch.setattr("loraguard.defenses.tsdf.diverse", lambda images: images)  # it would move values across
    left, right = torch.randn(2, 3, 8, 8)
    left[..., 4:], right[..., :4] = 0, 0
    pattern = defense.fit([Inner(left), Inner(right)], Tensors(), disable_tqdm=True).perturbation
    assert_sign_of(pattern, left)
    assert_sign_of(pattern, right)


def test_a_factor_of_zero_leaves_a_generator_without_say() -> None:
    left, right = torch.randn(2, 3, 8, 8)
    defense = CMUA(EPS, steps=40, factors=(0.0, 1.0))
    assert_sign_of(defense.fit([Inner(left), Inner(right)], Tensors(), disable_tqdm=True).perturbation, right)


def test_two_steps_of_cmua_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a known start, d = mean of clip(f * (x' + a * sign - x)), then the running mean with the second d."""
    weights, start = torch.randn(3, 4, 4), EPS * (2 * torch.rand(2, 3, 4, 4) - 1)
    monkeypatch.setattr("loraguard.defenses.cmua.jitter", lambda images, radius: images + start)
    defense = CMUA(EPS, steps=2, step_size=0.01, factors=(3.0,), photos=2)
    found = defense.fit(Inner(weights), list(torch.zeros(2, 3, 4, 4)), disable_tqdm=True).perturbation
    signs = [(weights * one).sum().sign() * weights.sign() for one in start]
    first = torch.stack([(3 * (one + 0.01 * sign)).clamp(-EPS, EPS) for one, sign in zip(start, signs, strict=True)])
    first = first.mean(0)
    sign = (weights * first).sum().sign() * weights.sign()
    assert torch.allclose(found, 0.5 * first + 0.5 * (3 * (first + 0.01 * sign)).clamp(-EPS, EPS), atol=1e-6)


def test_weights_of_the_ensemble_by_hand() -> None:
    balance = Balance(3, decay=0.9, temperature=0.1)
    assert balance.weights.tolist() == pytest.approx([1 / 3] * 3, rel=1e-5)
    balance.update(torch.tensor([0.2, 0.0, 0.1]))
    balance.update(torch.tensor([0.4, 0.1, 0.0]))
    averages = [-(0.9 * 0.1 * a + 0.1 * b) for a, b in ((0.2, 0.4), (0.0, 0.1), (0.1, 0.0))]
    exponentials = [2.718281828459045 ** (average / 0.1) for average in averages]
    assert balance.weights.tolist() == pytest.approx([e / sum(exponentials) for e in exponentials], rel=1e-5)


def test_diverse_inputs() -> None:
    images = torch.ones(2, 3, 64, 64)
    framed = [out for out in (diverse(images) for _ in range(200)) if not torch.equal(out, images)]
    assert 60 < len(framed) < 140
    assert all(out.shape == images.shape and out.unique().tolist() in ([0, 1], [1]) for out in framed)
    shares = torch.stack([out.mean() for out in framed])
    assert shares.min() >= (256 / 290) ** 2 - 0.05
    assert shares.max() <= 1


@pytest.mark.parametrize(
    "defense",
    [CMUA(0.1), TSDF(0.1, step_size=0.02), TSDF(0.1, step_size=0.02, feature_weight=0)],
    ids=["cmua", "tsdf", "outputs-only"],
)
def test_objective_grows_with_steps_and_beats_noise(defense: CMUA | TSDF) -> None:
    """On faces that a perturbation was not fitted to."""
    generator = DemoEditor.pretrained()
    batch = collate([DemoFaces(4, size=16, split="test")[i] for i in range(4)])
    condition = generator.conditions(batch["labels"])["Blond_Hair"]
    clean = generator(batch["image"], **condition)
    defenses: list[FittedDefense | RandomNoise] = [RandomNoise(0.1)]
    for steps in (2, 8):
        torch.manual_seed(0)
        small = replace(defense, steps=steps, photos=6, batch_size=6)
        defenses.append(small.fit(generator, DemoFaces(6, size=16), disable_tqdm=True))
    torch.manual_seed(0)
    shown = [published(one(generator, batch["image"], condition), batch["image"]) for one in defenses]
    damages = [mean_squared_error(generator(photos, **condition), clean).mean().item() for photos in shown]
    assert damages == sorted(damages)


def test_optimum_of_tafim_on_a_linear_generator() -> None:
    """Without a price for distance, whatever is scaled up by a positive factor is made as bright as eps allows."""
    defense = TAFIM(EPS, steps=60, batch_size=4, learning_rate=1e-2, width=4, depth=2, fidelity=0)
    defense = defense.fit(Scale(0.5, 1, 2), Tensors(), disable_tqdm=True)
    photos = Tensors(16).photos
    moved = defense(nn.Identity(), photos, {}) - photos
    assert moved.min() > 0.5 * EPS
    assert moved.mean() > 0.9 * EPS
    assert defense.fitted is not None
    assert torch.allclose(defense.fitted.pattern, torch.full((3, 8, 8), EPS), atol=1e-6)


def test_tafims_soft_budget_has_a_closed_form() -> None:
    """G(x) = x at x = 0: (d - 1)^2 + 10 d^2 is least at d = 1 / 11."""
    defense = TAFIM(eps=2, steps=120, batch_size=1, learning_rate=5e-2, width=4, depth=1)
    defense = defense.fit(nn.Identity(), [torch.zeros(3, 8, 8)], disable_tqdm=True)
    assert defense.fitted is not None
    assert defense.fitted.pattern.mean().item() == pytest.approx(1 / 11, abs=0.01)
    assert defense.fitted.pattern.std() < 0.05  # it started at uniform noise in [-2, 2]


def test_tafim_is_trained_through_its_channel() -> None:
    """Behind a channel that shows black alone, d makes no difference to outputs, and distance pulls it to nothing."""

    class Black:
        def __call__(self, images: Tensor) -> Tensor:
            return images * 0 - 1

        def differentiable(self) -> "Black":
            return self

    defense = TAFIM(EPS, steps=40, batch_size=1, learning_rate=1e-2, width=4, depth=1, channel=Black())
    defense = defense.fit(nn.Identity(), [torch.zeros(3, 8, 8)], disable_tqdm=True)
    assert defense.fitted is not None
    assert defense.fitted.pattern.abs().max() < 0.2 * EPS


def test_idguards_loss_by_hand() -> None:
    """A linear generator whose features are the photo: every term from its formula, in float64."""
    generator = nn.Sequential(nn.Identity(), Scale(0.5, 1, 2)).double()
    identity = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    photos = torch.rand(2, 3, 8, 8).double() - 0.5
    perturbed = torch.cat([photos + 0.03 * torch.randn_like(photos), photos - 0.05])
    for defense in (IDGuard(layers=("0",)), IDGuard(layers=("0",), identity=identity)):
        (target,) = [replace(t, layer=generator[0]) for t in targets_of(generator)]
        found = defense.loss(target, photos, perturbed, {})
        mask = torch.cat([defense.mask(target, photos, {})] * 2)
        assert mask.shape == (4, 1, 8, 8)
        assert mask.amin((1, 2, 3)).tolist() == [0] * 4
        assert mask.amax((1, 2, 3)).tolist() == [1] * 4
        clean, outputs = generator(torch.cat([photos, photos])), generator(perturbed)
        expected = ((mask * (outputs - clean)) ** 2).mean()
        expected = expected + 0.01 * ((mask * (perturbed - torch.cat([photos, photos]))) ** 2).mean()
        if defense.identity is not None:
            one, other = identity(outputs), identity(clean)
            expected = expected - 0.1 * ((one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)).mean()
        assert found.item() == pytest.approx(-expected.item(), rel=1e-9)


def test_grad_cam_plus_plus_from_its_definition() -> None:
    """Alpha from the second and third derivatives of exp(score), taken by autograd one value at a time."""
    features = torch.rand(1, 2, 3, 3).double()
    head = torch.randn(2, 3, 3).double()

    def score(maps: Tensor) -> Tensor:
        return (head * maps).sum().exp()

    weights = []
    for k in range(2):
        weight = 0.0
        for i in range(3):
            for j in range(3):
                value = features[0, k, i, j].clone().requires_grad_()
                maps = features[0].clone()
                maps[k, i, j] = value
                derivatives = [score(maps)]
                for _ in range(3):
                    derivatives += torch.autograd.grad(derivatives[-1], value, create_graph=True)
                y, _, second, third = (float(d.detach()) for d in derivatives)
                alpha = second / (2 * second + float(features[0, k].sum()) * third)
                weight += alpha * max(float(head[k, i, j]), 0) * (y > 0)
        weights.append(weight)
    expected = sum(w * features[0, k] for k, w in enumerate(weights)).relu()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert torch.allclose(grad_cam_plus_plus(features, head[None], (3, 3))[0, 0], expected, rtol=1e-9)
    flat = grad_cam_plus_plus(features, torch.zeros(1, 2, 3, 3).double(), (6, 6))
    assert torch.equal(flat, torch.ones_like(flat))


def test_least_norm_against_scipy() -> None:
    gradients = torch.randn(3, 5).double() + 0.5
    best = minimize(
        lambda w: float((torch.tensor(w) @ gradients).square().sum()), [1 / 3] * 3, bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: sum(w) - 1},
    )  # fmt: skip
    weights = least_norm(gradients)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min() >= 0
    assert (weights @ gradients).square().sum().item() == pytest.approx(best.fun, rel=0.02, abs=1e-4)


def test_several_generators_and_an_identity() -> None:
    editors = [DemoEditor(conv_dim=4, num_blocks=1) for _ in range(2)]
    identity = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    defense = replace(SMALL["id-guard"], layers=("main.9", "main.6"), identity=identity)
    defense = defense.fit(editors, DemoFaces(4, size=16), disable_tqdm=True)
    assert defense.fitted is not None
    assert all(parameter.grad is None for network in (*editors, identity) for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in identity.parameters())
