"""GATED_LORA's tuner model: finds the layers to adapt, and wraps them."""

import copy
import re
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from peft import LoraModel
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from . import peft_loaders
from .asking import check_settings
from .before import Before, unchanged_if_refused
from .calling import WatchedCalls
from .combining import WeightedAdapters
from .computed import at_rest, computed_by, is_computed
from .config import GatedLoraConfig
from .fitting import check_patch
from .layer import GatedLoraLayer
from .loading import Header, check_finite, find_weights, read_header
from .messages import named, refusing, shown
from .naming import as_targets, name_layers
from .registration import register_classes
from .settings_file import CONFIG
from .targets import (
    ADAPTABLE,
    bare_copy,
    base_layer_of,
    bypassed,
    call_adapted,
    check_base_layer,
    check_not_shared,
    is_default,
    layer_class,
    token_layers,
    unwrapped,
    walk,
)
from .threads import alone, making


class GatedLoraModel(WatchedCalls, WeightedAdapters, LoraModel):
    """A network with gated low-rank adapters on its linear and (transposed) convolution layers (arXiv 2510.03747).

    `peft.get_peft_model` makes it. In train mode the base model's norms stay in eval mode, unless the config of an
    active adapter says `freeze_norm_stats=False`.

    Raises:
        ValueError: If there is no layer to adapt, or if the weight of a targeted one is computed in an unknown way, not
            there yet, shared with another module or under another tuner's adapter.
        TypeError: If a targeted module is of another kind, has a forward of its own, or is quantized in an unknown way.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard.tuner import GatedLoraConfig
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 3, 3))
        >>> model = get_peft_model(net, GatedLoraConfig(r=4))
        >>> sorted(model.peft_config["default"].target_modules)
        ['0', '2']
        >>> model.print_trainable_parameters()
        trainable params: 442 || all params: 901 || trainable%: 49.0566
    """

    peft_config: dict[str, Any]

    # The file whose settings are being taken, and the name of its adapter.
    _loading: tuple[Header | None, str] = (None, "")

    # Encoders of torch's that make nested tensors when there is no adapter in them.
    _encoders: tuple[Any, ...] = ()

    # What is refused leaves the network as it was.

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(one, GatedLoraLayer) and adapter_name in one.lora_A for one in model.modules()):
            raise ValueError(peft_loaders.taken(adapter_name))
        load = peft_loaders.current.get()
        if load is not None and load.before is None:
            load.before = Before(model)
        with unchanged_if_refused(model) if load is None else nullcontext():
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    @alone
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, but all of it or nothing.

        Raises:
            ValueError: If a patch from a file does not fit; see `loraguard.tuner.loading`.
        """
        config = self.peft_config[adapter_name]
        header, config.header = _header_of(config), None  # from here on the settings stand for themselves
        with making(), unchanged_if_refused(self) if peft_loaders.current.get() is None else nullcontext():
            if header is None:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            else:
                with refusing(named(header.source, CONFIG), header.source):
                    self._loading = header, adapter_name
                    super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._take_in(model)

    # Finding layers. Every refusal comes before the first layer is replaced.

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules in (None, INCLUDE_LINEAR_LAYERS_SHORTHAND):
            self._name_targets(peft_config)
        targets = self._targets(peft_config)
        if skipped := targets.keys() & bypassed(self.model):
            raise ValueError(
                f"Adapters on {sorted(skipped)} would be ignored, because nn.MultiheadAttention reads these weights "
                "instead of calling the layers. Name the attention itself in target_modules, which adapts all of its "
                f"projections, or leave them out: exclude_modules={sorted(skipped)}."
            )
        for name, module in targets.items():
            base = base_layer_of(module)
            check_base_layer(name, module).check_adaptable(base, peft_config)
            if peft_config.use_dora and is_computed(base):
                raise ValueError(
                    f"use_dora=True on {name!r}: its weight is computed at each forward by {computed_by(base)}, and "
                    f"magnitudes would be of another one. Leave the layer out: exclude_modules=[{name!r}]."
                )
        if both := targets.keys() & token_layers(self.model, peft_config.trainable_token_indices):
            raise ValueError(
                f"{min(both)!r} is adapted and has tokens that are trained as they are; PEFT does one or the other "
                "on an embedding. Take it out of target_modules or of trainable_token_indices."
            )
        check_not_shared(self.model, set(targets))
        self._round_ranks(peft_config, targets)
        name_layers(peft_config, targets, {name for name, _ in walk(self.model)} - targets.keys())
        self._check_file(peft_config, targets)
        return peft_config

    def _check_file(self, peft_config: Any, targets: dict[str, nn.Module]) -> None:
        """Compare the file that the settings came with, if any, before a layer is replaced."""
        (header, adapter_name), self._loading = self._loading, (None, "")
        if header is None:
            return
        with refusing(named(header.source, CONFIG)):
            check_settings(self.model, peft_config, targets, adapter_name)
        with torch.device("meta"):
            layers = {
                name: self._create_new_module(
                    peft_config,
                    "new",
                    bare_copy(module),
                    target_name=name,
                    **self._rank_and_alpha(peft_config, name),
                )
                for name, module in targets.items()
            }
        check_patch(header, self.model, peft_config, layers)

    @staticmethod
    def _rank_and_alpha(peft_config: Any, name: str) -> dict[str, Any]:
        ranks, alphas = peft_config.rank_pattern, peft_config.alpha_pattern
        return {
            "r": ranks.get(get_pattern_key(ranks, name), peft_config.r),
            "lora_alpha": alphas.get(get_pattern_key(alphas, name), peft_config.lora_alpha),
        }

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Leave out what is no part of the adapter, and check what is set by hand: names and values.

        What one of PEFT's loaders brings was checked before a layer was replaced; weights of the base network among it
        are those that the network has.
        """
        tensors = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        known = model.state_dict()
        others = [name for name in tensors if not _is_part(name, adapter_name) and _as_in(known, name) is not None]
        if peft_loaders.current.get() is not None:
            return {name: tensor for name, tensor in tensors.items() if name not in others}
        for name in others:
            learns = config.bias != "none" and name.endswith("bias")
            if not learns and not torch.equal(_as_in(known, name).to(tensors[name]), tensors[name]):
                raise ValueError(f"{name!r} is a weight of the base network, and no part of adapter {adapter_name!r}.")
        _check_tensors(model, adapter_name, tensors, known)
        return tensors

    @staticmethod
    def _check_target_module_exists(config: Any, key: str) -> Any:
        if ".parametrizations." in f".{key}":  # what computes a weight is part of its layer
            return False
        return LoraModel._check_target_module_exists(config, key)

    def _targets(self, peft_config: Any) -> dict[str, nn.Module]:
        return {n: m for n, m in walk(self.model) if n and self._check_target_module_exists(peft_config, n)}

    def _name_targets(self, peft_config: Any) -> None:
        """Put the names of layers where `target_modules` is None or "all-linear"."""
        everything = copy.copy(peft_config)
        if peft_config.target_modules is None:
            everything.target_modules = ".*"  # but for exclude_modules and modules_to_save
        else:
            everything = _maybe_include_all_linear_layers(everything, self.model)
        names = {name for name, module in self._targets(everything).items() if is_default(base_layer_of(module))}
        if skipped := names & bypassed(self.model):
            warnings.warn(
                f"No adapters on {sorted(skipped)}: nn.MultiheadAttention reads these weights instead of calling the "
                "layers. Name the attention itself in target_modules to adapt it.",
                stacklevel=2,
            )
        names -= skipped
        if not names:
            found = sorted({type(module).__name__ for name, module in walk(self.model) if name})
            raise ValueError(
                f"No layer to adapt in {type(self.model).__name__}: GATED_LORA adapts {ADAPTABLE} inside a model "
                "(embeddings and attentions where target_modules names them), and found "
                f"{', '.join(found) or 'no submodule'}."
            )
        others = {name for name, _ in walk(self.model)} - names
        peft_config.target_modules = as_targets(names, others)

    def _round_ranks(self, peft_config: Any, targets: dict[str, nn.Module]) -> None:
        """Give each grouped layer a rank that its groups divide, as if `rank_pattern` had named it."""
        patterns = peft_config.rank_pattern
        rounded = {}
        for name, module in targets.items():
            groups = getattr(base_layer_of(module), "groups", 1)
            r = self._rank_and_alpha(peft_config, name)["r"]
            if r % groups:
                rounded[name] = r + -r % groups
        if rounded:
            ranks = ", ".join(f"{name}: {r}" for name, r in rounded.items())
            warnings.warn(
                f"The rank of a grouped layer must be a multiple of its groups; rounded up in {ranks}. "
                "Set rank_pattern for other ranks, or exclude_modules to leave layers out.",
                stacklevel=2,
            )
            peft_config.rank_pattern = {f"^{re.escape(name)}": r for name, r in rounded.items()} | patterns

    @staticmethod
    def _create_new_module(
        lora_config: GatedLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> GatedLoraLayer:
        cls = check_base_layer(kwargs["target_name"], target)
        return cls(target, adapter_name, config=lora_config, r=kwargs["r"], lora_alpha=kwargs["lora_alpha"])

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        base = base_layer_of(child)
        with at_rest(base) if layer_class(base) else nullcontext():  # PEFT reads its weight
            super()._replace_module(parent, child_name, new_module, child)

    # Merging. What cannot be merged is found before the first layer is.

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool, unloading: bool = False) -> None:
        for module in self.model.modules():
            if isinstance(module, GatedLoraLayer):
                names = module.active_adapters if adapter_names is None else adapter_names
                missing = [name for name in names if name in module.lora_A and name not in module.merged_adapters]
                module.check_merge(missing, safe_merge, unloading)

    @alone
    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's `merge_adapter`, but all layers or none.

        Raises:
            ValueError: If a gate depends on the input, if a weight is computed at each forward, or if `safe_merge` and
                a merged weight would not be finite.
        """
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    @alone
    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_merge(adapter_names, safe_merge, unloading=True)
        else:  # PEFT would leave the copies that modules_to_save trains in the network
            for module in self.model.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    module.set_adapter([])
        unloaded = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        self._restore_encoders()
        return unloaded

    def _restore_encoders(self) -> None:
        for encoder in self._encoders:
            encoder.use_nested_tensor = True

    def _take_in(self, model: nn.Module) -> None:
        """What each adapter needs, as it may come to layers that had none."""
        for layer in model.modules():
            if isinstance(layer, GatedLoraLayer):
                layer.calls = self.calls
        self._freeze_norm_stats()
        self._encoders = (*self._encoders, *call_adapted(model))

    # Norms.

    def train(self, mode: bool = True) -> "GatedLoraModel":
        """As `nn.Module.train`, but the base model's norms with running statistics stay in eval mode."""
        super().train(mode)
        self._freeze_norm_stats()
        return self

    def _freeze_norm_stats(self) -> None:
        if not all(self.peft_config[adapter].freeze_norm_stats for adapter in self.active_adapters):
            return
        for _, module in walk(self.model):
            # A norm in modules_to_save is a copy to be trained; the base layer's own is beneath.
            for norm in (module,) if unwrapped(module) is module else unwrapped(module).modules():
                if isinstance(norm, _NormBase) and norm.track_running_stats:
                    norm.eval()

    # LoRA's conversion of adapters whose initialisation changed W.

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Refuse with a ValueError: no initialisation of GATED_LORA changes W."""
        raise ValueError("subtract_mutated_init does not apply to GATED_LORA: its initialisations leave W alone.")

    @classmethod
    def _convert_state_dict_for_initial_model(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise ValueError(
            "path_initial_model_for_weight_conversion does not apply to GATED_LORA: its initialisations leave W "
            "alone. Leave it out."
        )


def _header_of(config: Any) -> Header | None:
    """The header of the file that a config came with, or that is being loaded; None for an adapter that is new."""
    load = peft_loaders.current.get()
    if load is not None and load.renamed:
        raise ValueError("key_mapping does not apply to GATED_LORA: a patch names the layers of its own network.")
    if load is None or config.header is not None:
        return config.header
    hub = {key: value for key, value in load.hub.items() if key != "use_auth_token"}
    weights = find_weights(load.model_id, **hub)
    if weights is None:
        file = named(load.model_id, SAFETENSORS_WEIGHTS_NAME)
        raise ValueError(f"{file} is not there; a patch is its config and its weights.")
    return read_header(load.model_id, weights)


def _is_part(name: str, adapter_name: str) -> bool:
    return f".{adapter_name}." in name or name.endswith(f".{adapter_name}")


def _as_in(known: dict[str, Tensor], name: str) -> Any:
    """The network's own tensor of a name that a file has."""
    return known.get(name, known.get(name.removeprefix("base_model.model.")))


def _check_tensors(model: Any, adapter_name: str, tensors: dict[str, Tensor], known: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if _as_in(known, name) is None and ".lora_" in f".{name.removeprefix('base_model.model.')}":
            raise ValueError(
                f"{shown(name)} fits no adapter of this {type(model).__name__}; it has, for example, "
                f"{next((key for key in known if '.lora_' in key), None)!r}."
            )
        # As the file calls it.
        in_file = name.replace(f".modules_to_save.{adapter_name}.", ".").replace(f".{adapter_name}.", ".")
        in_file = in_file.removesuffix(f".{adapter_name}") if "trainable_tokens_delta" in name else in_file
        check_finite(f"Adapter {adapter_name!r}", in_file, tensor)


register_classes(GatedLoraConfig, GatedLoraModel)
