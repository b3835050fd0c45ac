"""Defenses that are fitted: closed forms on linear generators, and what each of them promises."""

import json
import runpy
import sys
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from limits import short_attacks
from peft import get_peft_model
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard import GatedLoraConfig
from loraguard.audit import run_audit
from loraguard.channels import Quantize, published, quantize
from loraguard.data import DemoFaces, collate
from loraguard.defenses import DEFENSES, Fittable, RandomNoise
from loraguard.defenses.cmua import CMUA, success
from loraguard.defenses.features import grad_cam_plus_plus, watched, with_layers
from loraguard.defenses.fitted import FittedDefense, targets_of
from loraguard.defenses.idguard import IDGuard, least_norm
from loraguard.defenses.protector import UNet
from loraguard.defenses.tafim import TAFIM
from loraguard.defenses.tsdf import TSDF, Balance, diverse
from loraguard.describing import describe
from loraguard.generators import DemoEditor
from loraguard.metrics import mean_squared_error

EPS = 0.05
NETWORK = {"steps": 2, "batch_size": 2, "width": 4, "learning_rate": 1e-2}
SMALL: dict[str, FittedDefense] = {
    "cmua": CMUA(EPS, steps=2, photos=6, batch_size=3),
    "tsdf": TSDF(EPS, steps=2, photos=6, batch_size=3, layers=("main.9",)),
    "tafim": TAFIM(EPS, depth=2, **NETWORK),
    "id-guard": IDGuard(EPS, blocks=1, layers=("main.9",), **NETWORK),
}


@cache
def fitted(name: str, seed: int = 0) -> FittedDefense:
    """Each small defense, fitted once to an untrained editor of 16 pixels."""
    torch.manual_seed(0)
    generator = DemoEditor(conv_dim=4, num_blocks=1)
    torch.manual_seed(seed)
    return SMALL[name].fit(generator, DemoFaces(12, size=16), disable_tqdm=True)


class Tensors(Dataset[Tensor]):
    """Grey photos without labels, far from both ends of the range."""

    def __init__(self, n: int = 8, size: int = 8) -> None:
        self.photos = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5)) - 0.5

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return self.photos[index]


class Scale(nn.Module):
    """G(x) = a * x: the best perturbation is +-eps everywhere, whatever its signs."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factors[:, None, None]


class Inner(nn.Module):
    """G(x) = <w, x>: the best perturbation is eps * sign(w) or its negative, for every photo the same."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        return (self.weights * images).sum((1, 2, 3), keepdim=True).expand_as(images)


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


@pytest.mark.parametrize("name", SMALL)
def test_registered_and_fittable(name: str) -> None:
    assert DEFENSES[name] is type(SMALL[name])
    assert isinstance(SMALL[name], Fittable)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [16, 20])
