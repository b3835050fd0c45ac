"""The stronger attacks against closed forms, a transcription of the paper, and networks that beat or blind PGD."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loraguard.data import DemoFaces
from loraguard.defenses import APGD, DEFENSES, Disrupting, RandomNoise, Square, WorstOf
from loraguard.defenses.apgd import auto_pgd
from loraguard.defenses.base import jitter
from loraguard.defenses.terms import Term
from loraguard.defenses.worst import keep_worst
from loraguard.generators import DemoEditor
from loraguard.registry import build

EPS = 0.05
ATTACKS = {"apgd": APGD(EPS, steps=20), "square": Square(EPS, queries=300)}


class Function(nn.Module):
    """A generator from a function; `seen` holds the images of every pass."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.seen = function, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.function(images)


def single_output(w: Tensor) -> Function:
    """G(x) = <w, x> at every pixel: the best distance is (eps * sum |w|)^2."""
    return Function(lambda images: (w * images).sum((1, 2, 3), keepdim=True).expand_as(images))


def measure(generator: nn.Module, perturbed: Tensor, clean: Tensor) -> Tensor:
    with torch.no_grad():
        return Term(generator, {}, clean)(perturbed) / clean[0].numel()


@pytest.mark.parametrize("name", ATTACKS)
def test_optimum_of_a_linear_generator(name: str) -> None:
    images, factors = torch.zeros(2, 3, 8, 8), torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    defended = ATTACKS[name](Function(lambda x: x * factors), images, {})
    assert torch.allclose(defended.abs(), torch.full_like(images, EPS))


def test_apgd_finds_the_signs_of_a_single_output() -> None:
    w = torch.randn(1, 3, 8, 8)
    defended = APGD(EPS, steps=5)(single_output(w), torch.zeros(4, 3, 8, 8), {})
    for image in defended / EPS * torch.sign(w):
        assert torch.allclose(image, image[0, 0, 0].expand_as(image))
        assert image[0, 0, 0].abs() == pytest.approx(1)


def test_square_comes_near_the_signs_of_a_single_output() -> None:
    w = torch.randn(1, 3, 4, 4)
    images, best = torch.zeros(4, 3, 4, 4), (EPS * w.abs().sum()).square()
    short, long = (
        measure(single_output(w), Square(EPS, queries=queries)(single_output(w), images, {}), images) / best
        for queries in (20, 600)
    )
    assert (long > 0.95).all()
    assert (long <= 1 + 1e-5).all()
    assert (short < long).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_distance_is_from_the_outputs_that_are_given(name: str) -> None:
    """From 0.5 the identity is taken away downwards, from its own output either way."""
    images = torch.zeros(2, 3, 8, 8)
    away = ATTACKS[name](nn.Identity(), images, {}, clean=torch.full_like(images, 0.5))
    assert (away <= -EPS * 0.999).double().mean() > 0.9
    either = ATTACKS[name](nn.Identity(), images, {})
    assert 0.2 < (either < 0).double().mean() < 0.8


def test_apgd_beats_fixed_steps_on_a_narrow_peak() -> None:
    """The optimum is inside the ball, where steps of 0.2 * eps jump over it for ever: 1 at x = 0.013."""
    peak = Function(lambda images: torch.exp(-((images - 0.013) / 0.008).square() / 2))
    images = torch.zeros(3, 3, 8, 8)
    fixed = measure(peak, Disrupting(EPS, steps=100)(peak, images, {}, clean=images), images)
    found = measure(peak, APGD(EPS, steps=100)(peak, images, {}, clean=images), images)
    assert (found > 0.99).all()
    assert (fixed < 0.75).all()


