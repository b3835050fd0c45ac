"""How far outputs look from what they should be, to a network that was fitted to people's judgements."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet, AlexNet_Weights, alexnet

from loraguard.weights import load_published

SMALLEST = 31
"""Pixels a side below which AlexNet's second pooling has nothing to pool."""

_LIFT = 1e-18
"""Added to every feature: too little to show beside the 1e-10 that the package adds to their norm."""


class LPIPS(nn.Module):
    """Learned perceptual distance of each image, AlexNet, version 0.1 (Zhang et al., arXiv 1801.03924); (N,).

    Computed by the authors' package `lpips`, which ships the linear weights; no image is resized. Figures of LPIPS with
    another backbone, or on images of another size, are not comparable with these. It is frozen and stays in evaluation
    mode. It gives gradients for the images, finite ones where all features of a place are 0, too: the package's own are
    not a number there.

    Args:
        backbone: torchvision's AlexNet with the weights of ImageNet, of which a copy is taken; :meth:`load` finds them.

    Example:
        >>> lpips = LPIPS(alexnet())  # made-up weights
        >>> lpips(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
        tensor([0., 0.])
    """

    def __init__(self, backbone: AlexNet) -> None:
        super().__init__()
        self.network = _network()
        layers = backbone.features.state_dict()  # "0.weight"; there "slice1.0.weight"
        own = {name: layers[name.partition(".")[2]] for name in self.network.net.state_dict()}
        self.network.net.load_state_dict(
            {k: v.to("cpu", torch.float32, copy=True) for k, v in own.items()}, assign=True
        )
        for part in self.network.net.children():  # of which each gives features; hooks on the whole are passed by
            part.register_forward_hook(_lifted)
        self.requires_grad_(False)
        self.eval()

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

    @classmethod
    def at_hand(cls, size: int) -> LPIPS | None:
        """With torchvision's file from its cache, for images of this many pixels a side; None where it cannot be had.

        Example:
            >>> LPIPS.at_hand(16) is None  # too small
            True
        """
        file = Path(torch.hub.get_dir(), "checkpoints", AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
        return cls.load(local_files_only=True) if size >= SMALLEST and file.is_file() else None

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], H and W at least 31, to (N,).

        Raises:
            ValueError: for smaller images.
        """
        if min(preds.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS with AlexNet takes images of {SMALLEST} pixels a side or more, got {tuple(preds.shape)}; "
                "leave LPIPS out for this generator."
            )
        return self.network(preds.float().clamp(-1, 1), target.float().clamp(-1, 1)).flatten()


def _network() -> Any:
    """The package's network with its linear weights, and a trunk of AlexNet without weights.

    Nothing is drawn, printed, downloaded or unpickled: left to itself, the package draws or downloads a whole AlexNet,
    and reads its own file in whichever way torch does by default.
    """
    import lpips  # on use: SciPy comes with it

    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The parameter 'pretrained'|Arguments other than a weight enum")
        network = lpips.LPIPS(net="alex", version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    linear = torch.load(file, map_location="cpu", weights_only=True)  # "lin0.model.1.weight"
    network.lins.load_state_dict({name.removeprefix("lin"): one for name, one in linear.items()}, assign=True)
    return network


def _lifted(part: nn.Module, images: Any, features: Tensor) -> Tensor:
    """Off 0, where the square root of the sum of squares, which they are divided by, has no derivative."""
    return features + _LIFT
