"""Whether what a patch's settings ask for is there in a network, before anything is changed."""

import inspect
from collections.abc import Iterable
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .messages import shown
from .targets import token_layers, unwrapped, walk

_OF_TASKS = ("classifier", "score")
"""What PEFT adds to modules_to_save for some tasks, whether it is there or not."""
_PASSED = ("input_ids", "attention_mask", "output_attentions", "output_hidden_states", "return_dict")
"""By PEFT's models for tasks to the network's forward."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Before names in a network that DataParallel, or torch.compile, has wrapped."""
_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_ADAPTER_PARTS = ("base_layer", "lora_A", "lora_B", "lora_gate", "lora_dropout", "lora_embedding_A", "lora_embedding_B")


def check_settings(model: nn.Module, config: Any, targets: Iterable[str], adapter_name: str) -> None:
    """Refuse settings of a file that name what is not in the network, or what belongs to adapters.

    Args:
        model: The network, adapted or not.
        config: The settings.
        targets: Names of the layers to adapt.
        adapter_name: Of the patch.

    Raises:
        ValueError: With the field.
    """
    targets = list(targets)
    if not targets:
        layers = [name for name, module in walk(model) if name and "weight" in module._parameters]
        wanted = config.target_modules
        named = [wanted] if isinstance(wanted, str) else [str(one) for one in wanted or ()]
        prefix = next((one for one in _WRAPPERS if any(name.startswith(one) for name in named)), None)
        why = f"{prefix!r} says that its network was wrapped" if prefix else "The patch is of another generator"
        raise ValueError(
            f"target_modules={shown(config.target_modules)} names no layer of this {type(model).__name__}, or "
            f"exclude_modules and modules_to_save leave none; it has {len(layers)} layers with weights, the first "
            f"{next(iter(layers), None)!r:.80}. {why}, or its settings were changed."
        )
    adapters = _adapter_parts(model, targets, adapter_name)
    _check_saved(model, config.modules_to_save or (), adapters)
    _check_tokens(model, config, adapters)
    _check_task(model, config.task_type)


def _check_saved(model: nn.Module, saved: Iterable[str], adapters: list[str]) -> None:
    """PEFT takes them as endings of names, also of what it has just put into the network."""
    ours = dict(walk(model))
    for one in saved:
        found = [name for name in ours if name.endswith(one)]
        if inside := next((name for name in adapters if name.endswith(one)), None):
            raise ValueError(f"modules_to_save: {shown(one)} would be {inside!r:.150}, a part of an adapter.")
        if not found and one not in _OF_TASKS:
            raise ValueError(f"modules_to_save: there is no module {shown(one)} in this {type(model).__name__}.")
        for name in found:
            if outer := next((other for other in found if name.startswith(f"{other}.")), None):
                raise ValueError(
                    f"modules_to_save: {shown(one)} is {outer!r:.150} and {name!r:.150}, one in the other."
                )
            if isinstance(unwrapped(ours[name]), (BaseTunerLayer, nn.ModuleList, nn.ModuleDict)):
                raise ValueError(f"modules_to_save: {name!r:.150} is a list of modules or carries an adapter.")


def _adapter_parts(model: nn.Module, targets: list[str], adapter_name: str) -> list[str]:
    """Names of modules that belong to adapters: those that are there, and those that will be."""
    ours = {name for name, _ in walk(model)}
    there = [name for name, _ in model.named_modules(remove_duplicate=False) if name not in ours]
    parts = [f"{part}{end}" for part in _ADAPTER_PARTS for end in ("", f".{adapter_name}")]
    return there + [f"{name}.{part}" for name in targets for part in parts]


def _check_tokens(model: nn.Module, config: Any, adapters: list[str]) -> None:
    indices = config.trainable_token_indices
    if indices is None:
        return
    given: dict[Any, Any] = indices if isinstance(indices, dict) else {None: indices}
    for ending, tokens in given.items():
        layers = token_layers(model, indices if ending is None else {ending: tokens})
        others = [name for name, _ in walk(model) if name not in layers] + adapters
        if not layers or (ending is not None and any(name.endswith(ending) for name in others)):
            raise ValueError(
                f"trainable_token_indices: {shown(ending or 'embed_tokens')} names no embedding of this "
                f"{type(model).__name__}, or other modules, too."
            )
        for name, (embedding, numbers) in layers.items():
            if max(numbers) >= embedding.num_embeddings:
                raise ValueError(
                    f"trainable_token_indices: {name!r:.150} has {embedding.num_embeddings} tokens, and "
                    f"{max(numbers)} is named."
                )
            if any(name.endswith(one) for one in config.modules_to_save or ()):
                raise ValueError(f"trainable_token_indices: {name!r:.150} is in modules_to_save, too.")


def _check_task(model: nn.Module, task: str | None) -> None:
    """PEFT's models for tasks call the network as transformers' models for text are called."""
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    if task not in MODEL_TYPE_TO_PEFT_MODEL_MAPPING:
        return
    try:
        inspect.signature(model.forward).bind_partial(**dict.fromkeys(_PASSED))
    except TypeError:
        takes = False
    else:
        takes = hasattr(getattr(model, "config", None), "model_type")
    if not takes or (task in _GENERATING and not hasattr(model, "prepare_inputs_for_generation")):
        raise ValueError(
            f"task_type={task!r} is for text models of transformers, and this {type(model).__name__} is not called as "
            "those are; task_type=null is for any network."
        )
