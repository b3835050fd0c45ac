"""GATED_LORA as a method that PEFT knows by name."""

import copy
import json
import pickle

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

from . import hotswap
from .config import GatedLoraConfig
from .model import GatedLoraModel

NAME = "GATED_LORA"


def register() -> None:
    """Make GATED_LORA known to PEFT, so that its patches load like any other; `import loraguard.tuner` calls it.

    Safe to call again.

    Raises:
        RuntimeError: If PEFT has a method of this name itself, or if its enumeration of methods could not be extended.

    Example:
        >>> from peft import PeftType
        >>> register()
        >>> PeftType("GATED_LORA") is PeftType.GATED_LORA
        True
    """
    if NAME not in PeftType.__members__:
        _extend_peft_types()
        register_peft_method(
            name=NAME.lower(),
            config_cls=GatedLoraConfig,
            model_cls=GatedLoraModel,
            prefix=GatedLoraModel.prefix,
        )
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType(NAME))
    if known is None or known.__module__ != GatedLoraConfig.__module__:
        raise RuntimeError(
            f"PEFT has a method {NAME} itself, from {known and known.__module__}. Loading loraguard's would hide it: "
            "use PEFT's, or install the version of PEFT that this version of loraguard asks for."
        )
    # Where our modules were imported anew (notebooks reload them), PEFT has to make the new classes.
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(NAME)] = GatedLoraConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType(NAME)] = GatedLoraModel
    # Scales are set by layer (see hotswap.py), so that patterns may differ; the form of gates may not.
    CONFIG_KEYS_TO_CHECK[PeftType(NAME)] = ["use_rslora", "lora_dropout", "gate_type"]
    hotswap.install()


def _extend_peft_types() -> None:
    # A plain string would do for PEFT's tables, but not for get_model_status, hotswap's errors and transformers'
    # load_adapter, which expect a member. The enumeration is closed, so it is extended from within, and then tried.
    member = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
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
