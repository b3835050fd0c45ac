"""GATED_LORA on linear layers."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .folding import FoldingLayer


# PEFT finds adapted layers for target_modules="all-linear" by "Linear" in the name of their class.
class GatedLoraLinear(FoldingLayer):
    """An adapted `nn.Linear`, or `Conv1D` of transformers, which stores its weight transposed.

    Input (..., in), output (..., out). A is (r, in), B is (out, r): `dW = sigmoid(g) * s * B A`.

    Example:
        >>> import torch
        >>> from loraguard.tuner import GatedLoraConfig
        >>> layer = GatedLoraLinear(nn.Linear(6, 4), "default", config=GatedLoraConfig(), r=2, lora_alpha=2)
        >>> layer(torch.zeros(3, 5, 6)).shape, layer.get_delta_weight("default").shape
        (torch.Size([3, 5, 4]), torch.Size([4, 6]))
    """

    base_classes = (nn.Linear, Conv1D)

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)

    def _turn(self, weight: Tensor) -> Tensor:
        """From (out, in) to the way the base layer stores it, and back."""
        return weight.T if isinstance(self.base_layer, Conv1D) else weight

    def make_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """Two linear layers."""
        return nn.Linear(self.in_features, r, bias=False), nn.Linear(r, self.out_features, bias=bias)

    def to_groups(self, weight: Tensor) -> Tensor:
        """The matrix (out, in), as the only group."""
        return self._turn(weight).unsqueeze(0)

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Undo `to_groups`."""
        return self._turn(matrices.squeeze(0))

    def run_base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear layer takes nothing but `x`."""
        return F.linear(x, self._turn(weight), bias)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT converts linear layers alone, by way of `get_delta_weight`, which has the gate in it, and no bias."""
        return not self.lora_bias.get(adapter_name, False)
