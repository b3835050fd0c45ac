"""Blurs: Gaussian, average and median. Beyond the border, images go on as they are at it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .base import keeps_format

WIDEST = 1025
"""Pixels of the largest kernel: a photo is extended by half of it at each side."""
WIDEST_MEDIAN = 31
"""Of a median, for which each pixel's whole square is held."""


@dataclass(frozen=True)
class GaussianBlur:
    """Blur with a Gaussian kernel.

    Args:
        sigma: standard deviation, in pixels.
        kernel: size of the kernel, odd; by default it reaches three standard deviations far, 11 for `sigma=1.5`, as in
            Ruiz et al., arXiv 2003.01279.

    Raises:
        ValueError: for a sigma that is not above 0, or a kernel that is even or below 1.

    Example:
        >>> import torch
        >>> point = torch.zeros(1, 3, 5, 5)
        >>> point[..., 2, 2] = 1
        >>> GaussianBlur(sigma=0.5, kernel=3)(point)[0, 0, 2]
        tensor([0.0000, 0.0838, 0.6193, 0.0838, 0.0000])
    """

    sigma: float = 1.5
    kernel: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= WIDEST / 6:
            raise ValueError(f"sigma={self.sigma!r} must be above 0 and at most {WIDEST // 6}; it is in pixels.")
        if self.kernel is not None:
            check_kernel(self.kernel)

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Blurred images (N, C, H, W), differentiable."""
        from kornia.filters import gaussian_blur2d

        kernel = self.kernel or 2 * math.ceil(3 * self.sigma) + 1
        sigmas = (float(self.sigma),) * 2
        return gaussian_blur2d(images, (kernel, kernel), sigmas, border_type="replicate")

    def differentiable(self) -> GaussianBlur:
        """Itself."""
        return self


@dataclass(frozen=True)
class AverageBlur:
    """Replace each pixel by the average of a square around it.

    Args:
        kernel: the square's side in pixels, odd.

    Raises:
        ValueError: for one that is even or below 1.

    Example:
        >>> import torch
        >>> point = torch.zeros(1, 3, 5, 5)
        >>> point[..., 2, 2] = 0.9
        >>> AverageBlur(kernel=3)(point)[0, 0, 2]
        tensor([0.0000, 0.1000, 0.1000, 0.1000, 0.0000])
    """

    kernel: int = 5

    def __post_init__(self) -> None:
        check_kernel(self.kernel)

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Blurred images (N, C, H, W), differentiable."""
        return F.avg_pool2d(_extended(images, self.kernel // 2), self.kernel, stride=1)

    def differentiable(self) -> AverageBlur:
        """Itself."""
        return self


@dataclass(frozen=True)
class MedianBlur:
    """Replace each pixel by the median of a square around it, each colour on its own (Xu et al., arXiv 1704.01155).

    Args:
        kernel: the square's side in pixels, odd.

    Raises:
        ValueError: for one that is even or below 1.

    Example:
        >>> import torch
        >>> point = torch.zeros(1, 3, 5, 5)
        >>> point[..., 2, 2] = 1
        >>> bool((MedianBlur(kernel=3)(point) == 0).all())
        True
    """

    kernel: int = 3

    def __post_init__(self) -> None:
        check_kernel(self.kernel, WIDEST_MEDIAN)

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Filtered images (N, C, H, W); the gradient goes to the pixels that were the medians."""
        from kornia.filters import median_blur

        reach = self.kernel // 2
        filtered = median_blur(_extended(images, reach), self.kernel)
        return filtered[..., reach : reach + images.shape[-2], reach : reach + images.shape[-1]]

    def differentiable(self) -> MedianBlur:
        """Itself."""
        return self


def check_kernel(kernel: int, widest: int = WIDEST) -> None:
    """Refuse anything but an odd number of pixels, and more than a photo's worth of memory suffices for."""
    if not (isinstance(kernel, int) and kernel >= 1 and kernel % 2):
        raise ValueError(f"kernel={kernel!r} must be an odd number of pixels.")
    if kernel > widest:
        raise ValueError(f"kernel={kernel!r} must be at most {widest} pixels; what it computes grows with its size.")


def _extended(images: Tensor, reach: int) -> Tensor:
    return F.pad(images, [reach] * 4, mode="replicate")
