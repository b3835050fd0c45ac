"""How far outputs look from what they should be, to a network that was fitted to people's judgements."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchvision.models import AlexNet, AlexNet_Weights, alexnet

from loraguard.weights import load_published

SMALLEST = 31
"""Pixels a side below which AlexNet's last pooling has nothing to pool."""


class LPIPS(nn.Module):
    """Learned perceptual distance of each image, AlexNet, version 0.1 (Zhang et al., arXiv 1801.03924); (N,).

    Computed by torchmetrics, which ships the linear weights; no image is resized. Figures of LPIPS with another
    backbone, or on images of another size, are not comparable with these. It is frozen and stays in evaluation mode,
    and gives gradients for the images.

    Args:
        backbone: torchvision's AlexNet with the weights of ImageNet; :meth:`load` finds them.

    Example:
        >>> lpips = LPIPS(alexnet())  # made-up weights
        >>> lpips(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
        tensor([0., 0.])
    """

    def __init__(self, backbone: AlexNet) -> None:
        super().__init__()
        with torch.random.fork_rng():  # its own backbone is drawn at random, and replaced
            # The public class can only take AlexNet from torchvision's cache or the network, unpickled.
            self.network = _NoTrainLpips(net="alex", pnet_rand=True)
        layers = backbone.features.state_dict()  # "0.weight"; there "slice1.0.weight"
        own = self.network.net.state_dict()
        self.network.net.load_state_dict({name: layers[name.partition(".")[2]] for name in own})

    @classmethod
    def load(cls, path: str | Path | None = None, *, local_files_only: bool = False) -> LPIPS:
        """With the weights that LPIPS was fitted with, torchvision's AlexNet "IMAGENET1K_V1".

        Args:
            path: a state dict of `torchvision.models.alexnet`, from `torch.save` (read with `weights_only=True`) or in
                safetensors; by default torchvision's own file, from its cache or else downloaded.
            local_files_only: download nothing.

        Raises:
            OSError: if the file cannot be had; the message says where it was looked for and what to pass instead.
            ValueError: if it holds no such state dict.

        Example:
            >>> LPIPS.load("nowhere.pth")
            Traceback (most recent call last):
            ...
            FileNotFoundError: There is no file nowhere.pth with weights of torchvision's AlexNet...
        """
        with torch.device("meta"):
            backbone = alexnet()
        url = AlexNet_Weights.IMAGENET1K_V1.url
        load_published(backbone, url, path, name="torchvision's AlexNet", local_files_only=local_files_only)
        return cls(backbone)

    def forward(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], H and W at least 31, to (N,).

        Raises:
            ValueError: for smaller images.
        """
        if min(outputs.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS with AlexNet takes images of {SMALLEST} pixels a side or more, got {tuple(outputs.shape)}; "
                "leave LPIPS out for this generator."
            )
        return self.network(outputs.float().clamp(-1, 1), reference.float().clamp(-1, 1)).flatten()
