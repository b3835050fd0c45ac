"""Defenses against closed forms on linear generators, and what every defense promises."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from loraguard.channels import published, quantize
from loraguard.defenses import (
    APGD,
    DFRAP,
    LEAT,
    AntiForgery,
    BlurRobust,
    ClassTransferable,
    Defense,
    Disrupting,
    RandomNoise,
    Square,
    WorstOf,
)
from loraguard.defenses import DEFENSES as REGISTERED
from loraguard.defenses.anti_forgery import to_lab
from loraguard.defenses.fitted import FittedDefense
from loraguard.generators import DemoEditor

EPS = 0.05
EDITS = {f"edit {i}": {"labels": torch.eye(5)[i : i + 1]} for i in range(3)}
DEFENSES = {
    "noise": RandomNoise(EPS),
    "fgsm": Disrupting(EPS, method="fgsm"),
    "ifgsm": Disrupting(EPS, steps=4, method="ifgsm"),
    "pgd": Disrupting(EPS, steps=4),
    "apgd": APGD(EPS, steps=4),
    "square": Square(EPS, queries=6),
    "worst-of": WorstOf((Disrupting(EPS, steps=2), RandomNoise(EPS))),
    "inner layer": Disrupting(EPS, steps=4, layer="main.5"),
    "iterative": ClassTransferable(EPS, steps=4, edits=EDITS),
    "joint": ClassTransferable(EPS, steps=4, mode="joint", edits=EDITS),
    "blur-aware": BlurRobust(EPS, steps=4, mode="blur-aware"),
    "spread-spectrum": BlurRobust(EPS, steps=4),
    "eot": BlurRobust(EPS, steps=4, mode="eot"),
    "df-rap": DFRAP(EPS, steps=4),
    "leat": LEAT(EPS, steps=4),
    "anti-forgery": AntiForgery(EPS, steps=4, step_size=EPS / 4),
}


def used(defense: Defense, defended: Tensor, photos: Tensor) -> float:
    """How far defended photos are from the photos, in the unit of the defense's budget."""
    if isinstance(defense, AntiForgery):
        return (to_lab(defended) - to_lab(photos))[:, 1:].abs().max().item()
    return (defended - photos).abs().max().item()


