"""Gated LoRA patches for image-editing networks: honest audits of proactive defenses, and visible warnings.

Importing loraguard registers GATED_LORA with PEFT. Everything else is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .tuner import GatedLoraConfig, GatedLoraModel, convert_checkpoint, folded, to_lora

if TYPE_CHECKING:
    from .audit import Audit, audit
    from .stamp import Stamp, StampDetector
    from .training import PatchTrainer, PatchTrainingArguments

__version__ = "0.1.0"

_LAZY = {
    "Audit": "audit",
    "PatchTrainer": "training",
    "PatchTrainingArguments": "training",
    "Stamp": "stamp",
    "StampDetector": "stamp",
    "audit": "audit",
}

__all__ = ["GatedLoraConfig", "GatedLoraModel", "convert_checkpoint", "folded", "to_lora", *_LAZY]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