def test_published_photos_are_8_bit_and_within_the_budget(name: str, size: int) -> None:
    photos = quantize(torch.rand(3, 3, size, size) * 2 - 1)
    photos[0] = photos[0].sign()
    defended = fitted(name)(nn.Identity(), photos, {})
    assert defended.shape == photos.shape
    assert not defended.requires_grad
    assert (defended - photos).abs().max() <= EPS + 1e-6
    assert defended.abs().max() <= 1
    shown = published(defended, photos)
    levels = (shown + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (shown - photos).abs().max() <= EPS
    assert (defended != photos).any()


@pytest.mark.parametrize("name", SMALL)
def test_a_smaller_budget_of_the_same_fit_is_kept(name: str) -> None:
    """Whatever was fitted, a photo moves no further than eps."""
    photos = torch.rand(2, 3, 16, 16) - 0.5
    learnt = fitted(name).fitted
    assert learnt is not None
    allowed = (fitted(name)(nn.Identity(), photos, {}) - photos).abs().max().item() / 2
    defended = replace(SMALL[name], eps=allowed).having(learnt)(nn.Identity(), photos, {})
    assert (defended - photos).abs().max().item() == pytest.approx(allowed, abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_fit(name: str) -> None:
    photos = torch.rand(2, 3, 16, 16) - 0.5
    once = fitted(name)(nn.Identity(), photos, {})
    fitted.cache_clear()
    assert torch.equal(fitted(name)(nn.Identity(), photos, {}), once)
    assert not torch.equal(fitted(name, seed=1)(nn.Identity(), photos, {}), once)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_leaves_generators_and_the_defense_alone(name: str, training: bool, editor: DemoEditor) -> None:
    editor.train(training)
    editor.main[0].weight.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in editor.parameters()]
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    defense = SMALL[name]
    defense.fit(editor, DemoFaces(4, size=16), disable_tqdm=True)
    assert defense.fitted is None
    assert editor.training == training
    assert [parameter.requires_grad for parameter in editor.parameters()] == asked
    assert all(parameter.grad is None for parameter in editor.parameters())
    assert all(torch.equal(before[key], value) for key, value in editor.state_dict().items())
    assert not any(module._forward_hooks for module in editor.modules())


@pytest.mark.parametrize("name", SMALL)
def test_not_fitted(name: str) -> None:
    with pytest.raises(ValueError, match=r"not fitted: call .*\.fit\(generators, photos\)"):
        SMALL[name](nn.Identity(), torch.zeros(1, 3, 16, 16), {})
    with pytest.raises(ValueError, match="not fitted"):
        SMALL[name].save("nowhere/x.safetensors")
    with pytest.raises(ValueError, match="not fitted"):  # changed settings have to be fitted again
        replace(fitted(name), eps=0.01)(nn.Identity(), torch.zeros(1, 3, 16, 16), {})


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    defense, photos = fitted(name), torch.rand(2, 3, 16, 16) - 0.5
    path = defense.save(tmp_path / "new" / "defense.safetensors")
    assert [file.name for file in path.parent.iterdir()] == ["defense.safetensors"]
    state = torch.get_rng_state()
    loaded = type(defense).load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded == defense
    assert describe(loaded) == describe(defense)
    assert torch.equal(loaded(nn.Identity(), photos, {}), defense(nn.Identity(), photos, {}))


def test_what_cannot_be_saved_is_described(tmp_path: Path) -> None:
    identity = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    faces = DemoFaces(4, size=16)
    with_identity = replace(SMALL["id-guard"], identity=identity).fit(DemoEditor(4, 1), faces, disable_tqdm=True)
    with_channel = replace(SMALL["tafim"], channel=Quantize()).fit(DemoEditor(4, 1), faces, disable_tqdm=True)
    for defense, name, said in (
        (with_identity, "identity", "Sequential"),
        (with_channel, "channel", "Quantize(bits=8, pass_through=False)"),
    ):
        loaded = type(defense).load(defense.save(tmp_path / "defense.safetensors"))
        assert describe(loaded)[name] == said
        assert getattr(type(loaded).load(loaded.save(tmp_path / "again.safetensors")), name) == said
        with pytest.raises(ValueError, match=f"give {name} itself"):
            loaded.fit(DemoEditor(4, 1), faces)


def test_files_that_are_not_what_was_asked_for(tmp_path: Path) -> None:
    path = fitted("cmua").save(tmp_path / "defense.safetensors")
    with pytest.raises(FileNotFoundError, match="other"):
        CMUA.load(tmp_path / "other")
    with pytest.raises(ValueError, match="holds CMUA, not TSDF"):
        TSDF.load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no complete safetensors"):
        CMUA.load(path)


@pytest.mark.parametrize("name", SMALL)
def test_described_in_json_by_what_was_fitted(name: str) -> None:
    words = json.dumps(describe(fitted(name)))
    assert "sha256" in words
    assert words != json.dumps(describe(fitted(name, seed=1)))
    assert describe(SMALL[name])["fitted"] is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_audited(patched: nn.Module) -> None:
    """As any defense: taken as it is for the untouched generator, and fitted to the patched one, in PEFT's wrapping."""
    result = run_audit(
        patched, DemoFaces(3, size=16, split="test"), defenses={"tsdf": fitted("tsdf")}, patches={"default": None},
        fit_on=DemoFaces(4, size=16), disable_tqdm=True,
    )  # fmt: skip
    json.dumps(result.to_dict(), allow_nan=False)


def test_tafim_alone_is_audited_beside_noise_and_further_attacks_of_its_budget(
    patched: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clips to L-infinity on images, whatever the paper does."""
    short_attacks(monkeypatch)
    result = run_audit(
        patched, DemoFaces(2, size=16, split="test"), defenses={"tafim": fitted("tafim")}, patches={"default": None},
        no_leak_only=["tafim"], checks=1, disable_tqdm=True,
    )  # fmt: skip
    assert [row.treatment.eps for row in result.find(knowledge="noise", generator="untouched")] == [EPS]
    assert EPS in {row.treatment.eps for row in result.find(role="check", generator="untouched")}
    assert result.settings["budget"].startswith(f"L-infinity {EPS:g} on [-1, 1]")


def test_search_for_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same under a seed; torch's own draws stay as they were."""
    generators = [DemoEditor(4, 1), nn.Conv2d(3, 3, 3, padding=1)]
    faces, defense = DemoFaces(8, size=16), CMUA(0.4, steps=1, photos=4)
    state = torch.get_rng_state()
    found = [defense.search(generators, faces, trials=3, seed=seed, disable_tqdm=True).factors for seed in (0, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert found[0] is not None
    assert len(found[0]) == 2
    assert all(0 <= factor <= 10 for factor in found[0])
    with pytest.raises(ValueError, match="two photos or more, got 3 and 1"):
        defense.search(generators, DemoFaces(1, size=16), trials=3)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"loraguard\[search\]"):
        defense.search(generators, faces)


def test_search_finds_what_a_factor_decides() -> None:
    """One generator never fails, but pulls P its own way; the other fails only if P is almost wholly its own."""
    pulling, failing = Inner(1e-4 * torch.randn(3, 8, 8)), Inner(torch.full((3, 8, 8), 0.026))
    photos, generators = Tensors(8), [pulling, failing]

    def share(defense: CMUA) -> float:
        torch.manual_seed(0)
        return success(defense.fit(generators, photos, disable_tqdm=True), targets_of(generators), photos)

    defense = CMUA(EPS, steps=8, photos=4)
    found = defense.search(generators, photos, trials=20, highest=3, disable_tqdm=True)
    assert share(defense) == 0
    assert share(found) == 0.5
    assert found.factors is not None
    assert found.factors[0] < found.factors[1]


def test_success_counts_photos_edits_and_generators() -> None:
    """P = eps everywhere moves outputs scaled by 10 by 0.5, over the threshold, and outputs like photos by 0.05."""
    learnt = CMUA().blank((8, 8))
    learnt.pattern.fill_(EPS)
    targets = targets_of([Scale(10.0, 10.0, 10.0), Scale(1.0, 1.0, 1.0)])
    assert success(CMUA(EPS).having(learnt), targets, Tensors()) == 0.5


def test_edits_come_from_labels() -> None:
    """A generator's own edits, or those that are given; without labels neither."""

    class Shift(nn.Module):
        def forward(self, images: Tensor, by: Tensor) -> Tensor:
            return images * by[:, :, None, None]

    photos = [(photo, torch.ones(1)) for photo in Tensors().photos]
    asked = []

    def conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        asked.append(labels.shape)
        return {"twice": {"by": 2 * labels}, "thrice": {"by": 3 * labels}}

    defense = CMUA(EPS, steps=1, batch_size=4)
    assert defense.fit(Shift(), photos, conditions, disable_tqdm=True).fitted
    assert asked == [(4, 1), (4, 1)]
    with pytest.raises(ValueError, match="Edits are made from labels"):
        defense.fit(DemoEditor(4, 1), Tensors(), disable_tqdm=True)


def test_layers_by_name_in_whatever_wrapping(editor: DemoEditor) -> None:
    layer = editor.main[9]
    wrapped = get_peft_model(nn.Sequential(editor), GatedLoraConfig(r=1, target_modules=["0.main.0"]))
    found = with_layers(targets_of([wrapped, editor]), ["main.9", "main.6"])
    assert [target.layer for target in found] == [layer, editor.main[6]]
    with pytest.raises(ValueError, match=r"no layer 'main\.99'"):
        with_layers(targets_of(editor), ["main.99"])
    with pytest.raises(ValueError, match="layers="):
        with_layers(targets_of(nn.Sequential(nn.ReLU())), None)
    assert with_layers(targets_of(editor), None)[0].layer is dict(editor.named_modules())[editor.latent_layer]
    with (
        pytest.raises(ValueError, match=r"Linear gives \(2, 4\)"),
        watched(linear := nn.Linear(3, 4)),
    ):
        linear(torch.zeros(2, 3))
    assert not linear._forward_hooks


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CMUA(eps=0), "eps=0"),
        (lambda: CMUA(steps=0), "steps=0"),
        (lambda: CMUA(momentum=1), "momentum=1"),
        (lambda: CMUA(factors=(0.0, 0.0)), "not all 0"),
        (lambda: TSDF(temperature=0), "temperature > 0"),
        (lambda: TSDF(step_size=0), "step_size=0"),
        (lambda: TSDF(batch_size=0), "batch_size=0"),
        (lambda: TAFIM(width=6), "multiple of 4"),
        (lambda: TAFIM(depth=0), "depth >= 1"),
        (lambda: IDGuard(blocks=0), "blocks=0"),
        (lambda: CMUA(factors=(1.0,)).fit([nn.Identity()] * 2, Tensors()), "factor for each of 2"),
        (lambda: TSDF(layers=("0", "1")).fit(nn.Identity(), Tensors()), "layer for each of 1"),
        (lambda: CMUA().fit([], Tensors()), "at least one generator"),
        (lambda: CMUA().fit(nn.Identity(), []), "no photos"),
        (lambda: TAFIM().fit(nn.Identity(), []), "no photos"),
        (lambda: CMUA().fit(nn.Identity(), [torch.full((3, 8, 8), 255.0)], disable_tqdm=True), "127.5"),
        (lambda: IDGuard(layers=("0",), identity=nn.Flatten()).fit(nn.Sequential(nn.Identity()), Tensors()), "Conv2d"),
    ],
)  # fmt: skip
def test_bad_settings(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_unets_of_any_depth_and_size() -> None:
    for depth in (1, 2, 5):
        assert UNet(6, 4, depth)(torch.zeros(2, 6, 33, 40)).shape == (2, 3, 33, 40)


@pytest.mark.parametrize("name", ["tafim", "id-guard"])
def test_the_ones_that_ship(name: str) -> None:
    """Of the demo's size and budget, far over noise, and as good on unseen faces as their recipes say."""
    defense = DEFENSES[name].pretrained()
    folder = Path(str(files("loraguard.defenses"))) / "demo_weights" / defense.recipe
    assert (folder / "model.safetensors").stat().st_size < 400_000
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["defense"] == describe(defense)
    assert defense.eps == recipe["settings"]["eps"] == 0.1
    assert defense.fitted.pattern.shape == (3, 64, 64)
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_protection.py"))
    figures, said = script["measure"](defense, 24), recipe["figures"]
    assert said["mse_defense"]["low"] / 2 < figures["mse_defense"]["mean"] < 2 * said["mse_defense"]["high"]
    assert figures["mse_defense"]["mean"] > 5 * figures["mse_noise"]["mean"]
    assert abs(figures["dsr_defense"]["mean"] - said["dsr_defense"]["mean"]) < 0.25


@pytest.mark.parametrize("name", ["tafim", "id-guard"])
def test_train_protection(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script writes what it measured, and measures what it wrote."""
    words = f"--defense {name} --output-dir {tmp_path} --steps 2 --faces 4 --test-faces 4 --width 4 --batch-size 2"
    monkeypatch.setattr(sys, "argv", ["train_protection.py", *words.split(), "--log-every", "1"])
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_protection.py"))
    script["main"]()
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [1, 2]
    defense = DEFENSES[name].load(tmp_path / "model.safetensors")
    assert describe(defense) == recipe["defense"]
    assert script["measure"](defense, 4) == recipe["figures"]
