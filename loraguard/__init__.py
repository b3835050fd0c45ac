"""Gated LoRA patches for image-editing networks: honest audits of proactive defenses, and visible warnings.

Importing loraguard registers GATED_LORA with PEFT. Everything else is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .tuner import GatedLoraConfig, GatedLoraModel, convert_checkpoint, folded, to_lora

if TYPE_CHECKING:
    from .audit import run_audit
    from .hub import load_patch, push_patch
    from .stamp import Stamp, StampDetector, StampReader
    from .training import PatchTrainer, PatchTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "GatedLoraConfig",
    "GatedLoraModel",
    "PatchTrainer",
    "PatchTrainingArguments",
    "Stamp",
    "StampDetector",
    "StampReader",
    "convert_checkpoint",
    "folded",
    "load_patch",
    "push_patch",
    "run_audit",
    "to_lora",
]

_MODULES = {
    "PatchTrainer": "training",
    "PatchTrainingArguments": "training",
    "Stamp": "stamp",
    "StampDetector": "stamp",
    "StampReader": "stamp",
    "load_patch": "hub",
    "push_patch": "hub",
    "run_audit": "audit",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
