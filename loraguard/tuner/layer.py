"""A layer with gated low-rank adapters (arXiv 2510.03747).

Each active adapter adds its update to what the base layer gives:

    y = W x + gate * s * B A x,    s = lora_alpha / sqrt(r)

A maps as the base layer does, in its geometry, on to r features; B is 1x1; the gate is a module (see `gates`), in the
paper the number sigmoid(g). With `lora_bias`, B has a bias b, and the update is gate * s * (B A x + b).

`merging` has the same as a weight, `folding` what makes it fast, `linear`, `conv` and `embedding` the
kinds of base layers.
"""

import math
import warnings
from typing import Any, cast

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.warning import PeftWarning
from torch import Tensor, nn

from .computed import at_rest
from .config import GatedLoraConfig
from .dora import Magnitude
from .gates.base import Layout
from .gates.registry import GATES
from .merging import MergingLayer
from .quantized import forbid_packing
from .threads import LOCK, Calls, Switches


class GatedLoraLayer(MergingLayer):
    """A frozen base layer and, for each adapter, the factors A and B and a gate: `y = W x + gate * s * B A x`.

    Subclasses define `base_classes`, `dims`, `make_factors`, `to_groups`, `from_groups` and `run_base`.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_gate", "lora_magnitude_vector")

    base_classes: tuple[type[nn.Module], ...]
    in_features: int
    out_features: int
    dims: int = 0  # spatial dimensions of the base layer

    @property
    def batched_dims(self) -> int:
        """Dimensions of the smallest input that has one for samples."""
        return self.dims + 2

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the base layer and its active adapters; arguments and output are the base layer's, in its dtype."""
        x = input  # by torch's name for it, as networks may call their layers with it
        adapter_names = self.named_by_the_call(kwargs)
        if adapter_names is not None:
            kwargs["adapter_names"] = adapter_names
        self._check_forward_args(x, *args, **kwargs)
        kwargs.pop("adapter_names", None)
        if self.disable_adapters and self.merged:
            return self.run_base(x, *self.bare(), *args, **kwargs)
        if adapter_names is not None and not self.disable_adapters:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        y = base = self.base_layer(x, *args, **kwargs)
        for adapter in self.running_adapters():
            y = y + self.update(adapter, x, *args, **kwargs)
        return y.to(base.dtype)

    def named_by_the_call(self, kwargs: dict[str, Any]) -> list[str] | None:
        """The adapter for each sample, where the call names them; checks that no other thread is in the way.

        Raises:
            RuntimeError: If another thread has set the switches otherwise; see `threads`.
        """
        names = kwargs.get("adapter_names")
        if names is None and not torch.compiler.is_compiling():
            names = self.calls.names
            if names is None and not getattr(self, "_is_replica", False):  # which DataParallel runs for one thread
                self._switches.check(self.active_adapters, self.disable_adapters)
        return names

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's; the choice is this thread's."""
        super().set_adapter(adapter_names, inference_mode)
        self._switches.choose(self.active_adapters)

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT's.

        Raises:
            RuntimeError: If another thread has disabled them.
        """
        with LOCK:
            self._switches.disable(off=not enabled)
            if enabled:
                super().set_adapter(self.active_adapters)  # which says what learns, and chooses nothing anew
                self._disable_adapters = False
            else:
                super().enable_adapters(False)

    def update(self, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`gate * s * B A x` of one adapter; with `use_dora`, what its weight adds."""
        A, B, gate = self.parts(adapter)
        x = self.drop(adapter, self._cast_input_dtype(x, A.weight.dtype))
        if self.use_dora[adapter]:
            return self.run_base(x, self.get_delta_weight(adapter), None, *args, **kwargs)
        return gate(A(x, *args, **kwargs), B, self.scaling[adapter])

    def running_adapters(self) -> list[str]:
        """The adapters whose updates are added to the output: not where they are merged or disabled."""
        if self.disable_adapters or self.merged:
            return []
        return [adapter for adapter in self.active_adapters if adapter in self.lora_A]

    def _mixed_batch_forward(self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Tensor:
        """An adapter for each sample."""
        if x.dim() < self.batched_dims:
            raise ValueError(
                f"adapter_names names an adapter for each sample, and an input of shape {tuple(x.shape)} is a single "
                "one; add a batch dimension: x.unsqueeze(0)."
            )
        result = self.base_layer(x, *args, **kwargs)
        for adapter in sorted(set(adapter_names) & self.lora_A.keys()):
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self.update(adapter, x[rows], *args, **kwargs).to(result.dtype)
        return result

    # What a kind of base layer defines.

    @classmethod
    def check_adaptable(cls, base: Any, config: Any) -> None:
        """Raise a ValueError where these settings do not go with that base layer, before a layer is replaced."""

    def make_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """A and B for rank `r`, a multiple of `groups`; B with a bias, if there is to be one."""
        raise NotImplementedError

    def run_base(self, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's forward, with another weight and bias."""
        raise NotImplementedError

    def make_dropout(self, p: float) -> nn.Module:
        """The dropout before A."""
        return nn.Dropout(p)

    def drop(self, adapter: str, x: Tensor) -> Tensor:
        """Apply that dropout to an input of the base layer."""
        return self.lora_dropout[adapter](x)

    # Making and initialising adapters.

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, config: GatedLoraConfig, r: int, lora_alpha: float
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        forbid_packing(base_layer)
        self.lora_gate = nn.ModuleDict()
        self.register_buffer("bare_weight", None, persistent=False)
        self.calls, self._switches = Calls(), Switches()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        """Add an adapter of rank `r`.

        Raises:
            ValueError: If `r` is not a positive multiple of the base layer's groups, or for settings of another tuner.
        """
        if not isinstance(config, GatedLoraConfig):
            raise ValueError(
                f"This {type(self.base_layer).__name__} carries a GATED_LORA adapter, and cannot take one of "
                f"{type(config).__name__}, too; unload() first, or use another copy of the network."
            )
        groups = self.groups
        if r < 1 or r % groups:
            raise ValueError(f"r={r}: the rank must be a positive multiple of the base layer's groups={groups}.")
        if config.lora_bias and self.base_bias is None:
            warnings.warn(
                f"`lora_bias=True` was passed but the targeted layer of type {type(self.base_layer).__name__} has no "
                "bias. This means that merging LoRA weights won't be possible.",
                PeftWarning,
                stacklevel=2,
            )
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = config.use_dora
        self.lora_bias[adapter_name] = config.lora_bias
        p = config.lora_dropout
        self.lora_dropout[adapter_name] = self.make_dropout(p) if p > 0 else nn.Identity()
        self.lora_A[adapter_name], self.lora_B[adapter_name] = self.make_factors(r, config.lora_bias)
        layout = Layout(groups, self.out_features // groups, r // groups, self.dims)
        self.lora_gate[adapter_name] = GATES[config.gate_type](config.gate_init, layout)
        self.reset_lora_parameters(adapter_name, config.init_lora_weights)
        with at_rest(self.base_layer):
            self._move_adapter_to_device_of_base_layer(adapter_name)
        if config.use_dora:
            update = self.update_groups(adapter_name)
            whole = update if update.is_meta else self.to_groups(self.bare()[0]).to(update.dtype) + update
            self.lora_magnitude_vector[adapter_name] = Magnitude(whole).to(
                cast(Tensor, self.lora_B[adapter_name].weight).dtype
            )
        super().set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """Draw A and B anew and put the gate back; see `GatedLoraConfig` for the choices. A bias of B starts at 0."""
        A, B, gate = self.parts(adapter_name)
        if init_lora_weights in (False, "paper"):
            for factor in (A, B):
                nn.init.kaiming_uniform_(factor.weight, a=math.sqrt(5))
            if B.bias is not None:
                nn.init.zeros_(B.bias)
        else:
            super().reset_lora_parameters(adapter_name, init_lora_weights)
        gate.reset_parameters()

    def __repr__(self) -> str:
        """PEFT's way: the tuner's name before the layer's."""
        return "gated_lora." + super().__repr__()