def test_apgd_beats_fixed_steps_on_an_editor() -> None:
    """Each image, with as many steps and the same start."""
    editor = DemoEditor.pretrained()
    faces = [DemoFaces(3, split="test", size=32)[i] for i in range(3)]
    images, labels = (torch.stack([face[key] for face in faces]) for key in ("image", "labels"))
    condition = editor.conditions(labels)["Eyeglasses"]
    with torch.no_grad():
        clean = editor(images, **condition)
        distances = []
        for attack in (Disrupting(EPS, steps=10), APGD(EPS, steps=10)):
            torch.manual_seed(0)
            distances.append(Term(editor, condition, clean)(attack(editor, images, condition, clean)))
    assert (distances[1] > distances[0]).all()


def transcription(w: np.ndarray, photo: np.ndarray, start: np.ndarray, eps: float, steps: int) -> np.ndarray:
    """Algorithm 1 of arXiv 2003.01690, one image, for f(x) = sum_i w_i sin(40 x_i + x_{i+1}) with its own gradient."""

    def f(x: np.ndarray) -> float:
        return float((w * np.sin(40 * x + np.roll(x, -1))).sum())

    def slope(x: np.ndarray) -> np.ndarray:
        wave = w * np.cos(40 * x + np.roll(x, -1))
        return 40 * wave + np.roll(wave, 1)

    def project(x: np.ndarray) -> np.ndarray:
        return np.clip(np.clip(x, photo - eps, photo + eps), -1, 1)

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w_j = [int(np.ceil(round(share * steps, 6))) for share in p if share <= 1]
    eta, x = {0: 2 * eps}, [start]
    f_max, x_max = {0: f(start)}, start
    for k in range(steps):
        z = project(x[k] + eta[k] * np.sign(slope(x[k])))
        x.append(z if k == 0 else project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])))
        f_max[k + 1], eta[k + 1] = f_max[k], eta[k]
        if f(x[k + 1]) > f_max[k]:
            f_max[k + 1], x_max = f(x[k + 1]), x[k + 1]
        if k + 1 in w_j:
            before = w_j[w_j.index(k + 1) - 1]
            rises = sum(f(x[i + 1]) > f(x[i]) for i in range(before, k + 1))
            same = eta[before] == eta[max(before - 1, 0)] and f_max[before] == f_max[k + 1]
            if rises < 0.75 * (k + 1 - before) or same:
                eta[k + 1] = eta[k] / 2
                x[k + 1] = x_max
    return x_max


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_apgd_is_the_paper_s_algorithm_for_each_image_of_a_batch(steps: int) -> None:
    photos = torch.rand(4, 3, 4, 4, dtype=torch.float64) * 2 - 1
    starts = jitter(photos, 0.2)
    w = torch.rand(48, dtype=torch.float64)

    def distance(images: Tensor) -> Tensor:
        x = images.flatten(1)
        return (w * torch.sin(40 * x + x.roll(-1, 1))).sum(1)

    found = auto_pgd(distance, photos, start=starts, eps=0.2, steps=steps)
    for image, photo, start in zip(found, photos, starts, strict=True):
        expected = transcription(w.numpy(), photo.flatten().numpy(), start.flatten().numpy(), 0.2, steps)
        np.testing.assert_allclose(image.flatten().numpy(), expected, atol=1e-12)


def test_a_batch_is_attacked_as_its_images_are_alone(editor: DemoEditor) -> None:
    editor.double()
    photos, labels = torch.rand(3, 3, 16, 16, dtype=torch.float64) * 2 - 1, torch.eye(5).double()[:3]
    starts = jitter(photos, EPS)
    with torch.no_grad():
        clean = editor(photos, labels)

    def attack(rows: slice) -> Tensor:
        distance = Term(editor, {"labels": labels[rows]}, clean[rows])
        return auto_pgd(distance, photos[rows], start=starts[rows], eps=EPS, steps=12)

    alone = torch.cat([attack(slice(i, i + 1)) for i in range(3)])
    assert torch.allclose(attack(slice(None)), alone, atol=1e-12)


def wavy(images: Tensor) -> Tensor:
    return torch.sin(40 * images + images.roll(1, -1))


