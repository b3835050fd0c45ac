"""The settings of a GATED_LORA adapter."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from peft import LoraConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from .gates.registry import GATES
from .loading import Header, file_sha256, find_weights, read_header
from .messages import named, refusing, shown
from .patterns import LONGEST, MOST_NAMES, MOST_PATTERNS, MOST_WAYS, check_pattern
from .settings_file import CONFIG, FILE_HASH, read_settings

ALL_LAYERS = "all-conv-linear"  # beside PEFT's "all-linear"
_INITS = (True, False, "paper", "gaussian")

# PEFT's LoRA variants and extras: each changes what an adapter computes, and none of them knows a gate.
_NOT_FOR_GATED_LORA = (
    "kasa_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "use_bdlora",
    "arrow_config",
    "use_qalora",
    "target_parameters",
    "layer_replication",
    "ensure_weight_tying",
    "megatron_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
)


_LARGEST = 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple, set)) and all(isinstance(one, str) for one in value))


def _is_indices(value: Any) -> bool:
    ints = value if isinstance(value, (list, tuple)) else [value]
    return value is None or all(isinstance(one, int) and not isinstance(one, bool) for one in ints)


def _is_by_name(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and of(v) for k, v in value.items())


def _is_tokens(value: Any) -> bool:
    if isinstance(value, dict):
        fits = all(isinstance(name, str) and name and isinstance(one, (list, tuple)) for name, one in value.items())
        return bool(value) and fits and all(map(_is_tokens, value.values()))
    if not isinstance(value, (list, tuple)) or not value or not _is_indices(value):
        return value is None
    return len(set(value)) == len(value) and min(value) >= 0 and max(value) < _LARGEST


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _LARGEST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < float("inf")


_TEXT = ("a string or None", lambda value: value is None or isinstance(value, str))
_FLAG = ("True or False", lambda value: isinstance(value, bool))
_NAMES_OR_TEXT = ("names of layers, or a string", lambda value: isinstance(value, str) or _is_names(value))

# What a value must be, by field: a config may come from a stranger's file.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number, 1 or more: the rank", _is_rank),
    "lora_alpha": ("a finite number above 0", _is_positive),
    "lora_dropout": ("a probability in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1),
    "gate_init": (
        "a number in [-80, 80]: beyond, sigmoid(g) is 0 or 1 to the last bit and the gate can no longer learn. "
        "The paper's is -1.0",
        lambda value: _is_number(value) and abs(value) <= 80,
    ),
    "gate_type": (f"one of {', '.join(GATES)}", lambda value: isinstance(value, str) and value in GATES),
    "bias": (
        "'none', as biases of the base network are no part of a patch (PEFT's 'all' and 'lora_only' are for training "
        "without PatchTrainer)",
        lambda value: value in ("none", "all", "lora_only"),
    ),
    "target_modules": _NAMES_OR_TEXT,
    "exclude_modules": _NAMES_OR_TEXT,
    "layers_pattern": _NAMES_OR_TEXT,
    "modules_to_save": ("names of modules, or None", _is_names),
    "layers_to_transform": ("whole numbers, or None", _is_indices),
    "trainable_token_indices": ("numbers of tokens, or such numbers by the names of embeddings, or None", _is_tokens),
    "rank_pattern": ("ranks of 1 or more by the names of layers", _is_by_name(_is_rank)),
    "alpha_pattern": ("finite numbers above 0 by the names of layers", _is_by_name(_is_positive)),
    "auto_mapping": ("a dict or None", lambda value: value is None or isinstance(value, dict)),
    "provenance": ("a dict or None", lambda value: value is None or isinstance(value, dict)),
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "freeze_norm_stats", "inference_mode"), _FLAG),
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version", "megatron_core", "task_type"), _TEXT),
}


@dataclass
class GatedLoraConfig(LoraConfig):
    r"""Settings of gated LoRA (arXiv 2510.03747): `h = W*x + sigmoid(g) * s * B(A*x)`.

    What is not listed here is as in [`peft.LoraConfig`].

    Args:
        r: Rank, at least 1. A layer with `groups` needs a multiple of them: its rank is rounded up, with a
            warning, and written into `rank_pattern`.
        lora_alpha: Numerator of the scale `s`.
        use_rslora: `s = lora_alpha / sqrt(r)`, as in the paper; `False` gives `lora_alpha / r`.
        gate_type: What scales a layer's update, a name in `loraguard.tuner.GATES`: `"scalar"`, one number g per layer
            as in the paper; `"channel"`, one per output feature; `"rank"`, one per rank; `"input"`, one per sample,
            from the mean of its update; `"input_channel"`, one per feature and position, from a 1x1 convolution over
            the update; `"none"`, nothing: plain LoRA. The two that depend on the input cannot be merged. See
            `loraguard.tuner.gates` for the formulas.
        gate_init: Where every gate's logit `g` starts; the gate opens by `sigmoid(gate_init)`, 0.269 in the paper.
        init_lora_weights: `True` starts with B = 0, so that the adapted model is at first the bare one.
            `"paper"` (or `False`, PEFT's name for it) draws A and B from Kaiming-uniform with a = sqrt(5).
            `"gaussian"` draws A from N(0, 1 / r^2), with B = 0.
        trainable_token_indices: Tokens whose vectors are trained as they are, without a gate, as in PEFT: their
            numbers, or such numbers by the names of embeddings.
        target_modules: Names of layers, or a regular expression that matches them; `"all-linear"` stands for the
            linear layers but the output layer, as in PEFT; `"all-conv-linear"`, or `None`, stands for every
            linear, convolution and transposed convolution layer and is replaced by their names. Embeddings are
            adapted where they are named.
        lora_dropout: Probability in [0, 1) with which the adapter misses an input: a feature of a linear layer,
            a whole feature map of a convolution.
        lora_bias: Whether B has a bias b, which starts at 0: the update is then `gate * s * (B A x + b)`. Merging adds
            it to the base layer's bias, and is refused where that has none. A gate per rank leaves b alone.
        use_dora: Whether each output feature has a magnitude m that learns (DoRA, arXiv 2402.09353): the layer then
            computes with `m / norm(W + dW) * (W + dW)`, row by row; see `loraguard.tuner.dora`.
        freeze_norm_stats: The base model's norms with running statistics stay in eval mode while it trains.
            Otherwise these statistics move, and disabling the adapter does not give the bare model back.
        provenance: How the adapter came about and for which network, as JSON values, for people and tools to read:
            `loraguard.hub` fills it and reads it. Nothing is computed from it.

    Raises:
        ValueError: If a value is out of its range, or if an option of LoRA is set that does not apply to gated
            LoRA (PiSSA and the other initialisations that change W, `target_parameters`, ...).

    Example:
        >>> config = GatedLoraConfig(r=16, init_lora_weights="paper")
        >>> config.peft_type.value, config.lora_alpha, config.gate_init
        ('GATED_LORA', 2, -1.0)
        >>> GatedLoraConfig(use_qalora=True)
        Traceback (most recent call last):
        ...
        ValueError: use_qalora=True does not apply to GATED_LORA; leave it out, or use peft.LoraConfig.
    """

    lora_alpha: float = 2  # type: ignore[assignment]  # PEFT says int
    use_rslora: bool = True
    init_lora_weights: bool | Literal["paper", "gaussian"] = True  # type: ignore[assignment]  # LoRA has others
    gate_type: str = field(default="scalar")
    gate_init: float = field(default=-1.0)
    freeze_norm_stats: bool = field(default=True)
    provenance: dict[str, Any] | None = field(default=None)

    # What the file beside these settings holds, until a model takes them. Not a field: it is not saved.
    header = cast("Header | None", None)

    def __post_init__(self) -> None:
        """Check what was given, before PEFT puts it in its own form."""
        if self.target_modules == ALL_LAYERS:
            self.target_modules = None
        self._refuse_foreign_options()
        self._check_values()
        # PEFT takes lora_bias with two initialisations alone; ours leave that bias at 0.
        lora_bias, self.lora_bias = self.lora_bias, False
        super().__post_init__()
        self.lora_bias = lora_bias
        self.peft_type = PeftType.GATED_LORA  # type: ignore[attr-defined]  # added by registration.register

    def _refuse_foreign_options(self) -> None:
        for name in _NOT_FOR_GATED_LORA:
            if value := getattr(self, name):
                raise ValueError(
                    f"{name}={shown(value)} does not apply to GATED_LORA; leave it out, or use peft.LoraConfig."
                )
        if self.fan_in_fan_out:
            raise ValueError(
                "fan_in_fan_out=True does not apply to GATED_LORA: the type of a layer says which way round its "
                "weight is stored. Leave it out."
            )
        if self.runtime_config.ephemeral_gpu_offload:
            raise ValueError("ephemeral_gpu_offload=True does not apply to GATED_LORA; it serves DoRA alone.")

    def _register_custom_module(self, mapping: dict[Any, Any]) -> None:
        """Refuse PEFT's hook for layer classes of one's own.

        Raises:
            ValueError: Always; GATED_LORA would not look at them.
        """
        raise ValueError(
            "_register_custom_module does not apply to GATED_LORA, which adapts layers with its own classes; leave it "
            "out, or use peft.LoraConfig."
        )

    def _check_values(self) -> None:
        for name, (kind, fits) in _KINDS.items():
            if not fits(value := getattr(self, name)):
                raise ValueError(f"{name}={shown(value)} must be {kind}.")
        if self.use_dora and not GATES[self.gate_type].mergeable:
            raise ValueError(
                f"use_dora=True scales the rows of W + dW, and there is no dW with gate_type={self.gate_type!r}, which "
                "depends on the input; leave one of them out."
            )
        if self.use_dora and self.lora_bias:
            raise ValueError("use_dora=True does not go with lora_bias=True, as in PEFT; leave one of them out.")
        # 1 == True, so that `in` alone would take a number.
        if not (isinstance(self.init_lora_weights, (bool, str)) and self.init_lora_weights in _INITS):
            raise ValueError(
                f"init_lora_weights={shown(self.init_lora_weights)} does not apply to GATED_LORA; expected one of "
                f"{_INITS}."
            )
        if self.target_modules is None and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={shown(self.layers_to_transform)} chooses among the layers that target_modules "
                "names, and target_modules is None; name them."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved: names in order, as a set's own order is another in each process."""
        return {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the settings as PEFT does, with the SHA-256 of the file of weights that is there, as one of a patch."""
        weights, given = Path(save_directory, SAFETENSORS_WEIGHTS_NAME), self.provenance
        if weights.is_file():
            self.provenance = {**(given or {}), FILE_HASH: file_sha256(weights)}
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.provenance = given

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> "GatedLoraConfig":
        """Load the settings of a patch, and what its file of weights holds; see `loraguard.tuner.loading`.

        Raises:
            ValueError: If a field is unknown or has a value that it cannot have, or if the weights are a pickle or not
                whole.
        """
        source = str(pretrained_model_name_or_path)
        with refusing(named(source, CONFIG), source):
            config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
            if isinstance(config, cls):
                weights = find_weights(source, subfolder, **cls._split_kwargs(kwargs)[0])
                config.header = None if weights is None else read_header(source, weights)
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """The fields of a stranger's file, which may be large, broken or no JSON; see `settings_file.read_settings`."""
        return read_settings(path_json_file)

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Check what was read from a file, where no one has looked at it before."""
        kind = kwargs.get("peft_type")
        if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"peft_type={shown(kind)} is no method that PEFT or loraguard has.")
        if kind != "GATED_LORA":
            return kwargs  # PEFT makes a config of that other method
        if unknown := kwargs.keys() - {one.name for one in fields(cls) if one.name != "runtime_config"}:
            raise ValueError(
                f"unknown field {shown(min(unknown))} = {shown(kwargs[min(unknown)])}. If a later version of loraguard "
                "or PEFT wrote it, install that version."
            )
        for name in _NOT_FOR_GATED_LORA:
            if (value := kwargs.get(name)) is not None and value is not False and value != {}:
                raise ValueError(f"{name}={shown(value)} does not apply to GATED_LORA; leave it out.")
        for name, value in kwargs.items():
            _check_texts(name, value)
        return kwargs


_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
"""Where a text is a pattern, and a list is names."""
_PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
_COMPILED = (*_PATTERN_KEYS, "layers_pattern", "modules_to_save")
"""Where PEFT makes a pattern of each entry."""
_OF_LAYERS = (*_PATTERNS, *_COMPILED, "trainable_token_indices")
_LONGEST_TEXT = 10_000  # characters
_PLAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*")


def _check_texts(field_name: str, value: Any) -> None:
    """Refuse names, patterns and texts that are too long, too many, or could take long to match."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, dict)) else []
    texts = [one for one in names if isinstance(one, str)]
    most = MOST_PATTERNS if field_name in _COMPILED else MOST_NAMES
    longest = LONGEST if field_name in _OF_LAYERS else _LONGEST_TEXT
    if len(names) > most or sum(map(len, texts)) > longest:
        raise ValueError(
            f"{field_name} has {len(names):,} texts of {sum(map(len, texts)):,} characters; at most {most:,} of "
            f"{longest:,} are taken."
        )
    if field_name in _PATTERN_KEYS or (field_name in _PATTERNS and isinstance(value, str)):
        if (ways := sum(check_pattern(field_name, one) for one in texts)) > MOST_WAYS:
            raise ValueError(f"{field_name} has patterns with {ways:,} ways to match; at most {MOST_WAYS:,} are taken.")
    elif field_name in _COMPILED and (odd := [one for one in texts if not _PLAIN.fullmatch(one)]):
        raise ValueError(f"{field_name} has {shown(odd[0])}, which is no name of a module.")
