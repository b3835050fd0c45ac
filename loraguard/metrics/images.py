"""How far outputs are from what they should be, pixel by pixel: one figure for each image."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

DSR_THRESHOLD = 0.05
"""A defense succeeds on an image when the MSE between outputs exceeds this (arXiv 2003.01279 and after it)."""


def mean_squared_error(preds: Tensor, target: Tensor) -> Tensor:
    """MSE of each image, "L2" in this literature: (N, 3, H, W) in [-1, 1] to (N,).

    Example:
        >>> import torch
        >>> mean_squared_error(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8))
        tensor([0.2500, 0.2500])
    """
    return (preds - target).square().mean((1, 2, 3))


def defense_succeeds(preds: Tensor, target: Tensor, threshold: float = DSR_THRESHOLD) -> Tensor:
    """Whether a defense succeeds on each image, MSE > 0.05: (N, 3, H, W) in [-1, 1] to 0 or 1, (N,).

    Its mean over images is the DSR, the defense success rate.

    Example:
        >>> import torch
        >>> defense_succeeds(torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 3, 8, 8))
        tensor([1.])
    """
    return (mean_squared_error(preds, target) > threshold).to(preds)


def masked_squared_error(preds: Tensor, target: Tensor, images: Tensor) -> Tensor:
    """Masked L2 of each image, the squared error where the edit changed the photo (CMUA; arXiv 2105.10872, section 4).

    `sum((D * M)^2) / (3 * sum(M))` with D = preds - target and the mask M = 1 at each pixel where the target
    differs from the photo by more than 0.5, summed over the channels, and 0 elsewhere. Where the edit changed nothing
    the mask is empty and the distance 0, so that the defense counts as failing on that image. Own implementation.

    Args:
        preds: outputs, (N, 3, H, W) in [-1, 1].
        target: what they should be, G(x, c), (N, 3, H, W) in [-1, 1].
        images: the photos x that the target was made from, (N, 3, H, W) in [-1, 1].

    Returns:
        (N,), to be compared with :data:`DSR_THRESHOLD` as the plain one is.

    Raises:
        ValueError: if the three are not of one shape; a generator that resizes has no masked distance.

    Example:
        >>> import torch
        >>> photo = torch.zeros(1, 3, 4, 4)
        >>> target = photo.clone()
        >>> target[..., :2] = 1  # the edit changes the left half
        >>> masked_squared_error(target - 0.5, target, photo)
        tensor([0.2500])
    """
    if not preds.shape == target.shape == images.shape:
        raise ValueError(
            f"The mask needs photos of the outputs' size, got preds {tuple(preds.shape)}, target "
            f"{tuple(target.shape)} and images {tuple(images.shape)}. Resize the photos, or use mean_squared_error."
        )
    mask = ((target - images).abs().sum(1, keepdim=True) > 0.5).to(preds)
    squares = ((preds - target) * mask).square().sum((1, 2, 3))
    return squares / (3 * mask.sum((1, 2, 3))).clamp_min(1)


def psnr(preds: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, on [0, 1] with data range 1 (torchmetrics); (N,).

    Infinite where both are equal.

    Example:
        >>> import torch
        >>> psnr(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), -0.5))  # half of the range
        tensor([6.0206])
    """
    return peak_signal_noise_ratio(_unit(preds), _unit(target), data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(preds: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, on [0, 1] with data range 1, Gaussian 11x11 window of sigma 1.5; (N,).

    Computed by torchmetrics, averaged over the windows that lie wholly inside the image (Wang et al. 2004), which is
    what scikit-image gives too. (torchmetrics' own mean counts windows that hang over a mirrored border: on one image
    of 32 pixels 0.893 against 0.925.)

    Raises:
        ValueError: for images smaller than the window, 11 pixels.

    Example:
        >>> import torch
        >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)).round(decimals=3)
        tensor([1.])
    """
    if min(preds.shape[-2:]) < 11:
        raise ValueError(f"SSIM's window is 11x11 pixels, larger than the images: {tuple(preds.shape)}.")
    _, values = structural_similarity_index_measure(
        _unit(preds), _unit(target), data_range=1.0, reduction="none", return_full_image=True
    )
    return values[..., 5:-5, 5:-5].mean((1, 2, 3))


def _unit(images: Tensor) -> Tensor:
    return (images.clamp(-1, 1) + 1) / 2
