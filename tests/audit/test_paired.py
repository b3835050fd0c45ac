"""Paired differences against SciPy, closed forms, and how often intervals hold the truth."""

from itertools import product

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from loraguard.audit import Difference, paired_difference
from loraguard.audit.paired import score_interval
from loraguard.metrics import estimate, mean_interval


def shares(gained: int, lost: int, n: int) -> tuple[Tensor, Tensor]:
    """Of n images, some that succeed in the first situation alone and some in the second alone."""
    a, b = torch.zeros(n), torch.zeros(n)
    a[:gained] = 1
    b[n - lost :] = 1
    return a, b


def test_values_are_those_of_the_differences() -> None:
    images = torch.randn(120, dtype=torch.float64) * 3
    a, b = images + torch.rand(120), images + 0.3 * torch.randn(120)
    mine = paired_difference(a, b, resamples=600)
    assert mine.mean == pytest.approx((a - b).mean().item())
    assert (mine.low, mine.high) == mean_interval(a - b, confidence=0.95, resamples=600, seed=0)
    assert (mine.n, mine.method) == (120, "paired bootstrap-t, 600 resamples")


def test_pairing_narrows_what_images_have_in_common() -> None:
    images = torch.randn(200) * 5
    a, b = images + 0.1 * torch.rand(200), images
    paired, alone = paired_difference(a, b), estimate(a)
    assert paired.high - paired.low < 0.05 * (alone.high - alone.low)


def test_sides_are_antisymmetric_and_a_seed_repeats() -> None:
    a, b = torch.rand(40), torch.rand(40)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=0.01)
    assert forth == paired_difference(a, b)
    assert forth != paired_difference(a, b, seed=1)


