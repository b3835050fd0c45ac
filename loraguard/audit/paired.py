"""Differences between two situations over the same images, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from torch import Tensor

from loraguard.metrics import Estimate, mean_interval, unanimous_interval


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean over images of the difference between two situations, with its interval.

    Attributes:
        mean: of the images' differences; None where no image has one that is finite.
        low: of the interval; None where the images do not tell: there is one alone, or all differ by the same.
        high: of the interval; None as `low`.
        n: how many images.
        method: how the interval was made, over how many seeds values were averaged, and how many images were left out
            because a value of theirs is infinite.
    """


def paired_difference(
    a: Tensor,
    b: Tensor,
    *,
    share: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The mean of `a - b` over the same images, and an interval that takes account of the pairing.

    Images are the unit: values of several seeds are averaged on each image first. So the interval says what other
    images would give with these very seeds, not what other seeds would.

    - Values: images are resampled, the same for both (:func:`~loraguard.metrics.mean_interval`). Where all differences
      are equal, nothing is known of their spread and no interval is given.
    - Shares: the score interval of Tango (Statistics in Medicine 17:891, 1998); a bootstrap is too narrow where few
      pairs are discordant. Where all differences are equal, as where no pair is discordant, the exact binomial
      interval. Where seeds disagree on an image its difference is a fraction, and images are resampled.

    Args:
        a: one value for each image, (n,), or for each seed and image, (seeds, n).
        b: the other situation's, likewise; the number of seeds may differ.
        share: values are 0 or 1 and their mean is a share.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: for values that are not of the same images, empty, NaN, or not 0 or 1 where they are said to be.

    Example:
        >>> import torch
        >>> before, noise = torch.arange(64.0), torch.arange(64.0) / 32 - 1
        >>> paired_difference(before + 2 + noise, before)
        Difference(mean=1.984375, low=1.8..., high=2.1..., n=64, method='paired bootstrap-t, 2000 resamples')
        >>> paired_difference(torch.zeros(200), torch.zeros(200), share=True)
        Difference(mean=0.0, low=-0.018..., high=0.018..., n=200, method='exact binomial, no difference on any image')
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must be between 0 and 1, as in 0.95.")
    _check(a, b, share)
    seeds = max(len(values) if values.ndim == 2 else 1 for values in (a, b))
    a, b = (values.detach().double().cpu().reshape(-1, values.shape[-1]) for values in (a, b))
    finite = ~(a.isinf().any(0) | b.isinf().any(0))
    n, kept = len(finite), int(finite.sum())
    if not kept:
        return Difference(None, None, None, n, "none: no image has finite values")
    differences = (a.mean(0) - b.mean(0))[finite]
    mean = differences.mean().item()
    notes = f", averaged over {seeds} seeds" if seeds > 1 else ""
    notes += f", {n - kept} images with infinite values left out" if kept < n else ""

    low: float | None
    high: float | None
    if differences.max() - differences.min() <= 1e-12:  # averages over seeds are equal but for rounding
        if not share:
            return Difference(mean, None, None, n, f"none: one difference on all images{notes}")
        low, high = unanimous_interval(mean, n, bounds=(-1.0, 1.0), confidence=confidence)
        same = "no difference on any image" if abs(mean) <= 1e-12 else "one difference on all images"
        return Difference(mean, low, high, n, f"exact binomial, {same}{notes}")
    if share and (differences == differences.round()).all():
        low, high = score_interval(int((differences > 0).sum()), int((differences < 0).sum()), n, confidence)
        return Difference(mean, low, high, n, f"score (Tango){notes}")
    found = mean_interval(differences, confidence=confidence, resamples=resamples, seed=seed)
    assert found is not None  # not all are equal
    return Difference(mean, *found, n, f"paired bootstrap-t, {resamples} resamples{notes}")


def score_interval(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's interval of a difference between two shares over the same n images (Statistics in Medicine 17, 1998).

    The differences that a score test does not reject. Its variance takes the shares that are likeliest if the
    difference is as tested, which is why it is not 0 where no pair is discordant.

    Args:
        gained: images that have it in the first situation alone.
        lost: images that have it in the second alone.
        n: all images.
        confidence: of the interval.

    Example:
        >>> [round(bound, 3) for bound in score_interval(gained=14, lost=5, n=100)]
        [0.005, 0.181]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(difference: float) -> float:
        linear = (2 * n - gained + lost) * difference - gained - lost
        constant = -lost * difference * (1 - difference)
        rare = (sqrt(max(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)  # the share lost, likeliest
        variance = n * (2 * rare + difference * (1 - difference))
        return (gained - lost - n * difference) / sqrt(variance) if variance > 0 else 0.0

    seen = (gained - lost) / n
    return _falls_to(score, z, -1.0, seen), _falls_to(score, -z, seen, 1.0)


def _falls_to(function: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function comes to a level, by bisection; the nearer end where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > level else (low, middle)
    return (low + high) / 2


def _check(a: Tensor, b: Tensor, share: bool) -> None:
    for name, values in (("a", a), ("b", b)):
        if values.ndim not in (1, 2) or not values.numel():
            raise ValueError(f"Expected {name} of shape (n,) or (seeds, n), not empty; got {tuple(values.shape)}.")
        if values.isnan().any():
            raise ValueError(f"{name} has {int(values.isnan().sum())} values that are not a number.")
        if share and not ((values == 0) | (values == 1)).all():
            raise ValueError(f"Shares are of values 0 or 1; {name} has {values.double().unique().tolist()[:5]}.")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"Pairs are of the same images; a has {a.shape[-1]} and b has {b.shape[-1]}.")
