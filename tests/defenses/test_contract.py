"""Defenses against closed forms on linear generators, and what every defense promises."""

from dataclasses import fields, is_dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from loraguard.channels import published, quantize
from loraguard.data import DemoFaces
from loraguard.defenses import (
    APGD,
    DEFENSES,
    BlurRobust,
    ClassTransferable,
    Defense,
    Disrupting,
    Fittable,
    IterativeDefense,
    Mixture,
    RandomNoise,
    Square,
    WorstOf,
    undisturbed,
)
from loraguard.generators import DemoEditor

EPS = 0.05
EDITS = {f"edit {i}": {"labels": torch.eye(5)[i : i + 1]} for i in range(3)}
QUICK = {"steps": 4, "queries": 6, "photos": 6, "batch_size": 3, "width": 4, "depth": 2, "blocks": 1, "eot": 2,
         "base": "disrupting:steps=4"}  # fmt: skip
"""Settings of any defense that make it quick."""
FURTHER = {
    "fgsm": Disrupting(EPS, method="fgsm"),
    "ifgsm": Disrupting(EPS, steps=4, method="ifgsm"),
    "worst-of": WorstOf((Disrupting(EPS, steps=2), RandomNoise(EPS))),
    "mixture": Mixture((Disrupting(EPS, steps=2), RandomNoise(EPS))),
    "inner layer": Disrupting(EPS, steps=4, layer="main.5"),
    "joint": ClassTransferable(EPS, steps=4, mode="joint", edits=EDITS),
    "blur-aware": BlurRobust(EPS, steps=4, mode="blur-aware"),
    "eot": BlurRobust(EPS, steps=4, mode="eot"),
}
ASKING_A_DENOISER = ("advdm", "mist", "sds", "sdst", "diffusionguard")
"""Those that this generator, which has none, is no target for; test_latent_defenses.py has what they promise."""
NAMES = (*(name for name in DEFENSES.ours if name not in ASKING_A_DENOISER), *FURTHER)
"""Everything here is tested as it is registered: a new defense adds nothing to this file."""


@cache
def made(name: str) -> Defense:
    """A quick one of each; fitted to an untrained editor of 16 pixels where it has to be."""
    if name in FURTHER:
        return FURTHER[name]
    cls = DEFENSES[name]
    own = {field.name for field in fields(cls) if field.init}
    own -= {"eot"} if getattr(cls, "eot", 1) == 1 else set()  # one draw is quicker still
    defense: Defense = cls(eps=EPS, **{key: value for key, value in QUICK.items() if key in own})
    if isinstance(defense, Fittable):
        torch.manual_seed(0)
        generator = DemoEditor(conv_dim=4, num_blocks=1)
        return defense.fit(generator, DemoFaces(6, size=16), disable_tqdm=True)
    return defense


def looks_at_the_generator(defense: Defense) -> bool:
    return defense.passes > 0


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


@pytest.mark.parametrize("name", NAMES)
def test_what_every_defense_promises(
    name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    """Budget, range, shape and what is published; one seed, one perturbation; the generator stays as it was.

    The second run differs from the first in what must not matter: clean outputs are known, and the mode is another.
    """
    photos[0] = photos[0].sign()  # at both ends of the range
    photos, defense = quantize(photos), made(name)
    editor.main[0].weight.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in editor.parameters()]
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    clean, runs = editor(photos, **condition).detach(), []
    for seed, training, known in ((1, True, None), (1, False, clean), (2, False, None)):
        editor.train(training)
        torch.manual_seed(seed)
        runs.append(defense(editor, photos, condition, clean=known))
        assert editor.training == training
        assert [parameter.requires_grad for parameter in editor.parameters()] == asked
        assert all(parameter.grad is None for parameter in editor.parameters())
        assert all(torch.equal(before[key], value) for key, value in editor.state_dict().items())
        check_budget(defense, runs[-1], photos)
    assert torch.equal(runs[0], runs[1])
    draws = not isinstance(defense, Fittable) or looks_at_the_generator(defense)
    draws = draws and getattr(defense, "reach", 1) > 0  # one that begins at the photo itself
    assert torch.equal(runs[0], runs[2]) != draws


