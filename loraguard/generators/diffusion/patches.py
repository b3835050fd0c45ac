"""Patches of an editor as patches of diffusers' own parts, which need no wrapper of ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from loraguard.files import whole_files, writable_folder

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"


def save_by_component(model: PeftModel, folder: str | Path, adapter_name: str | None = None) -> list[Path]:
    """Write an editor's patch as a patch of each diffusers component that it adapts.

    A folder `vae`, `unet` or `transformer` holds what PEFT's `save_pretrained` writes, with the names that layers have
    in the component: `PeftModel.from_pretrained(pipe.vae, folder / "vae")` loads it, and `.merge_and_unload()` puts it
    into the pipeline's weights.

    Args:
        model: an editor of diffusers' parts, wrapped by PEFT.
        folder: where to.
        adapter_name: of the adapter; the active one by default.

    Returns:
        The folders that were written.

    Raises:
        ValueError: if the generator has no components, or an adapter reaches none of them.
        OSError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from diffusers import AutoencoderKL
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.generators import LatentAutoencoder
        >>> vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
        >>> model = get_peft_model(LatentAutoencoder(vae), GatedLoraConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [part.name for part in save_by_component(model, folder)]
        ['vae']
    """
    components = getattr(model, "components", ())
    name = adapter_name or model.active_adapter
    state = get_peft_model_state_dict(model, adapter_name=name)
    layers = [
        key for key, module in model.get_base_model().named_modules()
        if isinstance(module, BaseTunerLayer) and _carries(module, name)
    ]  # fmt: skip
    written = []
    with whole_files(writable_folder(folder)) as draft:
        for component in components:
            start = f"{_PREFIX}{component}."
            tensors = {
                _PREFIX + key.removeprefix(start): _stored(v) for key, v in state.items() if key.startswith(start)
            }
            if not tensors:
                continue
            (draft / component).mkdir()
            config = _config_within(model.peft_config[name], layers, f"{component}.")
            config.save_pretrained(str(draft / component))
            save_file(tensors, draft / component / _WEIGHTS, metadata={"format": "pt"})
            written.append(Path(folder, component))
        if not written:
            raise ValueError(
                f"The adapter {name!r} reaches none of the components {', '.join(components) or '(there are none)'} of "
                f"{type(model.get_base_model()).__name__}; save it with save_pretrained."
            )
    return written


def _carries(module: BaseTunerLayer, adapter: str) -> bool:
    return any(adapter in getattr(module, name, ()) for name in module.adapter_layer_names)


def _config_within(config: Any, layers: list[str], prefix: str) -> Any:
    """The settings with layers by the names that they have within a component."""
    own = copy.deepcopy(config)
    own.target_modules = {layer.removeprefix(prefix) for layer in layers if layer.startswith(prefix)}
    own.exclude_modules = None
    own.inference_mode = True
    own.base_model_name_or_path = None
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = getattr(own, pattern, None) or {}
        setattr(own, pattern, {key.removeprefix(prefix): value for key, value in values.items()})
    return own


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