class Scale(nn.Module):
    """G(x) = a * x with a factor for each channel: the best perturbation is +-eps everywhere, whatever its signs."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([0.5, 1.0, 3.0]))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factors[:, None, None]


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(3, 3, 16, 16) * 2 - 1


@pytest.fixture
def condition() -> dict[str, Tensor]:
    return {"labels": torch.eye(5)[:3]}


@pytest.mark.parametrize("method", ["fgsm", "ifgsm", "pgd"])
def test_optimum_of_a_linear_generator(method: str) -> None:
    images, generator = torch.zeros(2, 3, 8, 8), Scale()
    defended = Disrupting(EPS, steps=20, method=method)(generator, images, {})
    assert torch.allclose(defended.abs(), torch.full_like(images, EPS), atol=EPS * 0.011)
    mse = (generator(defended) - generator(images)).square().mean().item()
    assert mse == pytest.approx(EPS**2 * (0.25 + 1 + 9) / 3, rel=0.03)


def test_optimum_follows_the_sign_of_a_single_output() -> None:
    """G(x) = <w, x>: the best perturbation is eps * sign(w) or its negative, for the whole image."""
    w = torch.randn(1, 3, 8, 8)

    class Inner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (w * images).sum((1, 2, 3), keepdim=True).expand_as(images)

    defended = Disrupting(EPS, steps=20)(Inner(), torch.zeros(2, 3, 8, 8), {})
    for image in defended:
        aligned = image / EPS * torch.sign(w[0])
        assert torch.allclose(aligned, aligned[0, 0, 0].sign().expand_as(aligned), atol=1e-5)


@pytest.mark.parametrize("name", DEFENSES)
def test_budget_range_and_shape(name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]) -> None:
    photos[0] = photos[0].sign()  # at both ends of the range
    defended = DEFENSES[name](editor, photos, condition)
    assert defended.shape == photos.shape
    assert not defended.requires_grad
    assert used(DEFENSES[name], defended, photos) <= EPS + 1e-6
    assert defended.abs().max() <= 1
    assert (defended != photos).any()


@pytest.mark.parametrize("name", DEFENSES)
def test_published_photos_are_8_bit_and_within_the_budget(
    name: str, editor: DemoEditor, condition: dict[str, Tensor]
) -> None:
    photos = quantize(torch.rand(3, 3, 16, 16) * 2 - 1)
    shown = published(DEFENSES[name](editor, photos, condition), photos)
    levels = (shown + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert used(DEFENSES[name], shown, photos) <= EPS
    assert shown.abs().max() <= 1


@pytest.mark.parametrize("levels", range(1, 17))
def test_a_budget_of_whole_levels_is_used_whole(levels: int) -> None:
    photos = quantize(torch.rand(2, 3, 16, 16) - 0.5)
    shown = published(RandomNoise(levels / 127.5)(nn.Identity(), photos, {}), photos)
    assert ((shown - photos).abs() * 127.5).round().unique().tolist() == [levels]


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_generator_alone(
    name: str, training: bool, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    editor.train(training)
    editor.main[0].weight.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in editor.parameters()]
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    DEFENSES[name](editor, photos, condition)
    assert editor.training == training
    assert [parameter.requires_grad for parameter in editor.parameters()] == asked
    assert all(parameter.grad is None for parameter in editor.parameters())
    assert all(torch.equal(before[key], value) for key, value in editor.state_dict().items())


@pytest.mark.parametrize("name", DEFENSES)
def test_same_seed_same_perturbation(
    name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(DEFENSES[name](editor, photos, condition))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", DEFENSES)
def test_known_clean_outputs_change_nothing(
    name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    runs = []
    for clean in (None, editor(photos, **condition).detach()):
        torch.manual_seed(1)
        runs.append(DEFENSES[name](editor, photos, condition, clean=clean))
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", [name for name in DEFENSES if hasattr(DEFENSES[name], "step_size")])
def test_an_audit_can_vary_the_strength(
    name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    """Steps follow the budget: from one start, twice the budget is twice the way."""
    ways = []
    for eps in (EPS, 2 * EPS):
        torch.manual_seed(1)
        defense = replace(DEFENSES[name], eps=eps, steps=1, step_size=None)
        ways.append((defense(editor, 0.5 * photos, condition) - 0.5 * photos).abs().mean())
    assert ways[1] / ways[0] == pytest.approx(2, rel=0.1)


def test_every_registered_defense_keeps_the_convention() -> None:
    for name in REGISTERED:
        settings = {field.name: field.default for field in fields(REGISTERED[name])}
        assert settings["eps"] == EPS
        assert settings.get("step_size") is None
    fitted = {
        name for name in REGISTERED if issubclass(REGISTERED[name], FittedDefense)
    }  # test_fitted_defenses has them
    tested = {type(defense) for defense in DEFENSES.values()}
    assert {name for name in REGISTERED if REGISTERED[name] not in tested} == fitted


@pytest.mark.parametrize("name", [name for name in DEFENSES if getattr(DEFENSES[name], "method", "fgsm") != "fgsm"])
def test_its_own_objective_grows_with_steps(name: str, photos: Tensor, condition: dict[str, Tensor]) -> None:
    generator, defense = DemoEditor.pretrained(), DEFENSES[name]
    photos, condition = photos[:1], {"labels": condition["labels"][:1]}
    terms = defense.terms(generator, photos, condition, None)

    def damage(steps: int) -> float:
        torch.manual_seed(0)
        defended = replace(defense, steps=steps)(generator, photos, condition)
        torch.manual_seed(0)  # for channels that draw
        with torch.no_grad():
            return sum(term(defended).sum().item() for term in terms)

    damages = [damage(steps) for steps in (1, 3, 9)]
    assert damages == sorted(damages)


@pytest.mark.parametrize("attack", [APGD(EPS), Square(EPS)])
def test_searches_of_their_own_grow_with_what_they_may_try(
    attack: APGD | Square, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    generator, setting = DemoEditor.pretrained(), "steps" if isinstance(attack, APGD) else "queries"
    with torch.no_grad():
        clean = generator(photos, **condition)
    damages = []
    for much in (1, 4, 16):
        torch.manual_seed(0)
        defended = replace(attack, **{setting: much})(generator, photos, condition)
        with torch.no_grad():
            damages.append((generator(defended, **condition) - clean).square().mean().item())
    assert damages == sorted(damages)


def test_restarts_keep_the_worst_for_each_image(photos: Tensor, condition: dict[str, Tensor]) -> None:
    """The same draws, one attack at a time: the best of them, image by image."""
    generator = DemoEditor.pretrained().double()
    images, condition = photos.double(), {key: value.double() for key, value in condition.items()}
    with torch.no_grad():
        clean = generator(images, **condition)

    def distance(perturbed: Tensor) -> Tensor:
        with torch.no_grad():
            return (generator(perturbed, **condition) - clean).square().mean((1, 2, 3))

    torch.manual_seed(4)
    together = Disrupting(steps=3, restarts=3)(generator, images, condition)
    torch.manual_seed(4)
    single = torch.stack([distance(Disrupting(steps=3)(generator, images, condition)) for _ in range(3)])
    assert torch.allclose(distance(together), single.amax(0), rtol=1e-9)
    assert single.argmax(0).unique().numel() > 1


def test_objective_grows_with_steps_and_beats_noise(photos: Tensor, condition: dict[str, Tensor]) -> None:
    generator = DemoEditor.pretrained()
    clean = generator(photos, **condition)

    def damage(defense: Disrupting | RandomNoise) -> float:
        torch.manual_seed(0)
        return (generator(defense(generator, photos, condition), **condition) - clean).square().mean().item()

    damages = [damage(RandomNoise(EPS)), *(damage(Disrupting(EPS, steps=k)) for k in (2, 5, 15))]
    assert damages == sorted(damages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 0}, "eps=0"),
        ({"eps": 3}, r"in \(0, 2\]"),
        ({"steps": 0}, "steps=0"),
        ({"step_size": -1}, "step_size=-1"),
        ({"method": "cw"}, "fgsm, ifgsm, pgd"),
        ({"restarts": 0}, "restarts=0"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Disrupting(**arguments)


@pytest.mark.parametrize(
    ("images", "words"),
    [(torch.zeros(3, 16, 16), "shape"), (torch.zeros(1, 1, 16, 16), "shape"), (torch.zeros(0, 3, 8, 8), "empty"),
     (torch.full((1, 3, 8, 8), 255.0), "127.5"), (torch.full((1, 3, 8, 8), float("nan")), "nan"),
     (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["noise", "pgd", "anti-forgery", "apgd", "square", "worst-of"])
def test_bad_images(name: str, images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DEFENSES[name](nn.Identity(), images, {})
