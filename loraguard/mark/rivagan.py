"""RivaGAN's watermark, as the package invisible-watermark ships it: a public reader of 32 bits that others have."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn

_BITS, _EMBEDDED, _THRESHOLD = 32, 0.016, 0.52
"""Bits of a word, the encoder's last factor, and what a decoded value is compared with, all as in the package."""


class RivaGAN(nn.Module):
    """Encoder and decoder of RivaGAN (Zhang et al., arXiv 1909.01285) for single frames, in torch, differentiable.

    Weights are those of the ONNX files in `invisible-watermark`, which are read with `onnx`; nothing is run but this
    module. It reads and writes images of any size from 11 pixels on.

    Raises:
        ImportError: where `invisible-watermark` or `onnx` is not installed.

    Example:
        >>> reader = RivaGAN()
        >>> reader(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 32])
    """

    bits = _BITS

    def __init__(self) -> None:
        super().__init__()
        decoder, encoder = _weights("decoder"), _weights("encoder")
        self.attention, self.reading = _attention(), _convolutions(3, _BITS)
        self.writing_attention, self.writing = _attention(), _convolutions(4, 3)
        for part, state, prefix in (
            (self.attention, decoder, "_attention."), (self.reading, decoder, "_conv."),
            (self.writing_attention, encoder, "_attention."), (self.writing, encoder, "_conv."),
        ):  # fmt: skip
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            counters = {name: value for name, value in part.state_dict().items() if name.endswith("batches_tracked")}
            part.load_state_dict(own | counters)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> RivaGAN:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """How far above the threshold each bit of images (N, 3, H, W) in [-1, 1] is: (N, 32)."""
        weights = self.attention(images).softmax(1)
        return (self.reading(images) * weights).mean((2, 3)) - _THRESHOLD

    def write(self, images: Tensor, word: Tensor) -> Tensor:
        """Images (N, 3, H, W) with words (N, 32) of 0 and 1 in them."""
        weights = self.writing_attention(images).softmax(1)
        message = (weights * (2 * word - 1)[:, :, None, None]).sum(1, keepdim=True)
        return (images + _EMBEDDED * self.writing(torch.cat([images, message], 1)).tanh()).clamp(-1, 1)


def _attention() -> nn.Sequential:
    """Two convolutions of 11x11, each with tanh and batch norm."""
    return nn.Sequential(*_convolutions(3, _BITS), nn.Tanh(), nn.BatchNorm2d(_BITS))


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, 32, 11, padding=5), nn.Conv2d(32, outputs, 11, padding=5)
    return nn.Sequential(first, nn.Tanh(), nn.BatchNorm2d(32), second)


def _weights(part: str) -> dict[str, Tensor]:
    """Weights in one of the package's ONNX files, by name; convolutions over one frame as 2D ones.

    The package itself is not imported, as it would import OpenCV.
    """
    try:
        import onnx
        from onnx import numpy_helper

        folder = distribution("invisible-watermark").locate_file("imwatermark")
    except (ImportError, PackageNotFoundError) as error:
        raise ImportError(
            "RivaGAN's mark needs the packages invisible-watermark, whose weights it has, and onnx, which reads them: "
            "pip install 'loraguard[rivagan]'."
        ) from error
    model = onnx.load(str(Path(str(folder), f"rivagan_{part}.onnx")))
    arrays = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer}
    return {name: value.squeeze(2) if value.ndim == 5 else value for name, value in arrays.items()}