def check_budget(defense: Defense, defended: Tensor, photos: Tensor) -> None:
    """Of what a defense gives, and of the 8-bit photos that are published."""
    assert defended.shape == photos.shape
    assert not defended.requires_grad
    assert defense.movement(defended, photos).max() <= EPS + 1e-6
    assert defended.abs().max() <= 1
    assert (defended != photos).any()
    shown = published(defended, photos)
    levels = (shown + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert defense.movement(shown, photos).max() <= EPS
    assert shown.abs().max() <= 1


@pytest.mark.parametrize("levels", range(1, 17))
def test_a_budget_of_whole_levels_is_used_whole(levels: int) -> None:
    photos = quantize(torch.rand(2, 3, 16, 16) - 0.5)
    shown = published(RandomNoise(levels / 127.5)(nn.Identity(), photos, {}), photos)
    assert ((shown - photos).abs() * 127.5).round().unique().tolist() == [levels]


@pytest.mark.parametrize("name", NAMES)
def test_an_audit_can_vary_the_budget(
    name: str, editor: DemoEditor, photos: Tensor, condition: dict[str, Tensor]
) -> None:
    """From one start, twice the budget is twice the way of a single step; what was fitted has to be fitted anew."""
    one = made(name).varied(eps=EPS)
    if one is None:
        assert not is_dataclass(made(name)) or "eps" not in {field.name for field in fields(made(name))}
        return
    if one.must_be_fitted:
        assert made(name).passes == 0
        assert one == replace(made(name), eps=EPS)
        return
    ways = []
    for eps in (EPS, 2 * EPS):
        torch.manual_seed(1)
        defense = made(name).varied(eps=eps)
        assert defense is not None
        defense = defense.varied(steps=1) or defense
        ways.append(defense.movement(defense(editor, 0.5 * photos, condition), 0.5 * photos).mean())
    assert ways[1] / ways[0] == pytest.approx(2, rel=0.1)


def test_a_step_size_goes_along_with_the_budget() -> None:
    varied = Disrupting(0.05, step_size=0.01).varied(eps=0.1)
    assert varied == Disrupting(0.1, step_size=0.02)
    assert Disrupting(0.05, method="fgsm").varied(steps=7) == Disrupting(0.05, method="fgsm")
    assert RandomNoise().varied(steps=3) is None
    assert WorstOf((RandomNoise(),)).varied(eps=0.1) is None


@pytest.mark.parametrize("name", DEFENSES.ours)
def test_every_registered_defense_keeps_the_convention(name: str) -> None:
    cls = DEFENSES[name]
    assert issubclass(cls, Defense)
    settings = {field.name: field.default for field in fields(cls)}
    assert next(iter(settings)) == "eps"
    assert settings["eps"] == cls().eps == (16 if "L2" in (cls.budget or "") else EPS)
    assert settings.get("step_size") is None
    assert hash(cls()) == hash(cls())
    assert cls().must_be_fitted == isinstance(cls(), Fittable)


ITERATIVE = [
    name for name in NAMES
    if isinstance(made(name), IterativeDefense) and made(name).steps != 1 and name != "editshield"
]  # fmt: skip
"""But for one whose objective draws anew each time; test_latent_defenses.py has its average."""


@pytest.mark.parametrize("name", ITERATIVE)
def test_its_own_objective_grows_with_steps(name: str, photos: Tensor, condition: dict[str, Tensor]) -> None:
    generator, defense = DemoEditor.pretrained(), made(name)
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


@pytest.mark.parametrize("name", NAMES)
def test_bad_images(name: str) -> None:
    for images, words in (
        (torch.zeros(3, 16, 16), "shape"),
        (torch.zeros(1, 3, 0, 16), "shape"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.full((1, 3, 8, 8), 255.0), "127.5"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
    ):
        with pytest.raises(ValueError, match=words):
            made(name)(nn.Identity(), images, {})


class Restless(nn.Module):
    """Buffers move with each forward pass in train mode: of batch norm, spectral norms, and one that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)), nn.BatchNorm2d(3)
        self.last = nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return self.last(self.norm(self.first(images))) + labels.mean()


LAYERS = {"layer": "first", "layers": ("first",)}


@pytest.mark.parametrize("name", NAMES)
def test_a_network_in_train_mode_keeps_its_statistics(
    name: str, photos: Tensor, condition: dict[str, Tensor], faces: DemoFaces
) -> None:
    """In a call and in a fit; the forward passes in between are those of train mode."""
    network = Restless().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    defense = made(name)
    own = {field.name for field in fields(defense)}
    here = {key: value for key, value in LAYERS.items() if key in own and name != "joint"}
    if name in DEFENSES.ours or name == "inner layer":
        defense = replace(defense, **here)
    if isinstance(defense, Fittable) and defense.must_be_fitted:
        defense = defense.fit(network, faces, lambda labels: {"edit": {"labels": labels}}, disable_tqdm=True)
    defense(network, photos, condition)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    network(photos, **condition)
    assert not torch.equal(before["norm.running_mean"], network.norm.running_mean)


def test_a_graph_from_before_outlives_a_defense() -> None:
    """Buffers are put back unseen by autograd, as batch norm itself moves them."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).train()
    images = torch.rand(2, 3, 8, 8) - 0.5
    loss = network(images).square().sum()
    Disrupting(steps=2)(network, images, {})
    loss.backward()
    assert network[0].weight.grad is not None


def test_an_error_within_leaves_the_network_as_it_was() -> None:
    norm = nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), undisturbed(norm):
        norm(torch.rand(2, 3, 4, 4)) + nn.Linear(2, 2)(norm(torch.rand(2, 3, 4, 4)))
    assert norm.weight.requires_grad
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("name", ["disrupting", "mi-fgsm", "apgd", "square", "noise", "worst-of"])
def test_images_of_other_than_three_channels(name: str, channels: int) -> None:
    images = torch.rand(2, channels, 16, 16) - 0.5
    defended = made(name)(nn.Conv2d(channels, 3, 3), images, {})
    assert 0 < (defended - images).abs().max() <= EPS + 1e-6


def test_colours_are_three() -> None:
    with pytest.raises(ValueError, match=r"AntiForgery moves colours of RGB images .* got \(1, 1, 8, 8\)"):
        made("anti-forgery")(nn.Identity(), torch.zeros(1, 1, 8, 8), {})
