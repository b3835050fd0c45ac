"""How sure a mean over images is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95% interval.

    Attributes:
        mean: of the images' values; None where none is finite (PSNR of equal images).
        low: of the interval.
        high: of the interval.
        n: how many images.
        method: how the interval was made, and how many images were left out because their PSNR is infinite.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def estimate(
    values: Tensor, *, share: bool = False, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of per-image values and its percentile-bootstrap interval, images being the unit that is resampled.

    Where a share is 0 or 1 on every image the bootstrap would give an interval of no width; the exact binomial
    (Clopper-Pearson) interval is given in its place, and named.

    Args:
        values: (N,), one for each image.
        share: the values are 0 or 1 and their mean is a share.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Example:
        >>> estimate(torch.zeros(200), share=True)
        Estimate(mean=0.0, low=0.0, high=0.0182..., n=200, method='Clopper-Pearson')
        >>> estimate(torch.arange(100.0)).mean
        49.5
    """
    values = values.detach().double().cpu()
    finite = values[~torch.isinf(values)]
    n, equal = len(values), len(values) - len(finite)
    if n == equal:
        return Estimate(None, None, None, n, "none: equal images")
    mean = finite.mean().item()
    if share and mean in (0.0, 1.0):
        low, high = unanimous_interval(mean, n, bounds=(0.0, 1.0), confidence=confidence)
        return Estimate(mean, low, high, n, "Clopper-Pearson")
    low, high = bootstrap_interval(finite, confidence=confidence, resamples=resamples, seed=seed)
    left_out = f", {equal} equal images left out" if equal else ""
    return Estimate(mean, low, high, n, f"percentile bootstrap, {resamples} resamples{left_out}")


def bootstrap_interval(values: Tensor, *, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile-bootstrap interval of the mean of values (N,), which are resampled one by one.

    Example:
        >>> low, high = bootstrap_interval(torch.arange(100.0).double(), confidence=0.95, resamples=2000, seed=0)
        >>> 42 < low < 46 < 53 < high < 57
        True
    """
    tail = (1 - confidence) / 2
    draws = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[draws].mean(1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def unanimous_interval(value: float, n: int, *, bounds: tuple[float, float], confidence: float) -> tuple[float, float]:
    """The exact interval of the mean of what is bounded, where all of n images gave the same value.

    If a share q of all images had another value, n images would agree with probability (1 - q)^n; so at each side q is
    at most 1 - tail^(1/n), and at worst those images lie at the bound. For shares this is Clopper and Pearson's.

    Args:
        value: what every image gave.
        n: how many images.
        bounds: between which any image's value lies.
        confidence: of the interval.

    Example:
        >>> unanimous_interval(0.0, 200, bounds=(0.0, 1.0), confidence=0.95)
        (0.0, 0.0182...)
    """
    others = 1 - ((1 - confidence) / 2) ** (1 / n)
    return value - others * (value - bounds[0]), value + others * (bounds[1] - value)
