"""How far outputs are from what they should be, per image, and how sure a mean over images is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

DSR_THRESHOLD = 0.05
"""A defense succeeds on an image when the MSE between outputs exceeds this (arXiv 2003.01279 and after it)."""


def mean_squared_error(outputs: Tensor, reference: Tensor) -> Tensor:
    """MSE of each image, "L2" in this literature: (N, 3, H, W) in [-1, 1] to (N,).

    Example:
        >>> mean_squared_error(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8))
        tensor([0.2500, 0.2500])
    """
    return (outputs - reference).square().mean((1, 2, 3))


def defense_succeeds(outputs: Tensor, reference: Tensor, threshold: float = DSR_THRESHOLD) -> Tensor:
    """Whether a defense succeeds on each image, MSE > 0.05: (N, 3, H, W) in [-1, 1] to 0 or 1, (N,).

    Its mean over images is the DSR, the defense success rate.

    Example:
        >>> defense_succeeds(torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8))
        tensor([1.])
    """
    return (mean_squared_error(outputs, reference) > threshold).to(outputs)


def psnr(outputs: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, on [0, 1] with data range 1 (torchmetrics); (N,).

    Infinite where both are equal.

    Example:
        >>> psnr(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), -0.5))  # half of the range
        tensor([6.0206])
    """
    return peak_signal_noise_ratio(_unit(outputs), _unit(reference), data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(outputs: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, on [0, 1] with data range 1, Gaussian 11x11 window of sigma 1.5; (N,).

    Computed by torchmetrics, averaged over the windows that lie wholly inside the image (Wang et al. 2004), which is
    what scikit-image gives too. (torchmetrics' own mean counts windows that hang over a mirrored border: on one image
    of 32 pixels 0.893 against 0.925.)

    Raises:
        ValueError: for images smaller than the window, 11 pixels.

    Example:
        >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
        tensor([1.])
    """
    if min(outputs.shape[-2:]) < 11:
        raise ValueError(f"SSIM's window is 11x11 pixels, larger than the images: {tuple(outputs.shape)}.")
    _, values = structural_similarity_index_measure(
        _unit(outputs), _unit(reference), data_range=1.0, reduction="none", return_full_image=True
    )
    return values[..., 5:-5, 5:-5].mean((1, 2, 3))


def _unit(images: Tensor) -> Tensor:
    return (images.clamp(-1, 1) + 1) / 2


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
