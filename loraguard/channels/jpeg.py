"""JPEG: the codec itself, and a differentiable one for attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import in_colours, keeps_format
from .files import check_quality, through_files


@dataclass(frozen=True)
class JPEG:
    """Compress as JPEG and decompress, by Pillow's codec (libjpeg-turbo), with its default chroma subsampling of 4:2:0.

    Args:
        quality: 1 to 100, as libjpeg counts it.
        highest: where given, each image's quality is a whole number drawn from `quality` to `highest`; DF-RAP, for one,
            expects 71 to 100 of social networks (which it draws from a histogram of its own).

    Raises:
        ValueError: for a quality that is not a whole number from 1 to 100, or `highest` below it.

    Example:
        >>> import torch
        >>> from loraguard.channels import quantize
        >>> grey = quantize(torch.full((1, 3, 16, 16), 0.1))
        >>> torch.equal(JPEG(quality=75)(grey), grey)
        True
    """

    quality: int = 75
    highest: int | None = None

    def __post_init__(self) -> None:
        check_quality(self.quality)
        if self.highest is not None:
            check_quality(self.highest)
            if self.highest < self.quality:
                raise ValueError(f"highest={self.highest} must not be below quality={self.quality}.")

    def qualities(self, n: int) -> Tensor:
        """Of each of n images, (N,); drawn from torch's global generator where `highest` is given."""
        return torch.randint(self.quality, (self.highest or self.quality) + 1, (n,))

    @in_colours
    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they come back."""
        return through_files(images, [{"format": "JPEG", "quality": q} for q in self.qualities(len(images)).tolist()])

    def differentiable(self) -> DifferentiableJPEG:
        """The codec of kornia at the same quality."""
        return DifferentiableJPEG(self.quality, self.highest)


@dataclass(frozen=True)
class DifferentiableJPEG(JPEG):
    """JPEG with smooth rounding, kornia's (Reich et al., arXiv 2309.06978), to send gradients through.

    Rounded values are up to an eighth of a quantisation step off. On drawn faces the outcome is 37 dB or more (PSNR)
    from the real codec's at qualities from 10 on: 9 dB or more closer to it than the photo is.
    Args and errors are :class:`JPEG`'s.

    Example:
        >>> import torch
        >>> images = torch.zeros(2, 3, 16, 16, requires_grad=True)
        >>> DifferentiableJPEG(71, 100)(images).shape
        torch.Size([2, 3, 16, 16])
    """

    @in_colours
    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they come back, differentiable."""
        from kornia.enhance import jpeg_codec_differentiable

        quality = self.qualities(len(images)).to(images)
        return jpeg_codec_differentiable((images + 1) / 2, quality) * 2 - 1

    def differentiable(self) -> DifferentiableJPEG:
        """Itself."""
        return self