def test_confidence_widens() -> None:
    a, b = torch.rand(60), torch.rand(60)
    x, y = shares(5, 2, 60)
    for pair, share in (((a, b), False), ((x, y), True), ((x, x), True)):
        narrow, wide = (paired_difference(*pair, share=share, confidence=c) for c in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high


def test_values_cover_the_truth_as_often_as_they_say() -> None:
    stream = torch.Generator().manual_seed(1)
    hits = 0
    for draw in range(400):
        images = torch.rand(50, generator=stream) * 9
        a = images - torch.rand(50, generator=stream).log()  # skewed, of mean 1
        found = paired_difference(a, images, resamples=300, seed=draw)
        hits += found.low <= 1 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_images_not_seeds_are_the_unit() -> None:
    """An image's effect is the same under all seeds: as if independent, ten seeds would give a third of the width."""
    stream = torch.Generator().manual_seed(2)
    hits = naive = 0
    for draw in range(150):
        effect = torch.randn(30, generator=stream)
        a = effect + 0.2 * torch.randn(10, 30, generator=stream)
        found = paired_difference(a, torch.zeros(30), resamples=300, seed=draw)
        hits += found.low <= 0 <= found.high
        low, high = mean_interval(a.flatten().double(), confidence=0.95, resamples=300, seed=draw)
        naive += low <= 0 <= high
    assert 0.90 <= hits / 150 <= 0.98
    assert naive / 150 < 0.6


def test_seeds_are_averaged_on_each_image_first() -> None:
    a, b = torch.rand(3, 30, dtype=torch.float64), torch.rand(2, 30, dtype=torch.float64)
    found, averaged = paired_difference(a, b), paired_difference(a.mean(0), b.mean(0))
    assert (found.mean, found.low, found.high, found.n) == (averaged.mean, averaged.low, averaged.high, 30)
    assert found.method.endswith("averaged over 3 seeds")
    one = paired_difference(a[:1], b[0])
    assert one == paired_difference(a[0], b[0])


def test_no_spread_no_interval_for_values() -> None:
    """An interval of no width would be a certainty that nobody has."""
    a = torch.rand(20).double()
    assert paired_difference(a, a) == Difference(0.0, None, None, 20, "none: one difference on all images")
    assert paired_difference(a[:1], a[1:2]).low is None
    thirds = torch.tensor([[1.0, 0], [1, 1], [1, 1]])  # 3/3 - 2/3 and 2/3 - 1/3 differ in the last bit
    less = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert paired_difference(thirds, less).low is None


@pytest.mark.parametrize("n", [1, 12, 200])
def test_no_discordant_pair_against_scipy(n: int) -> None:
    """At each side at most the share that Clopper and Pearson give for no success among n."""
    same = (torch.arange(n) % 2).float()
    found = paired_difference(same, same, share=True)
    limit = scipy.stats.binomtest(0, n).proportion_ci(0.95, "exact").high
    assert (found.mean, found.low, found.high) == pytest.approx((0, -limit, limit))
    assert found.method == "exact binomial, no difference on any image"


def test_all_pairs_discordant_one_way_against_scipy() -> None:
    """The difference is p - q with p + q <= 1, so at least 2p - 1, and p has Clopper and Pearson's limit."""
    found = paired_difference(torch.ones(30), torch.zeros(30), share=True)
    limit = scipy.stats.binomtest(30, 30).proportion_ci(0.95, "exact").low
    assert (found.mean, found.low, found.high) == pytest.approx((1, 2 * limit - 1, 1))
    assert found.method == "exact binomial, one difference on all images"
    assert paired_difference(torch.zeros(30), torch.ones(30), share=True).low == -1


def test_seeds_that_disagree_are_resampled_by_image() -> None:
    a = torch.tensor([[1.0, 0, 1, 1, 0], [1, 1, 1, 0, 0]])
    found = paired_difference(a, torch.zeros(5), share=True)
    assert found.method == "paired bootstrap-t, 2000 resamples, averaged over 2 seeds"
    assert found.mean == pytest.approx(0.6)
    fractions = paired_difference(torch.tensor([[1.0] * 9, [0.0] * 9]), torch.zeros(9), share=True)
    reach = 1 - 0.025 ** (1 / 9)
    assert (fractions.low, fractions.high) == pytest.approx((0.5 - 1.5 * reach, 0.5 + 0.5 * reach))


@pytest.mark.parametrize("counts", [(14, 5, 100), (1, 0, 44), (3, 7, 54), (29, 0, 30), (5, 20, 30)])
def test_score_interval_against_a_numerical_likelihood(counts: tuple[int, int, int]) -> None:
    """At both ends the score test, with shares of the largest likelihood found by SciPy, is just significant."""
    gained, lost, n = counts

    def score(difference: float) -> float:
        def unlikely(q: float) -> float:
            cells = np.array([q + difference, q, 1 - difference - 2 * q])
            return -(np.array([gained, lost, n - gained - lost]) * np.log(cells.clip(1e-300))).sum()

        bounds = (max(0, -difference), (1 - difference) / 2)
        q = scipy.optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return ((gained - lost) / n - difference) / np.sqrt((2 * q + difference - difference**2) / n)

    found = paired_difference(*shares(*counts), share=True)
    assert found.method == "score (Tango)"
    assert found.mean == pytest.approx((gained - lost) / n)
    assert found.low < found.mean < found.high
    assert [score(found.low), score(found.high)] == pytest.approx([1.959964, -1.959964], abs=1e-3)
    assert score_interval(lost, gained, n) == pytest.approx((-found.high, -found.low))


def coverage(p: float, q: float, n: int) -> float:
    """The exact probability that the interval holds p - q: summed over all tables that are at all likely."""
    held = 0.0
    for gained, lost in product(range(26), repeat=2):
        chance = scipy.stats.multinomial.pmf([gained, lost, n - gained - lost], n, [p, q, 1 - p - q])
        if chance < 1e-5:
            continue
        a, b = shares(gained, lost, n)
        found = paired_difference(a, b, share=True)
        held += chance * (found.low - 1e-9 <= p - q <= found.high + 1e-9)
    return held


@pytest.mark.parametrize(("p", "q"), [(0.01, 0.005), (0.005, 0.005), (0.02, 0.0), (0.05, 0.02)])
def test_shares_cover_the_truth_where_few_pairs_are_discordant(p: float, q: float) -> None:
    assert coverage(p, q, 100) > 0.93


def test_infinite_values_are_left_out_and_counted() -> None:
    """PSNR is infinite where images are equal."""
    inf = float("inf")
    a, b = torch.tensor([1.0, inf, 3.0, 5.0, inf]), torch.tensor([0.0, 1.0, 1.0, 2.0, inf])
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(2)
    assert found.n == 5
    assert found.method.endswith("2 images with infinite values left out")
    assert paired_difference(a[1:2], b[1:2]) == Difference(None, None, None, 1, "none: no image has finite values")


@pytest.mark.parametrize(
    ("a", "b", "settings", "words"),
    [
        (torch.rand(4), torch.rand(5), {}, "a has 4 and b has 5"),
        (torch.rand(0), torch.rand(0), {}, "not empty"),
        (torch.rand(2, 2, 2), torch.rand(2), {}, r"\(seeds, n\).*\(2, 2, 2\)"),
        (torch.tensor([0.0, float("nan")]), torch.rand(2), {}, "a has 1 values that are not a number"),
        (torch.ones(2), torch.tensor([0.0, 0.5]), {"share": True}, r"0 or 1; b has \[0\.0, 0\.5\]"),
        (torch.rand(2), torch.rand(2), {"confidence": 95}, "confidence=95"),
    ],
)
def test_bad_values(a: Tensor, b: Tensor, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_difference(a, b, **settings)