@pytest.mark.parametrize(("attack", "passes"), [(APGD(EPS, steps=25), 26), (Square(EPS, queries=40), 40)])
def test_the_best_of_all_that_was_tried_is_kept(attack: APGD | Square, passes: int) -> None:
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    clean, generator = wavy(images), Function(wavy)
    defended = attack(generator, images, {}, clean=clean)
    assert len(generator.seen) == passes
    tried = torch.stack([measure(generator, seen, clean) for seen in tuple(generator.seen)])
    assert torch.equal(measure(generator, defended, clean), tried.amax(0))
    assert (tried.diff(dim=0) < 0).any()
    for seen in generator.seen:
        assert (seen - images).abs().max() <= EPS + 1e-6
        assert seen.abs().max() <= 1


def test_restarts_of_apgd_keep_the_worst_for_each_image() -> None:
    images, generator = torch.rand(6, 3, 8, 8) * 2 - 1, Function(wavy)
    clean = wavy(images)
    torch.manual_seed(4)
    single = [measure(generator, APGD(EPS, steps=4)(generator, images, {}), clean) for _ in range(3)]
    torch.manual_seed(4)
    together = measure(generator, APGD(EPS, steps=4, restarts=3)(generator, images, {}), clean)
    assert torch.equal(together, torch.stack(single).amax(0))
    assert torch.stack(single).argmax(0).unique().numel() > 1


class Rounded(nn.Module):
    """Outputs in 8 bits: their gradient is 0 everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(images.roll(1, -1).cumsum(-1) * 127.5) / 127.5


class Detached(nn.Module):
    """No gradient is recorded, as in a network that is only served."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return images.roll(1, -1).cumsum(-1)


def test_square_sees_where_gradients_are_blind() -> None:
    images, generator = torch.zeros(3, 3, 8, 8), Rounded()
    torch.manual_seed(7)
    start = jitter(images, EPS)
    torch.manual_seed(7)
    pgd = Disrupting(EPS, steps=10)(generator, images, {})
    assert torch.equal(pgd, start)
    found = Square(EPS, queries=200)(generator, images, {})
    assert (measure(generator, found, images) > 5 * measure(generator, pgd, images)).all()


def test_square_needs_no_graph() -> None:
    images, generator = torch.zeros(3, 3, 8, 8), Detached()
    with pytest.raises(RuntimeError):
        Disrupting(EPS, steps=1)(generator, images, {})
    found = measure(generator, Square(EPS, queries=200)(generator, images, {}), images)
    optimum = (EPS * torch.arange(1, 9)).square().mean()
    assert (found > 0.7 * optimum).all()
    assert (found <= optimum * 1.0001).all()


def test_square_starts_from_stripes_and_moves_one_square_a_query() -> None:
    attack = Square(EPS, queries=60, p=0.3)
    images, generator = torch.zeros(5, 3, 12, 20), Function(wavy)
    clean = wavy(images)
    attack(generator, images, {}, clean=clean)
    stripes, *proposals = tuple(generator.seen)
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    assert torch.allclose(stripes.abs(), torch.full_like(images, EPS))
    assert 0.3 < (stripes[:, :, 0] > 0).double().mean() < 0.7
    best, places = stripes, set()
    for query, proposal in enumerate(proposals, 1):
        side = attack.side(query, 12, 20)
        for image, before in zip(proposal, best, strict=True):
            rows, columns = (image != before).any(0).nonzero().unbind(1)
            if len(rows):
                assert max(rows.max() - rows.min(), columns.max() - columns.min()) < side
                places.add((int(rows.min()), int(columns.min())))
        better = measure(generator, proposal, clean) > measure(generator, best, clean)
        best = torch.where(better[:, None, None, None], proposal, best)
    assert len(places) > 60


