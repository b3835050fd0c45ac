"""Protections against latent editors: closed forms, published updates written out, and what each promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.channels import GaussianBlur, Through
from loraguard.defenses import (
    DEFENSES,
    SDS,
    SDST,
    AdvDM,
    BlurGuard,
    Defense,
    DiffusionGuard,
    Disrupting,
    EditShield,
    IterativeDefense,
    Mist,
    PhotoGuard,
    PhotoGuardDiffusion,
    PhotoGuardL2,
    RandomNoise,
    TextureOnly,
    parse_defense,
)
from loraguard.defenses.editshield import slightly_moved
from loraguard.defenses.latent_terms import noise_error, texture
from loraguard.generators import DemoDiffusion, DemoEditor, LatentDiffusion

EPS = 0.05
QUICK: dict[str, Defense] = {
    "photoguard": PhotoGuard(EPS, 4),
    "photoguard-diffusion": PhotoGuardDiffusion(EPS, 2, eot=2),
    "advdm": AdvDM(EPS, 4),
    "advdm down": AdvDM(EPS, 4, direction="-"),
    "texture": TextureOnly(EPS, 4),
    "mist": Mist(EPS, 4),
    "sds": SDS(EPS, 4),
    "sds up": SDS(EPS, 4, direction="+"),
    "sdst": SDST(EPS, 4),
    "editshield": EditShield(EPS, 4),
    "diffusionguard": DiffusionGuard(EPS, 4),
    "blurguard": BlurGuard(EPS, "mist:steps=2"),
}


class Linear(LatentDiffusion):
    """An editor all of whose parts are linear: E(x) = A x, D its transpose, and a denoiser M z + m times the time."""

    attributes = ()

    def __init__(self, blind: bool = True) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 48, dtype=torch.float64) / 7)
        self.inner = nn.Parameter(torch.randn(8, 8, dtype=torch.float64) / 3)
        self.photo = nn.Parameter(torch.zeros(8, 8).double() if blind else torch.randn(8, 8).double() / 3)

    def encode(self, images: Tensor) -> Tensor:
        return self.latents((images.flatten(1) @ self.matrix.T).view(-1, 2, 2, 2))

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1) @ self.matrix).view(-1, 3, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        noise = (times.double() + 1)[:, None, None, None] / self.num_timesteps
        return 1 - noise, noise

    def predict_noise(self, noised: Tensor, times: Tensor, photo: Tensor, **condition: Any) -> Tensor:
        made = noised.flatten(1) @ self.inner.T + photo.flatten(1) @ self.photo.T
        return (made + times[:, None] / self.num_timesteps).view_as(noised)


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear()


@pytest.fixture
def images() -> Tensor:
    return (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double() - 0.5) * 1.6


@pytest.fixture(scope="module")
def editor() -> DemoDiffusion:
    torch.manual_seed(0)
    return DemoDiffusion(**DemoDiffusion.small).eval()


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def condition() -> dict[str, Tensor]:
    return {"labels": torch.eye(5)[:2]}


def pgd(images: Tensor, gradient: Any, lengths: list[float], start: Tensor) -> Tensor:
    """Projected descent by signs as it is written everywhere."""
    x = start
    for length in lengths:
        x = x - length * gradient(x).sign()
        x = torch.minimum(torch.maximum(x, images - EPS), images + EPS).clamp(-1, 1)
    return x


def falling(first: float, steps: int) -> list[float]:
    """Diff-Protect's `step_size - (step_size - step_size / 100) / iters * i`."""
    return [first - (first - first / 100) / steps * i for i in range(steps)]


def uniform_start(images: Tensor) -> Tensor:
    return (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)


def encoded(linear: Linear, x: Tensor) -> Tensor:
    return x.reshape(len(x), -1) @ linear.matrix.T


def test_photoguard_is_the_published_update(linear: Linear, images: Tensor) -> None:
    """The gradient of |A x| is A'A x / |A x|: its sign is that of A'A x."""
    torch.manual_seed(3)
    found = PhotoGuard(EPS, 7, 0.02)(linear, images, {})
    torch.manual_seed(3)
    truth = pgd(
        images, lambda x: (encoded(linear, x) @ linear.matrix).view_as(x), falling(0.02, 7), uniform_start(images)
    )
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)
    assert encoded(linear, found).norm() < encoded(linear, images).norm()


