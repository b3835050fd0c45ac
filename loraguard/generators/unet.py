"""The U-Net generator of pix2pix, which turns images of one kind into another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .pix2pix import DROPOUT, NORMS, Pix2PixGenerator
from .preprocessing import check_size

FEWEST_DOWNS = 5
"""The official code has no smaller network: four levels that double the feature maps, and the innermost."""


class SkipBlock(nn.Module):
    """One level of the U-Net: down, the levels inside, up, and what came in beside it.

    The skip connection carries what comes in after its LeakyReLU; the ReLU that follows makes the same of both.

    Args:
        outer: feature maps outside of the block, that it gives beside those that it was given.
        inner: feature maps inside.
        inside: the next level; None for the innermost.
        norm: "instance" or "batch".
        use_dropout: dropout at the end.
    """

    def __init__(self, outer: int, inner: int, inside: SkipBlock | None, norm: str, *, use_dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"  # batch norm has its own
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=bias)]
        if inside is not None:
            down += [NORMS[norm](inner), inside]
        wide = inner if inside is None else 2 * inner
        up = [
            nn.ReLU(),
            nn.ConvTranspose2d(wide, outer, 4, stride=2, padding=1, bias=bias),
            NORMS[norm](outer),
        ]
        self.model = nn.Sequential(*down, *up, *([nn.Dropout(DROPOUT)] if use_dropout else []))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, outer, H, W) to (N, 2 * outer, H, W)."""
        return torch.cat([features, self.model(features)], 1)


class Outermost(nn.Module):
    """The outermost level: from images to images."""

    def __init__(self, input_nc: int, output_nc: int, ngf: int, inside: SkipBlock, norm: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(input_nc, ngf, 4, stride=2, padding=1, bias=norm == "instance"),
            inside,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * ngf, output_nc, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, input_nc, H, W) to (N, output_nc, H, W)."""
        return self.model(images)


class UNet(
    Pix2PixGenerator,
    license="bsd-2-clause",
    paper_url="https://arxiv.org/abs/1611.07004",
    repo_url="https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix",
    tags=["pix2pix"],
):
    """The U-Net generator of pix2pix (Isola et al., CVPR 2017, arXiv 1611.07004), `unet_128` and `unet_256`.

    `UNet.from_checkpoint("latest_net_G.pth")` loads the official weights; see docs/generators/unet.md. It is
    unconditional: a network makes one kind of image. Outputs are those of the official code with `--eval`.

    Args:
        num_downs: how often the size is halved: 8 is `unet_256`, 7 is `unet_128`.
        ngf: feature maps of the first level; they double up to eight times as many.
        norm: "batch", as pix2pix has it, or "instance", without weights.
        use_dropout: dropout in the inner levels of eight times as many feature maps; it acts in train mode. The
            official code has it unless called with `--no_dropout`. No tensor shows it, and it changes no output in
            evaluation mode.
        input_nc: channels of images that go in, 3 for RGB and 1 for greyscale.
        output_nc: channels of images that come out.
        size: side of the square images that `transform` makes, 2 ** `num_downs` by default and a multiple of that. The
            network takes any such sides.

    Raises:
        ValueError: for another norm, fewer than 5 levels, or another size.

    Example:
        >>> generator = UNet(num_downs=5, ngf=4).eval()
        >>> generator(torch.zeros(1, 3, 32, 64)).shape
        torch.Size([1, 3, 32, 64])
    """

    model_tags: ClassVar[list[str]] = [*Pix2PixGenerator.model_tags, "pix2pix"]
    small: ClassVar[dict[str, Any]] = {"num_downs": 5, "ngf": 4}

    def __init__(
        self,
        num_downs: int = 8,
        ngf: int = 64,
        norm: str = "batch",
        *,
        use_dropout: bool = True,
        input_nc: int = 3,
        output_nc: int = 3,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} must be one of {', '.join(map(repr, NORMS))}.")
        if num_downs < FEWEST_DOWNS:
            raise ValueError(f"num_downs={num_downs!r} must be at least {FEWEST_DOWNS}.")
        self.size_multiple, self.size = 2**num_downs, 2**num_downs if size is None else size
        check_size(self.size, self.size_multiple)
        self.input_nc = input_nc
        self.latent_layer = "model" + ".model.1" + ".model.3" * (num_downs - 2) + ".model.1"
        block = SkipBlock(8 * ngf, 8 * ngf, None, norm, use_dropout=False)
        for _ in range(num_downs - FEWEST_DOWNS):
            block = SkipBlock(8 * ngf, 8 * ngf, block, norm, use_dropout=use_dropout)
        for wide in (4 * ngf, 2 * ngf, ngf):
            block = SkipBlock(wide, 2 * wide, block, norm, use_dropout=False)
        self.model = Outermost(input_nc, output_nc, ngf, block, norm)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (N, input_nc, H, W) in [-1, 1] into images (N, output_nc, H, W) of the same range and sides."""
        return self.model(images)

    @classmethod
    def has_batch_norm(cls, state: Mapping[str, Tensor]) -> bool:
        """Its norms have weights, and the convolutions before them no biases."""
        return "model.model.0.bias" not in state

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`num_downs`, `ngf`, `norm`, `input_nc` and `output_nc`."""
        first, last = state.get("model.model.0.weight"), state.get("model.model.3.weight")
        deeper = re.compile(r"model\.model\.1\.model(\.3\.model)*\.1\.weight")
        levels = [name.count("model") - 1 for name in state if deeper.fullmatch(name)]
        if first is None or first.ndim != 4 or not levels:
            return {}
        return {
            "num_downs": max(levels),
            "ngf": first.shape[0],
            "norm": "batch" if cls.has_batch_norm(state) else "instance",
            "input_nc": first.shape[1],
            **({} if last is None or last.ndim != 4 else {"output_nc": last.shape[1]}),
        }

    @classmethod
    def mistaken(cls, state: Mapping[str, Tensor]) -> str | None:
        """The discriminator begins with `model.0`, the ResNet with `model.1`."""
        if "model.1.weight" in state:
            return "CycleGAN's ResNet (loraguard's cyclegan)"
        return "pix2pix's discriminator" if "model.0.weight" in state else None
