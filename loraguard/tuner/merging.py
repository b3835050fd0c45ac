"""An adapter's update as a weight of its base layer, `dW = gate * s * B A`, and merging it.

The weights of all kinds of base layers are brought into one form, in which the algebra is written once. With G groups,
rho = r / G and kernel k, A is stored as (r, in / G, *k) and read as G matrices (rho, in / G * prod(k)); B is stored as
(out, rho, 1...) and read as G matrices (out / G, rho). Their products are the *group matrices* of an update,
(G, out / G, in / G * prod(k)). Each kind of base layer says how these lie in its weight.
"""

import warnings
from contextlib import nullcontext
from typing import Any, cast

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from .computed import at_rest, computed_by, is_computed, make_plain
from .gates.base import Gate, StaticGate
from .quantized import allow_packing, dequantized, is_quantized, plain_layer, quantized_as


class MergingLayer(nn.Module, LoraLayer):
    """The algebra of an adapted layer's weights. Subclasses define `to_groups` and `from_groups`."""

    base_layer: Any
    lora_gate: nn.ModuleDict
    bare_weight: Tensor | None  # W, while adapters are merged whose updates depend on it

    @property
    def groups(self) -> int:
        """G, the groups of the base layer."""
        return getattr(self.base_layer, "groups", 1)

    @property
    def base_weight(self) -> Any:
        """W, which a computed weight computes when it is asked for, and a quantized one dequantizes."""
        return dequantized(self.base_layer) if is_quantized(self.base_layer) else self.base_layer.weight

    @property
    def base_bias(self) -> Any:
        """The base layer's bias; None where it has none."""
        return getattr(self.base_layer, "bias", None)

    def to_groups(self, weight: Tensor) -> Tensor:
        """A weight in the base layer's shape as group matrices."""
        raise NotImplementedError

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Group matrices as a weight in the base layer's shape; undoes `to_groups`."""
        raise NotImplementedError

    def parts(self, adapter: str) -> tuple[Any, Any, Gate]:
        """A, B and the gate of an adapter."""
        return self.lora_A[adapter], self.lora_B[adapter], cast(Gate, self.lora_gate[adapter])

    def is_mergeable(self, adapter: str) -> bool:
        """Whether the adapter's update can be added to the base layer's weight: not with an input-dependent gate."""
        return self.parts(adapter)[2].mergeable

    def factor_groups(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A as (G, rho, in / G * prod(k)) and B as (G, out / G, rho), ungated and unscaled."""
        a, b = (factor.weight for factor in self.parts(adapter)[:2])
        rank = a.shape[0] // self.groups
        return a.reshape(self.groups, rank, -1), b.reshape(self.groups, -1, rank)

    @torch.no_grad()
    def set_factor_groups(self, adapter: str, a: Tensor, b: Tensor) -> None:
        """Store what `factor_groups` gives."""
        for factor, matrices in zip(self.parts(adapter)[:2], (a, b), strict=True):
            factor.weight.copy_(matrices.reshape(factor.weight.shape))

    def gain(self, adapter: str) -> Tensor:
        """What B's group matrices are multiplied with, gate times `s`; 1 along an axis where it is the same.

        Raises:
            ValueError: If the gate depends on the input.
        """
        return self._static_gate(adapter).opening.to(*self._precision(adapter)) * self.scaling[adapter]

    def gain_of_bias(self, adapter: str) -> Tensor | float:
        """What the bias of B is multiplied with: a number, or (G or 1, out / G or 1).

        Raises:
            ValueError: If the gate depends on the input.
        """
        opening = self._static_gate(adapter).opening_of_bias
        if isinstance(opening, Tensor):
            opening = opening.squeeze(2).to(*self._precision(adapter))
        return opening * self.scaling[adapter]

    def _static_gate(self, adapter: str) -> StaticGate:
        gate = self.parts(adapter)[2]
        if not gate.mergeable:
            raise ValueError(
                f"The gate of adapter {adapter!r} depends on the input ({type(gate).__name__}): its update is no "
                "weight, and cannot be merged, converted or combined. Use the adapter unmerged, or train one with "
                "gate_type='scalar' or 'channel'."
            )
        return cast(StaticGate, gate)

    def _precision(self, adapter: str) -> tuple[torch.device, torch.dtype]:
        """Where weights are computed: half precision is too coarse for them."""
        like = self.parts(adapter)[1].weight
        return like.device, torch.promote_types(like.dtype, torch.float32)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """`gate * s * B A` of one adapter, in the shape of the base layer's weight and the adapter's dtype.

        With `use_dora`, `W' - W`: what makes the base layer compute as it would with that weight; see `dora`.

        Raises:
            ValueError: If the gate depends on the input.
        """
        like = self.parts(adapter)[0].weight
        with _no_autocast(like):
            matrices = self.update_groups(adapter)
            if self.use_dora[adapter]:
                base = self.to_groups(self.bare()[0]).to(matrices)
                matrices = self.lora_magnitude_vector[adapter](base, matrices)
            return self.from_groups(matrices).to(like.dtype)

    def update_groups(self, adapter: str) -> Tensor:
        """`gate * s * B A` as group matrices, in full precision."""
        gain, (a, b) = self.gain(adapter), self.factor_groups(adapter)
        return torch.bmm(gain * b, a.to(gain.dtype))

    def get_delta_bias(self, adapter: str) -> Tensor | None:
        """`gate * s * b` of one adapter, of shape (out,); None without `lora_bias`.

        Raises:
            ValueError: If the gate depends on the input.
        """
        bias = self.parts(adapter)[1].bias
        if bias is None:
            return None
        delta = self.gain_of_bias(adapter) * bias.view(self.groups, -1).to(self._precision(adapter)[1])
        return delta.flatten().to(bias.dtype)

    @torch.no_grad()
    def set_delta_bias(self, adapter: str, delta: Tensor) -> None:
        """Store the bias b that `get_delta_bias` makes this of."""
        bias = self.parts(adapter)[1].bias
        bias.copy_((delta.view(self.groups, -1) / self.gain_of_bias(adapter)).flatten())

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of `adapter_names` (of the active adapters, where None) to the base layer.

        Raises:
            ValueError: If an adapter's gate depends on the input, if the base layer's weight is computed or quantized,
                or if `safe_merge` and what is merged would not be finite. Nothing is merged then.
            RuntimeError: If an adapter has a bias (`lora_bias`) and the base layer has none.
        """
        adapters = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        self.check_merge(adapters, safe_merge)
        if self.bare_weight is None and any(self.use_dora[adapter] for adapter in adapters):
            self.bare_weight = self.bare()[0].clone()
        for adapter in adapters:
            self.base_weight.copy_(self.base_weight + self.get_delta_weight(adapter))
            if (delta := self.get_delta_bias(adapter)) is not None:
                self.base_bias.copy_(self.base_bias + delta)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def check_merge(self, adapters: list[str], safe_merge: bool, unloading: bool = False) -> None:
        """Raise what `merge` would, without merging; or `merge_and_unload`, which makes computed weights plain."""
        for adapter in adapters:
            self._static_gate(adapter)
        if adapters and is_computed(self.base_layer) and not unloading:
            raise ValueError(
                f"The weight of a {type(self.base_layer).__name__} is computed at each forward by "
                f"{computed_by(self.base_layer)}, so that a merge would be lost. merge_and_unload() makes it a plain "
                "weight first; or use the adapter unmerged."
            )
        if adapters and is_quantized(self.base_layer) and not unloading:
            raise ValueError(
                f"The weight of a {type(self.base_layer).__name__} is quantized ({quantized_as(self.base_layer)}), and "
                "the update would be rounded to its steps. merge_and_unload() makes a plain layer first; or use the "
                "adapter unmerged."
            )
        with at_rest(self.base_layer):
            weight, bias = self.base_weight, self.base_bias
        for adapter in adapters:
            if self.lora_bias[adapter] and bias is None:
                raise RuntimeError(
                    "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias: adapter "
                    f"{adapter!r} on a {type(self.base_layer).__name__}. Use the adapter unmerged."
                )
            if safe_merge:
                weight = weight + self.get_delta_weight(adapter)
                delta = self.get_delta_bias(adapter)
                bias = bias if delta is None else bias + delta
                if not all(torch.isfinite(one).all() for one in (weight, bias) if one is not None):
                    raise ValueError(
                        f"NaNs detected in the merged weights. Adapter {adapter!r} would make weights of the base "
                        "layer infinite or NaN; it seems to be broken."
                    )

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, for PEFT's `merge_and_unload` and `unload`.

        A computed weight is made plain to merge into, and a quantized layer is replaced by a plain one.
        """
        base = self.base_layer
        if merge:
            names = self.active_adapters if adapter_names is None else adapter_names
            adapters = [name for name in names if name in self.lora_A]
            if adapters and is_computed(base):
                self.check_merge(adapters, safe_merge, unloading=True)
                make_plain(base)
            elif adapters and is_quantized(base):
                self.check_merge(adapters, safe_merge, unloading=True)
                base = self.base_layer = plain_layer(base)
            self.merge(safe_merge, adapter_names)
        allow_packing(base)
        return base

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the updates of all merged adapters out of the base layer again, exact up to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight, bias = self.bare()
        self.base_weight.copy_(weight)
        if bias is not None:
            self.base_bias.copy_(bias)
        self.merged_adapters.clear()
        self.bare_weight = None

    @torch.no_grad()
    def bare(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the base layer, without what is merged into them."""
        weight, bias = self.base_weight, self.base_bias
        for adapter in reversed(self.merged_adapters):
            if self.bare_weight is None:
                weight = (weight - self.get_delta_weight(adapter)).to(weight.dtype)
            if (delta := self.get_delta_bias(adapter)) is not None:
                bias = (bias - delta).to(bias.dtype)
        return weight if self.bare_weight is None else self.bare_weight, bias


def _no_autocast(like: Tensor) -> Any:
    """Weights are computed in their own precision, also where activations are not."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
