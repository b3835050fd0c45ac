"""GATED_LORA on convolutions and transposed convolutions, in one, two and three dimensions."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .folding import FoldingLayer

_CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DROPOUTS: dict[int, Callable[..., nn.Module]] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class _ConvLayer(FoldingLayer):
    """What convolutions and transposed ones share: B, and the dropout of whole feature maps."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_channels, module.out_channels

    @property
    def dims(self) -> int:  # type: ignore[override]
        """Number of spatial dimensions."""
        return len(self.base_layer.kernel_size)

    def _make_a(self, r: int) -> nn.Module:
        raise NotImplementedError

    def make_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """A in the geometry of the base layer, and a 1x1 convolution with its groups."""
        return self._make_a(r), _CONVS[self.dims](r, self.out_features, 1, groups=self.groups, bias=bias)

    def make_dropout(self, p: float) -> nn.Module:
        """Neighbouring pixels are alike, so that dropping single ones would hide little."""
        return _DROPOUTS[self.dims](p)

    def drop(self, adapter: str, x: Tensor) -> Tensor:
        """Drop feature maps; nn.Dropout2d would take an unbatched (C, H, W) for (N, C, L)."""
        if x.dim() == self.dims + 2:
            return super().drop(adapter, x)
        return super().drop(adapter, x.unsqueeze(0)).squeeze(0)


class GatedLoraConv(_ConvLayer):
    """An adapted `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    Input (N, in, *size) or (in, *size), output as the base layer's. A has the base layer's kernel, stride, padding,
    padding mode, dilation and groups and a weight (r, in / G, *k); B is 1x1, with the base layer's groups and a weight
    (out, r / G, 1...).

    Example:
        >>> import torch
        >>> from loraguard.tuner import GatedLoraConfig
        >>> base = nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect", groups=2)
        >>> layer = GatedLoraConv(base, "default", config=GatedLoraConfig(), r=2, lora_alpha=2)
        >>> layer(torch.zeros(1, 6, 8, 8)).shape, layer.get_delta_weight("default").shape
        (torch.Size([1, 4, 8, 8]), torch.Size([4, 3, 3, 3]))
    """

    base_classes = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def _make_a(self, r: int) -> nn.Module:
        base = self.base_layer
        return _CONVS[self.dims](
            base.in_channels,
            r,
            base.kernel_size,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
            groups=base.groups,
            bias=False,
            padding_mode=base.padding_mode,
        )

    def to_groups(self, weight: Tensor) -> Tensor:
        """The weight is (out, in / G, *k), group after group."""
        return weight.reshape(self.groups, self.out_features // self.groups, -1)

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Undo `to_groups`."""
        return matrices.reshape(self.out_features, -1, *self.base_layer.kernel_size)

    def run_base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution takes nothing but `x`."""
        return self.base_layer._conv_forward(x, weight, bias)


class GatedLoraConvTranspose(_ConvLayer):
    """An adapted `nn.ConvTranspose1d`, `nn.ConvTranspose2d` or `nn.ConvTranspose3d`.

    Input (N, in, *size) or (in, *size), and optionally the `output_size` that the base layer takes. A is a transposed
    convolution in the base layer's geometry, stored rank first (see `RankFirstConvTranspose`); B is 1x1.

    Example:
        >>> import torch
        >>> from loraguard.tuner import GatedLoraConfig
        >>> base = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1)
        >>> layer = GatedLoraConvTranspose(base, "default", config=GatedLoraConfig(), r=2, lora_alpha=2)
        >>> layer(torch.zeros(1, 6, 8, 8), output_size=(16, 16)).shape, layer.get_delta_weight("default").shape
        (torch.Size([1, 4, 16, 16]), torch.Size([6, 4, 3, 3]))
    """

    base_classes = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

    def _make_a(self, r: int) -> nn.Module:
        return RankFirstConvTranspose(self.base_layer, r)

    def to_groups(self, weight: Tensor) -> Tensor:
        """The weight is (in, out / G, *k): per group, input and output change places."""
        g = self.groups
        return weight.reshape(g, self.in_features // g, self.out_features // g, -1).transpose(1, 2).flatten(2)

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Undo `to_groups`."""
        by_input = matrices.unflatten(2, (self.in_features // self.groups, -1)).transpose(1, 2)
        return by_input.reshape(self.in_features, -1, *self.base_layer.kernel_size)

    def run_base(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """A transposed convolution may be given the size to reach."""
        return _conv_transpose(self.base_layer, x, weight, bias, output_size)


class RankFirstConvTranspose(_ConvTransposeNd):
    """A of a transposed convolution: its geometry with `r` output channels, and a weight (r, in / G, *k).

    torch would store (in, r / G, *k). Rank first, the fan-in that scales the initialisation is the paper's,
    in / G * prod(k), and A has its ranks where all of PEFT's have them.
    """

    def __init__(self, base: _ConvTransposeNd, r: int) -> None:
        super().__init__(
            base.in_channels,
            r,
            base.kernel_size,
            base.stride,
            base.padding,
            base.dilation,
            base.transposed,
            base.output_padding,
            base.groups,
            bias=False,
            padding_mode=base.padding_mode,
        )
        self.weight = nn.Parameter(self.weight.new_empty(r, base.in_channels // base.groups, *base.kernel_size))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """From (N, in, *size) to (N, r, *size of the base layer's output)."""
        by_group = self.weight.unflatten(0, (self.groups, -1))
        return _conv_transpose(self, x, by_group.transpose(1, 2).flatten(0, 1), None, output_size)


def _conv_transpose(
    geometry: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None
) -> Tensor:
    """The forward of a transposed convolution, with another weight and bias."""
    dims = len(geometry.kernel_size)
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    # torch works out by this method which output_padding reaches the size that was asked for.
    output_padding = geometry._output_padding(x, output_size, stride, padding, geometry.kernel_size, dims, dilation)
    return _TRANSPOSED[dims](x, weight, bias, stride, padding, output_padding, geometry.groups, dilation)
