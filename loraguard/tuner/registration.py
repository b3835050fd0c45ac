"""GATED_LORA as a method that PEFT knows by name.

In two steps, as `import loraguard` is to load neither PEFT nor torch, and what runs within the import of PEFT must wait
for no module that another thread may be importing: :func:`register` tells PEFT the name, with stand-ins for the classes
that import the tuner when PEFT first uses them, and wraps PEFT's loaders (`peft_loaders`); :func:`register_classes`,
the last line of `model.py`, puts the classes in their place. Nothing here imports PEFT before a function is called.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
from typing import Any

NAME = "GATED_LORA"


def register() -> None:
    """Make GATED_LORA known to PEFT, so that its patches load like any other; `import loraguard` calls it.

    Safe to call again.

    Raises:
        RuntimeError: If PEFT has a method of this name itself, if its enumeration of methods could not be extended, or
            if what is relied on of its private parts is gone or otherwise (see `peft_parts`).

    Example:
        >>> from peft import PeftType
        >>> register()
        >>> PeftType("GATED_LORA") is PeftType.GATED_LORA
        True
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method

    from . import peft_loaders
    from .peft_parts import check

    check(loaded=True)
    peft_loaders.install()
    if NAME not in PeftType.__members__:
        _extend_peft_types()
        register_peft_method(
            name=NAME.lower(),
            config_cls=StandIn("GatedLoraConfig"),
            model_cls=StandIn("GatedLoraModel"),
            prefix="lora_",
        )
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType(NAME))
    if not isinstance(known, StandIn) and getattr(known, "__module__", None) != f"{__package__}.config":
        raise RuntimeError(
            f"PEFT has a method {NAME} itself, from {known and known.__module__}. Loading loraguard's would hide it: "
            "use PEFT's, or install the version of PEFT that this version of loraguard asks for."
        )
    _keep_gates()


def register_classes(config: type, model: type) -> None:
    """Put the classes in the place of their stand-ins, or of what they were before a notebook imported them anew."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

    from .peft_parts import check

    check()
    from . import hotswap

    register()
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(NAME)] = config
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType(NAME)] = model
    # Scales are set by layer (see hotswap.py), so that patterns may differ; the form of gates may not.
    CONFIG_KEYS_TO_CHECK[PeftType(NAME)] = ["use_rslora", "lora_dropout", "lora_bias", "gate_type", "use_dora"]
    hotswap.install()


class StandIn:
    """A class of the tuner, in PEFT's tables, that is imported when it is called or asked for anything."""

    prefix = "lora_"  # which PEFT reads when it registers a method

    def __init__(self, name: str) -> None:
        self._name = name

    def _class(self) -> Any:
        from . import model

        return getattr(model, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._class()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._class(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._class())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._class())


def peft_type() -> Any:
    """PEFT's member for GATED_LORA; what it is pickled as, so that a process that only unpickles it registers it."""
    from peft import PeftType

    return PeftType(NAME)


def _keep_gates() -> None:
    """Have PEFT's LoRA refuse weights with gates, which it would drop; diffusers and transformers only log that."""
    from peft.tuners.lora import LoraModel

    method = LoraModel.__dict__["_remap_adapter_state_dict_for_load"].__func__
    if hasattr(method, "__wrapped__"):
        return

    @functools.wraps(method)
    def remap(cls: Any, model: Any, config: Any, adapter_name: str, state_dict: Any) -> Any:
        gate = next((name for name in state_dict if ".lora_gate." in name), None)
        if gate is not None and config.peft_type != NAME:
            raise ValueError(
                f"{gate!r:.150} is a gate of GATED_LORA, and {config.peft_type!s} would drop it. Load the adapter "
                "by its own settings (loraguard.load_patch, loraguard.diffusers.load_patch), or make plain LoRA of it "
                "first (loraguard.to_lora, loraguard.diffusers.save_lora)."
            )
        return method(cls, model, config, adapter_name, state_dict)

    LoraModel._remap_adapter_state_dict_for_load = classmethod(remap)  # type: ignore[method-assign, assignment]


def _extend_peft_types() -> None:
    # A plain string would do for PEFT's tables, but not for get_model_status, hotswap's errors and transformers'
    # load_adapter, which expect a member. The enumeration is closed, so it is extended from within, and then tried.
    from peft import PeftType

    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
    member.__reduce_ex__ = lambda protocol: (peft_type, ())  # type: ignore[method-assign, assignment]
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    works = (
        getattr(PeftType, NAME) is PeftType(NAME) is PeftType[NAME] is member
        and list(PeftType)[-1] is member
        and member == NAME
        and hash(member) == hash(NAME)
        and NAME in list(PeftType)
        and json.loads(json.dumps(member)) == NAME
        and str(member) == f"PeftType.{NAME}"
        and pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    )
    if not works:
        raise RuntimeError(f"PeftType could not be extended by {NAME} under this version of Python; please report it.")
