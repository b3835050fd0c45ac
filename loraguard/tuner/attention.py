"""GATED_LORA on `nn.MultiheadAttention`, which reads its weights instead of calling layers with them."""

import copy
from typing import Any

from torch import Tensor, nn

from .computed import is_computed
from .folding import FoldingLayer
from .gates.registry import GATES
from .linear import GatedLoraLinear
from .quantized import is_quantized, quantized_as

# What nn.TransformerEncoderLayer and others ask an attention for.
_OF_THE_BASE_LAYER = frozenset(
    (
        *("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first", "add_zero_attn"),
        *("in_proj_weight", "in_proj_bias", "out_proj", "bias_k", "bias_v", "merge_masks"),
    )
)


class GatedLoraMultiheadAttention(FoldingLayer):
    """An adapted `nn.MultiheadAttention`: its joint projection of queries, keys and values, and its output's.

    Arguments and outputs are the base layer's. The three projections are one matrix (3 * embed_dim, embed_dim) with one
    adapter and one gate; the output's projection is a `GatedLoraLinear` of its own within the base layer, as in PEFT's
    LoRA. The attention is run with W + dW in both places, so that nothing can happen to an update on its way: gates
    that depend on the input, dropout and `adapter_names` are refused.

    Example:
        >>> import torch
        >>> from loraguard.tuner import GatedLoraConfig
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> config = GatedLoraConfig()
        >>> layer = GatedLoraMultiheadAttention(attention, "default", config=config, r=2, lora_alpha=2)
        >>> x = torch.zeros(3, 5, 8)
        >>> layer(x, x, x)[0].shape, layer.get_delta_weight("default").shape
        (torch.Size([3, 5, 8]), torch.Size([24, 8]))
    """

    base_classes = (nn.MultiheadAttention,)

    @classmethod
    def check_adaptable(cls, base: Any, config: Any) -> None:
        """Refuse what cannot be right within an attention.

        Raises:
            ValueError: If queries, keys and values have different sizes, if the output's projection is computed, or
                for dropout or a gate that depends on the input.
        """
        if not base._qkv_same_embed_dim:
            raise ValueError(
                f"A MultiheadAttention with embed_dim={base.embed_dim}, kdim={base.kdim} and vdim={base.vdim} has no "
                "joint projection to adapt; GATED_LORA adapts those whose sizes are equal. Leave the layer out."
            )
        out = base.out_proj
        plain = isinstance(out, nn.Linear) and not (is_computed(out) or is_quantized(out))
        if not plain and not isinstance(out, GatedLoraLinear):
            raise ValueError(
                "The out_proj of a MultiheadAttention must be a linear layer with a plain weight; this one is a "
                f"{type(out).__name__}{f' of {quantized_as(out)}' if is_quantized(out) else ''}. Leave the layer out."
            )
        if config.lora_dropout or not GATES[config.gate_type].mergeable:
            raise ValueError(
                f"A MultiheadAttention reads its weights, so that lora_dropout={config.lora_dropout} and "
                f"gate_type={config.gate_type!r} have no update to act on; it takes lora_dropout=0.0 and a gate that "
                "does not depend on the input. Leave the layer out, or change them."
            )

    @property
    def base_weight(self) -> Any:
        """The joint projection, (3 * embed_dim, embed_dim)."""
        return self.base_layer.in_proj_weight

    @property
    def base_bias(self) -> Any:
        """Its bias, (3 * embed_dim,)."""
        return self.base_layer.in_proj_bias

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.embed_dim, 3 * module.embed_dim

    def make_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """Two linear layers, from one input to queries, keys and values."""
        return nn.Linear(self.in_features, r, bias=False), nn.Linear(r, self.out_features, bias=bias)

    def to_groups(self, weight: Tensor) -> Tensor:
        """The joint projection, as the only group."""
        return weight.unsqueeze(0)

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Undo `to_groups`."""
        return matrices.squeeze(0)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        """Add an adapter of rank `r` to the joint projection and to the output's."""
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)
        out = self.base_layer.out_proj
        if isinstance(out, GatedLoraLinear):
            out.update_layer(adapter_name, r, lora_alpha, config)
        else:
            self.base_layer.out_proj = GatedLoraLinear(out, adapter_name, config=config, r=r, lora_alpha=lora_alpha)

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # by torch's names
        """Run the base layer with the updates of its active adapters in its weights, which are not written to."""
        if self.named_by_the_call(kwargs) is not None:
            raise TypeError("gated_lora.MultiheadAttention does not support mixed adapter batches, as in PEFT.")
        if self._runs_as_stored:
            out = self.base_layer.out_proj.base_layer
            return _twin(self.base_layer, {}, out_proj=out)(query, *args, **kwargs)
        weight, bias = _effective(self)
        out_weight, out_bias = _effective(self.base_layer.out_proj)
        if self._inside_folded():
            weight, out_weight = weight.detach(), out_weight.detach()
            bias, out_bias = (None if one is None else one.detach() for one in (bias, out_bias))
        out = _twin(self.base_layer.out_proj.base_layer, {"weight": out_weight, "bias": out_bias})
        return _twin(self.base_layer, {"in_proj_weight": weight, "in_proj_bias": bias}, out_proj=out)(
            query, *args, **kwargs
        )

    def fold_ahead(self) -> None:
        """W + dW is made at each call."""

    @property
    def _runs_as_stored(self) -> bool:
        """Whether the stored weights are those to run with."""
        parts = (self, self.base_layer.out_proj)
        return not any(part.running_adapters() or (part.merged and part.disable_adapters) for part in parts)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Where this is False, torch's encoders call the attention; otherwise they may read the stored weights."""
        return self._runs_as_stored

    def __getattr__(self, name: str) -> Any:
        """What the base layer is asked for."""
        if name in _OF_THE_BASE_LAYER:
            return getattr(super().__getattr__("base_layer"), name)
        return super().__getattr__(name)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, with its own out_proj again."""
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        out: Any = base.out_proj
        base.out_proj = out.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        return base


def _effective(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias to run with, with gradients for the adapters."""
    if layer.merged and layer.disable_adapters:
        return layer.bare()
    weight, bias = layer.base_weight, layer.base_bias
    for adapter in layer.running_adapters():
        weight = (weight + layer.get_delta_weight(adapter)).to(weight.dtype)
        delta = layer.get_delta_bias(adapter)
        if delta is not None:
            bias = (delta if bias is None else bias + delta).to(weight.dtype)
    return weight, bias


def _twin(module: nn.Module, parameters: dict[str, Tensor | None], **modules: nn.Module) -> Any:
    """The same module with other parameters and submodules; other threads go on with what it has."""
    twin: Any = copy.copy(module)
    for name in parameters:  # FSDP puts tensors beside the parameters, which would be found first
        vars(twin).pop(name, None)
    twin._parameters = {**module._parameters, **parameters}
    twin._modules = {**module._modules, **modules}
    return twin
