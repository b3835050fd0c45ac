"""How many photos a claim needs: against the intervals that decide it, drawn and counted."""

from __future__ import annotations

import math

import pytest
import torch

from loraguard.audit import chance_to_differ, chance_to_protect, paired_difference, photos_to_protect
from loraguard.audit.power import least_share, planned, power_words
from loraguard.metrics import exact_share

DRAWS = 4000


@pytest.mark.parametrize(("n", "share", "defenses"), [(50, 0.7, 1), (50, 0.7, 10), (120, 0.62, 1), (12, 0.95, 2)])
def test_as_often_as_intervals_of_drawn_photos_lie_above_a_half(n: int, share: float, defenses: int) -> None:
    counts = torch.binomial(torch.full((DRAWS,), float(n)), torch.tensor(share)).long().tolist()
    low = [exact_share(k, n, 1 - 0.05 / defenses)[0] for k in range(n + 1)]
    drawn = sum(low[count] > 0.5 for count in counts) / DRAWS
    expected = chance_to_protect(n, share, defenses)
    assert abs(drawn - expected) < 5 * math.sqrt(0.25 / DRAWS)


@pytest.mark.parametrize(("n", "gained", "lost"), [(30, 0.3, 0.0), (40, 0.3, 0.1)])
def test_as_often_as_paired_intervals_of_drawn_photos_lie_above_zero(n: int, gained: float, lost: float) -> None:
    draws = torch.rand(400, n)
    a, b = (draws < gained).double(), (draws > 1 - lost).double()
    shown = [paired_difference(one, other, share=True).low > 0 for one, other in zip(a, b, strict=True)]
    assert abs(sum(shown) / 400 - chance_to_differ(n, gained, lost)) < 5 * math.sqrt(0.25 / 400)


def test_the_least_number_is_the_least() -> None:
    n = photos_to_protect(0.75)
    assert n is not None
    assert chance_to_protect(n - 1, 0.75) < 0.8
    assert all(chance_to_protect(m, 0.75) >= 0.8 for m in range(n, n + 200))
    assert photos_to_protect(0.75, defenses=10) > n  # picking the best of ten takes more
    assert photos_to_protect(0.4) is None


def test_on_too_few_photos_nothing_is_claimed() -> None:
    """As the headline itself claims nothing on fewer than ten."""
    assert chance_to_protect(9, 1.0) == 0.0
    assert least_share(9) is None
    assert "too few" in power_words(9, 1)
    assert planned(9, 1)["photos_for_example"] == photos_to_protect(0.7)


def test_words_for_several_defenses() -> None:
    said = power_words(100, 10)
    assert "of which the best of 10 is picked" in said
    assert f"{least_share(100, 10):.0%}" in said
    assert "0% means at most 3.6%" in said
