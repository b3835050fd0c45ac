"""The network beneath an adapter stays as it was: what `disable_adapter` could not undo is refused before training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from loraguard.tuner import GatedLoraLayer

_WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel, PeftModel, BaseTuner)
_WHERE_IMPORTED = {
    "torch.distributed.fsdp": ("FullyShardedDataParallel", "FSDPModule"),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper": ("ActivationWrapper",),
    "torch._dynamo.eval_frame": ("OptimizedModule",),
    "torch.ao.quantization": ("QuantWrapper",),
    "deepspeed": ("DeepSpeedEngine",),
    "lightning.fabric.wrappers": ("_FabricModule",),
}
"""Further wrappers, by their modules: no network is one of a module that nobody has imported."""
_COUNTER = "num_batches_tracked"  # no output depends on it


def wrapper_of(module: nn.Module) -> str | None:
    """The class of a module that only wraps another, under a name that a plain network does not have; or None.

    Example:
        >>> wrapper_of(nn.DataParallel(nn.Linear(1, 1))), wrapper_of(nn.Linear(1, 1))
        ('DataParallel', None)
    """
    return type(module).__name__ if isinstance(module, (*_WRAPPERS, *_imported_wrappers())) else None


def _imported_wrappers() -> Iterator[type]:
    for name, classes in _WHERE_IMPORTED.items():
        if (module := sys.modules.get(name)) is not None:
            yield from (getattr(module, one) for one in classes if hasattr(module, one))


def check_plain(network: nn.Module) -> None:
    """Refuse wrappers in a network that has an adapter: the patch's names would have their prefixes.

    Raises:
        ValueError: with the first wrapper's class and name.
    """
    for name, module in network.named_modules():
        if wrapper := wrapper_of(module):
            where = f"{name!r} of the generator" if name else "the generator"
            raise ValueError(
                f"{where} is a {wrapper} around a network: the patch would have its prefix in the names of layers, and "
                "fit no plain network. Call get_peft_model on the network itself. PatchTrainer compiles it "
                "(torch_compile=True) and spreads it over processes (accelerate launch) by itself; a PEFT adapter that "
                "is there already is merged or unloaded first."
            )
    for name, parameter in network.named_parameters():
        if parameter.is_meta or parameter.is_inference():
            why = (
                "are not in memory (its device is 'meta'): load the network whole, without offloading or device_map"
                if parameter.is_meta
                else "were made within torch.inference_mode, where nothing learns: make or load the network outside"
            )
            raise ValueError(f"The weights {name!r} of the generator {why}.")


def check_frozen(model: PeftModel, adapter: str) -> None:
    """Refuse parameters that learn and are not the adapter's: without it they would not be as they were.

    Raises:
        ValueError: with the first one's name.
    """
    own: set[int] = set()
    for module in model.modules():
        if isinstance(module, GatedLoraLayer):
            parts: list[Any] = [getattr(module, name) for name in module.adapter_layer_names]
        elif isinstance(module, ModulesToSaveWrapper):
            parts = [module.modules_to_save]
        else:
            continue
        own |= {id(parameter) for part in parts if adapter in part for parameter in part[adapter].parameters()}
    bias = getattr(model.peft_config[adapter], "bias", "none")
    for name, parameter in model.get_base_model().named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            advice = (
                f"Leave out bias={bias!r}; modules_to_save=[...] trains copies of whole layers."
                if bias != "none"
                else "Freeze it: parameter.requires_grad_(False)."
            )
            raise ValueError(
                f"{name!r} of the base network would be trained, which disable_adapter() cannot undo: neither targets "
                f"nor audits would see the untouched generator. {advice}"
            )


@contextmanager
def buffers_stay(model: PeftModel) -> Iterator[None]:
    """Refuse a base network whose buffers move when it is called; they are put back.

    Raises:
        ValueError: at the end of the block, with the first one's name.
    """
    buffers = {
        name: buffer
        for name, buffer in model.get_base_model().named_buffers()
        if ".modules_to_save." not in name and not name.endswith(_COUNTER)
    }
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        moved = [name for name, buffer in buffers.items() if not _same(buffer, before[name])]
        for name in moved:
            with torch.no_grad():
                buffers[name].copy_(before[name])
    if moved:
        raise ValueError(
            f"Calling the generator moves its buffer {moved[0]!r}, which disable_adapter() cannot undo: neither "
            "targets nor audits would see the untouched generator. For the statistics of norms leave "
            "freeze_norm_stats=True in GatedLoraConfig; otherwise give it a forward that leaves its buffers alone."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
