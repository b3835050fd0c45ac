"""The same metrics as `torchmetrics.Metric`s: over batches, and over the processes of a training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .frechet import frechet_distance
from .images import DSR_THRESHOLD, defense_succeeds, masked_squared_error, mean_squared_error, psnr, ssim
from .perceptual import LPIPS

REDUCTIONS = ("mean", "none")


class ImageMetric(Metric):
    """The mean over all images of a figure that each has, or all figures.

    Images are in [-1, 1], as everywhere here. Infinite figures, which PSNR has for equal images, are left out of the
    mean, as :func:`~loraguard.metrics.estimate` leaves them out.

    Args:
        reduction: "mean" for a scalar, or "none" for (N,), process after process.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: for another reduction.
    """

    full_state_update = False
    is_differentiable = True
    total: Tensor
    count: Tensor
    values: list[Tensor]

    def __init__(self, reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction={reduction!r} must be one of {', '.join(REDUCTIONS)}.")
        self.reduction = reduction
        if reduction == "none":
            self.add_state("values", default=[], dist_reduce_fx="cat")
        else:
            self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """One for each image, (N,)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in outputs and what they should be, both (N, C, H, W)."""
        self._take(self.figures(preds, target))

    def _take(self, figures: Tensor) -> None:
        if self.reduction == "none":
            self.values.append(figures)
            return
        finite = figures[~figures.isinf()]
        self.total = self.total + finite.double().sum()
        self.count = self.count + len(finite)

    def compute(self) -> Tensor:
        """The mean, a scalar, infinite where every figure is; or all figures, (N,)."""
        if self.reduction == "none":
            return dim_zero_cat(self.values)
        mean = self.total / self.count
        return torch.where(self.count > 0, mean, torch.inf).float()


class MeanSquaredError(ImageMetric):
    """Mean of :func:`~loraguard.metrics.mean_squared_error`.

    Example:
        >>> metric = MeanSquaredError()
        >>> metric.update(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8))
        >>> metric.update(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
        >>> metric.compute()
        tensor(0.1250)
    """

    higher_is_better = False

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """MSE of each image."""
        return mean_squared_error(preds, target)


class DefenseSuccessRate(ImageMetric):
    """DSR, the mean of :func:`~loraguard.metrics.defense_succeeds`.

    Args:
        threshold: of the MSE, above which a defense succeeds on an image.
        reduction: as :class:`ImageMetric` has it.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> preds = torch.stack([torch.full((3, 8, 8), 0.5), torch.zeros(3, 8, 8)])
        >>> DefenseSuccessRate()(preds, torch.zeros(2, 3, 8, 8))
        tensor(0.5000)
    """

    higher_is_better = True
    is_differentiable = False

    def __init__(self, threshold: float = DSR_THRESHOLD, reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(reduction, **kwargs)
        self.threshold = threshold

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """0 or 1 for each image."""
        return defense_succeeds(preds, target, self.threshold)


class MaskedSquaredError(ImageMetric):
    """Mean of :func:`~loraguard.metrics.masked_squared_error`, which looks at the photos, too.

    Example:
        >>> photos = torch.zeros(1, 3, 4, 4)
        >>> MaskedSquaredError()(photos + 0.5, photos + 1, photos)
        tensor(0.2500)
    """

    higher_is_better = False

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """Not without photos."""
        raise TypeError("MaskedSquaredError needs the photos: update(preds, target, images).")

    def update(self, preds: Tensor, target: Tensor, images: Tensor | None = None) -> None:
        """Take in outputs, what they should be, and the photos, all of one shape (N, 3, H, W)."""
        self._take(self.figures(preds, target) if images is None else masked_squared_error(preds, target, images))


class PeakSignalNoiseRatio(ImageMetric):
    """Mean of :func:`~loraguard.metrics.psnr`, in dB, over the images that are not equal.

    Example:
        >>> PeakSignalNoiseRatio()(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), -0.5))
        tensor(6.0206)
    """

    higher_is_better = True

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """PSNR of each image."""
        return psnr(preds, target)


class StructuralSimilarity(ImageMetric):
    """Mean of :func:`~loraguard.metrics.ssim`.

    Example:
        >>> StructuralSimilarity()(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)).round(decimals=3)
        tensor(1.)
    """

    higher_is_better = True

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """SSIM of each image."""
        return ssim(preds, target)


class LearnedPerceptualSimilarity(ImageMetric):
    """Mean of :class:`~loraguard.metrics.LPIPS`.

    Args:
        lpips: the network, as `LPIPS.load` gives it.
        reduction: as :class:`ImageMetric` has it.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> from torchvision.models import alexnet
        >>> metric = LearnedPerceptualSimilarity(LPIPS(alexnet()))  # made-up weights
        >>> metric(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
        tensor(0.)
    """

    higher_is_better = False

    def __init__(self, lpips: LPIPS, reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(reduction, **kwargs)
        self.lpips = lpips

    def figures(self, preds: Tensor, target: Tensor) -> Tensor:
        """LPIPS of each image."""
        return cast(Tensor, self.lpips(preds, target))


class FrechetDistance(Metric):
    """:func:`~loraguard.metrics.frechet_distance` between all outputs and all that they should be; FID on Inception.

    All features are kept until it is computed.

    Args:
        features: a network from images (N, C, H, W) to features (N, D).
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = FrechetDistance(nn.Flatten())
        >>> images = torch.randn(50, 3, 1, 1)
        >>> metric.update(images + 2, images)
        >>> metric.compute().round(decimals=3)  # each of three values moved by 2
        tensor(12.)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, features: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in outputs and what they should be, as many of each as there are."""
        self.preds.append(self.features(preds))
        self.target.append(self.features(target))

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        return torch.tensor(frechet_distance(dim_zero_cat(self.preds), dim_zero_cat(self.target)))
