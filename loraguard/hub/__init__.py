"""Patches that travel: a true card, pushing to the Hugging Face Hub, and loading what was checked first.

What travels is safetensors and JSON; no pickle is read or written.
"""

from .audit import audit_part, read_audit
from .card import patch_card
from .local import Patch, read_patch, save_adapter
from .provenance import describe_data, describe_generator, kind_of
from .pull import load_patch, pull_patch
from .push import push_patch
from .summary import describe_patch

__all__ = [
    "Patch",
    "audit_part",
    "describe_data",
    "describe_generator",
    "describe_patch",
    "kind_of",
    "load_patch",
    "patch_card",
    "pull_patch",
    "push_patch",
    "read_audit",
    "read_patch",
    "save_adapter",
]
