"""The ResNet generator of CycleGAN and pix2pix, which turns images of one kind into another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from .pix2pix import DROPOUT, NORMS, Pix2PixGenerator
from .preprocessing import check_size

PADDINGS: dict[str, type[nn.Module] | None] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "zero": None,
}


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each padded and normalised, beside a skip connection.

    Where a convolution pads with zeros itself there is no layer for padding, and without dropout none for that, so that
    both settings show in the names of the tensors.
    """

    def __init__(self, channels: int, norm: str, *, use_dropout: bool, padding_type: str) -> None:
        super().__init__()
        padding = PADDINGS[padding_type]

        def convolution() -> list[nn.Module]:
            pad, zeros = ([], 1) if padding is None else ([padding(1)], 0)
            conv = nn.Conv2d(channels, channels, 3, padding=zeros, bias=norm == "instance")
            return [*pad, conv, NORMS[norm](channels)]

        dropout = [nn.Dropout(DROPOUT)] if use_dropout else []
        self.conv_block = nn.Sequential(*convolution(), nn.ReLU(inplace=True), *dropout, *convolution())

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to features of the same shape."""
        return features + self.conv_block(features)


class CycleGAN(
    Pix2PixGenerator,
    license="bsd-2-clause",
    paper_url="https://arxiv.org/abs/1703.10593",
    repo_url="https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix",
    tags=["cyclegan", "pix2pix"],
):
    """The ResNet generator of CycleGAN (Zhu et al., ICCV 2017, arXiv 1703.10593), which pix2pix can have as well.

    `CycleGAN.from_checkpoint("latest_net_G.pth")` loads the official weights, also those of before torch 0.4; see
    docs/generators/cyclegan.md. It is unconditional: a network makes one kind of image. Outputs are those of the
    official code; where there is batch norm or dropout, those of its `--eval`.

    Args:
        ngf: feature maps of the first layer; twice and four times as many follow.
        n_blocks: residual blocks, 9 for official networks of 256 pixels and 6 for smaller ones.
        norm: "instance", as CycleGAN has it, without weights; or "batch", as pix2pix has it.
        use_dropout: dropout in the residual blocks, as pix2pix has it; it acts in train mode.
        padding_type: of the residual blocks, "reflect", "replicate" or "zero". The first and the last layer reflect. A
            checkpoint does not tell "reflect" from "replicate".
        input_nc: channels of images that go in, 3 for RGB and 1 for greyscale.
        output_nc: channels of images that come out.
        size: side of the square images that `transform` makes; a multiple of 4. The network itself takes any such size.

    Raises:
        ValueError: for another norm, padding or size.

    Example:
        >>> import torch
        >>> generator = CycleGAN(ngf=4, n_blocks=1)
        >>> generator(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    latent_layer = "model.9"  # the last before the residual blocks
    model_tags: ClassVar[list[str]] = [*Pix2PixGenerator.model_tags, "cyclegan", "pix2pix"]
    small: ClassVar[dict[str, Any]] = {"ngf": 4, "n_blocks": 1}

    def __init__(
        self,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: str = "instance",
        *,
        use_dropout: bool = False,
        padding_type: str = "reflect",
        input_nc: int = 3,
        output_nc: int = 3,
        size: int = 256,
    ) -> None:
        super().__init__()
        for name, value, known in (("norm", norm, NORMS), ("padding_type", padding_type, PADDINGS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.")
        check_size(size, 4)
        self.size, self.input_nc = size, input_nc
        bias = norm == "instance"  # batch norm has its own

        def stage(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
            return [convolution, NORMS[norm](convolution.out_channels), nn.ReLU(inplace=True)]

        def up(inputs: int) -> list[nn.Module]:
            return stage(nn.ConvTranspose2d(inputs, inputs // 2, 3, 2, padding=1, output_padding=1, bias=bias))

        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *stage(nn.Conv2d(input_nc, ngf, 7, bias=bias)),
            *stage(nn.Conv2d(ngf, 2 * ngf, 3, stride=2, padding=1, bias=bias)),
            *stage(nn.Conv2d(2 * ngf, 4 * ngf, 3, stride=2, padding=1, bias=bias)),
            *(ResnetBlock(4 * ngf, norm, use_dropout=use_dropout, padding_type=padding_type) for _ in range(n_blocks)),
            *up(4 * ngf),
            *up(2 * ngf),
            nn.ReflectionPad2d(3),
            nn.Conv2d(ngf, output_nc, 7),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (N, input_nc, H, W) in [-1, 1], H and W multiples of 4, into (N, output_nc, H, W) in [-1, 1]."""
        return self.model(images)

    @classmethod
    def has_batch_norm(cls, state: Mapping[str, Tensor]) -> bool:
        """Its norms have weights, and the convolutions before them no biases."""
        return "model.2.weight" in state

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`ngf`, `n_blocks`, `norm`, `use_dropout`, `input_nc`, `output_nc` and, where it is, `padding_type` "zero"."""
        first = state.get("model.1.weight")
        pattern = re.compile(r"model\.(\d+)\.conv_block\.(\d+)\.weight")
        found = [match for name in state if state[name].ndim == 4 and (match := pattern.fullmatch(name))]
        if first is None or not found:
            return {}
        last = max(filter(re.compile(r"model\.\d+\.weight").fullmatch, state), key=lambda name: int(name.split(".")[1]))
        places = sorted({int(match[2]) for match in found})  # of the two convolutions in a block
        zero = places[0] == 0
        return {
            "ngf": first.shape[0],
            "n_blocks": len({match[1] for match in found}),
            "norm": "batch" if cls.has_batch_norm(state) else "instance",
            "input_nc": first.shape[1],
            "output_nc": state[last].shape[0],
            "use_dropout": places[-1] - places[0] == (4 if zero else 5),
            **({"padding_type": "zero"} if zero else {}),
        }

    @classmethod
    def mistaken(cls, state: Mapping[str, Tensor]) -> str | None:
        """The discriminator begins with `model.0`, the U-Net with `model.model.0`."""
        if "model.model.0.weight" in state:
            return "pix2pix's U-Net (loraguard's unet_128 and unet_256)"
        return "CycleGAN's discriminator" if "model.0.weight" in state else None
