"""What every layer adapted by GATED_LORA does, whatever its host."""

import math
import warnings
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from .config import GatedLoraConfig
from .folding import FoldingLayer
from .folding import frozen as without_gradients
from .gates import GATES, Gate


class GatedLoraLayer(FoldingLayer, LoraLayer):
    """A frozen host layer and, for each adapter, the factors A and B and a gate (arXiv 2510.03747).

    `h = W*x + sigmoid(g) * s * B(A*x)`. A maps as the host does, on to r channels; B is 1x1.

    The weights of all kinds of hosts are brought into one form, in which the algebra is written once. With
    G groups, rho = r / G and kernel k, A is stored as (r, in / G, *k) and read as G matrices
    (rho, in / G * prod(k)); B is stored as (out, rho, 1...) and read as G matrices (out / G, rho). Their
    products are the *group matrices* of an update, (G, out / G, in / G * prod(k)). Each kind of host says how
    these lie in its weight.

    Subclasses define `hosts`, `dims`, `make_factors`, `to_groups`, `from_groups` and `run_host`.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_gate")

    hosts: tuple[type[nn.Module], ...]
    in_features: int
    out_features: int
    dims: int = 0  # spatial dimensions of the host

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, config: GatedLoraConfig, r: int, lora_alpha: float
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self.lora_gate = nn.ModuleDict()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    @property
    def host(self) -> Any:
        """The bare layer."""
        return self.get_base_layer()

    @property
    def groups(self) -> int:
        """G, the groups of the host."""
        return getattr(self.host, "groups", 1)

    # What a kind of host defines.

    def make_factors(self, r: int) -> tuple[nn.Module, nn.Module]:
        """A and B for rank `r`, a multiple of `groups`."""
        raise NotImplementedError

    def to_groups(self, weight: Tensor) -> Tensor:
        """A weight in the host's shape as group matrices."""
        raise NotImplementedError

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Group matrices as a weight in the host's shape; undoes `to_groups`."""
        raise NotImplementedError

    def make_dropout(self, p: float) -> nn.Module:
        """The dropout before A."""
        return nn.Dropout(p)

    def drop(self, adapter: str, x: Tensor) -> Tensor:
        """Apply that dropout to an input of the host."""
        return self.lora_dropout[adapter](x)

    # Making and initialising adapters.

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        """Add an adapter of rank `r`.

        Raises:
            ValueError: If `r` is not a positive multiple of the host's groups.
        """
        if r < 1 or r % self.groups:
            raise ValueError(f"r={r}: the rank must be a positive multiple of the host's groups={self.groups}.")
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = False
        self.lora_bias[adapter_name] = False
        p = config.lora_dropout
        self.lora_dropout[adapter_name] = self.make_dropout(p) if p > 0 else nn.Identity()
        self.lora_A[adapter_name], self.lora_B[adapter_name] = self.make_factors(r)
        self.lora_gate[adapter_name] = GATES[config.gate_type](config.gate_init, self.out_features, self.dims)
        self.reset_lora_parameters(adapter_name, config.init_lora_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """Draw A and B anew and put the gate back; see `GatedLoraConfig` for the choices."""
        if init_lora_weights in (False, "paper"):
            for factor in self._factors(adapter_name):
                nn.init.kaiming_uniform_(factor.weight, a=math.sqrt(5))
        else:
            super().reset_lora_parameters(adapter_name, init_lora_weights)
        self._gate(adapter_name).reset_parameters()

    def _factors(self, adapter: str) -> tuple[Any, Any]:
        return self.lora_A[adapter], self.lora_B[adapter]

    def _gate(self, adapter: str) -> Gate:
        return cast(Gate, self.lora_gate[adapter])

    def _parameters_of(self, adapter: str) -> list[nn.Parameter]:
        modules = (*self._factors(adapter), self._gate(adapter))
        return [p for module in modules for p in module._parameters.values() if p is not None]

    def _is_plain(self, adapter: str) -> bool:
        dropout = self.lora_dropout[adapter]
        modules = (*self._factors(adapter), self._gate(adapter), dropout)
        return (isinstance(dropout, nn.Identity) or not dropout.training) and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules
        )

    # Weight space.

    def is_mergeable(self, adapter: str) -> bool:
        """Whether the adapter's update can be added to the host's weight: not with an input-dependent gate."""
        return self._gate(adapter).mergeable

    def factor_groups(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A as (G, rho, in / G * prod(k)) and B as (G, out / G, rho), ungated and unscaled."""
        a, b = (factor.weight for factor in self._factors(adapter))
        rank = len(a) // self.groups
        return a.reshape(self.groups, rank, -1), b.reshape(self.groups, -1, rank)

    @torch.no_grad()
    def set_factor_groups(self, adapter: str, a: Tensor, b: Tensor) -> None:
        """Store what `factor_groups` gives."""
        for factor, matrices in zip(self._factors(adapter), (a, b), strict=True):
            factor.weight.copy_(matrices.reshape(factor.weight.shape))

    def strength(self, adapter: str) -> Tensor:
        """What stands before BA, gate times `s`: (1, 1, 1), or (G, out / G, 1) where it differs between channels.

        Raises:
            ValueError: If the gate depends on the input.
        """
        if not self.is_mergeable(adapter):
            raise ValueError(
                f"The gate of adapter {adapter!r} depends on the input ({type(self._gate(adapter)).__name__}): its "
                "update is no weight, and cannot be merged, converted or combined. Use the adapter unmerged, or train "
                "one with gate_type='scalar' or 'channel'."
            )
        like = self._factors(adapter)[1].weight
        dtype = torch.promote_types(like.dtype, torch.float32)  # half precision is too coarse for weights
        strength = self._gate(adapter).opening.to(like.device, dtype) * self.scaling[adapter]
        return strength.view(self.groups, -1, 1) if strength.numel() > 1 else strength.view(1, 1, 1)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """`gate * s * BA` of one adapter, in the shape of the host's weight and the adapter's dtype.

        Raises:
            ValueError: If the gate depends on the input.
        """
        strength, (a, b) = self.strength(adapter), self.factor_groups(adapter)
        with _no_autocast(a):
            return self.from_groups(torch.bmm(strength * b, a.to(strength.dtype))).to(a.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of `adapter_names` (of the active adapters, where None) to the host's weight.

        Raises:
            ValueError: If an adapter's gate depends on the input, or if `safe_merge` and the merged weight would not be
                finite. Nothing is merged then.
        """
        adapters = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        self.check_merge(adapters, safe_merge)
        for adapter in adapters:
            self.host.weight.copy_(self.host.weight + self.get_delta_weight(adapter))
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def check_merge(self, adapters: list[str], safe_merge: bool) -> None:
        """Raise what `merge` would, without merging."""
        weight = self.host.weight
        for adapter in adapters:
            self.strength(adapter)
            if safe_merge:
                weight = weight + self.get_delta_weight(adapter)
                if not torch.isfinite(weight).all():
                    raise ValueError(
                        f"Adapter {adapter!r} would make weights of the host infinite or NaN; it seems to be broken."
                    )

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the updates of all merged adapters out of the host's weight again, exact up to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self.host.weight.copy_(self._bare_weight())
        self.merged_adapters.clear()

    @torch.no_grad()
    def _bare_weight(self) -> Tensor:
        """W where adapters are merged."""
        weight = self.host.weight
        for adapter in reversed(self.merged_adapters):
            weight = (weight - self.get_delta_weight(adapter)).to(weight.dtype)
        return weight

    # Forward.

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the host and its active adapters; arguments and output are the host's, in its dtype."""
        x = input  # by torch's name for it, as networks may call their layers with it
        self._check_forward_args(x, *args, **kwargs)
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                return self.run_host(x, self._bare_weight(), self.host.bias, *args, **kwargs)
            if self._inside_folded():
                return self._folded_forward(x, [], *args, **kwargs)
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            self._check_batched(x)
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        adapters = self._adapters()
        if adapters and (self._inside_folded() or self._may_fold(adapters)):
            return self._folded_forward(x, adapters, *args, **kwargs)
        if adapters and self._learning and not (args or kwargs):
            learnt = self._learning_forward(x, adapters)
            if learnt is not None:
                return learnt
        base = result = self._run_branch(self.base_layer, x, *args, **kwargs)
        for adapter in adapters:
            result = result + self._update(adapter, x, *args, **kwargs)
        return result.to(base.dtype)

    def _adapters(self) -> list[str]:
        if self.disable_adapters or self.merged:
            return []
        return [adapter for adapter in self.active_adapters if adapter in self.lora_A]

    def _update(self, adapter: str, x: Tensor, *args: Any, frozen: bool = False, **kwargs: Any) -> Tensor:
        modules = (*self._factors(adapter), self._gate(adapter))
        factor_a, factor_b, gate = map(without_gradients, modules) if frozen else modules
        x = self._cast_input_dtype(x, factor_a.weight.dtype)
        if not frozen:
            x = self.drop(adapter, x)
        return gate(self._run_branch(factor_a, x, *args, **kwargs), factor_b, self.scaling[adapter])

    def _check_batched(self, x: Tensor) -> None:
        if x.dim() < self.dims + 2:
            raise ValueError(
                f"adapter_names names an adapter for each sample, and an input of shape {tuple(x.shape)} is a single "
                "one; add a batch dimension: x.unsqueeze(0)."
            )

    def _mixed_batch_forward(self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        for adapter in sorted(set(adapter_names) & self.lora_A.keys()):
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self._update(adapter, x[rows], *args, **kwargs).to(result.dtype)
        return result

    def __repr__(self) -> str:
        """PEFT's way: the tuner's name before the layer's."""
        return "gated_lora." + super().__repr__()


def _no_autocast(like: Tensor) -> Any:
    """Weights are computed in their own precision, also where activations are not."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