def test_squares_shrink_on_the_paper_s_schedule() -> None:
    """Area p / 2^k of the image, k the number of 10, 50, 200, 1000, ... of 10,000 queries that have passed."""
    areas = {9: 1, 11: 2, 49: 2, 51: 4, 201: 8, 1001: 16, 2001: 32, 4001: 64, 6001: 128, 8001: 256, 9999: 256}
    for query, halvings in areas.items():
        for queries in (10_000, 100_000):
            side = Square(queries=queries, p=0.8).side(query * queries // 10_000, 1000, 1000)
            assert side == round((0.8 / halvings) ** 0.5 * 1000)
    assert Square(queries=100, p=0.8).side(99, 8, 8) == 1
    assert Square(p=1).side(1, 8, 32) == 8


def test_windows_reach_every_place() -> None:
    """With squares of one pixel the identity ends at the target's sign wherever it was drawn: all but few pixels."""
    images = torch.zeros(1, 3, 4, 4)
    found = Square(EPS, queries=2000, p=1e-6)(nn.Identity(), images, {}, clean=torch.full_like(images, -1.0))
    assert torch.allclose(found, torch.full_like(images, EPS))


def test_worst_of_keeps_the_worst_for_each_image() -> None:
    attacks = (Disrupting(EPS, steps=3), RandomNoise(EPS), Square(EPS, queries=5))
    images, generator = torch.rand(12, 3, 4, 4) * 2 - 1, Function(wavy)
    clean = wavy(images)
    torch.manual_seed(3)
    single = torch.stack([measure(generator, attack(generator, images, {}), clean) for attack in attacks])
    torch.manual_seed(3)
    defended = WorstOf(attacks)(generator, images, {})
    assert torch.equal(measure(generator, defended, clean), single.amax(0))
    assert single.argmax(0).unique().numel() > 1


def test_worst_of_computes_clean_outputs_once() -> None:
    images, generator = torch.rand(2, 3, 4, 4), Function(wavy)
    WorstOf((RandomNoise(EPS), Square(EPS, queries=3)))(generator, images, {})
    assert sum(torch.equal(seen, images) for seen in generator.seen) == 1
    assert len(generator.seen) == 1 + 3 + 2


def test_worst_of_one_is_that_one_and_of_several_has_the_largest_budget() -> None:
    images = torch.rand(2, 3, 4, 4)
    runs = []
    for attack in (RandomNoise(EPS), WorstOf((RandomNoise(EPS),))):
        torch.manual_seed(1)
        runs.append(attack(nn.Identity(), images, {}))
    assert torch.equal(*runs)
    assert WorstOf((RandomNoise(0.1), APGD(0.05))).eps == 0.1
    with pytest.raises(ValueError, match="at least one"):
        WorstOf(())


def test_a_distance_that_is_no_number_is_never_kept() -> None:
    images = torch.zeros(2, 3, 2, 2)
    distances = iter([torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), float("nan")])])
    kept = keep_worst([partial(torch.ones_like, images)] * 2, lambda _: next(distances), images)
    assert torch.equal(kept, torch.stack([images[0], torch.ones(3, 2, 2)]))


def test_by_name_on_the_command_line() -> None:
    made = build(DEFENSES, "apgd:0.1,steps=20,restarts=2")
    assert repr(made) == repr(APGD(0.1, steps=20, restarts=2))
    assert repr(build(DEFENSES, "square:0.1,queries=50")) == repr(Square(0.1, queries=50))


@pytest.mark.parametrize(
    ("attack", "arguments", "words"),
    [
        (APGD, {"eps": 0}, "eps=0"),
        (APGD, {"steps": 0}, "steps=0"),
        (APGD, {"restarts": 0}, "restarts=0"),
        (APGD, {"rho": 1.5}, "rho=1.5"),
        (Square, {"eps": 3}, r"in \(0, 2\]"),
        (Square, {"queries": 0}, "queries=0"),
        (Square, {"p": 0}, "p=0"),
    ],
)
def test_bad_settings(attack: type, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attack(**arguments)
