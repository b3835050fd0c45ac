"""A small denoising network: what purifies photos of perturbations without knowing how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from .base import in_colours, keeps_format


class DnCNN(nn.Sequential):
    """A network that predicts the noise in images (N, 3, H, W), in their units: convolutions of 3x3 and ReLUs.

    Zhang et al., arXiv 1608.03981, without batch norm.

    Args:
        width: channels between the layers.
        depth: number of convolutions, at least 2.
    """

    def __init__(self, width: int = 32, depth: int = 6) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(depth - 2):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        super().__init__(*layers, nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))


@dataclass(frozen=True)
class Denoiser:
    """Take away what a small network holds for noise, the network being a DnCNN (Zhang et al., arXiv 1608.03981).

    The network that ships with the package knows Gaussian noise on drawn faces (:class:`~loraguard.data.DemoFaces`) and
    nothing else; `examples/train_denoiser.py` made it, and makes others from photos.

    Args:
        path: weights of another :class:`DnCNN`, in safetensors; its width and depth are read off them.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one that holds something else.

    Example:
        >>> import torch
        >>> from loraguard.data import DemoFaces
        >>> face = DemoFaces(split="test")[0]["image"][None]
        >>> noisy = (face + 0.1 * torch.randn_like(face)).clamp(-1, 1)
        >>> bool((Denoiser()(noisy) - face).square().mean() < (noisy - face).square().mean() / 3)
        True
    """

    path: str | None = None

    def __post_init__(self) -> None:
        _network(self.path, torch.device("cpu"), torch.float32)

    @in_colours
    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Denoised images (N, 3, H, W), differentiable."""
        return images - _network(self.path, images.device, images.dtype)(images)

    def differentiable(self) -> Denoiser:
        """Itself."""
        return self


@lru_cache(maxsize=8)
def _network(path: str | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The frozen network, read once for each device and dtype."""
    shipped = files("loraguard.channels").joinpath("denoiser_weights/model.safetensors")
    try:
        state = load(shipped.read_bytes() if path is None else Path(path).expanduser().read_bytes())
        network = DnCNN(len(state["0.weight"]), len(state) // 2)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold the weights of a DnCNN, as examples/train_denoiser.py writes them: {error!s:.250}"
        ) from error
    return network.to(device, dtype).requires_grad_(False).eval()