def test_one_pixel_s_latent_goes_where_the_budget_lets_it() -> None:
    """E(x) = x, the target zero: each value moves by the budget towards 0, or there."""
    network = nn.Sequential(nn.Identity())
    network.latent_layer = "0"
    images = torch.linspace(-0.9, 0.9, 48).view(1, 3, 4, 4)
    found = PhotoGuard(EPS, 200)(network, images, {})
    truth = images - images.clamp(-EPS, EPS)
    torch.testing.assert_close(found, truth, rtol=0, atol=0.01 * EPS)  # the last steps are so long


def test_the_texture_is_the_published_update(linear: Linear, images: Tensor) -> None:
    goal = encoded(linear, texture(4, 4).double().expand_as(images))
    torch.manual_seed(3)
    found = TextureOnly(EPS, 5, 0.01)(linear, images, {})
    torch.manual_seed(3)
    truth = pgd(
        images, lambda x: ((encoded(linear, x) - goal) @ linear.matrix).view_as(x), falling(0.01, 5),
        uniform_start(images),
    )  # fmt: skip
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def error_and_pullback(linear: Linear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By one draw: the mistake e = M (a A x + b n) + t/T - n, its gradient's way back 2 a A'M'e, and a."""
    times = torch.randint(linear.num_timesteps, (len(x),))
    noise = torch.randn(len(x), 2, 2, 2, dtype=x.dtype).flatten(1)
    b = (times.double() + 1)[:, None] / 1000
    noised = (1 - b) * encoded(linear, x) + b * noise
    error = noised @ linear.inner.T + times[:, None] / 1000 - noise
    return error, 2 * (1 - b) * (error @ linear.inner) @ linear.matrix, error @ linear.matrix


@pytest.mark.parametrize("direction", ["+", "-"])
def test_advdm_is_the_published_update(linear: Linear, images: Tensor, direction: str) -> None:
    sign = 1 if direction == "+" else -1
    torch.manual_seed(3)
    found = AdvDM(EPS, 5, 0.01, direction)(linear, images, {})
    torch.manual_seed(3)
    start = uniform_start(images)
    truth = pgd(images, lambda x: -sign * error_and_pullback(linear, x)[1].view_as(x), falling(0.01, 5), start)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_mist_is_the_published_update(linear: Linear, images: Tensor) -> None:
    """Down the sum of squares to the target, and up `rate` times the mean of squares of the mistake."""
    goal = encoded(linear, texture(4, 4).double().expand_as(images))

    def gradient(x: Tensor) -> Tensor:
        to_target = 2 * (encoded(linear, x) - goal) @ linear.matrix
        return (to_target - 1e4 / 8 * error_and_pullback(linear, x)[1]).view_as(x)

    torch.manual_seed(3)
    found = Mist(EPS, 5, 0.01)(linear, images, {})
    torch.manual_seed(3)
    truth = pgd(images, gradient, falling(0.01, 5), uniform_start(images))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", ["+", "-"])
def test_sds_skips_the_denoiser_s_gradient(linear: Linear, images: Tensor, direction: str) -> None:
    sign = 1 if direction == "+" else -1
    torch.manual_seed(3)
    found = SDS(EPS, 5, 0.01, direction)(linear, images, {})
    torch.manual_seed(3)
    truth = pgd(images, lambda x: -sign * error_and_pullback(linear, x)[2].view_as(x), [0.01] * 5, images)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_sdst_adds_the_texture(linear: Linear, images: Tensor) -> None:
    goal = encoded(linear, texture(4, 4).double().expand_as(images))

    def gradient(x: Tensor) -> Tensor:
        return (2 * (encoded(linear, x) - goal) @ linear.matrix + 5 * error_and_pullback(linear, x)[2]).view_as(x)

    torch.manual_seed(3)
    found = SDST(EPS, 5, 0.01)(linear, images, {})
    torch.manual_seed(3)
    torch.testing.assert_close(found, pgd(images, gradient, [0.01] * 5, images), rtol=0, atol=1e-12)


def test_diffusionguard_is_the_published_update(images: Tensor) -> None:
    """Up the square of what the denoiser finds in noise at the last time, of which the photo's part is P A x."""
    torch.manual_seed(0)
    network = Linear(blind=False)

    def gradient(x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 2, 2, 2, dtype=x.dtype).flatten(1)
        found = noise @ network.inner.T + encoded(network, x) @ network.photo.T + 999 / 1000
        return -(found @ network.photo @ network.matrix).view_as(x)

    torch.manual_seed(3)
    found = DiffusionGuard(EPS, 5, 0.01)(network, images, {})
    torch.manual_seed(3)
    torch.randn(2, 2, 2, 2, dtype=torch.float64)  # drawn to see whether the denoiser looks at the photo
    truth = pgd(images, gradient, [0.01] * 5, uniform_start(images))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_photoguard_through_the_whole_editor(linear: Linear, images: Tensor) -> None:
    """G = A'A: descent on |A'A x|^2 leads to smaller outputs; its gradient is 2 (A'A)^2 x."""
    square = linear.matrix.T @ linear.matrix
    linear.forward = lambda images, seeds=None: linear.decode(linear.encode(images))  # type: ignore[method-assign]
    torch.manual_seed(3)
    found = PhotoGuardDiffusion(EPS, 6, 0.01, eot=1)(linear, images, {})
    torch.manual_seed(3)
    start = (images + 0.01 * EPS * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)

    def gradient(x: Tensor) -> Tensor:
        torch.randint(2**31, (len(x),))  # the seeds of noise that this editor does not have
        return (x.flatten(1) @ square @ square).view_as(x)

    torch.testing.assert_close(found, pgd(images, gradient, [0.01] * 6, start), rtol=0, atol=1e-12)


def test_photoguard_within_an_l2_ball_is_the_published_update(linear: Linear, images: Tensor) -> None:
    """G = A'A x + n: the gradient of |G| is A'A G / |G|, averaged over draws of n, taken at length 1, from the photo.

    `torch.renorm` divides by the norm and 1e-7, which is why the two are not nearer than that in each of ten steps.
    """
    square = linear.matrix.T @ linear.matrix

    def noise(seeds: Tensor) -> Tensor:
        return torch.stack([torch.randn(48, generator=torch.Generator().manual_seed(int(one))) for one in seeds]) / 9

    linear.forward = lambda images, seeds=None: (  # type: ignore[method-assign]
        linear.decode(linear.encode(images)) + (0 if seeds is None else noise(seeds).view_as(images))
    )
    images, eps, length = 1.2 * images, 0.8, 0.25
    torch.manual_seed(3)
    found = PhotoGuardL2(eps, 10, length, eot=2)(linear, images, {})
    torch.manual_seed(3)
    x, start, left = images.flatten(1), images.flatten(1), False
    for _ in range(10):
        outputs = [x @ square + noise(torch.randint(2**31, (2,))) for _ in range(2)]
        gradient = sum(one @ square / one.norm(dim=1, keepdim=True) for one in outputs)
        change = x - length * gradient / gradient.norm(dim=1, keepdim=True) - start
        norm = change.norm(dim=1, keepdim=True)
        x = start + change * (eps / norm).clamp(max=1)
        x, left = x.clamp(-1, 1), left or bool((norm > eps).any())
    assert left
    torch.testing.assert_close(found.flatten(1), x, rtol=0, atol=1e-5)
    assert PhotoGuardL2(eps).movement(found, images).max() <= eps + 1e-6
    assert PhotoGuardL2().varied(eps=2.0) == PhotoGuardL2(2.0)
    assert PhotoGuardL2().step_length(7) == 1
    with pytest.raises(ValueError, match="eps=-1 must be positive"):
        PhotoGuardL2(-1)


@pytest.mark.parametrize("name", QUICK)
def test_what_every_one_promises(
    name: str, editor: DemoDiffusion, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    """Within the budget and the range, the same for the same seed; the editor stays as it was."""
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    runs = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        runs.append(QUICK[name](editor, photos, condition))
    assert torch.equal(*runs)
    assert runs[0].abs().max() <= 1
    assert 0.1 * EPS < (runs[0] - photos).abs().max() <= EPS + 1e-6
    assert all(torch.equal(before[key], value) for key, value in editor.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in editor.parameters())


@pytest.mark.parametrize("name", QUICK)
def test_through_a_patch_and_a_channel(
    name: str, editor: DemoDiffusion, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    """A patched editor behind a channel is attacked as what it is."""
    torch.manual_seed(0)
    own = DemoDiffusion(**DemoDiffusion.small).eval()
    model = get_peft_model(own, GatedLoraConfig(r=1, init_lora_weights="paper")).eval()
    runs = []
    for network in (model, Through(model, GaussianBlur(1.0))):
        torch.manual_seed(1)
        with torch.no_grad():
            bare = nn.Module.__call__(network, photos, **condition)
        assert bare.shape == photos.shape
        runs.append(QUICK[name](network, photos, condition))
    assert not torch.equal(*runs)
    assert all((run - photos).abs().max() <= EPS + 1e-6 for run in runs)


def test_objectives_grow_with_steps(editor: DemoDiffusion, photos: Tensor, condition: dict[str, Tensor]) -> None:
    """Each objective, averaged over draws, is larger after more steps, and then than under noise of the same budget."""
    for name in ("photoguard", "texture", "mist", "advdm", "diffusionguard", "editshield"):
        defense = QUICK[name]
        assert isinstance(defense, IterativeDefense)
        terms = defense.terms(editor, photos, condition, None)

        def gain(perturbed: Tensor, terms: Any = terms) -> float:
            torch.manual_seed(0)
            with torch.no_grad():
                return sum(float(term(perturbed).sum()) for _ in range(20) for term in terms)

        torch.manual_seed(1)
        noisy = RandomNoise(EPS)(editor, photos, condition)
        gains = [gain(noisy)]
        for steps in (2, 12):
            torch.manual_seed(1)
            gains.append(gain(replace(defense, steps=steps)(editor, photos, condition)))
        assert gains[2] > max(gains[:2]), name


def test_a_denoiser_that_does_not_see_the_photo_is_refused(linear: Linear, images: Tensor) -> None:
    linear.predict_noise = lambda noised, times, photo, **_: noised  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="does not see the photo when it begins"):
        DiffusionGuard(steps=1)(linear, images, {})


@pytest.mark.parametrize("defense", [AdvDM(), Mist(), SDS(), SDST(), DiffusionGuard()])
def test_a_generator_without_a_denoiser_is_refused(defense: Defense) -> None:
    with pytest.raises(ValueError, match="DemoEditor is no latent-diffusion editor"):
        defense(DemoEditor(conv_dim=4), torch.zeros(1, 3, 16, 16), {"labels": torch.zeros(1, 5)})


def test_transforms_of_editshield_are_small() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(4, 3, 32, 32)
    moved = slightly_moved(ramp)
    assert 0 < (moved - ramp).abs().mean() < 0.15
    assert torch.equal(slightly_moved(torch.ones(2, 3, 8, 8)), torch.ones(2, 3, 8, 8))


def test_blurguard_leaves_no_finer_detail_than_the_photo(editor: DemoDiffusion, condition: dict[str, Tensor]) -> None:
    """On a smooth photo, what is left of a perturbation is smooth; its energy at high frequencies says so."""
    ramp = torch.linspace(-0.8, 0.8, 32)
    photos = (ramp[:, None] * ramp).expand(2, 3, 32, 32)

    def fine(perturbation: Tensor) -> float:
        spectrum = torch.fft.fft2(perturbation).abs().square()
        return float(spectrum[..., 8:24, 8:24].sum() / spectrum.sum())

    torch.manual_seed(0)
    plain = Disrupting(EPS, steps=5)(editor, photos, condition) - photos
    torch.manual_seed(0)
    blurred = BlurGuard(EPS, "disrupting:steps=5")(editor, photos, condition) - photos
    assert fine(blurred) < 0.05 * fine(plain)
    with pytest.raises(ValueError, match="has no L-infinity budget to set"):
        BlurGuard(base="anti-forgery")


@pytest.mark.parametrize("text", ["16/255", " 16 / 255", "16.0/255"])
def test_budgets_are_written_as_levels(text: str) -> None:
    assert Disrupting(text) == Disrupting(eps=text) == Disrupting(16 / 127.5)
    assert parse_defense(f"mist:{text},step_size=1/255") == Mist(16 / 127.5, step_size=1 / 127.5)
    assert parse_defense(f"advdm:eps={text}").eps == pytest.approx(0.12549, abs=1e-5)
    with pytest.raises(ValueError, match=r"eps.*16/256"):
        parse_defense("mist:16/256")


def test_names_are_registered() -> None:
    assert {name.split()[0] for name in QUICK} <= set(DEFENSES.ours)
    assert noise_error(Linear())(torch.zeros(1, 3, 4, 4).double()).shape == (1, 2, 2, 2)
