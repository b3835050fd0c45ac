"""How far a set of outputs is from a set of references, as distributions of a network's features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import inception_v3

from loraguard.weights import load_published

CHUNK = 1024
"""Rows of features that are held in float64 at a time."""

INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
"""TensorFlow's Inception of 2015, which FID is defined by; 91 MiB."""


def frechet_distance(preds: Tensor, target: Tensor) -> float:
    """Fréchet distance between the normal distributions that fit two sets of features (arXiv 1706.08500, eq. 6).

    `|m_p - m_t|^2 + tr(C_p + C_t - 2 (C_p C_t)^(1/2))`, computed by torchmetrics in float64. On the features of
    :class:`Inception` it is the FID; on those of another network, such as a :class:`~loraguard.losses.FeatureEncoder`,
    it is a *Fréchet distance on* that network and should be called so. It is biased upwards, the more so the fewer
    images there are: compare values of equal N alone.

    Args:
        preds: features of the outputs, (N, D).
        target: features of what they should be, (M, D).

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        ValueError: for features of other shapes, fewer than 2 images in a set, or values that are not finite.

    Example:
        >>> features = torch.randn(500, 4)
        >>> round(frechet_distance(features, features + torch.tensor([3.0, 0, 0, 0])), 6)  # moved by 3
        9.0
    """
    if preds.ndim != 2 or target.ndim != 2 or preds.shape[1] != target.shape[1]:
        raise ValueError(f"Expected features (N, D) and (M, D), got {tuple(preds.shape)} and {tuple(target.shape)}.")
    if min(len(preds), len(target)) < 2:
        raise ValueError(
            f"A Fréchet distance needs a covariance, so at least 2 images a set, got {len(preds)} and {len(target)}."
        )
    if not (torch.isfinite(preds).all() and torch.isfinite(target).all()):
        raise ValueError("The features hold values that are not finite.")
    features = nn.Identity()
    features.num_features = target.shape[1]  # type: ignore[assignment]  # torchmetrics looks there for D
    metric = FrechetInceptionDistance(features).set_dtype(torch.float64).to(target.device)
    centre = target.double().mean(0)  # sums of squares of centred values keep more digits
    for rows, is_real in ((target, True), (preds, False)):
        for chunk in rows.split(CHUNK):
            metric.update(chunk.to(centre) - centre, real=is_real)
    return max(0.0, metric.compute().item())


class Inception(nn.Module):
    """The features that FID is defined on: (N, 3, H, W) in [-1, 1] to (N, 2048).

    TensorFlow's Inception v3 of 2015: torchvision's, but for 1008 classes, average pools that do not count the padding,
    and a maximum in the pool of the last block. Images are resized to 299x299 pixels, bilinearly and without
    antialiasing, as pytorch-fid does; FID depends on that, so name this implementation beside a figure. Frozen, and
    always in evaluation mode.

    Example:
        >>> Inception.load("nowhere.pth")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no file nowhere.pth with weights of FID's Inception...
    """

    @classmethod
    def load(cls, path: str | Path | None = None, *, local_files_only: bool = False) -> Inception:
        """With the weights that pytorch-fid publishes, `pt_inception-2015-12-05-6726825d.pth`.

        Args:
            path: that file (read with `weights_only=True`), or the same in safetensors; by default from torch's cache
                or else downloaded.
            local_files_only: download nothing.

        Raises:
            OSError: if the file cannot be had; the message says where it was looked for and what to pass instead.
            ValueError: if it holds no such state dict.
        """
        with torch.device("meta"):
            network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        load_published(network, INCEPTION, path, name="FID's Inception", local_files_only=local_files_only)
        return cls(network)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, block in list(network.named_children()):
            if hasattr(block, "branch_pool"):
                setattr(network, name, _Repooled(block, maximum=name == "Mixed_7c"))
        network.fc = nn.Identity()
        self.network = network
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Inception:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to features (N, 2048) in float32."""
        images = F.interpolate(images.float().clamp(-1, 1), size=(299, 299), mode="bilinear", align_corners=False)
        return self.network(images)


class _Repooled(nn.Module):
    """A block of torchvision's Inception whose last branch pools otherwise."""

    def __init__(self, block: nn.Module, *, maximum: bool) -> None:
        super().__init__()
        self.block, self.last, self.maximum = block, block.get_submodule("branch_pool"), maximum

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        last = self.last(pooled)  # 1x1, so that computing torchvision's too costs little
        return torch.cat([self.block(x)[:, : -last.shape[1]], last], 1)
