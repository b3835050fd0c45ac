"""The settings of a GATED_LORA adapter."""

import math
from dataclasses import dataclass, field
from typing import Literal

from peft import LoraConfig, PeftType

_INITS = (True, False, "paper", "gaussian")
_GATES = ("scalar", "channel", "input", "input_channel", "none")

# PEFT's LoRA variants and extras: each changes what an adapter computes, and none of them knows a gate.
_NOT_FOR_GATED_LORA = (
    "use_dora",
    "kasa_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "use_bdlora",
    "arrow_config",
    "use_qalora",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "ensure_weight_tying",
    "megatron_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
)


@dataclass
class GatedLoraConfig(LoraConfig):
    r"""Settings of gated LoRA (arXiv 2510.03747): `h = W*x + sigmoid(g) * s * B(A*x)`.

    What is not listed here is as in [`peft.LoraConfig`].

    Args:
        r: Rank, at least 1. A layer with `groups` needs a multiple of them: its rank is rounded up, with a
            warning, and written into `rank_pattern`.
        lora_alpha: Numerator of the scale `s`.
        use_rslora: `s = lora_alpha / sqrt(r)`, as in the paper; `False` gives `lora_alpha / r`.
        gate_type: What scales a layer's update: `"scalar"`, one number g per layer as in the paper; `"channel"`, one
            per output channel; `"input"`, one per sample, from the mean of its update; `"input_channel"`, one per
            channel and position, from a 1x1 convolution over the update; `"none"`, nothing: plain LoRA. The two
            that depend on the input cannot be merged. See `loraguard.tuner.gates` for the formulas.
        gate_init: Where every gate's logit `g` starts; the gate opens by `sigmoid(gate_init)`, 0.269 in the paper.
        init_lora_weights: `True` starts with B = 0, so that the adapted model is at first the bare one.
            `"paper"` (or `False`, PEFT's name for it) draws A and B from Kaiming-uniform with a = sqrt(5).
            `"gaussian"` draws A from N(0, 1 / r^2), with B = 0.
        target_modules: Names of layers, or a regular expression that matches them; `None` stands for every
            linear, convolution and transposed convolution layer and is replaced by their names.
        lora_dropout: Probability in [0, 1) with which the adapter misses an input: a feature of a linear layer,
            a whole channel of a convolution.
        freeze_norm_stats: Host norms with running statistics stay in eval mode while the model trains. Otherwise
            these statistics move, and disabling the adapter does not give the bare model back.

    Raises:
        ValueError: If a value is out of its range, or if an option of LoRA is set that does not apply to gated
            LoRA (DoRA, PiSSA and the other initialisations that change W, `target_parameters`, ...).

    Example:
        >>> config = GatedLoraConfig(r=16, init_lora_weights="paper")
        >>> config.peft_type.value, config.lora_alpha, config.gate_init
        ('GATED_LORA', 2, -1.0)
        >>> GatedLoraConfig(use_dora=True)
        Traceback (most recent call last):
        ...
        ValueError: use_dora=True does not apply to GATED_LORA; leave it out, or use peft.LoraConfig.
    """

    lora_alpha: float = 2  # type: ignore[assignment]  # PEFT says int
    use_rslora: bool = True
    init_lora_weights: bool | Literal["paper", "gaussian"] = True  # type: ignore[assignment]  # LoRA has others
    gate_type: Literal["scalar", "channel", "input", "input_channel", "none"] = field(default="scalar")
    gate_init: float = field(default=-1.0)
    freeze_norm_stats: bool = field(default=True)

    def __post_init__(self) -> None:
        """Check what was given, before PEFT puts it in its own form."""
        self._refuse_foreign_options()
        self._check_ranges()
        super().__post_init__()
        self.peft_type = PeftType.GATED_LORA  # type: ignore[attr-defined]  # added by registration.register

    def _refuse_foreign_options(self) -> None:
        for name in _NOT_FOR_GATED_LORA:
            if value := getattr(self, name):
                raise ValueError(
                    f"{name}={value!r} does not apply to GATED_LORA; leave it out, or use peft.LoraConfig."
                )
        if self.lora_bias:
            raise ValueError(
                "lora_bias=True does not apply to GATED_LORA: the gate would scale that bias too. "
                "Train the biases of the host instead, with bias='lora_only'."
            )
        if self.fan_in_fan_out:
            raise ValueError(
                "fan_in_fan_out=True does not apply to GATED_LORA: the type of a layer says which way round its "
                "weight is stored. Leave it out."
            )
        if self.runtime_config.ephemeral_gpu_offload:
            raise ValueError("ephemeral_gpu_offload=True does not apply to GATED_LORA; it serves DoRA alone.")

    def _check_ranges(self) -> None:
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r={self.r!r}: the rank must be a whole number, 1 or more.")
        if not math.isfinite(self.lora_alpha) or self.lora_alpha <= 0:
            raise ValueError(f"lora_alpha={self.lora_alpha!r} must be a finite number above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout!r} must be a probability in [0, 1).")
        if not abs(self.gate_init) <= 80:
            raise ValueError(
                f"gate_init={self.gate_init!r} must lie in [-80, 80]: beyond, sigmoid(g) is 0 or 1 to the last bit "
                "and the gate can no longer learn. The paper's is -1.0."
            )
        if self.gate_type not in _GATES:
            raise ValueError(f"gate_type={self.gate_type!r} is unknown; expected one of {_GATES}.")
        if self.init_lora_weights not in _INITS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r} does not apply to GATED_LORA; expected one of {_INITS}."
            )
        if self.target_modules is None and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform!r} chooses among the layers that target_modules "
                "names, and target_modules is None; name them."
            )
